"""Runs of rows: a compact list of where each row of a vocabulary tensor comes from."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from paramdelta_hub.errors import PackageError

__all__ = ["ElementRuns", "Run", "check_runs"]


class Run(NamedTuple):
    """Rows [first, first + number) come from rows [source, source + number), or from nowhere where source is None."""

    first: int
    source: int | None
    number: int


def check_runs(runs: Iterable[Run], rows: int, source_rows: int) -> None:
    """Refuse runs, read from a stranger's manifest, that are not the one way to say where ``rows`` rows come from.

    Raises:
        PackageError: gaps, overlaps, empty runs, two that could be one, rows beyond ``rows`` or ``source_rows``.
    """
    end, last = 0, None
    for run in runs:
        if run.first != end or not 1 <= run.number <= rows - end:
            raise PackageError(f"runs of rows that do not follow each other at row {end}")
        if run.source is not None and not 0 <= run.source <= source_rows - run.number:
            raise PackageError(f"a run of rows from {run.source}, beyond the {source_rows} there are")
        if last and (None if last.source is None else last.source + last.number) == run.source:
            raise PackageError(f"two runs of rows that are one, at row {end}")
        end, last = end + run.number, run
    if end != rows:
        raise PackageError(f"runs of {end} rows, where there are {rows}")


class ElementRuns:
    """Runs of rows as runs of elements: any range of elements is a few pieces, each from one place.

    Runs are (first, source or None, number, …), ascending, without gap; what follows the three is not looked at. A row
    has ``width`` elements.
    """

    def __init__(self, runs: Iterable[Sequence[Any]], width: int) -> None:
        self._runs = [
            (first * width, None if source is None else source * width, number * width)
            for first, source, number, *_ in runs
        ]
        self._firsts = [first for first, _, _ in self._runs]

    def pieces(self, start: int, size: int) -> Iterator[tuple[slice, int | None, int]]:
        """Cut ``size`` elements from ``start``: (place among them, source element or None, number of the run)."""
        at, end = start, start + size
        index = bisect_right(self._firsts, at) - 1
        while at < end:
            first, source, number = self._runs[index]
            stop = min(first + number, end)
            yield slice(at - start, stop - start), None if source is None else source + at - first, index
            at, index = stop, index + 1
