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

from paramdelta_hub.codecs.tans.tables import STATE_BITS, STATES
from paramdelta_hub.numerics.compiled import SLICE, by_type, compiled
from paramdelta_hub.numerics.words import store_word, trailing_zeros

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
def _back(entry: Any, x: Any, states: Any, held: Any, count: Any) -> Any:
    """Go back by a symbol from state x; return the state before, and the bits that wait, with those of x below them."""
    bits = _U(_U4(_U4(x) + _U4(entry)) >> _U4(16))
    return _U(states[(x >> bits) + (entry >> _32)]), held << bits | x & ((_ONE << bits) - _ONE), count + bits


@compiled
def encode(indices: Any, classes: Any, entries: Any, states: Any, parity: Any, stream: Any, cursor: Any) -> None:
    """Write the state bits of every other symbol of a chunk, from the last to the first.

    Args:
        indices: ``uint16``, the number of each element's symbol.
        classes: ``uint8``, of each block of 256 elements.
        entries: ``uint64``, a row for each class: see :func:`~paramdelta_hub.codecs.tans.tables.encoding_table`.
        states: likewise.
        parity: 0 for elements 0, 2, 4, …, and 1 for the others.
        stream: ``uint8``, filled from its end with their bits, the first element's the lowest: 12 bits for each, and 16
            bytes besides.
        cursor: ``uint64``, receives the states that a decoder begins in, and the bit of ``stream``.
    """
    x = np.full(4, STATES, np.uint64)
    held, count = _U(0), _U(0)  # bits that wait, and how many these are
    place = _U(stream.size)
    whole = indices.size & ~7
    for i in range(indices.size - 1, whole - 1, -1):  # fewer than each state has one of
        if i & 1 == parity:
            lane = (i & 7) >> 1
            x[lane], held, count = _back(entries[classes[i >> 8], indices[i]], x[lane], states, held, count)
            store_word(stream, place - _U(8), held << ((_U(64) - count) & _63))
            place, count = place - (count >> _U(3)), count & _U(7)
    x0, x1, x2, x3 = x[0], x[1], x[2], x[3]
    for block in range(classes.size - 1, -1, -1):
        own, end = entries[classes[block]], min((block + 1) * BLOCK, whole)
        for group in range(_U((end - block * BLOCK) >> 3)):
            i = _U(end + parity) - (group << _U(3))
            x3, held, count = _back(own[indices[i - _U(2)]], x3, states, held, count)
            x2, held, count = _back(own[indices[i - _U(4)]], x2, states, held, count)
            x1, held, count = _back(own[indices[i - _U(6)]], x1, states, held, count)
            x0, held, count = _back(own[indices[i - _U(8)]], x0, states, held, count)
            # 55 bits at most. Whole bytes are done with; what is below them is overwritten by the next.
            store_word(stream, place - _U(8), held << ((_U(64) - count) & _63))
            place, count = place - (count >> _U(3)), count & _U(7)
    cursor[parity], cursor[2 + parity], cursor[4 + parity], cursor[6 + parity] = x0, x1, x2, x3
    for lane in range(parity, LANES, 2):
        cursor[lane] -= _U(STATES)
    cursor[LANES + parity] = (place << _U(3)) - count
