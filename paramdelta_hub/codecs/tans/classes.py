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
from paramdelta_hub.numerics.scratch import scratch

__all__ = ["choose_classes"]

FROM_ELEMENTS = 1 << 15
"""Smaller chunks have one class: their tables would cost more than they save."""
CLASSES = 4
ROUNDS = 6
SAMPLED = 4
"""Of how many elements one is looked at while classes are chosen."""
LOOKED_AT = 16
"""And to see whether blocks differ at all."""
TRIED = 1
"""The round in which classes are given up if they, with their tables, do not save anything yet."""
ENTRY_BITS = 7
"""What an entry of another table is taken to cost."""


def choose_classes(
    indices: NDArray[np.uint16], counts: NDArray[np.int64], exponents: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the class of each block, and how often each symbol occurs in each class.

    A class that no block is of is said to have the last symbol once.

    Args:
        indices: the number of each element's symbol.
        counts: how often each symbol occurs.
        exponents: of each symbol's values; 0 where they have none.
    """
    blocks, whole = -(-indices.size // BLOCK), indices.size // BLOCK
    one, counts = np.zeros(blocks, np.uint8), counts.reshape(1, -1)
    if indices.size < FROM_ELEMENTS:
        return one, counts
    lengths = np.empty((counts.size, 1), np.int32)
    fewest = sum(_measure(counts, lengths))
    scales = _scales(indices[: whole * BLOCK], counts[0], lengths[:, 0], exponents)
    if scales is None:
        return one, counts
    chosen = np.zeros(blocks, np.uint8)
    chosen[np.argsort(scales, kind="stable")] = np.arange(whole) * CLASSES // whole
    own, lengths = np.empty((CLASSES, counts.size), np.int64), np.empty((counts.size, CLASSES), np.int32)
    sample = scratch("sample of symbols", whole * BLOCK // SAMPLED, np.uint16)
    np.copyto(sample, indices[: whole * BLOCK : SAMPLED])
    for number in range(ROUNDS):
        _count(sample, chosen[:whole], BLOCK // SAMPLED, own)
        taken, tables = _measure(own, lengths)
        if number == TRIED and SAMPLED * taken + tables > fewest:
            return one, counts
        if not _assign(sample, lengths, chosen[:whole]):
            break
    _count(indices, chosen, BLOCK, own)
    own[own.sum(axis=1) == 0, -1] = 1  # a class that no block is of has a table all the same
    if sum(_measure(own, lengths)) + 2 * blocks * UNIT < fewest:
        return chosen, own
    return one, counts


def _scales(
    indices: NDArray[np.uint16], counts: NDArray[np.int64], lengths: NDArray[np.int32], exponents: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    """Return what tells the scale of each block, or nothing if blocks differ by no more than chance.

    Two things are tried: what a block takes by one table, and its exponents. By chance, sums of elements vary as many
    times as much as single elements.
    """
    total = int(counts.sum())
    weights = np.empty((counts.size, 2), np.int64)
    weights[:, 0] = lengths >> 6  # squares of all then add up to less than 2⁶³
    weights[:, 1] = np.where(exponents > 0, exponents << 8, 0)
    for column, present in enumerate((counts, np.where(exponents > 0, counts, 0))):
        mean = int(weights[:, column] @ present) // max(int(present.sum()), 1)
        weights[:, column] = np.where(present > 0, weights[:, column] - mean, 0)
    of_elements = counts @ weights**2
    sums = np.empty((indices.size // BLOCK, 2), np.int64)
    _sum_blocks(indices, weights, sums)
    of_blocks = ((sums - sums.sum(axis=0) // len(sums)) ** 2).sum(axis=0)
    expected = [int(each) * (BLOCK // LOOKED_AT) * len(sums) for each in of_elements]
    found = [int(each) * total for each in of_blocks]
    best = int(found[1] * expected[0] > found[0] * expected[1])
    return sums[:, best] if 8 * found[best] > 9 * expected[best] else None


@compiled
def _measure(counts: Any, lengths: Any) -> Any:
    """Fill in the length of each symbol's code in each class; return what symbols take, and tables, in units.

    A symbol that a class has not is taken to occur a sixteenth of a time.
    """
    taken, tables = 0, 0
    for row in range(len(counts)):
        total = 0
        for count in counts[row]:
            total += count
        whole, smooth = log2(max(total, 1)), log2(16 * total + counts.shape[1])
        for symbol in range(counts.shape[1]):
            count = counts[row, symbol]
            lengths[symbol, row] = smooth - log2(16 * count + 1)
            if count:
                taken += count * (whole - log2(count))
                tables += ENTRY_BITS * UNIT
    return taken, tables


@compiled
def _sum_blocks(indices: Any, weights: Any, sums: Any) -> None:
    """Fill in the sums of two weights of some elements of each block."""
    for block in range(len(sums)):
        first, second = 0, 0
        for index in indices[block * BLOCK : (block + 1) * BLOCK : LOOKED_AT]:
            first += weights[index, 0]
            second += weights[index, 1]
        sums[block, 0], sums[block, 1] = first, second


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
