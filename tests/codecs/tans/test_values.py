"""Loops over values: counts, numbers of symbols, and raw fields, by their definitions."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from paramdelta_hub.codecs.tans.choose import choose_alphabet, counted_bits
from paramdelta_hub.codecs.tans.values import count_exponents, count_values, number_symbols, number_values
from tests.codecs.tans.alphabets import BINARY
from tests.codecs.tans.handmade import BitWriter
from tests.codecs.tans.test_alphabet import fields_of
from tests.codecs.tans.test_choose import counted
from tests.codecs.tans.wide import KINDS, chunk


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_exponents(width: int, kind: str) -> None:
    binary, values = BINARY[width], chunk(kind, 3000, width)
    counts = np.zeros(1 << binary.exponent_bits, np.int64)
    count_exponents(values, 1, counts)
    some = values[(values << values.dtype.type(1)) != 0]
    fields = (some >> some.dtype.type(binary.fraction_bits)).astype(np.int64) & (counts.size - 1)
    assert np.array_equal(counts, np.bincount(fields, minlength=counts.size))


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_counts(width: int, kind: str) -> None:
    binary, values = BINARY[width], chunk(kind, 700, width)
    found = counted(values)
    e, expected = binary.exponent_bits, Counter()
    infinite = (1 << e) - 1
    for value in values.tolist():
        _, n, string = fields_of(value, width)
        exponent = int(string[:e], 2)
        if value & ((1 << (width - 16)) - 1) == 0:
            expected[value >> (width - 16)] += 1
        elif found.lowest <= exponent < found.lowest + 64 and exponent != infinite:
            counted_of = int(string[: e + counted_bits(n)], 2) - (found.lowest << counted_bits(n))
            expected[int(found.places[n]) + counted_of] += 1
        else:
            expected[found.counts.size - 1] += 1
    assert {at: found.counts[at] for at in np.flatnonzero(found.counts).tolist()} == expected
    assert found.total == values.size


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("count", [1, 255, 256, 1000, 1024, 5000])
def test_of_four_runs_one_is_counted(width: int, count: int) -> None:
    """Of each four whole ones, not always the first; the last may be short, or none."""
    values = np.arange(count).astype(f"f{width // 8}").view(f"u{width // 8}") + np.asarray(0, f"u{width // 8}")
    found, places = counted(values), np.zeros(count, np.int64)
    for number in range(-(-count // 1024)):
        run = number * 4 + (number + number // 4 + number // 16) % 4
        places[run * 256 : (run + 1) * 256] = 1
    some = counted(values[places > 0], found.lowest)
    counts = np.zeros_like(found.counts)
    assert count_values(values, 4, found.lowest, found.places, counts) == places.sum()
    assert np.array_equal(counts, some.counts)


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [700, 4096 + 65])
def test_symbols_and_fields(width: int, kind: str, count: int) -> None:
    """Each value gets the symbol that has it, and its raw field the bits that the symbol leaves open."""
    binary, values = BINARY[width], chunk(kind, count, width)
    found = counted(values[::2].copy())  # the others may have no symbol but "other"
    alphabet = choose_alphabet(found)
    numbers, where = np.empty(found.counts.size, np.uint16), (found.lowest, found.places)
    number_symbols(alphabet.exact, alphabet.bins, (binary.exponent_bits, binary.exact_bits), *where, numbers)
    indices, counts = np.empty(values.size, np.uint16), np.empty(alphabet.size, np.int64)
    symbols = alphabet.values(binary)
    fixed, raw, _ = symbols
    stream = np.full(values.nbytes + 8, 0x5A, np.uint8)
    bits = number_values(values, *where, numbers, len(alphabet.exact), symbols, indices, counts, stream)
    assert np.array_equal(counts, np.bincount(indices, minlength=alphabet.size))

    exact = {tuple(symbol): number for number, symbol in enumerate(alphabet.exact.tolist())}
    bins = {
        (n, format(prefix, f"0{length}b") if length else ""): number
        for number, (n, length, prefix) in enumerate(alphabet.bins.tolist(), len(exact))
    }
    by_hand = BitWriter()
    for value, index in zip(values.tolist(), indices.tolist(), strict=True):
        sign, n, string = fields_of(value, width)
        owners = [bins[n, string[:length]] for length in range(len(string) + 1) if (n, string[:length]) in bins]
        owners += [exact[n, int(string, 2), sign]] if (n, int(string, 2), sign) in exact else []
        assert len(owners) <= 1 or index in owners
        if index == alphabet.size - 1:
            by_hand.bits(value, width)
            continue
        assert index in owners
        if index >= len(exact):
            left = int(raw[index]) - 1
            by_hand.bits(sign, 1).bits(int(string[len(string) - left :], 2) if left else 0, left)
    assert bits == by_hand.count
    assert stream.tobytes().startswith(by_hand.bytes())
    assert np.array_equal(fixed[indices] & ~values, np.zeros_like(values)), "fixed bits are the value's own"
