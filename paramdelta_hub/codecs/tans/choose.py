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
"""What a tree's nodes have: see :func:`_prune`."""


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
    entry_bits = ENTRY_BITS / found.share
    while True:
        exacts, kept = _choose(found.counts, found.places, fields, found.total, entry_bits, trees, exact, bins)
        if exacts >= 0 and exacts + kept < most:
            return Alphabet(exact[:exacts], bins[:kept])
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
def _cost(count: int, total: int, entry_bits: float) -> Any:
    """Return about how many bits the elements of a symbol take, and its entry in the table."""
    if count == 0:
        return 0.0
    if count * STATES >= total:
        return count * (log2(total) - log2(count)) / UNIT + entry_bits
    # It has a state for itself all the same, which the others pay for.
    return count * STATE_BITS + (total / STATES - count) * 1.4427 + entry_bits


@compiled
def _choose(
    counts: Any, places: Any, fields: Any, total: int, entry_bits: float, trees: Any, exact: Any, bins: Any
) -> Any:
    """Fill in the leaves of all pruned trees, ascending; return how many exact symbols and bins, or −1 for too many.

    Args:
        counts: see :class:`Histogram`.
        places: likewise.
        fields: exponent bits, how many significant bits an exact symbol has at most, and the first exponent counted.
        total: how many values were counted.
        entry_bits: what an entry of the table costs.
        trees: see :func:`_prune`.
        exact: receives exact symbols.
        bins: receives bins.
    """
    _, exact_bits, lowest = fields
    found, kept = 0, 0
    if lowest:  # 0 is no exponent of those that are counted, and the most frequent value all the same
        for negative in range(2):
            if counts[negative << 15]:
                exact[found] = 0, 0, negative
                found += 1
    for n in range(places.size - 1):
        own, counted = counts[places[n] : places[n + 1]], counted_bits(n)
        merged = 0  # bits of what is counted that are not looked at
        if n > exact_bits:
            values, strings = 0, 0
            for count in own:
                values += count
                strings += count != 0
            if values == 0:
                continue
            if values < STRUCTURED * strings:
                merged = max(counted - TOP_BITS, 0)
        for tree in range(TREES):
            found, kept = _prune(
                counts,
                own,
                n,
                counted - merged,
                merged,
                tree,
                fields,
                total,
                entry_bits,
                trees,
                exact,
                bins,
                found,
                kept,
            )
            if found < 0:
                return -1, 0
    return found, kept


@compiled
def _prune(
    counts: Any,
    own: Any,
    n: int,
    counted: int,
    merged: int,
    tree: int,
    fields: Any,
    total: int,
    entry_bits: float,
    trees: Any,
    exact: Any,
    bins: Any,
    found: int,
    kept: int,
) -> Any:
    """Add the leaves of a pruned tree, of 32 exponents and one n; return how many there are, or −1 for too many.

    Nodes are in heap order: 1 is a root, the children of i are 2i and 2i + 1. Nodes 32 to 63 are those of exponents;
    below one without values nothing is looked at, nor filled in.
    """
    exponent_bits, exact_bits, lowest = fields
    occurs, best, pruned = trees
    before = max(n - 1, 0)
    bottom = lowest + TREE_EXPONENTS * tree
    infinite = (1 << exponent_bits) - 1
    rest = 1.0 + RAW_BITS + before + EXPONENT_LEVELS  # raw bits of an element of the root
    for row in range(TREE_EXPONENTS):
        node = TREE_EXPONENTS + row
        occurs[node], best[node], pruned[node] = 0, 0.0, False
        first, inside = node << counted, 0
        if n > exact_bits:
            strings = own[(tree * TREE_EXPONENTS + row) << (counted + merged) :][: 1 << (counted + merged)]
            for count in strings:
                inside += count
            if inside == 0:
                continue
            for leaf in range(1 << counted):
                count = 0
                for one in strings[leaf << merged : (leaf + 1) << merged]:
                    count += one
                occurs[first + leaf], best[first + leaf], pruned[first + leaf] = count, 0.0, count != 0
                if count:
                    best[first + leaf] = _cost(count, total, entry_bits) + count * (rest - EXPONENT_LEVELS - counted)
        elif bottom + row < infinite:
            for leaf in range(1 << counted):
                upper = upper_bits(((bottom + row) << before) + leaf, n, exact_bits)
                plus, minus = np.int64(counts[upper]), np.int64(counts[1 << 15 | upper])
                count = plus + minus
                occurs[first + leaf], best[first + leaf], pruned[first + leaf] = count, 0.0, False
                if count:
                    whole = _cost(count, total, entry_bits) + count * (1.0 + RAW_BITS)
                    apart = _cost(plus, total, entry_bits) + _cost(minus, total, entry_bits)
                    best[first + leaf], pruned[first + leaf] = min(apart, whole), whole < apart
                    inside += count
            if inside == 0:
                occurs[node], best[node], pruned[node] = 0, 0.0, False
                continue
        for level in range(counted - 1, -1, -1):
            for parent in range(node << level, (node + 1) << level):
                occurs[parent] = occurs[2 * parent] + occurs[2 * parent + 1]
                children, raw = best[2 * parent] + best[2 * parent + 1], rest - EXPONENT_LEVELS - level
                best[parent], pruned[parent] = _join(occurs[parent], children, raw, total, entry_bits)
    for parent in range(TREE_EXPONENTS - 1, 0, -1):
        level = 63 - np.int64(leading_zeros(np.uint64(parent)))
        occurs[parent], children = occurs[2 * parent] + occurs[2 * parent + 1], best[2 * parent] + best[2 * parent + 1]
        best[parent], pruned[parent] = _join(occurs[parent], children, rest - level, total, entry_bits)
    stack = np.empty(64, np.int64)
    stack[0], filled = 1, 1
    while filled:
        filled -= 1
        node = stack[filled]
        if occurs[node] == 0:
            continue
        level = 63 - np.int64(leading_zeros(np.uint64(node)))
        if pruned[node]:
            if kept == len(bins):
                return -1, 0
            length = exponent_bits - EXPONENT_LEVELS + level
            bins[kept] = n, length, ((bottom >> EXPONENT_LEVELS) << level) + node - (1 << level)
            kept += 1
        elif level < EXPONENT_LEVELS + counted:
            stack[filled], stack[filled + 1] = 2 * node + 1, 2 * node
            filled += 2
        else:
            string = (bottom << before) + node - (1 << level)
            for negative in range(2):
                if counts[negative << 15 | upper_bits(string, n, exact_bits)]:
                    if found == len(exact):
                        return -1, 0
                    exact[found] = n, string, negative
                    found += 1
    return found, kept


@compiled
def _join(count: int, children: float, raw: float, total: int, entry_bits: float) -> Any:
    """Return what a node costs at the least, and whether as a bin, its elements having so many raw bits.

    ``children`` is what its two children cost.
    """
    if count and count * raw < children:
        whole = count * raw + _cost(count, total, entry_bits)
        if whole < children:
            return whole, True
    return children, False
