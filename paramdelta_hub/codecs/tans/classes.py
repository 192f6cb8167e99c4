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
"""How many elements of a block are looked at to see whether blocks differ at all."""
CHANCE = 9 / 8
"""Up to how many times as much as by chance blocks that are alike may vary."""
SETTLED = 100
"""Fewer blocks than one of so many change their class in a round that is the last."""
TRIED = 1
"""The round in which classes are given up if they, with their tables, do not save anything yet."""
_U = np.uint64
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
    scales = _scales(indices, counts[0], lengths[:, 0], exponents)
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
        if SETTLED * _assign(sample, lengths, chosen[:whole]) < whole:
            break
    _count(indices, chosen, BLOCK, own)
    own[own.sum(axis=1) == 0, -1] = 1  # a class that no block is of has a table all the same
    if sum(_measure(own, lengths)) + 2 * blocks * UNIT < fewest:
        return chosen, own
    return one, counts


def _scales(
    indices: NDArray[np.uint16], counts: NDArray[np.int64], lengths: NDArray[np.int32], exponents: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    """Return what tells the scale of each whole block, or nothing if blocks differ by no more than chance.

    Two things are tried: what elements take by one table, and their exponents.
    """
    found, best = None, CHANCE
    for weights, present in ((lengths >> 6, counts), (exponents << 8, np.where(exponents > 0, counts, 0))):
        weights = weights.astype(np.int64)  # so small that squares of all, even of the largest, add up to less than 2⁶³
        weights = np.where(present > 0, weights - int(weights @ present) // max(int(present.sum()), 1), 0)
        scales = np.empty(indices.size // BLOCK, np.int64)
        excess = _sum_blocks(indices, counts, weights, scales)
        if excess > best:
            found, best = scales, excess
    return found


@compiled
def _sum_blocks(indices: Any, counts: Any, weights: Any, sums: Any) -> Any:
    """Fill in the sum of the weights of the first elements of each whole block, whose mean is about 0.

    Return how many times as much these sums vary as they would by chance, were blocks alike.
    """
    mean, of_elements, of_blocks = 0, 0, 0
    for block in range(sums.size):
        total = 0
        for i in range(_U(block * BLOCK), _U(block * BLOCK + LOOKED_AT)):
            total += weights[indices[i]]
        sums[block] = total
        mean += total
    mean //= sums.size
    for block in range(sums.size):
        of_blocks += (sums[block] - mean) * (sums[block] - mean)
    for symbol in range(counts.size):
        of_elements += counts[symbol] * weights[symbol] * weights[symbol]
    return of_blocks * (indices.size / (max(of_elements, 1) * LOOKED_AT * sums.size))


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
def _count(indices: Any, classes: Any, each: int, counts: Any) -> None:
    """Count the symbols of each class, whose blocks have ``each`` of them."""
    seen = np.zeros((4, *counts.shape), np.int32)  # by turns, so that equal neighbors do not wait for each other
    for block in range(classes.size):
        row = _U(classes[block])
        for i in range(_U(block * each), _U(min((block + 1) * each, indices.size))):
            seen[i & _U(3), row, indices[i]] += np.int32(1)
    for row in range(counts.shape[0]):
        for symbol in range(counts.shape[1]):
            counts[row, symbol] = 0
            for turn in range(4):
                counts[row, symbol] += seen[turn, row, symbol]


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
