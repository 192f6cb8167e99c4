"""The table in docs/checkpoints.md is what the tests say, has every kind, and a remedy that works for every refusal."""

from __future__ import annotations

import re

import pytest

from paramdelta_hub.errors import CheckpointError
from scripts.tools.make_tables import KINDS as TABLE
from scripts.tools.make_tables import ROOT
from tests.support import kinds
from tests.support.kinds import KINDS, REFUSED, kind, remedied, rules_of

LEAST = 60


def test_the_document_has_the_table_that_the_tests_make() -> None:
    assert TABLE.filled() == TABLE.document.read_text(encoding="utf-8"), "run python -m scripts.tools.make_tables"


def test_every_kind_has_rows_and_every_file_is_there() -> None:
    made = TABLE.text()
    assert re.findall(r"^\| \*\*(.*?)\*\*", made, re.MULTILINE) == list(KINDS)
    assert made.count("\n") - 2 >= LEAST
    for file in re.findall(r"\(\.\./([^)]*)\)", made):
        assert (ROOT / file).is_file()


def test_every_refusal_has_a_remedy_and_nothing_else_has() -> None:
    for row in TABLE.rows():
        _, happens, remedy = row.cells
        assert happens.startswith(REFUSED) == bool(remedy), row


def test_a_kind_that_nothing_shows_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "KINDS", (*KINDS, "a new one"))
    with pytest.raises(ValueError, match="a new one"):
        TABLE.text()


def test_a_test_of_a_refusal_fails_unless_its_remedy_works() -> None:
    """By a remedy that the message does not have, that does not work, or that nobody tries."""
    error = CheckpointError("what", remedy="do this, or that with --skip '^a b$'")

    def refuses(tries: str | None, works: bool = True) -> None:
        @kind(KINDS[0], "something", refused="for a reason", remedy="do this")
        def test() -> None:
            if tries is not None:
                with remedied(error, tries):
                    assert works

        test()

    refuses("do this")
    for tries, works in ((None, True), ("something else", True), ("do this", False)):
        with pytest.raises(AssertionError):
            refuses(tries, works)
    assert rules_of(error).skips == ("^a b$",)
    for text in (
        {},
        {"works": "yes", "refused": "no", "remedy": "x"},
        {"refused": "no"},
        {"works": "a", "remedy": "b"},
    ):
        with pytest.raises(AssertionError):
            kind(KINDS[0], "something", **text)
