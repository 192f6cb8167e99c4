"""Paths that a shell or another program may hand over: the answer is an error of ours, or a result."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

import paramdelta_hub as pd
from paramdelta_hub.errors import ParamdeltaError
from tests.conftest import Family

NAMES = {
    "a space": "a b", "a line feed": "a\nb", "an escape": "a\x1b[31mb", "a quote": "a'b\"c", "a percent": "a%sb",
    "a brace": "{a}",
    "a dash": "-a", "a backslash": "a\\b", "another script": "模型", "an emoji": "😀", "a dot": "a.b.c", "a star": "*",
    "a tilde": "~a",
    "long": "x" * 200,
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(NAMES))
def test_any_name_works_in_any_place(family: Family, tmp_path: Path, case: str) -> None:
    name = NAMES[case]
    for attribute in ("base", "post", "delta"):
        moved = tmp_path / attribute / name
        moved.parent.mkdir()
        getattr(family, attribute).rename(moved)
    base, post, delta = (tmp_path / attribute / name for attribute in ("base", "post", "delta"))
    (tmp_path / "out").mkdir()
    pd.verify(delta, base=base, post=post)
    assert pd.apply(base, delta, tmp_path / "out" / name).is_post
    pd.extract(base, post, tmp_path / "again" / name, name="x")
    pd.verify(tmp_path / "again" / name)


@pytest.mark.skipif(sys.platform == "darwin", reason="this file system has none")
@pytest.mark.parametrize("attribute", ["base", "target", "delta", "out"])
def test_names_that_are_no_utf8(family: Family, tmp_path: Path, attribute: str) -> None:
    """Linux allows any bytes; plans and messages must not choke on them."""
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/odd\xff"))
    places = {"base": family.base, "target": family.target, "delta": family.delta, "out": tmp_path / "out"}
    if attribute != "out":
        places[attribute].rename(odd)
    places[attribute] = odd
    try:
        if attribute == "base":
            pd.extract(places["base"], family.post, tmp_path / "again", name="x")
        else:
            pd.apply(places["target"], places["delta"], places["out"])
    except ParamdeltaError as error:
        print(str(error).encode("utf-8", "backslashreplace"))  # can be told


IMPOSSIBLE = {
    "too long": "x" * 300,
    "far too long": "x/" * 3000 + "x",
    "a zero byte": "a\0b",
    "nothing": "",
    "the root": "/",
    "dots": "..",
}


@pytest.mark.parametrize(
    ("place", "case"),
    [(place, case) for place in ("base", "target", "delta", "out") for case in sorted(IMPOSSIBLE)],
)
def test_impossible_paths(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, case: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    odd = IMPOSSIBLE[case]
    attempts = {
        "base": lambda: pd.extract(odd, family.post, tmp_path / "again"),
        "target": lambda: pd.apply(odd, family.delta, tmp_path / "out"),
        "delta": lambda: pd.apply(family.target, odd, tmp_path / "out"),
        "out": lambda: pd.apply(family.target, family.delta, odd),
    }
    with pytest.raises(ParamdeltaError):
        attempts[place]()
    assert not (tmp_path / "out").exists()
    assert not any((tmp_path / "here").iterdir()), "folders were made for a path that can't be"
