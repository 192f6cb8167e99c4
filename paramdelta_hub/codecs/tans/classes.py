"""Classes of blocks: up to four tables a chunk, each for the blocks of 256 elements that it suits best.

Rows and columns of a weight matrix are trained at different rates, so deltas of one chunk have different scales. Blocks
are sorted by scale first, and then go to the table that codes them in the fewest bits, a few times over.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.codecs.tans.coder import BLOCK
from paramdelta_hub.numerics.compiled import compiled

__all__ = ["choose_classes"]

FROM_ELEMENTS = 1 << 15
"""Smaller chunks have one class: their tables would cost more than they save."""
ROUNDS = 5
ENTRY_BITS = 7.0
"""What an entry of another table is taken to cost."""


def choose_classes(
    values: NDArray[Any], indices: NDArray[np.uint16], size: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the class of each block, and how often each symbol occurs in each class.

    Args:
        values: bits of the values.
        indices: the number of each one's symbol.
        size: how many symbols there are.
    """
    blocks = -(-values.size // BLOCK)
    one = np.zeros(blocks, np.uint8)
    counts = np.bincount(indices, minlength=size)[None]
    best = one, counts
    if values.size < FROM_ELEMENTS:
        return best
    fewest = _bits(counts)
    scales = _scales(indices, size, counts[0])
    for classes in (2, 4):
        chosen = np.empty(blocks, np.uint8)
        chosen[np.argsort(scales, kind="stable")] = np.arange(blocks) * classes // blocks
        own = np.empty((classes, size), np.int64)
        for _ in range(ROUNDS):
            _count(indices, chosen, own)
            if not _assign(indices, _lengths(own), chosen):
                break
        _count(indices, chosen, own)
        bits = _bits(own) + blocks * (classes.bit_length() - 1)
        if bits < fewest and own.sum(axis=1).all():
            best, fewest = (chosen, own), bits
    return best


def _lengths(counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the length of each symbol's code in each class, in bits."""
    smooth = counts + 0.05
    lengths: NDArray[np.float32] = np.log2(smooth.sum(axis=1, keepdims=True) / smooth).astype(np.float32)
    return lengths


def _bits(counts: NDArray[np.int64]) -> float:
    """Return about how many bits the symbols of all classes take, and the tables."""
    with np.errstate(divide="ignore", invalid="ignore"):
        taken = np.where(counts > 0, counts * np.log2(counts.sum(axis=1, keepdims=True) / counts), 0.0)
    return float(taken.sum() + ENTRY_BITS * np.count_nonzero(counts))


def _scales(indices: NDArray[np.uint16], size: int, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return for each block what its elements take by the one table: long codes are far from the middle."""
    scales = np.zeros(-(-indices.size // BLOCK))
    _cost_of_blocks(indices, _lengths(counts[None])[0], scales)
    return scales


@compiled
def _cost_of_blocks(indices: Any, lengths: Any, costs: Any) -> None:
    for block in range(costs.size):
        total = np.float32(0.0)
        for index in indices[block * BLOCK : (block + 1) * BLOCK]:
            total += lengths[index]
        costs[block] = total


@compiled
def _count(indices: Any, classes: Any, counts: Any) -> None:
    """Count the symbols of each class."""
    counts[:] = 0
    for block in range(classes.size):
        row = counts[classes[block]]
        for index in indices[block * BLOCK : (block + 1) * BLOCK]:
            row[index] += 1


@compiled
def _assign(indices: Any, lengths: Any, classes: Any) -> int:
    """Give each block the class that takes the fewest bits; return how many changed."""
    changed = 0
    totals = np.empty(len(lengths), np.float32)
    for block in range(classes.size):
        totals[:] = np.float32(0.0)
        for index in indices[block * BLOCK : (block + 1) * BLOCK]:
            for one in range(len(lengths)):
                totals[one] += lengths[one, index]
        best = 0
        for one in range(len(lengths)):
            if totals[one] < totals[best]:
                best = one
        changed += classes[block] != best
        classes[block] = best
    return changed
