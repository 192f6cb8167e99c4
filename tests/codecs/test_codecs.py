"""The registry of codecs: names in manifests never change meaning."""

from __future__ import annotations

import pytest

from paramdelta_hub.codecs import CODECS, ZERO
from paramdelta_hub.codecs.by_name import REPLACING, TANS


def test_the_registry() -> None:
    assert list(REPLACING) == ["planes", "raw"], "the usual winner first"
    assert all(codec.name == name for name, codec in REPLACING.items())
    assert (TANS.name, ZERO) == ("tans", "zero")


@pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
def test_every_size_has_its_streams(itemsize: int) -> None:
    assert {name: codec.streams(itemsize) for name, codec in REPLACING.items()} == {"planes": itemsize, "raw": 1}
    assert TANS.streams == 2


def test_names_by_effect() -> None:
    assert CODECS == {"add": ("tans",), "replace": ("planes", "raw")}
    assert {"add": (TANS.name,), "replace": tuple(REPLACING)} == CODECS, "those that there are, the usual winner first"
