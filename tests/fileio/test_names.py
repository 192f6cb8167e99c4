"""File names that are safe on every system: 300 hostile ones, and those that models really use."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta_hub.errors import CheckpointError, PackageError
from paramdelta_hub.fileio.names import check_file_name, check_file_names, check_tensor_name, is_clear, shown
from tests.attacks.names import HOSTILE

GOOD = (
    "model.safetensors", "model-00001-of-00191.safetensors", "delta-00001-of-00003.safetensors", "tokenizer.json",
    "companions/tokenizer_config.json", "companions/1_Pooling/config.json", "README.md", "a/b/c/d", "a", "A-_.9",
    "console.json", "com.txt", "nullify", "auxiliary.model", "comet10", "-x", "_x", "a..b", "x" * 255,
)  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_names_in_use(name: str) -> None:
    assert check_file_name(name) == name


def test_there_are_300_hostile_names() -> None:
    assert len(set(HOSTILE)) == len(HOSTILE) >= 300
    assert not set(HOSTILE) & set(GOOD)


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: repr(name[:40]))
def test_hostile_names(name: str) -> None:
    with pytest.raises(CheckpointError, match="unsafe file name"):
        check_file_name(name, CheckpointError)


@given(st.text(max_size=40) | st.from_regex(r"[A-Za-z0-9._\-/]{1,40}", fullmatch=True))
def test_an_accepted_name_stays_inside_its_folder_on_every_system(name: str) -> None:
    try:
        check_file_name(name)
    except PackageError:
        return
    folder = Path("/some/folder")
    assert folder in (folder / name).resolve().parents
    windows = PureWindowsPath(name)
    assert not windows.drive
    assert not windows.root
    assert ".." not in windows.parts
    assert "/".join(windows.parts) == name
    assert name.isascii()
    assert all(not part.startswith(".") and part.rstrip(". ") == part for part in name.split("/"))


COLLIDING = (
    ("a", "a"), ("a", "A"), ("Delta.safetensors", "delta.safetensors"), ("companions/x.json", "companions/X.json"),
    ("README.md", "readme.MD"), ("Companions/x", "companions/x"),
)  # fmt: skip


@pytest.mark.parametrize("pair", COLLIDING)
def test_names_that_are_one_file_where_case_does_not_count(pair: tuple[str, str]) -> None:
    with pytest.raises(PackageError, match="collide"):
        check_file_names(["other", *pair])


def test_one_file_listed_twice() -> None:
    """Equal names collide whether or not they are one object in memory, which is up to the JSON parser."""
    name = "delta-00001-of-00001.safetensors"
    for again in (name, "".join(list(name))):
        with pytest.raises(PackageError, match="collide"):
            check_file_names([name, again])


def test_different_names_do_not_collide() -> None:
    check_file_names(GOOD)


@pytest.mark.parametrize(
    "name", ["a", "model.layers.0.self_attn.q_proj.weight", "../../etc/passwd", "Δ", "a b", "x" * 1024, "é" * 512]
)
def test_tensor_names(name: str) -> None:
    """They never become paths, so that a slash or two dots do no harm."""
    assert check_tensor_name(name) == name


BAD_TENSORS = [
    "",
    "a\n",
    "\x00",
    "\x1b[2J",
    "a\tb",
    "\u202eabc",
    "\u2028",
    "\ud800",
    "x" * 1025,
    "é" * 513,
    "\u200b",
    "\x7f",
    "\x85",
    "\ufeff",
    "\u2066",
]


@pytest.mark.parametrize("name", BAD_TENSORS, ids=lambda name: repr(name[:10]))
def test_tensor_names_that_could_fool_a_reader(name: str) -> None:
    with pytest.raises(PackageError, match="unsafe tensor name"):
        check_tensor_name(name)


@given(st.text())
def test_what_is_shown_is_clear_and_tells_what_it_was(text: str) -> None:
    assert is_clear(shown(text))
    assert shown(text) == text or repr(text) == f"{repr(text)[0]}{shown(text)}{repr(text)[0]}"


def test_words_in_any_script_are_shown_as_they_are() -> None:
    assert shown("Δ 模型 é 😀") == "Δ 模型 é 😀"
    assert shown("a\x1b[2J\u202eb\n") == r"a\x1b[2J\u202eb\n"
