"""What a slip comes to: the rows of the table in docs/slips.md, each made by a test.

``scripts/tools/make_tables.py`` gathers them, and ``tests/slips/test_table.py`` holds document and tests together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

__all__ = ["AREAS", "Row", "slip"]

F = TypeVar("F", bound=Callable[..., object])

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

    def mark(test: F) -> F:
        test.__dict__.setdefault("slips", []).append(Row(area, what, happens))
        return test

    return mark
