"""How a test says which row of a table in docs/ it makes; ``scripts/tools/make_tables.py`` gathers the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

__all__ = ["makes_row", "rows_of"]

F = TypeVar("F", bound=Callable[..., object])


def makes_row(table: str, area: str, *cells: str) -> Callable[[F], F]:
    """Mark a test as the one that makes a row of a table, in one of its areas."""

    def mark(test: F) -> F:
        # In the order in which they are read: decorators are applied from the last to the first.
        test.__dict__.setdefault("table_rows", []).insert(0, (table, area, *cells))
        return test

    return mark


def rows_of(test: object, table: str) -> list[tuple[str, ...]]:
    """Return the rows of a table that a test makes: the area, then the cells."""
    return [row[1:] for row in getattr(test, "table_rows", ()) if row[0] == table]
