"""The table in docs/slips.md is what the tests say, has every area, and at least forty slips."""

from __future__ import annotations

import re

import pytest

from scripts.tools.make_tables import ROOT, SLIPS
from tests.slips import table
from tests.slips.table import AREAS

LEAST = 40


def test_the_document_has_the_table_that_the_tests_make() -> None:
    assert SLIPS.filled() == SLIPS.document.read_text(encoding="utf-8"), "run python -m scripts.tools.make_tables"


def test_every_area_has_slips_and_every_file_is_there() -> None:
    made = SLIPS.text()
    assert re.findall(r"^\| \*\*(.*?)\*\*", made, re.MULTILINE) == list(AREAS)
    assert made.count("\n") - 2 >= LEAST
    for file in re.findall(r"\(\.\./([^)]*)\)", made):
        assert (ROOT / file).is_file()


def test_an_area_that_nothing_shows_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "AREAS", (*AREAS, "a new one"))
    with pytest.raises(ValueError, match="a new one"):
        SLIPS.text()
