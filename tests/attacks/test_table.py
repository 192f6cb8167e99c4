"""The table in docs/security.md is what the tests say, and covers every threat."""

from __future__ import annotations

import re

import pytest

from scripts.tools.make_tables import ROOT, SECURITY
from tests.attacks import threats
from tests.attacks.threats import THREATS


def test_the_document_has_the_table_that_the_tests_make() -> None:
    assert SECURITY.filled() == SECURITY.document.read_text(encoding="utf-8"), "run python -m scripts.tools.make_tables"


def test_every_threat_has_a_figure_and_every_file_is_there() -> None:
    table = SECURITY.text()
    assert re.findall(r"^\| \*\*(.*?)\*\*", table, re.MULTILINE) == list(THREATS)
    for file in re.findall(r"\(\.\./([^)]*)\)", table):
        assert (ROOT / file).is_file()


def test_a_threat_that_nothing_shows_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(threats.THREATS, "a new one", "nothing yet")
    with pytest.raises(ValueError, match="a new one"):
        SECURITY.text()


def test_a_figure_without_its_test_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = threats.ELSEWHERE[0]._replace(test="test_gone")
    monkeypatch.setattr(threats, "ELSEWHERE", (gone,))
    with pytest.raises(ValueError, match="test_gone"):
        SECURITY.text()
