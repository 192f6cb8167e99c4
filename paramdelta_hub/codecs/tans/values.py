"""Loops over the values of a chunk before they are coded: counts, the numbers of their symbols, and raw fields.

Each is compiled twice, for bits of binary32 and of binary64; the constants come with the arrays' types.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from paramdelta_hub.codecs.tans.bits import trailing_zeros
from paramdelta_hub.codecs.tans.choose import WINDOW, counted_bits
from paramdelta_hub.numerics.compiled import compiled

__all__ = [
    "SAMPLE",
    "count_exponents",
    "count_values",
    "number_symbols",
    "number_values",
    "pack_fields",
    "take_sample",
]

SAMPLE = 256
"""Neighboring values of a sample."""
_U = np.uint64
_ONE = np.uint64(1)


@compiled
def take_sample(values: Any, parts: int, out: Any) -> None:
    """Fill ``out`` with runs of 256 values, one from each of so many, at other places each time.

    Rows of a matrix are mostly as long as a power of 2, and columns may differ: so the place changes from row to row.
    """
    for number in range(out.size // SAMPLE):
        place = (number * parts + (number + number // parts + number // (parts * parts)) % parts) * SAMPLE
        out[number * SAMPLE : (number + 1) * SAMPLE] = values[place : place + SAMPLE]


@compiled
def count_exponents(values: Any, counts: Any) -> None:
    """Count values, other than 0, by their exponents."""
    fraction_bits = 23 if values.itemsize == 4 else 52
    magnitude = (_ONE << _U(8 * values.itemsize - 1)) - _ONE
    for value in values:
        if _U(value) & magnitude:
            counts[np.int64(_U(value) >> _U(fraction_bits)) & (counts.size - 1)] += 1


@compiled
def _place_of(fraction: Any, row: int, fraction_bits: int, places: Any) -> Any:
    """Return where a value is counted, by its fraction and by which of the counted exponents it has."""
    n = fraction_bits - np.int64(trailing_zeros(fraction))
    counted = counted_bits(n)
    return places[n] + (row << counted) + np.int64(fraction >> _U(fraction_bits - counted))


@compiled
def count_values(values: Any, lowest: int, places: Any, of_upper: Any, of_others: Any) -> Any:
    """Count values by their upper 16 bits, or by n, exponent and fraction bits; return how many are neither.

    Neither are those whose exponents are not counted, and NaN and infinity.
    """
    width, exponent_bits, fraction_bits = (32, 8, 23) if values.itemsize == 4 else (64, 11, 52)
    outside = 0
    low = (_ONE << _U(width - 16)) - _ONE
    fraction = (_ONE << _U(fraction_bits)) - _ONE
    infinite = (1 << exponent_bits) - 1
    for i in range(values.size):
        value = _U(values[i])
        exponent = np.int64(value >> _U(fraction_bits)) & infinite
        row = exponent - lowest
        if row < 0 or row >= WINDOW or exponent == infinite:
            if value & ~(_ONE << _U(width - 1)) == _U(0):
                of_upper[value >> _U(width - 16)] += 1
            else:
                outside += 1
        elif value & low == _U(0):
            of_upper[value >> _U(width - 16)] += 1
        else:
            of_others[_place_of(value & fraction, row, fraction_bits, places)] += 1
    return outside


@compiled
def number_values(values: Any, lowest: int, places: Any, of_upper: Any, of_others: Any, other: int, out: Any) -> None:
    """Fill ``out`` (``uint16``) with the number of each value's symbol."""
    width, exponent_bits, fraction_bits = (32, 8, 23) if values.itemsize == 4 else (64, 11, 52)
    low = (_ONE << _U(width - 16)) - _ONE
    fraction = (_ONE << _U(fraction_bits)) - _ONE
    infinite = (1 << exponent_bits) - 1
    for i in range(values.size):
        value = _U(values[i])
        out[i] = of_upper[value >> _U(width - 16)]
        if value & low:
            row = (np.int64(value >> _U(fraction_bits)) & infinite) - lowest
            if row < 0 or row >= WINDOW:
                out[i] = other
            else:
                out[i] = of_others[_place_of(value & fraction, row, fraction_bits, places)]


@compiled
def pack_fields(values: Any, indices: Any, exact: int, raw: Any, place: Any, words: Any) -> Any:
    """Write the raw fields of all elements whose symbol is not exact, one after another; return how many bits.

    Args:
        values: bits of binary32 or binary64.
        indices: the number of each element's symbol.
        exact: how many exact symbols there are; they are the first.
        raw: ``uint64``, the width of each symbol's raw field.
        place: ``uint64``, how many bits lie below it.
        words: ``uint64``, receives the bits.
    """
    width = 32 if values.itemsize == 4 else 64
    sign = _U(width - 1)
    held, count, at = _U(0), 0, 0
    for i in range(indices.size):
        number = indices[i]
        if number >= exact:
            value, bits = _U(values[i]), np.int64(raw[number])
            if bits < width:
                unsigned = value & ((_ONE << sign) - _ONE)
                value = unsigned >> _U(place[number]) << _ONE | value >> sign
                value &= (_ONE << _U(bits)) - _ONE
            held |= value << _U(count)
            if count + bits >= 64:
                words[at] = held
                at += 1
                held = value >> _U(64 - count) if count else _U(0)
                count -= 64
            count += bits
    words[at] = held
    return at * 64 + count


@compiled
def number_symbols(exact: Any, bins: Any, fields: Any, lowest: int, places: Any, of_upper: Any, of_others: Any) -> None:
    """Fill the numbers of symbols: by the upper 16 bits of values with zeros below, and by what is counted of others.

    Args:
        exact: see :class:`~paramdelta_hub.codecs.tans.alphabet.Alphabet`.
        bins: likewise, within what is counted.
        fields: exponent bits, and how many significant bits an exact symbol has at most.
        lowest: the first exponent that is counted.
        places: where in ``of_others`` each n begins.
        of_upper: ``uint16``, receives 65,536.
        of_others: ``uint16``, receives one for each n, exponent, and fraction bits that are counted.
    """
    exponent_bits, exact_bits = fields
    other = len(exact) + len(bins)
    of_upper[:] = other
    of_others[:] = other
    for number in range(len(bins)):
        n, length, prefix = bins[number]
        before = max(n - 1, 0)
        if n <= exact_bits:
            left = exponent_bits + before - length
            for string in range(prefix << left, (prefix + 1) << left):
                upper = string << (exact_bits - before) | ((1 << (exact_bits - n)) if n else 0)
                of_upper[upper] = len(exact) + number
                of_upper[1 << 15 | upper] = len(exact) + number
        else:
            counted = counted_bits(n)
            left = exponent_bits + counted - length
            start = places[n] + (prefix << left) - (lowest << counted)
            of_others[start : start + (1 << left)] = len(exact) + number
    for number in range(len(exact)):
        n, string, negative = exact[number]
        before = max(n - 1, 0)
        upper = string << (exact_bits - before) | ((1 << (exact_bits - n)) if n else 0)
        of_upper[negative << 15 | upper] = number
