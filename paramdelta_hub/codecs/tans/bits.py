"""Lists of numbers as bits, least significant first, in Exp-Golomb codes: short for what is mostly small.

A list begins with 4 bits: the order r of its codes. A number v is coded as z zeros, a 1, z bits and r bits: the highest
z + 1 bits are those of ``1 + (v >> r)``, whose own highest is the 1, and the others are the lowest of v.

Buffers are bytes; a position is counted in bits, in an array of one, so that loops can move it on.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from paramdelta_hub.numerics.compiled import compiled

__all__ = ["read_bits", "read_list", "trailing_zeros", "write_bits", "write_list"]

ORDER_BITS = 4
_DEBRUIJN = np.uint64(0x03F79D71B4CB0A89)  # whose 64 runs of six bits all differ
_PLACES = np.zeros(64, np.uint8)
for _place in range(64):
    _PLACES[(int(_DEBRUIJN) << _place) % (1 << 64) >> 58] = _place


@compiled
def trailing_zeros(word: Any) -> Any:
    """Return how many zeros lie below the lowest 1 of a ``uint64`` other than 0."""
    return _PLACES[(word & (~word + np.uint64(1))) * _DEBRUIJN >> np.uint64(58)]


@compiled
def write_bits(buffer: Any, at: Any, value: int, count: int) -> None:
    """Write the lowest ``count`` bits of a number that is not negative."""
    for i in range(count):
        place = at[0] + i
        buffer[place >> 3] |= np.uint8(((value >> i) & 1) << (place & 7))
    at[0] += count


@compiled
def read_bits(buffer: Any, at: Any, count: int) -> Any:
    """Read ``count`` bits, at most 63; past the buffer's end there are zeros."""
    value = 0
    for i in range(count):
        place = at[0] + i
        if place >> 3 < buffer.size:
            value |= ((np.int64(buffer[place >> 3]) >> (place & 7)) & 1) << i
    at[0] += count
    return value


@compiled
def write_list(buffer: Any, at: Any, values: Any) -> None:
    """Write a list (``int64``, none negative) with the order that takes the fewest bits."""
    best, fewest = 0, 1 << 62
    for order in range(1 << ORDER_BITS):
        total = 0
        for value in values:
            high, zeros = (value >> order) + 1, 0
            while high >> (zeros + 1):
                zeros += 1
            total += 2 * zeros + 1 + order
        if total < fewest:
            best, fewest = order, total
    write_bits(buffer, at, best, ORDER_BITS)
    for value in values:
        high, zeros = (value >> best) + 1, 0
        while high >> (zeros + 1):
            zeros += 1
        at[0] += zeros
        write_bits(buffer, at, 1 | (high & ((1 << zeros) - 1)) << 1, zeros + 1)
        write_bits(buffer, at, value & ((1 << best) - 1), best)


@compiled
def read_list(buffer: Any, at: Any, values: Any) -> Any:
    """Read as many numbers as ``values`` (``int64``) has; return whether each ends, and has at most 62 bits."""
    order = read_bits(buffer, at, ORDER_BITS)
    for i in range(values.size):
        zeros = 0
        while read_bits(buffer, at, 1) == 0:
            zeros += 1
            if zeros + order > 61:
                return False
        high = (1 << zeros) | read_bits(buffer, at, zeros)
        values[i] = ((high - 1) << order) | read_bits(buffer, at, order)
    return True
