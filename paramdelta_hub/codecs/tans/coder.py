"""The loops of tANS: eight states that take turns, two streams of state bits, and one of raw fields.

Element i belongs to state i mod 8, whose bits are in stream i mod 2. A decoder goes forward, the encoder backward, from
state 0 on; so a decoder ends in it. Streams are read as 64-bit words, at any bit: four symbols take at most 48 bits of
a stream, which one window has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from paramdelta_hub.codecs.tans.bits import trailing_zeros
from paramdelta_hub.codecs.tans.tables import STATE_BITS, STATES
from paramdelta_hub.numerics.compiled import SLICE, by_type, compiled

__all__ = [
    "BLOCK",
    "LANES",
    "PADDING",
    "RAW",
    "advance",
    "decode_all",
    "encode",
    "finished",
    "next_values",
]

BLOCK = 256
"""Elements that have one class: they are coded by one table."""
LANES = 8
"""States that take turns."""
RAW = LANES + 2
"""Where a cursor has the position in the raw stream; those in the two others are before it, and the states first."""
PADDING = 40 << 10
"""Bytes behind a chunk that a slice may read before it is seen to have gone too far: 4,096 fields of 64 bits, and more.
"""
_U, _U4 = np.uint64, np.uint32
_ONE, _STATE, _NUMBER = np.uint64(1), np.uint64(STATES - 1), np.uint64(15)
_SIX, _FIFTEEN, _16, _32, _63 = np.uint64(6), np.uint64(15), np.uint64(16), np.uint64(32), np.uint64(63)
_WORD = np.uint64(0xFFFFFFFF)
_EXPONENT, _UPPER = np.uint32(0x7F800000), np.uint32(0xFFFF0000)


@compiled
def _window(words: Any, position: Any) -> Any:
    """Return the 64 bits from a position on."""
    word, shift = position >> _SIX, position & _63
    return words[word] >> shift | (words[word + _ONE] << _ONE) << (_63 - shift)


@compiled
def advance(words: Any, cursor: Any, table: Any, classes: Any, first: int, out: Any) -> None:
    """Decode the next symbols to ``out``: the entries of the table that they were found in.

    Args:
        words: ``uint64``, the streams.
        cursor: ``uint64``: eight states, and the positions in the streams; they are moved on.
        table: ``uint32``, 4,096 entries for each class.
        classes: ``uint8``, of each block of 256 elements.
        first: the first element's number in the chunk, a multiple of 256.
        out: ``uint32``, 4,096 at most; fewer only at the end of a chunk.
    """
    x0, x1, x2, x3 = cursor[0], cursor[1], cursor[2], cursor[3]
    x4, x5, x6, x7 = cursor[4], cursor[5], cursor[6], cursor[7]
    even, odd = cursor[8], cursor[9]
    for block in range(0, out.size, BLOCK):
        own = _U(classes[(first + block) >> 8]) << _U(STATE_BITS)
        for i in range(_U(block), _U(min(block + BLOCK, out.size) & ~7), _U(8)):
            a, b = _window(words, even), _window(words, odd)
            e, f = _U(table[x0 + own]), _U(table[x1 + own])
            out[i], out[i + _ONE] = e, f
            n, m = e & _NUMBER, f & _NUMBER
            x0, x1 = (
                (e >> _U(4) & _STATE) + (a & ((_ONE << n) - _ONE)),
                (f >> _U(4) & _STATE) + (b & ((_ONE << m) - _ONE)),
            )
            a, b, even, odd = a >> n, b >> m, even + n, odd + m
            e, f = _U(table[x2 + own]), _U(table[x3 + own])
            out[i + _U(2)], out[i + _U(3)] = e, f
            n, m = e & _NUMBER, f & _NUMBER
            x2, x3 = (
                (e >> _U(4) & _STATE) + (a & ((_ONE << n) - _ONE)),
                (f >> _U(4) & _STATE) + (b & ((_ONE << m) - _ONE)),
            )
            a, b, even, odd = a >> n, b >> m, even + n, odd + m
            e, f = _U(table[x4 + own]), _U(table[x5 + own])
            out[i + _U(4)], out[i + _U(5)] = e, f
            n, m = e & _NUMBER, f & _NUMBER
            x4, x5 = (
                (e >> _U(4) & _STATE) + (a & ((_ONE << n) - _ONE)),
                (f >> _U(4) & _STATE) + (b & ((_ONE << m) - _ONE)),
            )
            a, b, even, odd = a >> n, b >> m, even + n, odd + m
            e, f = _U(table[x6 + own]), _U(table[x7 + own])
            out[i + _U(6)], out[i + _U(7)] = e, f
            n, m = e & _NUMBER, f & _NUMBER
            x6, x7 = (
                (e >> _U(4) & _STATE) + (a & ((_ONE << n) - _ONE)),
                (f >> _U(4) & _STATE) + (b & ((_ONE << m) - _ONE)),
            )
            even, odd = even + n, odd + m
    cursor[0], cursor[1], cursor[2], cursor[3] = x0, x1, x2, x3
    cursor[4], cursor[5], cursor[6], cursor[7] = x4, x5, x6, x7
    cursor[8], cursor[9] = even, odd
    for i in range(out.size & ~7, out.size):  # the last of a chunk
        lane = i & 7
        stream = 8 + (i & 1)
        entry = _U(table[cursor[lane] + (_U(classes[(first + i) >> 8]) << _U(STATE_BITS))])
        out[i] = entry
        n = entry & _NUMBER
        cursor[lane] = (entry >> _U(4) & _STATE) + (_window(words, cursor[stream]) & ((_ONE << n) - _ONE))
        cursor[stream] += n


@compiled
def finished(cursor: Any, ends: Any) -> Any:
    """Whether a decoder is where it must be at the end of a chunk."""
    for lane in range(LANES):
        if cursor[lane]:
            return False
    return cursor[8] == ends[0] and cursor[9] == ends[1] and cursor[10] == ends[2]


@compiled
def _beyond(cursor: Any, ends: Any) -> Any:
    """Whether a decoder has read more than there is."""
    return cursor[8] > ends[0] or cursor[9] > ends[1] or cursor[10] > ends[2]


@compiled
def _field(words: Any, cursor: Any, width: Any) -> Any:
    """Read a raw field of 1 to 64 bits."""
    value = _window(words, cursor[RAW]) & (~_U(0) >> (_U(64) - width))
    cursor[RAW] += width
    return value


def next_values(
    words: Any, cursor: Any, ends: Any, table: Any, classes: Any, symbols: Any, first: int, out: Any
) -> bool:
    """Decode the next values to ``out``: bits of binary32 or binary64. Return whether the streams had as much.

    Args:
        words: see :func:`advance`, as the others that are not told here.
        cursor: likewise.
        ends: ``uint64``, where the three streams end.
        table: likewise.
        classes: likewise.
        symbols: ``uint64``, rows of 256, of bins and "other", or of 4,096, of all symbols: the fixed bits of each, the
            width of its raw field, and its place.
        first: likewise.
        out: ``uint32`` or ``uint64``, 4,096 at most; fewer only at the end of a chunk.
    """
    raise NotImplementedError  # compiled code has the loops below


@by_type(next_values)
def _decoding(
    words: Any, cursor: Any, ends: Any, table: Any, classes: Any, symbols: Any, first: int, out: Any
) -> Callable[..., bool]:
    return {types.uint32: _next_binary32, types.uint64: _next_binary64}[out.dtype]


def _next_binary32(
    words: Any, cursor: Any, ends: Any, table: Any, classes: Any, symbols: Any, first: int, out: Any
) -> Any:
    """Decode the next values to ``out``: bits of binary32. Return whether the streams had as much.

    An entry of the table has the upper half of its value, or, with an exponent of 255, which no exact symbol has, the
    number of its bin in sign and fraction.
    """
    if _beyond(cursor, ends):
        return False
    advance(words, cursor, table, classes, first, out)
    flags = np.empty(SLICE, np.uint8)
    count = out.size
    for i in range(count):
        flags[i] = np.uint32(out[i] & _EXPONENT) == _EXPONENT
        out[i] = out[i] & _UPPER
    for i in range(count, -(-count // 64) * 64):
        flags[i] = 0
    eights = flags.view(np.uint64)
    for group in range(-(-count // 64)):
        mask = _U(0)
        for part in range(8):
            mask |= eights[group * 8 + part] * _U(0x0102040810204080) >> _U(56) << _U(8 * part)
        while mask:
            i = _U(group) * _U(64) + _U(trailing_zeros(mask))
            mask &= mask - _ONE
            upper = _U(out[i]) >> _16
            number = upper & _U(127) | upper >> _FIFTEEN << _U(7)
            width = symbols[1, number]
            field = _field(words, cursor, width)
            if width == _U(32):  # "other"
                out[i] = field
            else:
                out[i] = symbols[0, number] | (field & _ONE) << _U(31) | field >> _ONE << symbols[2, number]
    return True


def _next_binary64(
    words: Any, cursor: Any, ends: Any, table: Any, classes: Any, symbols: Any, first: int, out: Any
) -> Any:
    """Decode the next values to ``out``: bits of binary64. Return whether the streams had as much.

    An entry of the table has the number of its symbol.
    """
    if _beyond(cursor, ends):
        return False
    entries = np.empty(SLICE, np.uint32)
    advance(words, cursor, table, classes, first, entries[: out.size])
    for i in range(out.size):
        number = _U(entries[i]) >> _16
        width = symbols[1, number]
        if width == _U(0):
            out[i] = symbols[0, number]
        else:
            field = _field(words, cursor, width)
            if width == _U(64):  # "other"
                out[i] = field
            else:
                out[i] = symbols[0, number] | (field & _ONE) << _63 | field >> _ONE << symbols[2, number]
    return True


@compiled
def decode_all(words: Any, cursor: Any, ends: Any, table: Any, classes: Any, symbols: Any, out: Any) -> Any:
    """Decode a chunk to ``out``: bits of binary32 or binary64. Return whether it ends where it must."""
    for start in range(0, out.size, SLICE):
        part = out[start : start + SLICE]
        if not next_values(words, cursor, ends, table, classes, symbols, start, part):
            return False
    return finished(cursor, ends)


@compiled
def encode(indices: Any, widths: Any, places: Any, states: Any, even: Any, odd: Any, cursor: Any) -> None:
    """Write the state bits of a chunk's symbols, from the last to the first.

    Args:
        indices: ``uint16``, the number of each element's symbol in its table, plus the table's first.
        widths: see :func:`~paramdelta_hub.codecs.tans.tables.encoding_table`.
        places: likewise.
        states: likewise.
        even: ``uint32``, filled from its end with the bits of elements 0, 2, 4, …, the first of them the lowest.
        odd: likewise, of the others.
        cursor: ``uint64``, receives the states that a decoder begins in, and at which bits of ``even`` and ``odd``.
    """
    x = np.full(LANES, STATES, np.uint64)
    a, b = _U(0), _U(0)  # bits that wait until there are 32 of them
    m, n = _U(0), _U(0)  # how many these are
    p, q = _U(even.size - 1), _U(odd.size - 1)
    left = _U(indices.size)
    if left & _ONE:  # the last element is an even one
        left -= _ONE
        symbol, state = indices[left], x[left & _U(7)]
        m = _U(_U4(_U4(state) + widths[symbol]) >> _U4(16))
        a = state & ((_ONE << m) - _ONE)
        x[left & _U(7)] = _U(states[(state >> m) + places[symbol]])
    while left & _U(3):  # two elements
        left -= _U(2)
        for stream in range(2):
            at = left + _ONE - _U(stream)
            symbol, state = indices[at], x[at & _U(7)]
            width = _U(_U4(_U4(state) + widths[symbol]) >> _U4(16))
            x[at & _U(7)] = _U(states[(state >> width) + places[symbol]])
            if stream:
                a, m = a << width | state & ((_ONE << width) - _ONE), m + width
            else:
                b, n = b << width | state & ((_ONE << width) - _ONE), n + width
    for group in range(left >> _U(2)):
        at = left - _U(4) - (_U(group) << _U(2))
        for pair in range(_U(2)):
            i = at + _U(3) - (pair << _ONE)
            symbol, state = indices[i], x[i & _U(7)]
            width = _U(_U4(_U4(state) + widths[symbol]) >> _U4(16))
            b, n = b << width | state & ((_ONE << width) - _ONE), n + width
            x[i & _U(7)] = _U(states[(state >> width) + places[symbol]])
            i -= _ONE
            symbol, state = indices[i], x[i & _U(7)]
            width = _U(_U4(_U4(state) + widths[symbol]) >> _U4(16))
            a, m = a << width | state & ((_ONE << width) - _ONE), m + width
            x[i & _U(7)] = _U(states[(state >> width) + places[symbol]])
        # Overwritten by the next until there are 32 bits: a branch would be mispredicted.
        odd[q] = np.uint32(b >> ((n - _32) & _63))
        full = _U(n >= _32)
        q, n = q - full, n - (full << _U(5))
        even[p] = np.uint32(a >> ((m - _32) & _63))
        full = _U(m >= _32)
        p, m = p - full, m - (full << _U(5))
    even[p] = np.uint32((a & ((_ONE << m) - _ONE)) << (_32 - m) & _WORD)
    odd[q] = np.uint32((b & ((_ONE << n) - _ONE)) << (_32 - n) & _WORD)
    cursor[8], cursor[9] = (p + _ONE) * _32 - m, (q + _ONE) * _32 - n
    for lane in range(LANES):
        cursor[lane] = x[lane] - _U(STATES)
