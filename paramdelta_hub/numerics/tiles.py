"""Rectangles of a matrix: how a run of its elements, which may begin and end within a row, is cut into them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["tiles"]


def tiles(wide: NDArray[np.float32], columns: int, first: int) -> Iterator[tuple[NDArray[np.float32], int, int]]:
    """Cut a run of elements into rectangles: (rectangle, its row, its column): whole rows, and parts of at most two.

    Args:
        wide: elements ``first`` and following of a matrix, flat; the rectangles are views of them.
        columns: of the matrix.
        first: position of the first element in the matrix, counted in elements.
    """
    at = 0
    while at < wide.size:
        row, column = divmod(first + at, columns)
        left = wide.size - at
        size = min(columns - column, left) if column or left < columns else left // columns * columns
        yield wide[at : at + size].reshape(-1, min(columns, size)), row, column
        at += size
