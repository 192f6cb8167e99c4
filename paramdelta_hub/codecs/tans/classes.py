"""Classes of blocks: up to four tables a chunk, each for the blocks of 256 elements that it suits best.

Rows and columns of a weight matrix are trained at different rates, so deltas of one chunk have different scales. Blocks
are sorted by scale first, and then go to the table that codes them in the fewest bits, a few times over.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.codecs.tans.coder import BLOCK
from paramdelta_hub.codecs.tans.logarithm import UNIT, log2
from paramdelta_hub.numerics.compiled import compiled

__all__ = ["choose_classes"]

FROM_ELEMENTS = 1 << 15
"""Smaller chunks have one class: their tables would cost more than they save."""
CLASSES = 4
ROUNDS = 6
SAMPLED = 4
"""Of how many elements one is looked at while classes are chosen."""
TRIED = 1
"""The round in which classes are given up if they, with their tables, do not save anything yet."""
ENTRY_BITS = 7
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
    lengths = np.empty((size, 1), np.int32)
    fewest = _measure(counts, lengths)
    whole = values.size // BLOCK
    sample = indices[: whole * BLOCK : SAMPLED].copy()
    costs = np.empty(whole, np.int64)
    _cost_of_blocks(sample, lengths, costs)
    chosen = np.zeros(blocks, np.uint8)
    chosen[np.argsort(costs, kind="stable")] = np.arange(whole) * CLASSES // whole
    own, lengths = np.empty((CLASSES, size), np.int64), np.empty((size, CLASSES), np.int32)
    for number in range(ROUNDS):
        _count(sample, chosen[:whole], BLOCK // SAMPLED, own)
        taken = _measure(own, lengths)
        if number == TRIED and SAMPLED * taken > fewest:
            return one, counts
        if not _assign(sample, lengths, chosen[:whole]):
            break
    _count(indices, chosen, BLOCK, own)
    own[own.sum(axis=1) == 0, -1] = 1  # a class that no block is of has a table all the same
    if _measure(own, lengths) + 2 * blocks * UNIT < fewest:
        return chosen, own
    return one, counts


@compiled
def _measure(counts: Any, lengths: Any) -> Any:
    """Fill in the length of each symbol's code in each class; return what all symbols take, and the tables, in units.

    A symbol that a class has not is taken to occur a sixteenth of a time.
    """
    taken = 0
    for row in range(len(counts)):
        total = 0
        for count in counts[row]:
            total += count
        whole, smooth = log2(max(total, 1)), log2(16 * total + counts.shape[1])
        for symbol in range(counts.shape[1]):
            count = counts[row, symbol]
            lengths[symbol, row] = smooth - log2(16 * count + 1)
            if count:
                taken += count * (whole - log2(count)) + ENTRY_BITS * UNIT
    return taken


@compiled
def _cost_of_blocks(sample: Any, lengths: Any, costs: Any) -> None:
    """Fill in about how many bits each block takes by one table."""
    each = sample.size // costs.size
    for block in range(costs.size):
        total = 0
        for index in sample[block * each : (block + 1) * each]:
            total += lengths[index, 0]
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
    for block in range(classes.size):
        a, b, c, d = np.int32(0), np.int32(0), np.int32(0), np.int32(0)
        for index in sample[block * each : (block + 1) * each]:
            column = lengths[index]
            a = np.int32(a + column[0])
            b = np.int32(b + column[1])
            c = np.int32(c + column[2])
            d = np.int32(d + column[3])
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
