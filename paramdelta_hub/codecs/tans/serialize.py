"""A chunk's table as bits: its alphabet, a row of frequencies for each class, and the class of each block.

Ascending numbers are told by what lies between them, and frequencies by themselves or by how they change, in
Exp-Golomb codes whose order stands before them; so a table of n symbols takes about 7 n bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.codecs.tans.alphabet import Alphabet, Binary
from paramdelta_hub.codecs.tans.bits import best_order, read, read_number, write, write_number, zigzag
from paramdelta_hub.codecs.tans.tables import STATES
from paramdelta_hub.errors import PackageError
from paramdelta_hub.numerics.compiled import compiled

__all__ = ["read_table", "write_table"]

_FAULTS = {
    -1: "its alphabet has more symbols than there are states",
    -2: "an exact symbol that is none",
    -3: "a bin that is none",
    -4: "frequencies that do not add up to 4,096",
    -5: "more classes than four",
    -6: "a number that never ends",
    -7: "other bits than its table takes",
}


def write_table(
    alphabet: Alphabet, binary: Binary, frequencies: NDArray[np.int64], classes: NDArray[np.uint8]
) -> bytes:
    """Return the table's bytes.

    Args:
        alphabet: the symbols.
        binary: the values' format.
        frequencies: a row for each class, a column for each symbol.
        classes: of each block; all 0 where there is one class.
    """
    buffer = np.zeros(64 + 16 * alphabet.size * (1 + len(frequencies)) + classes.size, np.uint8)
    fields = binary.exponent_bits, binary.fraction_bits, binary.exact_bits
    bits = _write(alphabet.exact, alphabet.bins, frequencies, classes, *fields, buffer)
    return buffer[: -(-bits // 8)].tobytes()


def read_table(
    table: NDArray[np.uint8], binary: Binary, blocks: int
) -> tuple[Alphabet, NDArray[np.int64], NDArray[np.uint8]]:
    """Return the alphabet, the frequencies and the classes of ``blocks`` blocks: the inverse of :func:`write_table`.

    Raises:
        PackageError: no table, or one that is not as long as ``table``.
    """
    exact, bins = np.empty((STATES, 3), np.int64), np.empty((binary.most_bins, 3), np.int64)
    frequencies, classes = np.empty(4 * STATES, np.int64), np.zeros(blocks, np.uint8)
    fields = binary.exponent_bits, binary.fraction_bits, binary.exact_bits
    exact_count, bin_count, rows = _read(table, *fields, exact, bins, frequencies, classes)
    if exact_count < 0:
        raise PackageError(f"a chunk's table holds {_FAULTS[exact_count]}")
    size = exact_count + bin_count + 1
    alphabet = Alphabet(exact[:exact_count], bins[:bin_count])
    return alphabet, frequencies[: rows * size].reshape(rows, size), classes


@compiled
def _write(
    exact: Any,
    bins: Any,
    frequencies: Any,
    classes: Any,
    exponent_bits: int,
    fraction_bits: int,
    exact_bits: int,
    buffer: Any,
) -> Any:
    """Write a table, and return how many bits it takes."""
    at = np.zeros(1, np.int64)
    class_bits = 0
    while 1 << class_bits < len(frequencies):
        class_bits += 1
    write(buffer, at, class_bits, 2)
    gaps = np.empty(max(len(exact), len(bins), 1), np.int64)
    first = 0
    for n in range(exact_bits + 1):
        end, strings, after = first, 0, 0
        while end < len(exact) and exact[end, 0] == n:
            if end == first or exact[end, 1] != exact[end - 1, 1]:
                gaps[strings] = exact[end, 1] - after
                after = exact[end, 1] + 1
                strings += 1
            end += 1
        write_number(buffer, at, strings, 0)
        if strings:
            order, _ = best_order(gaps[:strings])
            write(buffer, at, order, 4)
            symbol = first
            for string in range(strings):
                write_number(buffer, at, gaps[string], order)
                both = symbol + 1 < end and exact[symbol + 1, 1] == exact[symbol, 1]
                write(buffer, at, 1 if both else 0, 1)
                if not both:
                    write(buffer, at, exact[symbol, 2], 1)
                symbol += 2 if both else 1
        first = end
    first = 0
    for n in range(fraction_bits + 1):
        end, after = first, 0
        depth = exponent_bits + max(n - 1, 0)
        while end < len(bins) and bins[end, 0] == n:
            rest = depth - bins[end, 1]
            gaps[end - first] = bins[end, 2] - ((after + (1 << rest) - 1) >> rest)
            after = (bins[end, 2] + 1) << rest
            end += 1
        write_number(buffer, at, end - first, 0)
        if end > first:
            order, _ = best_order(gaps[: end - first])
            write(buffer, at, order, 4)
            length = exponent_bits
            for number in range(first, end):
                write_number(buffer, at, zigzag(bins[number, 1] - length), 0)
                length = bins[number, 1]
                write_number(buffer, at, gaps[number - first], order)
        first = end
    size = frequencies.shape[1]
    changes = np.empty(size, np.int64)
    for row in range(len(frequencies)):
        before = 0
        for symbol in range(size):
            changes[symbol] = zigzag(frequencies[row, symbol] - before)
            before = frequencies[row, symbol]
        order, bits = best_order(frequencies[row])
        change_order, change_bits = best_order(changes)
        of_changes = change_bits < bits
        write(buffer, at, 1 if of_changes else 0, 1)
        order = change_order if of_changes else order
        write(buffer, at, order, 4)
        for symbol in range(size):
            write_number(buffer, at, changes[symbol] if of_changes else frequencies[row, symbol], order)
    if class_bits:
        for block in range(classes.size):
            write(buffer, at, np.int64(classes[block]), class_bits)
    return at[0]


@compiled
def _read(
    buffer: Any,
    exponent_bits: int,
    fraction_bits: int,
    exact_bits: int,
    exact: Any,
    bins: Any,
    frequencies: Any,
    classes: Any,
) -> Any:
    """Read a table; return how many exact symbols, bins and classes there are, or a fault in place of the first."""
    at = np.zeros(1, np.int64)
    class_bits = read(buffer, at, 2)
    if class_bits > 2:
        return -5, 0, 0
    found = 0
    for n in range(exact_bits + 1):
        strings = read_number(buffer, at, 0)
        if strings < 0:
            return -6, 0, 0
        if strings > len(exact):
            return -1, 0, 0
        order = read(buffer, at, 4) if strings else 0
        string = -1
        for _ in range(strings):
            gap = read_number(buffer, at, order)
            if gap < 0:
                return -6, 0, 0
            if gap >= 1 << 20:
                return -2, 0, 0
            string += gap + 1
            if string >= ((1 << exponent_bits) - 1) << max(n - 1, 0):
                return -2, 0, 0
            both = read(buffer, at, 1)
            negative = 0 if both else read(buffer, at, 1)
            if found + both >= len(exact):
                return -1, 0, 0
            exact[found, 0], exact[found, 1], exact[found, 2] = n, string, negative
            found += 1
            if both:
                exact[found, 0], exact[found, 1], exact[found, 2] = n, string, 1
                found += 1
    bin_count = 0
    for n in range(fraction_bits + 1):
        number = read_number(buffer, at, 0)
        if number < 0:
            return -6, 0, 0
        if number > len(bins) - bin_count or number + found + bin_count >= STATES:
            return -1, 0, 0
        order = read(buffer, at, 4) if number else 0
        depth = exponent_bits + max(n - 1, 0)
        length, after = exponent_bits, 0
        for _ in range(number):
            change = read_number(buffer, at, 0)
            gap = read_number(buffer, at, order)
            if change < 0 or gap < 0:
                return -6, 0, 0
            if change >= 256:
                return -3, 0, 0
            length += (change >> 1) ^ -(change & 1)
            if length < 0 or length > depth:
                return -3, 0, 0
            rest = depth - length
            prefix = ((after + (1 << rest) - 1) >> rest) + gap
            if prefix >= 1 << length:
                return -3, 0, 0
            after = (prefix + 1) << rest
            bins[bin_count, 0], bins[bin_count, 1], bins[bin_count, 2] = n, length, prefix
            bin_count += 1
    size = found + bin_count + 1
    if size > STATES:
        return -1, 0, 0
    for row in range(1 << class_bits):
        of_changes = read(buffer, at, 1)
        order = read(buffer, at, 4)
        total, frequency = 0, 0
        for symbol in range(size):
            value = read_number(buffer, at, order)
            if value < 0:
                return -6, 0, 0
            if value > 2 * STATES:
                return -4, 0, 0
            frequency = frequency + ((value >> 1) ^ -(value & 1)) if of_changes else value
            if frequency < 0 or frequency > STATES:
                return -4, 0, 0
            frequencies[row * size + symbol] = frequency
            total += frequency
        if total != STATES:
            return -4, 0, 0
    if class_bits:
        for block in range(classes.size):
            classes[block] = read(buffer, at, class_bits)
    if -(-at[0] // 8) != buffer.size or read(buffer, at, -at[0] & 7):
        return -7, 0, 0
    return found, bin_count, 1 << class_bits
