"""Lists of numbers as bits, least significant first, in Exp-Golomb codes: short for what is mostly small.

A list begins with 4 bits: the order r of its codes. A number v is coded as z zeros, a 1, z bits and r bits: the highest
z + 1 bits are those of ``1 + (v >> r)``, whose own highest is the 1, and the others are the lowest of v.

Buffers are bytes; a position is counted in bits, in an array of one, so that loops can move it on.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from paramdelta_hub.numerics.compiled import compiled
from paramdelta_hub.numerics.words import leading_zeros

__all__ = ["read_bits", "read_list", "write_bits", "write_list"]

ORDER_BITS = 4


@compiled
def write_bits(buffer: Any, at: Any, value: int, count: int) -> None:
    """Write the lowest ``count`` bits, at most 63, of a number that is not negative; the buffer has zeros there."""
    value &= (1 << count) - 1
    place, shift = at[0] >> 3, at[0] & 7
    at[0] += count
    while count > 0:
        buffer[place] |= np.uint8(value << shift & 255)
        value >>= 8 - shift
        count -= 8 - shift
        place, shift = place + 1, 0


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
def _zeros(value: int, order: int) -> Any:
    """Return how many zeros a number's code begins with."""
    return 63 - np.int64(leading_zeros(np.uint64((value >> order) + 1)))


@compiled
def write_list(buffer: Any, at: Any, values: Any) -> None:
    """Write a list (``int64``, none negative) with the order that takes the fewest bits."""
    best, fewest = 0, 1 << 62
    for order in range(1 << ORDER_BITS):
        total = values.size * (order + 1)
        for value in values:
            total += 2 * _zeros(value, order)
        if total < fewest:
            best, fewest = order, total
    write_bits(buffer, at, best, ORDER_BITS)
    for value in values:
        zeros = _zeros(value, best)
        at[0] += zeros
        write_bits(buffer, at, 1 | ((value >> best) + 1) << 1, zeros + 1)
        write_bits(buffer, at, value, best)


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
