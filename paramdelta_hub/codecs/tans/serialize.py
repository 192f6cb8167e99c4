"""A chunk's table as bits: its alphabet, the frequencies of each class, and the class of each block.

Ascending numbers are told by what lies between them, and others by how they change, so that lists have small numbers;
a table of n symbols takes about 7 n bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.codecs.tans.alphabet import Alphabet, Binary
from paramdelta_hub.codecs.tans.bits import read_bits, read_list, write_bits, write_list
from paramdelta_hub.codecs.tans.tables import STATES
from paramdelta_hub.errors import PackageError
from paramdelta_hub.numerics.compiled import compiled

__all__ = ["read_table", "write_table"]

BOTH, PLUS, MINUS = 0, 1, 2
"""Which signs of a string have an exact symbol."""
_FAULTS = {
    -1: "more classes than four",
    -2: "more symbols than there are states",
    -3: "a number that never ends",
    -4: "an exact symbol that is none",
    -5: "a bin that is none",
    -6: "frequencies that do not add up to 4,096",
    -7: "other bits than its lists take",
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
    rows, size = frequencies.shape
    numbers = (
        2 * len(alphabet.exact) + 2 * len(alphabet.bins) + binary.exact_bits + binary.fraction_bits + 2 + rows * size
    )
    buffer = np.zeros(64 + 16 * numbers + classes.size, np.uint8)
    fields = binary.exponent_bits, binary.fraction_bits, binary.exact_bits
    bits = int(_write(alphabet.exact, alphabet.bins, fields, frequencies, classes, np.zeros(numbers, np.int64), buffer))
    return buffer[: -(-bits // 8)].tobytes()


@compiled
def _write(exact: Any, bins: Any, fields: Any, frequencies: Any, classes: Any, numbers: Any, buffer: Any) -> Any:
    """Write a table to ``buffer``; return its bits. ``numbers`` are zeros, as many as all lists have at most."""
    exponent_bits, fraction_bits, exact_bits = fields
    rows, size = frequencies.shape
    ends = np.zeros(7 + rows, np.int64)  # of the lists, in one array
    ends[1] = exact_bits + 1
    strings = 0
    for i in range(len(exact)):
        strings += i == 0 or exact[i, 0] != exact[i - 1, 0] or exact[i, 1] != exact[i - 1, 1]
    ends[2], ends[3] = ends[1] + strings, ends[1] + 2 * strings
    at = ends[1] - 1
    for i in range(len(exact)):
        n, string, negative = exact[i, 0], exact[i, 1], exact[i, 2]
        after = exact[i - 1, 1] + 1 if i and exact[i - 1, 0] == n else 0
        if after == string + 1:
            numbers[at + strings] = BOTH
        else:
            at += 1
            numbers[n] += 1
            numbers[at], numbers[at + strings] = string - after, MINUS if negative else PLUS
    ends[4] = ends[3] + fraction_bits + 1
    ends[5], ends[6] = ends[4] + len(bins), ends[4] + 2 * len(bins)
    before, previous, after = -1, 0, 0
    for i in range(len(bins)):
        n, length, prefix = bins[i, 0], bins[i, 1], bins[i, 2]
        if n != before:
            before, previous, after = n, exponent_bits, 0
        rest = exponent_bits + max(n - 1, 0) - length
        numbers[ends[3] + n] += 1
        numbers[ends[4] + i] = _zigzag(length - previous)
        numbers[ends[5] + i] = prefix - ((after + (1 << rest) - 1) >> rest)
        previous, after = length, (prefix + 1) << rest
    for row in range(rows):
        ends[7 + row] = ends[6 + row] + size
        previous = 0
        for symbol in range(size):
            frequency = frequencies[row, symbol]
            numbers[ends[6 + row] + symbol] = _zigzag(frequency - previous)
            previous = frequency
    position = np.zeros(1, np.int64)
    class_bits = rows >> 1
    write_bits(buffer, position, class_bits, 2)
    for which in range(6 + rows):
        write_list(buffer, position, numbers[ends[which] : ends[which + 1]])
    if class_bits:
        for number in classes:
            write_bits(buffer, position, np.int64(number), class_bits)
    return position[0]


@compiled
def _zigzag(number: int) -> Any:
    """Return 0, −1, 1, −2, … as 0, 1, 2, 3, …."""
    return (number << 1) ^ (number >> 63)


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
def _read(
    table: Any,
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
    class_bits = read_bits(table, at, 2)
    if class_bits > 2:
        return -1, 0, 0
    ends = np.zeros(7, np.int64)  # of the first six lists, in one array
    numbers = np.empty(2 * STATES + 2 * bins.shape[0] + 128, np.int64)
    found, size = 0, 0
    for which in range(6 + (1 << class_bits)):
        if which < 6:
            previous = numbers[ends[which - 1] : ends[which]] if which else numbers[:0]
            if which == 0:
                count = exact_bits + 1
            elif which == 3:
                count = fraction_bits + 1
            elif which in (1, 4):
                most = len(exact) - 1 if which == 1 else min(len(bins), len(exact) - 1 - found)
                count = 0
                for number in previous:
                    if number > most - count:
                        return -2, 0, 0
                    count += number
            else:
                count = previous.size
            ends[which + 1] = ends[which] + count
            values = numbers[ends[which] : ends[which + 1]]
        else:
            values = frequencies[(which - 6) * size : (which - 5) * size]
        if not read_list(table, at, values):
            return -3, 0, 0
        if which == 2:
            found = _fill_exact(numbers, ends, exponent_bits, exact)
            if found < 0:
                return found, 0, 0
        elif which == 5:
            bin_count = ends[5] - ends[4]
            if not _fill_bins(numbers, ends, exponent_bits, bins):
                return -5, 0, 0
            size = found + bin_count + 1
        elif which >= 6:
            frequency, total = 0, 0
            for i in range(size):
                if values[i] > 2 * STATES:
                    return -6, 0, 0
                frequency += (values[i] >> 1) ^ -(values[i] & 1)
                if frequency < 0 or frequency > STATES:
                    return -6, 0, 0
                values[i] = frequency
                total += frequency
            if total != STATES:
                return -6, 0, 0
    if class_bits:
        for block in range(classes.size):
            classes[block] = read_bits(table, at, class_bits)
    end = at[0]
    if -(-end // 8) != table.size or read_bits(table, at, -end & 7):
        return -7, 0, 0
    return found, size - 1 - found, 1 << class_bits


@compiled
def _fill_exact(numbers: Any, ends: Any, exponent_bits: int, exact: Any) -> Any:
    """Fill in the exact symbols of the first three lists; return how many, or a fault."""
    found, at = 0, ends[1]
    for n in range(ends[1]):
        string = -1
        for _ in range(numbers[n]):
            gap, signs = numbers[at], numbers[at + ends[2] - ends[1]]
            at += 1
            if gap >= 1 << 16 or signs > MINUS:
                return -4
            string += gap + 1
            if string >= ((1 << exponent_bits) - 1) << max(n - 1, 0):
                return -4
            if found + (signs == BOTH) >= len(exact) - 1:
                return -2
            for negative in range(2):
                if signs == BOTH or negative == (signs == MINUS):
                    exact[found, 0], exact[found, 1], exact[found, 2] = n, string, negative
                    found += 1
    return found


@compiled
def _fill_bins(numbers: Any, ends: Any, exponent_bits: int, bins: Any) -> Any:
    """Fill in the bins of the last three lists; return whether they are within their n."""
    i = 0
    for n in range(ends[4] - ends[3]):
        depth = exponent_bits + max(n - 1, 0)
        length, after = exponent_bits, 0
        for _ in range(numbers[ends[3] + n]):
            change, gap = numbers[ends[4] + i], numbers[ends[5] + i]
            if change > 2 * depth:
                return False
            length += (change >> 1) ^ -(change & 1)
            if length < 0 or length > depth:
                return False
            rest = depth - length
            prefix = ((after + (1 << rest) - 1) >> rest) + gap
            if prefix >= 1 << length:
                return False
            after = (prefix + 1) << rest
            bins[i, 0], bins[i, 1], bins[i, 2] = n, length, prefix
            i += 1
    return True
