"""The encoder's choice of an alphabet: the prefix tree of each n, pruned from its leaves to what takes the fewest bits.

A decoder knows nothing of this: any alphabet decodes. For each n there are trees of strings, of which the exponent and
some further bits are counted, all of them where n is small. A node as a bin costs the entropy of its count, the raw
bits of its elements, and its place in the table; if that is less than what its two children cost, they are pruned.

A raw field costs time, too: a tenth of a bit is added for each. On Gaussian deltas this brings the elements that have
one from 94 % to 5 %, for 0.001 to 0.003 bits an element.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.codecs.tans.alphabet import Alphabet, Binary
from paramdelta_hub.codecs.tans.logarithm import UNIT, log2
from paramdelta_hub.codecs.tans.tables import STATE_BITS, STATES
from paramdelta_hub.numerics.compiled import compiled
from paramdelta_hub.numerics.scratch import scratch
from paramdelta_hub.numerics.words import leading_zeros

__all__ = ["TREE_EXPONENTS", "WINDOW", "Histogram", "choose_alphabet", "counted_bits", "places_of", "upper_bits"]

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
EXPONENT_LEVELS = 5
TREE_EXPONENTS = 1 << EXPONENT_LEVELS
WINDOW = TREES * TREE_EXPONENTS
"""How many exponents are counted; what lies outside becomes "other"."""
_TREES = ("counts of nodes", np.int64), ("costs of nodes", np.float64), ("pruned nodes", np.bool_)
"""What a tree's nodes have: see :func:`_choose`."""


class Histogram:
    """Counts of a chunk's values, by their *places*.

    A value's place is told by its upper 16 bits, if the others are 0, or else by n, exponent and some fraction bits.

    Args:
        binary: their format.
        lowest: the first exponent that is counted, a multiple of 32.
        counts: ``int32``, as many zeros as there are places.
    """

    def __init__(self, binary: Binary, lowest: int, counts: NDArray[np.int32]) -> None:
        self.binary, self.lowest, self.counts = binary, lowest, counts
        self.places = places_of(binary)
        self.total = 0
        """How many values were counted."""
        self.share = 1.0
        """How many there are for each of those."""


@cache
def places_of(binary: Binary) -> NDArray[np.int64]:
    """Return for each n where its places begin, and at last that of values which are not counted: the last there is.

    Up to 65,535 there are those of upper bits, whether their exponents are counted or not.
    """
    sizes = [0 if n <= binary.exact_bits else WINDOW << counted_bits(n) for n in range(binary.fraction_bits + 1)]
    places = (1 << 16) + np.cumsum([0, *sizes])
    places.flags.writeable = False
    return places


def choose_alphabet(found: Histogram) -> Alphabet:
    """Return the alphabet for these counts that takes about the fewest bits."""
    binary = found.binary
    most = STATES // 2
    exact, bins = np.empty((most, 3), np.int64), np.empty((binary.most_bins, 3), np.int64)
    nodes = 2 * TREE_EXPONENTS << counted_bits(WHOLE_STRINGS)
    trees = tuple(scratch(name, nodes, dtype) for name, dtype in _TREES)
    fields = binary.exponent_bits, binary.exact_bits, found.lowest
    entry_bits, filled = ENTRY_BITS / found.share, np.empty(2, np.int64)
    while True:
        where = found.counts, found.places
        if _choose(*where, fields, found.total, entry_bits, trees, exact, bins, filled) and filled.sum() < most:
            return Alphabet(exact[: filled[0]], bins[: filled[1]])
        entry_bits *= 2


@compiled
def counted_bits(n: int) -> Any:
    """Return how many fraction bits of a value's string are counted."""
    return max(n - 1, 0) if n <= WHOLE_STRINGS else TOP_BITS


@compiled
def upper_bits(string: int, n: int, exact_bits: int) -> Any:
    """Return the upper 16 bits of an exact symbol, but for its sign."""
    return string << (exact_bits - max(n - 1, 0)) | ((1 << (exact_bits - n)) if n else 0)


@compiled
def _cost(count: int, price: Any) -> Any:
    """Return about how many bits the elements of a symbol take, and its entry in the table.

    ``price`` is the logarithm of how many values there are, how many a state stands for, and what an entry costs.
    """
    logarithm, state, entry_bits = price
    if count == 0:
        return 0.0
    if count >= state:
        return count * (logarithm - log2(count)) / UNIT + entry_bits
    # It has a state for itself all the same, which the others pay for.
    return count * STATE_BITS + (state - count) * 1.4427 + entry_bits


@compiled
def _choose(
    counts: Any,
    places: Any,
    fields: Any,
    total: int,
    entry_bits: float,
    trees: Any,
    exact: Any,
    bins: Any,
    filled: Any,
) -> Any:
    """Fill in the leaves of all pruned trees, ascending; return whether there was room.

    Args:
        counts: see :class:`Histogram`.
        places: likewise.
        fields: exponent bits, how many significant bits an exact symbol has at most, and the first exponent counted.
        total: how many values were counted.
        entry_bits: what an entry of the table costs.
        trees: of each node, how often it occurs, its cost, and whether it is a bin. Nodes are in heap order: 1 is a
            root, the children of i are 2i and 2i + 1. Nodes 32 to 63 are exponents.
        exact: receives exact symbols.
        bins: receives bins.
        filled: receives how many of both there are.
    """
    _, exact_bits, lowest = fields
    price = log2(total), total / STATES, entry_bits
    filled[0], filled[1] = 0, 0
    if lowest:  # 0 is no exponent of those that are counted, and the most frequent value all the same
        for negative in range(2):
            if counts[negative << 15]:
                exact[filled[0], 0], exact[filled[0], 1], exact[filled[0], 2] = 0, 0, negative
                filled[0] += 1
    for n in range(places.size - 1):
        counted, merged = counted_bits(n), 0  # bits that are looked at, and those that are not
        if n > exact_bits:
            values, strings = 0, 0
            for place in range(places[n], places[n + 1]):
                values += counts[place]
                strings += counts[place] != 0
            if values < STRUCTURED * strings:
                merged = max(counted - TOP_BITS, 0)
        for tree in range(TREES):
            place = places[n] + ((tree * TREE_EXPONENTS) << counted)
            bottom = lowest + tree * TREE_EXPONENTS
            _prune(counts, place, n, counted - merged, merged, bottom, fields, price, trees)
            if not _take_leaves(counts, n, counted - merged, bottom, fields, trees, exact, bins, filled):
                return False
    return True


@compiled
def _prune(
    counts: Any, place: int, n: int, counted: int, merged: int, bottom: int, fields: Any, price: Any, trees: Any
) -> None:
    """Fill in a tree of 32 exponents from ``bottom`` on and one n, but for what is below exponents without values."""
    exponent_bits, exact_bits, _ = fields
    occurs, best, pruned = trees
    raw = 1.0 + RAW_BITS + max(n - 1, 0)  # bits of an element that is told its exponent
    for row in range(TREE_EXPONENTS, 2 * TREE_EXPONENTS):
        first, inside = row << counted, 0
        start = place + ((row - TREE_EXPONENTS) << (counted + merged))
        if n > exact_bits:
            for at in range(start, start + (1 << (counted + merged))):
                inside += counts[at]
        elif bottom + row - TREE_EXPONENTS < (1 << exponent_bits) - 1:
            inside = 1  # it may have some
        for node in range(first, (first + (1 << counted)) if inside else first):
            count, apart = 0, math.inf
            if n > exact_bits:
                for at in range(start + ((node - first) << merged), start + ((node - first + 1) << merged)):
                    count += counts[at]
            else:
                upper = upper_bits(((bottom - TREE_EXPONENTS) << counted) + node, n, exact_bits)
                plus, minus = counts[upper], counts[1 << 15 | upper]
                count = plus + minus
                apart = _cost(plus, price) + _cost(minus, price)
            whole = _cost(count, price) + count * (raw - counted)
            occurs[node], best[node], pruned[node] = count, min(apart, whole), whole < apart
        for level in range(counted - 1, -1, -1):
            if inside:
                _join(row << level, (row + 1) << level, raw - level, price, occurs, best, pruned)
        if inside == 0:
            occurs[row], best[row], pruned[row] = 0, 0.0, False
    for level in range(EXPONENT_LEVELS - 1, -1, -1):
        _join(1 << level, 2 << level, raw + EXPONENT_LEVELS - level, price, occurs, best, pruned)


@compiled
def _join(first: int, end: int, raw: float, price: Any, occurs: Any, best: Any, pruned: Any) -> None:
    """Fill in nodes of a level by their children: bins, if that costs less, their elements having so many raw bits."""
    for node in range(first, end):
        count, children = occurs[2 * node] + occurs[2 * node + 1], best[2 * node] + best[2 * node + 1]
        occurs[node], best[node], pruned[node] = count, children, False
        if count * raw < children:
            whole = count * raw + _cost(count, price)
            if whole < children:
                best[node], pruned[node] = whole, True


@compiled
def _take_leaves(
    counts: Any, n: int, counted: int, bottom: int, fields: Any, trees: Any, exact: Any, bins: Any, filled: Any
) -> Any:
    """Add the leaves of a pruned tree; return whether there was room."""
    exponent_bits, exact_bits, _ = fields
    occurs, _, pruned = trees
    stack = np.empty(64, np.int64)
    stack[0], waiting = 1, 1
    while waiting:
        waiting -= 1
        node = stack[waiting]
        if occurs[node] == 0:
            continue
        level = 63 - np.int64(leading_zeros(np.uint64(node)))
        if pruned[node]:
            i = filled[1]
            if i == len(bins):
                return False
            bins[i, 0], bins[i, 1] = n, exponent_bits - EXPONENT_LEVELS + level
            bins[i, 2] = ((bottom >> EXPONENT_LEVELS) << level) + node - (1 << level)
            filled[1] += 1
        elif level < EXPONENT_LEVELS + counted:
            stack[waiting], stack[waiting + 1] = 2 * node + 1, 2 * node
            waiting += 2
        else:
            string = (bottom << counted) + node - (1 << level)
            for negative in range(2):
                if counts[negative << 15 | upper_bits(string, n, exact_bits)]:
                    i = filled[0]
                    if i == len(exact):
                        return False
                    exact[i, 0], exact[i, 1], exact[i, 2] = n, string, negative
                    filled[0] += 1
    return True
