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
CLASSES = 4
ROUNDS = 6
SAMPLED = 4
"""Of how many elements one is looked at while classes are chosen."""
TRIED = 1
PROMISING = 1.0
"""Classes are given up when their tables alone do not bring the bits below this share."""
ENTRY_BITS = 7.0
"""What an entry of another table is taken to cost."""


def choose_classes(
    values: NDArray[Any], indices: NDArray[np.uint16], size: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the class of each block, and how often each symbol occurs in each class.

    A class that no block is of is said to have the last symbol once.

    Args:
        values: bits of the values.
        indices: the number of each one's symbol.
        size: how many symbols there are.
    """
    blocks = -(-values.size // BLOCK)
    one = np.zeros(blocks, np.uint8)
    counts = np.zeros((1, size), np.int64)
    _count(indices, one, BLOCK, counts)
    if values.size < FROM_ELEMENTS:
        return one, counts
    fewest = _bits(counts)
    whole = values.size // BLOCK
    sample = indices[: whole * BLOCK : SAMPLED].copy()
    scales = np.zeros(whole)
    _cost_of_blocks(sample, _lengths(counts)[0], scales)
    chosen = np.zeros(blocks, np.uint8)
    chosen[np.argsort(scales, kind="stable")] = np.arange(whole) * CLASSES // whole
    own = np.empty((CLASSES, size), np.int64)
    for round_ in range(ROUNDS):
        _count(sample, chosen[:whole], BLOCK // SAMPLED, own)
        if round_ == TRIED and SAMPLED * _bits(own) > PROMISING * fewest:
            return one, counts
        if not _assign(sample, _lengths(own), chosen[:whole]):
            break
    _count(indices, chosen, BLOCK, own)
    own[own.sum(axis=1) == 0, -1] = 1  # a class that no block is of has a table all the same
    if _bits(own) + 2 * blocks < fewest:
        return chosen, own
    return one, counts


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


@compiled
def _cost_of_blocks(sample: Any, lengths: Any, costs: Any) -> None:
    """Fill in about how many bits each block takes by one table."""
    each = sample.size // costs.size
    for block in range(costs.size):
        total = np.float32(0.0)
        for index in sample[block * each : (block + 1) * each]:
            total += lengths[index]
        costs[block] = total


@compiled
def _count(indices: Any, classes: Any, each: int, counts: Any) -> None:
    """Count the symbols of each class, whose blocks have ``each`` of them."""
    counts[:] = 0
    odd = np.zeros_like(counts)  # apart, so that equal neighbors do not wait for each other
    for block in range(classes.size):
        row, other = counts[classes[block]], odd[classes[block]]
        part = indices[block * each : (block + 1) * each]
        for pair in range(part.size >> 1):
            row[part[2 * pair]] += 1
            other[part[2 * pair + 1]] += 1
        if part.size & 1:
            row[part[part.size - 1]] += 1
    counts += odd


@compiled
def _assign(sample: Any, lengths: Any, classes: Any) -> Any:
    """Give each block the class that takes the fewest bits; return how many changed."""
    changed = 0
    each = sample.size // classes.size
    columns = lengths.T.copy()
    for block in range(classes.size):
        a, b, c, d = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
        for index in sample[block * each : (block + 1) * each]:
            column = columns[index]
            a += column[0]
            b += column[1]
            c += column[2]
            d += column[3]
        best = 0
        if b < a:
            a, best = b, 1
        if c < a:
            a, best = c, 2
        if d < a:
            best = 3
        changed += classes[block] != best
        classes[block] = best
    return changed
