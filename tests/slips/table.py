"""What a slip comes to: the rows of the table in docs/slips.md, each made by a test.

``scripts/tools/make_tables.py`` gathers them, and ``tests/slips/test_table.py`` holds document and tests together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tests.support.table_rows import F, makes_row

__all__ = ["AREAS", "Row", "slip", "slips"]

AREAS = (
    "what `--overwrite` replaces",
    "weights",
    "rules",
    "registries",
    "which model, which delta",
    "names, licenses, paths, disks",
)
"""The parts of the table, in order."""


class Row(NamedTuple):
    """A slip, and what happens."""

    area: str
    slip: str
    happens: str


def slip(area: str, what: str, happens: str) -> Callable[[F], F]:
    """Mark a test as the one that shows what comes of a slip."""
    assert area in AREAS, area
    return makes_row("slips", area, what, happens)


def slips(*rows: Row) -> Callable[[F], F]:
    """Mark a test as the one that shows what comes of several."""

    def mark(test: F) -> F:
        for row in reversed(rows):
            test = slip(*row)(test)
        return test

    return mark
