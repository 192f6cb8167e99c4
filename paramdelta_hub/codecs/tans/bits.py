"""Numbers of a table as bits, least significant first: fixed widths, and Exp-Golomb codes for what is mostly small.

Buffers are bytes; a position is counted in bits, in an array of one, so that loops can hand it on. Reading past the end
gives zeros, and the position tells.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from paramdelta_hub.numerics.compiled import compiled

__all__ = ["best_order", "read", "read_number", "write", "write_number", "zigzag"]


@compiled
def write(buffer: Any, at: Any, value: int, count: int) -> None:
    """Write the lowest ``count`` bits of a number that is not negative."""
    for i in range(count):
        place = at[0] + i
        buffer[place >> 3] |= np.uint8(((value >> i) & 1) << (place & 7))
    at[0] += count


@compiled
def read(buffer: Any, at: Any, count: int) -> Any:
    """Read ``count`` bits, at most 63."""
    value = 0
    for i in range(count):
        place = at[0] + i
        if place >> 3 < buffer.size:
            value |= ((np.int64(buffer[place >> 3]) >> (place & 7)) & 1) << i
    at[0] += count
    return value


@compiled
def write_number(buffer: Any, at: Any, value: int, order: int) -> None:
    """Write a number by the Exp-Golomb code of that order.

    These are, of ``1 + (value >> order)``: a 0 for each bit but the highest, the highest, the others; then the lowest
    ``order`` bits of the value.
    """
    high = (value >> order) + 1
    zeros = 0
    while high >> (zeros + 1):
        zeros += 1
    at[0] += zeros
    write(buffer, at, 1, 1)
    write(buffer, at, high & ((1 << zeros) - 1), zeros)
    write(buffer, at, value & ((1 << order) - 1), order)


@compiled
def read_number(buffer: Any, at: Any, order: int) -> Any:
    """Read a number; −1 if it has more than 62 bits, or none ends before the buffer does."""
    zeros = 0
    while read(buffer, at, 1) == 0:
        zeros += 1
        if zeros + order > 61:
            return -1
    high = (1 << zeros) | read(buffer, at, zeros)
    return ((high - 1) << order) | read(buffer, at, order)


@compiled
def zigzag(value: int) -> Any:
    """Return 0, −1, 1, −2, … as 0, 1, 2, 3, …."""
    return (value << 1) ^ (value >> 63)


@compiled
def best_order(values: Any) -> Any:
    """Return the order, 0 to 15, that takes the fewest bits for all values, and how many these are."""
    best, fewest = 0, 1 << 62
    for order in range(16):
        total = 0
        for value in values:
            high = (value >> order) + 1
            width = 0
            while high >> (width + 1):
                width += 1
            total += 2 * width + 1 + order
        if total < fewest:
            best, fewest = order, total
    return best, fewest
