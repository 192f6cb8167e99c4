"""The encoder's choice of an alphabet: the prefix tree of each n, pruned from its leaves to what takes the fewest bits.

A decoder knows nothing of this: any alphabet decodes. For each n there are trees of strings, of which the exponent and
some further bits are counted, all of them where n is small. A node as a bin costs the entropy of its count, the raw
bits of its elements, and its place in the table; if that is less than what its two children cost, they are pruned.

A raw field costs time, too: a tenth of a bit is added for each. On Gaussian deltas this brings the elements that have
one from 94 % to 5 %, for 0.001 to 0.003 bits an element.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.codecs.tans.alphabet import Alphabet, Binary
from paramdelta_hub.codecs.tans.logarithm import UNIT, log2
from paramdelta_hub.codecs.tans.tables import STATE_BITS, STATES
from paramdelta_hub.numerics.compiled import compiled

__all__ = ["TREE_EXPONENTS", "WINDOW", "Histogram", "choose_alphabet", "counted_bits"]

ENTRY_BITS = 9.0
"""What an entry of the table is taken to cost."""
RAW_BITS = 0.1
"""What a raw field is taken to cost besides its bits."""
WHOLE_STRINGS = 11
"""Up to how many significant bits all strings are counted: what differences of 16-bit floats mostly have."""
TOP_BITS = 3
"""How many fraction bits are counted of longer strings: what is smooth needs no more."""
STRUCTURED = 4
"""How often a string must occur, on average of those that do, for all strings of its n to be looked at."""
TREES = 2
TREE_EXPONENTS = 32
WINDOW = TREES * TREE_EXPONENTS
"""How many exponents are counted; what lies outside becomes "other"."""


class Histogram:
    """Counts of a chunk's values.

    Args:
        binary: their format.
        lowest: the first exponent that is counted, a multiple of 32.
        share: how many values each stands for that is counted.
    """

    def __init__(self, binary: Binary, lowest: int, share: float) -> None:
        self.binary, self.lowest, self.share = binary, lowest, share
        self.upper: NDArray[np.int64] = np.zeros(1 << 16, np.int64)
        """By the upper 16 bits, of values whose lower bits are 0."""
        self.places = _places(binary)
        """Where in ``others`` the counts of each n begin: by exponent, and the first fraction bits."""
        self.others: NDArray[np.int32] = np.zeros(int(self.places[-1]), np.int32)
        self.outside = 0
        """How many have other exponents than those that are counted, or are no numbers."""


@cache
def _places(binary: Binary) -> NDArray[np.int64]:
    """Return for each n where its counts begin, and at last how many there are."""
    sizes = [0 if n <= binary.exact_bits else WINDOW << counted_bits(n) for n in range(binary.fraction_bits + 1)]
    places = np.cumsum([0, *sizes])
    places.flags.writeable = False
    return places


def choose_alphabet(found: Histogram) -> Alphabet:
    """Return the alphabet for these counts that takes about the fewest bits."""
    binary = found.binary
    total = int(found.upper.sum() + found.others.sum()) + found.outside
    entry_bits = ENTRY_BITS / found.share
    while True:
        exact, bins = _choose(found, total, entry_bits)
        if len(bins) <= binary.most_bins and len(exact) + len(bins) < STATES // 2:
            return Alphabet(exact, bins)
        entry_bits *= 2


def _choose(found: Histogram, total: int, entry_bits: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return exact symbols and bins if an entry of the table costs that many bits."""
    binary = found.binary
    fields = binary.exponent_bits, binary.exact_bits
    exact, bins = [np.empty((0, 3), np.int64)], [np.empty((0, 3), np.int64)]
    if found.lowest:  # 0 is no exponent of those that are counted, and the most frequent value all the same
        exact.append(np.array([[0, 0, sign] for sign in (0, 1) if found.upper[sign << 15]], np.int64).reshape(-1, 3))
    for n in range(binary.fraction_bits + 1):
        counts = found.others[found.places[n] : found.places[n + 1]]
        if n <= binary.exact_bits or counts.any():
            counted = counted_bits(n)
            if counted > TOP_BITS and counts.size and int(counts.sum()) < STRUCTURED * np.count_nonzero(counts):
                counts, counted = counts.reshape(WINDOW << TOP_BITS, -1).sum(axis=1, dtype=np.int32), TOP_BITS
            both = _prune(found.upper, counts, n, counted, found.lowest, total, *fields, entry_bits)
            exact.append(both[0])
            bins.append(both[1])
    return np.concatenate(exact), np.concatenate(bins)


@compiled
def counted_bits(n: int) -> Any:
    """Return how many fraction bits of a value's string are counted."""
    return max(n - 1, 0) if n <= WHOLE_STRINGS else TOP_BITS


@compiled
def _cost(count: int, total: int, entry_bits: float) -> Any:
    """Return about how many bits the elements of a symbol take, and its entry in the table."""
    if count == 0:
        return 0.0
    share = count * STATES / total
    if share >= 1.0:
        return count * (log2(total) - log2(count)) / UNIT + entry_bits
    # It has a state for itself all the same, which the others pay for.
    return count * STATE_BITS + (1.0 - share) * (total / STATES) * 1.4427 + entry_bits


@compiled
def _prune(
    upper_counts: Any,
    other_counts: Any,
    n: int,
    counted: int,
    lowest: int,
    total: int,
    exponent_bits: int,
    exact_bits: int,
    entry_bits: float,
) -> Any:
    """Return the leaves of the pruned trees of one n, ascending: exact symbols, and bins.

    Nodes are in heap order: 1 is a root, the children of i are 2i and 2i + 1.
    """
    before = max(n - 1, 0)
    leaves = TREE_EXPONENTS << counted
    tree_bits = counted
    while 1 << tree_bits < leaves:
        tree_bits += 1
    exponents_bits = tree_bits - counted  # what a tree tells of the exponent
    counts, best = np.zeros(2 * leaves, np.int64), np.zeros(2 * leaves)
    pruned = np.zeros(2 * leaves, np.bool_)
    exact, bins = np.empty((2 * TREES * leaves, 3), np.int64), np.empty((TREES * leaves, 3), np.int64)
    exact_count, bin_count = 0, 0
    stack = np.empty(64, np.int64)
    for tree in range(TREES):
        bottom = lowest + TREE_EXPONENTS * tree
        anything = False
        for leaf in range(leaves):
            node = leaves + leaf
            if n <= exact_bits:
                upper = _upper((bottom << before) + leaf, n, exact_bits)
                plus, minus = np.int64(0), np.int64(0)
                if upper < 1 << 15:
                    plus, minus = upper_counts[upper], upper_counts[1 << 15 | upper]
                count = plus + minus
            else:
                plus, minus = np.int64(0), np.int64(0)
                count = np.int64(other_counts[leaves * tree + leaf])
            counts[node], best[node] = count, 0.0
            if count:
                anything = True
                best[node] = _cost(count, total, entry_bits) + count * (1.0 + RAW_BITS + before - counted)
                pruned[node] = True
                if n <= exact_bits:
                    apart = _cost(plus, total, entry_bits) + _cost(minus, total, entry_bits)
                    if apart <= best[node]:
                        best[node], pruned[node] = apart, False
        if not anything:
            continue
        level = tree_bits
        for node in range(leaves - 1, 0, -1):
            if node < 1 << level:
                level -= 1
            count = counts[2 * node] + counts[2 * node + 1]
            children = best[2 * node] + best[2 * node + 1]
            counts[node], best[node], pruned[node] = count, children, False
            if count:
                raw = count * (1.0 + RAW_BITS + before + exponents_bits - level)
                if raw < children:
                    whole = raw + _cost(count, total, entry_bits)
                    if whole < children:
                        best[node], pruned[node] = whole, True
        filled = 1
        stack[0] = 1
        while filled:
            filled -= 1
            node = stack[filled]
            if counts[node] == 0:
                continue
            if pruned[node]:
                level = 0
                while node >> (level + 1):
                    level += 1
                bins[bin_count, 0], bins[bin_count, 1] = n, exponent_bits - exponents_bits + level
                bins[bin_count, 2] = ((bottom >> exponents_bits) << level) + node - (1 << level)
                bin_count += 1
            elif node < leaves:
                stack[filled], stack[filled + 1] = 2 * node + 1, 2 * node
                filled += 2
            else:
                string = (bottom << before) + node - leaves
                for negative in range(2):
                    if upper_counts[negative << 15 | _upper(string, n, exact_bits)]:
                        exact[exact_count, 0], exact[exact_count, 1], exact[exact_count, 2] = n, string, negative
                        exact_count += 1
    return exact[:exact_count].copy(), bins[:bin_count].copy()


@compiled
def _upper(string: int, n: int, exact_bits: int) -> Any:
    """Return the upper 16 bits of an exact symbol, but for its sign."""
    return string << (exact_bits - max(n - 1, 0)) | ((1 << (exact_bits - n)) if n else 0)
