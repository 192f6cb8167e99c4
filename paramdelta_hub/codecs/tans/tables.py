"""Tables of tANS (Duda, arXiv 1311.2540): 4,096 states, spread over the symbols as in Yann Collet's FSE.

Symbol s of frequency f has f of the 4,096 states, in ascending order f, f + 1, …, 2f − 1 =: x. A decoder in one of them
gives s, reads b = 12 − ⌊log₂ x⌋ bits, and goes on in state (x << b) − 4096 + what it read.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from paramdelta_hub.numerics.compiled import compiled

__all__ = ["STATES", "STATE_BITS", "decoding_table", "encoding_table", "normalize"]

STATE_BITS = 12
STATES = 1 << STATE_BITS
STEP = (STATES >> 1) + (STATES >> 3) + 3
"""From a state of a symbol to the next: odd, so that all are met."""


@compiled
def _spread(frequencies: Any, symbol_of: Any) -> None:
    """Give each symbol as many states as its frequency says; these add up to 4,096."""
    place = 0
    for symbol in range(frequencies.size):
        for _ in range(frequencies[symbol]):
            symbol_of[place] = symbol
            place = (place + STEP) & (STATES - 1)


@compiled
def decoding_table(frequencies: Any, ids: Any, table: Any) -> None:
    """Fill a table of 4,096 ``uint32``: ``id << 16 | next state << 4 | bits to read`` of each state.

    Args:
        frequencies: ``int64``, of each symbol; they add up to 4,096.
        ids: ``uint32`` below 2¹⁶, of each symbol.
        table: receives the entries.
    """
    symbol_of = np.empty(STATES, np.int64)
    _spread(frequencies, symbol_of)
    following = frequencies.copy()
    for state in range(STATES):
        symbol = symbol_of[state]
        x = following[symbol]
        following[symbol] = x + 1
        bits = 0
        while x << bits < STATES:
            bits += 1
        table[state] = (ids[symbol] << np.uint32(16)) | np.uint32(((x << bits) - STATES) << 4 | bits)


@compiled
def encoding_table(frequencies: Any, first: int, entries: Any, states: Any) -> None:
    """Fill what an encoder needs to go through the states backward.

    In state x (4,096 added, so 4,096 to 8,191) the lower half of a symbol's entry gives how many bits to write,
    ``n = (x + lower) >> 16``, those being the lowest of x; the next state is ``states[(x >> n) + upper]``.

    Args:
        frequencies: ``int64``, of each symbol; they add up to 4,096.
        first: where this table's states begin in ``states``: not before 4,096, so that no half is negative.
        entries: ``uint64``, receives that of each symbol.
        states: ``uint16``, receives the next states: 4,096 from ``first`` on.
    """
    symbol_of = np.empty(STATES, np.int64)
    _spread(frequencies, symbol_of)
    after = np.empty(frequencies.size, np.int64)
    total = first
    for symbol in range(frequencies.size):
        after[symbol] = total
        frequency = frequencies[symbol]
        lower = 0
        if frequency:
            most = 0
            while (max(frequency - 1, 1) << most) < STATES:
                most += 1
            lower = (most << 16) - (frequency << most)
        entries[symbol] = np.uint64((total - frequency) << 32 | lower)
        total += frequency
    for state in range(STATES):
        symbol = symbol_of[state]
        states[after[symbol]] = state + STATES
        after[symbol] += 1


@compiled
def normalize(counts: Any, frequencies: Any) -> None:
    """Scale counts, of which one at least is not 0, to frequencies that add up to 4,096: 0 for 0, and 1 at least else.

    The whole costs hardly more bits than the best choice would: what rounding leaves over is given to, or taken from,
    the symbols where a unit changes least.
    """
    total, mass = 0, STATES
    for count in counts:
        total += count
    floored = True
    frequencies[:] = 0
    while floored:  # the rare symbols take 1 each; what is left is shared by the others
        floored = False
        share = mass / total
        for symbol in range(counts.size):
            if counts[symbol] and not frequencies[symbol] and counts[symbol] * share < 1.0:
                frequencies[symbol] = 1
                total -= counts[symbol]
                mass -= 1
                floored = True
    left = STATES
    for symbol in range(counts.size):
        if counts[symbol] and not frequencies[symbol]:
            frequencies[symbol] = max(1, round(counts[symbol] * mass / total))
        left -= frequencies[symbol]
    while left:
        best, change = -1, 0.0
        for symbol in range(counts.size):
            frequency = frequencies[symbol]
            if frequency > (1 if left < 0 else 0):
                # What another unit saves, or one less costs, in bits but for a factor.
                gain = counts[symbol] / (frequency + 0.5) if left > 0 else -counts[symbol] / (frequency - 0.5)
                if best < 0 or gain > change:
                    best, change = symbol, gain
        frequencies[best] += 1 if left > 0 else -1
        left -= 1 if left > 0 else -1
