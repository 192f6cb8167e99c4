"""The table in docs/security.md is what the tests say, and covers every threat."""

from __future__ import annotations

import re

import make_security
import pytest

from tests.attacks import threats
from tests.attacks.threats import THREATS


def test_the_document_has_the_table_that_the_tests_make() -> None:
    text = make_security.DOCUMENT.read_text(encoding="utf-8")
    assert make_security.with_table(text) == text, "run scripts/make_security.py"


def test_every_threat_has_a_figure_and_every_file_is_there() -> None:
    table = make_security.make_table()
    assert re.findall(r"^\| \*\*(.*?)\*\*", table, re.MULTILINE) == list(THREATS)
    for file in re.findall(r"\(\.\./([^)]*)\)", table):
        assert (make_security.ROOT / file).is_file()


def test_a_threat_that_nothing_shows_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(threats.THREATS, "a new one", "nothing yet")
    with pytest.raises(ValueError, match="a new one"):
        make_security.make_table()


def test_a_figure_without_its_test_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = threats.ELSEWHERE[0]._replace(test="test_gone")
    monkeypatch.setattr(threats, "ELSEWHERE", (gone,))
    with pytest.raises(ValueError, match="test_gone"):
        make_security.make_table()
