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
    exact, bins = alphabet.exact, alphabet.bins
    n, strings, negative = exact.T
    first = np.ones(len(exact), np.bool_)  # of its string
    first[1:] = (n[1:] != n[:-1]) | (strings[1:] != strings[:-1])
    both = np.append(~first[1:], False)[first] if len(exact) else first
    signs = np.where(both, BOTH, np.where(negative[first] > 0, MINUS, PLUS))
    n, strings = n[first], strings[first]
    begins = np.ones(len(n), np.bool_)  # its n
    begins[1:] = n[1:] != n[:-1]
    gaps = strings - np.where(begins, 0, np.roll(strings, 1) + 1)
    lengths = bins[:, 1] - np.where(_begins(bins), binary.exponent_bits, np.roll(bins[:, 1], 1))
    changes = np.diff(frequencies, prepend=0, axis=1)
    lists = [
        np.bincount(n, minlength=binary.exact_bits + 1),
        gaps,
        signs,
        np.bincount(bins[:, 0], minlength=binary.fraction_bits + 1),
        _zigzag(lengths),
        _bin_gaps(bins, binary),
        *_zigzag(changes),
    ]
    class_bits = len(frequencies).bit_length() - 1
    buffer = np.zeros(64 + 16 * sum(each.size for each in lists) + classes.size, np.uint8)
    at = np.zeros(1, np.int64)
    write_bits(buffer, at, class_bits, 2)
    for each in lists:
        write_list(buffer, at, each.astype(np.int64, copy=False))
    _write_all(buffer, at, classes, class_bits)
    return buffer[: -(-int(at[0]) // 8)].tobytes()


def read_table(
    table: NDArray[np.uint8], binary: Binary, blocks: int
) -> tuple[Alphabet, NDArray[np.int64], NDArray[np.uint8]]:
    """Return the alphabet, the frequencies and the classes of ``blocks`` blocks: the inverse of :func:`write_table`.

    Raises:
        PackageError: no table, or one that is not as long as ``table``.
    """
    at = np.zeros(1, np.int64)

    def read(count: int) -> NDArray[np.int64]:
        numbers = np.empty(count, np.int64)
        if not read_list(table, at, numbers):
            raise _fault("a number that never ends")
        return numbers

    class_bits = int(read_bits(table, at, 2))
    if class_bits > 2:
        raise _fault("more classes than four")
    counts = read(binary.exact_bits + 1)
    gaps = read(_total(counts, STATES))
    if gaps.size and int(gaps.max()) >= 1 << 16:
        raise _fault("an exact symbol that is none")
    signs = read(gaps.size)
    if gaps.size and int(signs.max()) > MINUS:
        raise _fault("a sign that is none")
    exact = _exact(counts, gaps, signs, binary)
    bin_counts = read(binary.fraction_bits + 1)
    changes = _unzigzag(read(_total(bin_counts, min(binary.most_bins, STATES - 1 - len(exact)))))
    bins = _bins(bin_counts, changes, read(changes.size), binary)
    size = len(exact) + len(bins) + 1
    frequencies = np.stack([_unzigzag(read(size)) for _ in range(1 << class_bits)])
    if int(np.abs(frequencies).max()) > STATES:
        raise _fault("a frequency that is none")
    frequencies = np.cumsum(frequencies, axis=1)
    if int(frequencies.min()) < 0 or (frequencies.sum(axis=1) != STATES).any():
        raise _fault("frequencies that do not add up to 4,096")
    classes = np.zeros(blocks, np.uint8)
    _read_all(table, at, classes, class_bits)
    end = int(at[0])
    if -(-end // 8) != table.size or read_bits(table, at, -end % 8):
        raise _fault("other bits than its lists take")
    return Alphabet(exact, bins), frequencies, classes


def _fault(what: str) -> PackageError:
    return PackageError(f"a chunk's table holds {what}")


def _total(counts: NDArray[np.int64], most: int) -> int:
    """Return the sum of counts.

    Raises:
        PackageError: it is larger than it may be.
    """
    total = int(counts.sum()) if int(counts.max()) <= most else most + 1
    if total > most:
        raise _fault("more symbols than there are states")
    return total


def _exact(
    counts: NDArray[np.int64], gaps: NDArray[np.int64], signs: NDArray[np.int64], binary: Binary
) -> NDArray[np.int64]:
    """Return the exact symbols, see :class:`Alphabet`."""
    n = np.repeat(np.arange(counts.size), counts)
    ends = np.cumsum(counts)
    strings = np.cumsum(gaps + 1) - 1
    strings -= np.repeat(np.append(0, strings + 1)[ends - counts], counts)  # each n begins anew
    too_high = strings >= ((1 << binary.exponent_bits) - 1) << np.maximum(n - 1, 0)
    numbers = np.where(signs == BOTH, 2, 1)
    if too_high.any() or int(numbers.sum()) >= STATES:
        raise _fault("an exact symbol that is none")
    exact = np.stack([n, strings, signs == MINUS], axis=1).repeat(numbers, axis=0)
    exact[1:, 2] |= (np.diff(exact[:, 0]) == 0) & (np.diff(exact[:, 1]) == 0)
    return exact


def _begins(bins: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which bins are the first of their n."""
    begins = np.ones(len(bins), np.bool_)
    begins[1:] = bins[1:, 0] != bins[:-1, 0]
    return begins


def _bin_gaps(bins: NDArray[np.int64], binary: Binary) -> NDArray[np.int64]:
    """Return how many prefixes of its length lie between each bin and the one before."""
    rest = binary.exponent_bits + np.maximum(bins[:, 0] - 1, 0) - bins[:, 1]
    after = np.where(_begins(bins), 0, np.roll(bins[:, 2] + 1 << rest, 1))
    gaps: NDArray[np.int64] = bins[:, 2] - (after + (1 << rest) - 1 >> rest)
    return gaps


def _bins(
    counts: NDArray[np.int64], changes: NDArray[np.int64], gaps: NDArray[np.int64], binary: Binary
) -> NDArray[np.int64]:
    """Return the bins, see :class:`Alphabet`."""
    bins = np.empty((changes.size, 3), np.int64)
    bins[:, 0] = np.repeat(np.arange(counts.size), counts)
    if not _fill_bins(bins, changes, gaps, binary.exponent_bits):
        raise _fault("a bin that is none")
    return bins


@compiled
def _fill_bins(bins: Any, changes: Any, gaps: Any, exponent_bits: int) -> Any:
    """Fill in lengths and prefixes; return whether they are within their n."""
    before, length, after = -1, 0, 0
    for i in range(len(bins)):
        n = bins[i, 0]
        if n != before:
            before, length, after = n, exponent_bits, 0
        depth = exponent_bits + max(n - 1, 0)
        if abs(changes[i]) > depth:
            return False
        length += changes[i]
        if length < 0 or length > depth:
            return False
        rest = depth - length
        prefix = ((after + (1 << rest) - 1) >> rest) + gaps[i]
        if prefix >= 1 << length:
            return False
        bins[i, 1], bins[i, 2] = length, prefix
        after = (prefix + 1) << rest
    return True


@compiled
def _write_all(buffer: Any, at: Any, values: Any, count: int) -> None:
    for value in values:
        write_bits(buffer, at, np.int64(value), count)


@compiled
def _read_all(buffer: Any, at: Any, values: Any, count: int) -> None:
    for i in range(values.size):
        values[i] = read_bits(buffer, at, count)


def _zigzag(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return 0, −1, 1, −2, … as 0, 1, 2, 3, …."""
    return (values << 1) ^ (values >> 63)


def _unzigzag(values: NDArray[np.int64]) -> NDArray[np.int64]:
    return (values >> 1) ^ -(values & 1)
