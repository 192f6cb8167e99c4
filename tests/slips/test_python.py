"""Slips in Python, and what only looks like one: weights are taken one way, or refused in words."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import paramdelta_hub as pd
from paramdelta_hub.limits import LARGEST_WEIGHT
from tests.registry.packages import tree
from tests.slips.conftest import Home
from tests.slips.table import AREAS, slip

OVERWRITE, WEIGHTS, RULES, REGISTRIES, MODELS, NAMES = AREAS

FORMS: dict[str, Callable[[str], Any]] = {
    "a mapping": lambda delta: {delta: 0.5},
    "a mapping from a path": lambda delta: {Path(delta): 0.5},
    "a pair": lambda delta: (delta, 0.5),
    "a list of pairs": lambda delta: [(delta, 0.5)],
    "a pair with NumPy's number": lambda delta: (delta, np.float32(0.5)),
    "a text, as on the command line": lambda delta: f"{delta}=0.5",
    "a WeightedDelta": lambda delta: pd.WeightedDelta(delta, 0.5),
}


@slip(WEIGHTS, "`apply(…, {delta: 0.5}, …)`, pairs, texts", "the weight counts, as by `DELTA=0.5` on the command line")
def test_weights_are_taken_one_way(home: Home) -> None:
    assert home.run("apply", "target", "delta=0.5", "-o", "expected")[0] == 0
    expected = tree(home.work / "expected")
    for number, (what, form) in enumerate(FORMS.items()):
        report = pd.apply("target", form("delta"), f"out{number}", threads=1)
        assert report.deltas[0].weight == 0.5, what
        assert tree(home.work / f"out{number}") == expected, what


@slip(WEIGHTS, "two deltas in a mapping", "each has its own weight")
def test_several_in_a_mapping(home: Home) -> None:
    report = pd.apply("target", {"delta": 0.5, "old-delta": -0.25}, "out", force=True, threads=1)
    assert [(d.package.manifest.version, d.weight) for d in report.deltas] == [("1.0.0", 0.5), ("0.9.0", -0.25)]


REFUSED: dict[str, Any] = {
    "a weight that is a string": {"delta": "0.5"},
    "a weight that is true": {"delta": True},
    "no weight": {"delta": None},
    "a list for a weight": {"delta": [0.5]},
    "NaN": {"delta": math.nan},
    "infinity": ("delta", -math.inf),
    "a hundred": [("delta", 100)],
    "a triple": [("delta", 0.5, 1.0)],
    "a pair the wrong way round": [(0.5, "delta")],
    "a set": {"delta", "old-delta"},
    "a generator": (name for name in ["delta"]),
    "bytes": b"delta",
    "a number": 0.5,
    "nothing": None,
    "an empty list": [],
    "an empty mapping": {},
    "an empty name": "=0.5",
}


@slip(
    WEIGHTS,
    f"weights and lists of {len(REFUSED)} other kinds: texts, `True`, sets, NaN, 100 …",
    "each refused in words",
)
@pytest.mark.parametrize("deltas", REFUSED.values(), ids=REFUSED)
def test_everything_else_is_refused_in_words(home: Home, deltas: Any) -> None:
    with pytest.raises(pd.OptionError) as caught:
        pd.apply("target", deltas, "out", threads=1)
    assert len(str(caught.value)) > 10
    assert not (home.work / "out").exists()


def test_the_limit_of_weights(home: Home) -> None:
    for weight in (LARGEST_WEIGHT, -LARGEST_WEIGHT, 0, 1):
        assert pd.WeightedDelta("delta", weight).weight == weight
    for weight in (math.nextafter(LARGEST_WEIGHT, math.inf), -11):
        with pytest.raises(pd.OptionError, match="limit"):
            pd.WeightedDelta("delta", weight)
    with pytest.raises(pd.OptionError, match="weight times factor"):
        pd.apply("target", {"delta": 4.0}, "out", weight_map={"mlp": 4.0}, threads=1)


def test_a_folder_whose_name_holds_an_equals_sign(home: Home) -> None:
    shutil.copytree(home.work / "delta", home.work / "delta=0.5")
    assert pd.apply("target", "delta=0.5", "out", threads=1).deltas[0].weight == 1.0
    assert pd.apply("target", "delta=0.5=0.25", "half", threads=1).deltas[0].weight == 0.25


@slip(WEIGHTS, "`weight_map` as a mapping or as pairs", "taken; anything else is refused in words")
def test_weight_maps_are_taken_one_way(home: Home) -> None:
    assert home.run("apply", "target", "delta", "-o", "expected", "--weight-map", "mlp=0.5")[0] == 0
    forms: list[Any] = [{"mlp": 0.5}, [("mlp", 0.5)], ["mlp=0.5"], pd.WeightMap((("mlp", 0.5),))]
    for number, form in enumerate(forms):
        pd.apply("target", "delta", f"out{number}", weight_map=form, threads=1)
        assert tree(home.work / f"out{number}") == tree(home.work / "expected")
    odd: list[Any] = ["mlp=0.5", {"mlp": "0.5"}, {"mlp": math.nan}, [("mlp",)], 0.5, {"(": 1.0}, {3: 1.0}]
    for form in odd:
        with pytest.raises(pd.OptionError):
            pd.apply("target", "delta", "out", weight_map=form, threads=1)


@slip(RULES, '`Rules(skips="lm_head")`, a text for a list', "refused: every letter would be a pattern")
def test_a_text_for_a_list_of_patterns() -> None:
    for name in ("skips", "carries", "renames"):
        with pytest.raises(pd.OptionError, match="must be a list"):
            pd.Rules(**{name: "lm_head"})
    with pytest.raises(pd.OptionError, match="a pattern is a string"):
        pd.Rules(skips=(3,))  # type: ignore[arg-type]
    with pytest.raises(pd.OptionError, match="a pair"):
        pd.Rules(renames=("a=b",))  # type: ignore[arg-type]
    assert pd.Rules(skips=["a"], renames={"b": "c"}) == pd.Rules(skips=("a",), renames=(("b", "c"),))  # type: ignore[arg-type]


@slip(NAMES, '`prefer="pots"`, and other choices misspelled in Python', "refused, with what it can be")
def test_choices_are_checked_in_python_too(home: Home) -> None:
    odd: list[dict[str, Any]] = [
        {"prefer": "pots"},
        {"companions": "all"},
        {"dtype": "fp8"},
        {"stream": "no"},
        {"force": 1},
    ]
    for options in odd:
        (name,) = options
        with pytest.raises(pd.OptionError, match=name):
            pd.apply("target", "delta", "out", threads=1, **options)
    odd = [{"rules": ["lm_head"]}, {"rules": pd.Rules(carries=("score",))}, {"threads": "2"}, {"memory": "1G"}]
    for options in [*odd, {"overwrite": "no"}]:
        with pytest.raises(pd.OptionError):
            pd.apply("target", "delta", "out", **options)
    with pytest.raises(pd.OptionError, match="hash_files"):
        pd.extract("base", "post", "out", hash_files="yes", threads=1)  # type: ignore[arg-type]


@slip(MODELS, "`--force` where a slip was meant", "told in the report, the provenance and the card")
def test_what_is_forced_is_told(home: Home) -> None:
    twice = pd.apply("target", ["delta", "delta"], "twice", force=True, threads=1)
    assert "post-delta 1.0.0 is given 2 times" in twice.notes
    again = pd.apply("new-model", "delta", "again", force=True, threads=1)
    (note,) = [note for note in again.notes if "added again" in note]
    for name in ("paramdelta_provenance.json", "README.md"):
        assert "added again" in (home.work / "again" / name).read_text().replace("&#32;", " ")
    assert "says that it was applied before" in note


def test_a_delta_may_be_taken_back(home: Home) -> None:
    """A negative weight on a model that has the delta is no slip: it gives the model before it, or nearly so."""
    assert pd.apply("new-model", {"delta": -1.0}, "back", threads=1).deltas[0].weight == -1.0


@slip(NAMES, "a dry run that finds too little space", "its report, then the exit code of the real run, 7")
def test_a_dry_run_ends_as_the_real_run_would(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(home.work)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    code, text = home.run("apply", "target", "delta", "-o", "out", "--dry-run")
    assert code == 7
    assert "dry run: nothing is written" in text
    assert "NOT enough" in text
    assert "100 B are free" in text
    assert home.run("apply", "target", "delta", "-o", "out")[0] == 7
    assert not (home.work / "out").exists()


@slip(
    NAMES, "`-o '~/out'`, with a tilde that no shell has seen", "the home folder, in inputs and outputs; no folder `~`"
)
def test_a_tilde_in_quotes(home: Home) -> None:
    assert home.run("extract", "~/work/base", "~/work/post", "-o", "~/out")[0] == 0
    assert home.run("apply", "~/work/target", "~/out=0.5", "-o", "~/model")[0] == 0
    assert home.run("verify", "~/model")[0] == 0
    assert home.run("inspect", "~/out", "--html", "~/out.html")[0] == 0
    assert sorted(path.name for path in home.root.iterdir()) == ["letters.txt", "model", "out", "out.html", "work"]
    assert not (home.work / "~").exists()


@slip(NAMES, "forgot `--license`, or gave a wrong version or name", "`paramdelta relabel`, without the two models")
def test_relabel_needs_no_model(home: Home) -> None:
    for model in ("base", "post", "target"):
        shutil.rmtree(home.work / model)
    code, text = home.run("relabel", "delta", "-o", "fixed", "--license", "apache-2.0", "--version", "1.0.1")
    assert code == 0, text
    assert home.run("verify", "fixed")[0] == 0


@slip(NAMES, "publish", "the local folder stays as it is, to the byte and the time")
def test_publishing_only_reads(home: Home) -> None:
    before = {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in (home.work / "delta").rglob("*")
        if path.is_file()
    }
    code, text = home.run("publish", "delta", "org/other", "--registry", "registry")
    assert code == 0, text
    assert str(home.work / "registry/org/other") in text
    after = {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in (home.work / "delta").rglob("*")
        if path.is_file()
    }
    assert after == before
