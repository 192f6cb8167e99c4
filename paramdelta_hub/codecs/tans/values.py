"""Loops over the values of a chunk before they are coded: counts, the numbers of their symbols, and raw fields.

Those of values are compiled twice, for bits of binary32 and of binary64; the constants come with the arrays' types.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from paramdelta_hub.codecs.tans.choose import WINDOW, counted_bits, upper_bits
from paramdelta_hub.numerics.compiled import compiled
from paramdelta_hub.numerics.words import store_word, trailing_zeros

__all__ = ["count_exponents", "count_values", "number_symbols", "number_values"]

SAMPLE = 256
"""Neighboring values of a sample."""
_SLICE = 1024
"""Values that are gone through several times: they, and what is made of them, stay in the first-level cache."""
_U = np.uint64
_ONE, _32, _HALF = np.uint64(1), np.uint64(32), np.uint64(0xFFFFFFFF)


@compiled
def _run(number: int, parts: int) -> Any:
    """Return which run of 256 values is the one of so many that is looked at, for each ``number``.

    It is another one each time: rows of a matrix are mostly as long as a power of 2, and columns may differ.
    """
    return number * parts + (number + number // parts + number // (parts * parts)) % parts


@compiled
def count_exponents(values: Any, parts: int, counts: Any) -> None:
    """Count values, other than 0, by their exponents; of so many runs of 256 values, those of one."""
    fraction_bits = 23 if values.itemsize == 4 else 52
    magnitude = (_ONE << _U(8 * values.itemsize - 1)) - _ONE
    for number in range(-(-values.size // (parts * SAMPLE))):
        run = _run(number, parts)
        for value in values[run * SAMPLE : (run + 1) * SAMPLE]:
            if _U(value) & magnitude:
                counts[np.int64(_U(value) >> _U(fraction_bits)) & (counts.size - 1)] += 1


@compiled
def _list_flagged(flags: Any, count: int, listed: Any) -> Any:
    """Fill ``listed`` with the indices of ones among the first bytes of a slice, which are 0 or 1; return how many.

    Mostly few are 1, and nothing tells which: a branch for each would be mispredicted, so there is one for each 64.
    """
    found = _U(0)
    eights = flags.view(np.uint64)
    for i in range(count, -(-count // 64) * 64):
        flags[i] = 0
    for group in range(-(-count // 64)):
        mask = _U(0)
        for part in range(8):
            mask |= eights[group * 8 + part] * _U(0x0102040810204080) >> _U(56) << _U(8 * part)
        while mask:
            listed[found] = _U(group) * _U(64) + trailing_zeros(mask)
            mask &= mask - _ONE
            found += _ONE
    return found


@compiled
def _list_long(values: Any, flags: Any, listed: Any) -> Any:
    """Fill ``listed`` with the indices of values whose bits below the upper 16 are not all 0; return how many."""
    low = values.dtype.type((1 << (8 * values.itemsize - 16)) - 1)
    for i in range(values.size):
        flags[i] = values.dtype.type(values[i] & low) != 0
    return _list_flagged(flags, values.size, listed)


@compiled
def _place_of(value: Any, itemsize: int, lowest: int) -> Any:
    """Return where a value is counted whose bits below the upper 16 are not all 0: its n, and the place among its n's.

    Helpers of inner loops take no arrays: their references would be counted each time.
    """
    exponent_bits, fraction_bits = (8, 23) if itemsize == 4 else (11, 52)
    infinite = (1 << exponent_bits) - 1
    fraction = value & ((_ONE << _U(fraction_bits)) - _ONE)
    exponent = np.int64(value >> _U(fraction_bits)) & infinite
    row = exponent - lowest
    if row < 0 or row >= WINDOW or exponent == infinite:
        return fraction_bits + 1, 0  # not counted
    n = fraction_bits - np.int64(trailing_zeros(fraction))
    counted = counted_bits(n)
    return n, (row << counted) + np.int64(fraction >> _U(fraction_bits - counted))


@compiled
def _raw_field(value: Any, width: Any, bits: Any, place: Any) -> Any:
    """Return the raw field, of so many bits, of a value whose symbol is not exact."""
    if bits == width:
        return value
    sign = width - _ONE
    field = (value & ((_ONE << sign) - _ONE)) >> place << _ONE | value >> sign
    return field & ((_ONE << bits) - _ONE)


@compiled
def count_values(values: Any, parts: int, lowest: int, places: Any, counts: Any) -> Any:
    """Count values by their places; of so many runs of 256 values, those of one. Return how many were counted.

    Args:
        values: bits of binary32 or binary64.
        parts: of how many runs one is counted.
        lowest: see :class:`~paramdelta_hub.codecs.tans.choose.Histogram`, as those below.
        places: likewise.
        counts: likewise.
    """
    flags, listed = np.empty(SAMPLE, np.uint8), np.empty(SAMPLE, np.uint16)
    odd = np.zeros(1 << 16, np.int32)  # by turns, so that equal neighbors do not wait for each other
    upper = _U(8 * values.itemsize - 16)
    total = 0
    for number in range(-(-values.size // (parts * SAMPLE))):
        run = _run(number, parts)
        part = values[run * SAMPLE : (run + 1) * SAMPLE]
        total += part.size
        for pair in range(_U(part.size >> 1)):
            counts[_U(part[pair << _ONE]) >> upper] += np.int32(1)
            odd[_U(part[pair << _ONE | _ONE]) >> upper] += np.int32(1)
        if part.size & 1:
            counts[_U(part[part.size - 1]) >> upper] += np.int32(1)
        for i in listed[: _list_long(part, flags, listed)]:
            value = _U(part[i])
            counts[value >> upper] -= np.int32(1)
            n, place = _place_of(value, values.itemsize, lowest)
            counts[places[n] + place] += np.int32(1)
    for place in range(odd.size):
        counts[place] += odd[place]
    return total


@compiled
def number_values(
    values: Any, lowest: int, places: Any, numbers: Any, exact: int, symbols: Any, out: Any, counts: Any, stream: Any
) -> Any:
    """Tell the symbols of values, count them, and write their raw fields; return how many bits these are.

    Each slice is gone through several times: that is faster than once, where stores would wait for each other.

    Args:
        values: bits of binary32 or binary64.
        lowest: see :class:`~paramdelta_hub.codecs.tans.choose.Histogram`, as the next.
        places: likewise.
        numbers: ``uint16``, the number of the symbol of each place.
        exact: how many exact symbols there are; they are the first.
        symbols: ``uint64``, see :meth:`~paramdelta_hub.codecs.tans.alphabet.Alphabet.values`.
        out: ``uint16``, receives the number of each value's symbol.
        counts: ``int64``, receives how often each symbol occurs.
        stream: ``uint8``, receives the raw fields: a value's size for each, and 8 bytes besides.
    """
    upper = _U(8 * values.itemsize - 16)
    flags, listed = np.empty(_SLICE, np.uint8), np.empty(_SLICE, np.uint16)
    seen = np.zeros((4, counts.size), np.int32)  # by turns, so that equal neighbors do not wait for each other
    width, at, held = _U(8 * values.itemsize), _U(0), _U(0)  # held: the bits of the last byte, if it is not full
    for start in range(0, values.size, _SLICE):
        part, indices = values[start : start + _SLICE], out[start : start + _SLICE]
        for i in range(_U(part.size)):
            indices[i] = numbers[_U(part[i]) >> upper]
        for i in listed[: _list_long(part, flags, listed)]:
            n, place = _place_of(_U(part[i]), values.itemsize, lowest)
            indices[i] = numbers[places[n] + place]
        for i in range(_U(part.size)):
            seen[i & _U(3), indices[i]] += np.int32(1)
        for i in range(part.size):
            flags[i] = indices[i] >= np.uint16(exact)
        for i in listed[: _list_flagged(flags, part.size, listed)]:
            bits = symbols[1, indices[i]]
            field = _raw_field(_U(part[i]), width, bits, symbols[2, indices[i]])
            if bits > _32:  # in two parts, as up to 7 bits wait
                held |= (field & _HALF) << (at & _U(7))
                store_word(stream, at >> _U(3), held)
                at, held, field, bits = at + _32, held >> _32, field >> _32, bits - _32
            held |= field << (at & _U(7))
            store_word(stream, at >> _U(3), held)
            at, held = at + bits, held >> ((at & _U(7)) + bits & _U(56))
    for number in range(counts.size):
        counts[number] = 0
        for turn in range(4):
            counts[number] += seen[turn, number]
    return at


@compiled
def number_symbols(exact: Any, bins: Any, fields: Any, lowest: int, places: Any, numbers: Any) -> None:
    """Fill ``numbers`` (``uint16``) with the number of the symbol of each place.

    Args:
        exact: see :class:`~paramdelta_hub.codecs.tans.alphabet.Alphabet`.
        bins: likewise, within what is counted.
        fields: exponent bits, and how many significant bits an exact symbol has at most.
        lowest: see :class:`~paramdelta_hub.codecs.tans.choose.Histogram`, as the next.
        places: likewise.
        numbers: receives the numbers.
    """
    exponent_bits, exact_bits = fields
    numbers[:] = len(exact) + len(bins)
    for number in range(len(bins)):
        n, length, prefix = bins[number, 0], bins[number, 1], bins[number, 2]
        if n <= exact_bits:
            left = exponent_bits + max(n - 1, 0) - length
            for string in range(prefix << left, (prefix + 1) << left):
                upper = upper_bits(string, n, exact_bits)
                numbers[upper] = len(exact) + number
                numbers[1 << 15 | upper] = len(exact) + number
        else:
            counted = counted_bits(n)
            left = exponent_bits + counted - length
            start = places[n] + (prefix << left) - (lowest << counted)
            numbers[start : start + (1 << left)] = len(exact) + number
    for number in range(len(exact)):
        n, string, negative = exact[number, 0], exact[number, 1], exact[number, 2]
        numbers[negative << 15 | upper_bits(string, n, exact_bits)] = number
