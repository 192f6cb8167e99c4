"""The encoder's choice of an alphabet: the prefix tree of each n, pruned from its leaves to what takes the fewest bits.

A decoder knows nothing of this: any alphabet decodes. For each n there is a tree of strings, of which the exponent and
up to three (exact symbols: all) further bits are counted. A node as a bin costs the entropy of its count, the raw bits
of its elements, and its place in the table; if that is less than what its two children cost, they are pruned.

A raw field costs time, too: a tenth of a bit is added for each. On Gaussian deltas this brings the elements that have
one from 94 % to 5 %, for 0.001 to 0.003 bits an element.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.codecs.tans.alphabet import Alphabet, Binary
from paramdelta_hub.codecs.tans.tables import STATE_BITS, STATES
from paramdelta_hub.numerics.compiled import compiled

__all__ = ["COUNTED_BITS", "WINDOW", "Histogram", "choose_alphabet"]

ENTRY_BITS = 9.0
"""What an entry of the table is taken to cost."""
RAW_BITS = 0.1
"""What a raw field is taken to cost besides its bits."""
COUNTED_BITS = 3
"""How many bits below the exponent are counted where a value is no exact symbol."""
WINDOW = 256
"""How many exponents are counted, in two trees of 128: the highest that occur. What lies below becomes "other"."""


class Histogram:
    """Counts of a chunk's values.

    Args:
        binary: their format.
        lowest: the first exponent that is counted, a multiple of 128.
    """

    def __init__(self, binary: Binary, lowest: int) -> None:
        self.binary, self.lowest = binary, lowest
        self.exact: NDArray[np.int64] = np.zeros(1 << 16, np.int64)
        """By the upper 16 bits, of values whose lower bits are 0."""
        self.others: NDArray[np.int64] = np.zeros((binary.fraction_bits + 1, WINDOW, 1 << COUNTED_BITS), np.int64)
        """By n, exponent and the first fraction bits, of the others."""
        self.beyond = 0
        """How many lie below the exponents that are counted, or are no numbers."""


def choose_alphabet(found: Histogram) -> Alphabet:
    """Return the alphabet for these counts that takes about the fewest bits."""
    binary = found.binary
    exact, bins = np.empty((STATES, 4), np.int64), np.empty((STATES, 4), np.int64)
    exact_count, bin_count = 0, 0
    total = int(found.exact.sum() + found.others.sum()) + found.beyond
    trees = np.flatnonzero(found.others.reshape(binary.fraction_bits + 1, -1).any(axis=1))
    for n in range(binary.fraction_bits + 1):
        if n <= binary.exact_bits or n in trees:
            exact_count, bin_count = _prune(
                found.exact, found.others, n, found.lowest, total, *_fields(binary), exact, bins, exact_count, bin_count
            )
    exact, bins = exact[:exact_count], bins[:bin_count]
    if found.lowest:  # +0 lies below the exponents that are counted, and is the most frequent value all the same
        zeros = [[0, 0, negative, count] for negative in (0, 1) if (count := int(found.exact[negative << 15]))]
        exact = np.concatenate([np.array(zeros, np.int64).reshape(-1, 4), exact])
    most = min(binary.most_bins, STATES - 1)
    if len(bins) > most:
        bins = bins[np.sort(np.argsort(-bins[:, 3], kind="stable")[:most])]
    most = STATES - 1 - len(bins)
    if len(exact) > most:
        exact = exact[np.sort(np.argsort(-exact[:, 3], kind="stable")[:most])]
    return Alphabet(exact[:, :3].copy(), bins[:, :3].copy())


def _fields(binary: Binary) -> tuple[int, int, int]:
    return binary.exponent_bits, binary.fraction_bits, binary.exact_bits


@compiled
def _cost(count: int, total: int) -> float:
    """Return about how many bits the elements of a symbol take, and its entry in the table."""
    if count == 0:
        return 0.0
    share = count * STATES / total
    if share >= 1.0:
        return count * math.log2(total / count) + ENTRY_BITS
    # It has a state for itself all the same, which the others pay for.
    return count * STATE_BITS + (1.0 - share) * (total / STATES) * 1.4427 + ENTRY_BITS


@compiled
def _prune(
    exact_counts: Any,
    other_counts: Any,
    n: int,
    lowest: int,
    total: int,
    exponent_bits: int,
    fraction_bits: int,
    exact_bits: int,
    exact: Any,
    bins: Any,
    exact_count: int,
    bin_count: int,
) -> tuple[int, int]:
    """Append the leaves of the pruned tree of one n to ``exact`` and ``bins``, ascending; return how many there are.

    Nodes are in heap order: 1 is a root, the children of i are 2i and 2i + 1.
    """
    before = max(n - 1, 0)
    counted = before if n <= exact_bits else min(before, COUNTED_BITS)
    depth = exponent_bits + before
    leaves = 128 << counted
    counts, best = np.zeros(2 * leaves, np.int64), np.zeros(2 * leaves)
    pruned = np.zeros(2 * leaves, np.uint8)
    stack = np.empty(64, np.int64)
    for half in range(2):
        counts[:] = 0
        best[:] = 0.0
        pruned[:] = 0
        bottom = lowest + 128 * half
        anything = False
        for leaf in range(leaves):
            if n <= exact_bits:
                string = (bottom << before) + leaf
                upper = string << (exact_bits - before) | ((1 << (exact_bits - n)) if n else 0)
                plus, minus = 0, 0
                if upper < 1 << 15:
                    plus, minus = exact_counts[upper], exact_counts[1 << 15 | upper]
            else:
                plus, minus = other_counts[n, 128 * half + (leaf >> counted), leaf & ((1 << counted) - 1)], 0
            count = plus + minus
            if count == 0:
                continue
            anything = True
            node = leaves + leaf
            counts[node] = count
            best[node] = _cost(count, total) + count * (1.0 + RAW_BITS + before - counted)
            pruned[node] = 1
            if n <= exact_bits:
                apart = _cost(plus, total) + _cost(minus, total)
                if apart <= best[node]:
                    best[node], pruned[node] = apart, 0
        if not anything:
            continue
        level = counted + 7  # how deep the children are, below the tree's root
        for node in range(leaves - 1, 0, -1):
            if node < 1 << (level - 1):
                level -= 1
            count = counts[2 * node] + counts[2 * node + 1]
            counts[node] = count
            if count == 0:
                continue
            children = best[2 * node] + best[2 * node + 1]
            raw = count * (1.0 + RAW_BITS + before + 7 - (level - 1))
            best[node] = children
            if raw < children:
                whole = _cost(count, total) + raw
                if whole < children:
                    best[node], pruned[node] = whole, 1
        filled = 1
        stack[0] = 1
        while filled:
            filled -= 1
            node = stack[filled]
            if counts[node] == 0:
                continue
            if node < leaves and not pruned[node]:
                stack[filled] = 2 * node + 1
                stack[filled + 1] = 2 * node
                filled += 2
                continue
            below = 0  # how deep the node is
            while node >> (below + 1):
                below += 1
            if pruned[node]:
                if bin_count < len(bins):
                    length = exponent_bits - 7 + below
                    bins[bin_count, 0], bins[bin_count, 1] = n, length
                    bins[bin_count, 2] = ((bottom >> 7) << below) + node - (1 << below)
                    bins[bin_count, 3] = counts[node]
                    bin_count += 1
                continue
            string = (bottom << before) + node - leaves
            upper = string << (exact_bits - before) | ((1 << (exact_bits - n)) if n else 0)
            for negative in range(2):
                if exact_counts[negative << 15 | upper] and exact_count < len(exact):
                    exact[exact_count, 0], exact[exact_count, 1], exact[exact_count, 2] = n, string, negative
                    exact[exact_count, 3] = exact_counts[negative << 15 | upper]
                    exact_count += 1
    return exact_count, bin_count

