"""Loops over values: counts, numbers of symbols, and raw fields, by their definitions."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from paramdelta_hub.codecs.tans.choose import choose_alphabet, counted_bits
from paramdelta_hub.codecs.tans.values import count_exponents, number_symbols, number_values, pack_fields
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
    count_exponents(values, counts)
    some = values[(values << values.dtype.type(1)) != 0]
    fields = (some >> some.dtype.type(binary.fraction_bits)).astype(np.int64) & (counts.size - 1)
    assert np.array_equal(counts, np.bincount(fields, minlength=counts.size))


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_counts(width: int, kind: str) -> None:
    binary, values = BINARY[width], chunk(kind, 700, width)
    found = counted(values)
    e, expected, outside = binary.exponent_bits, Counter(), 0
    infinite = (1 << e) - 1
    for value in values.tolist():
        _, n, string = fields_of(value, width)
        exponent = int(string[:e], 2)
        inside = found.lowest <= exponent < found.lowest + 64 and exponent != infinite
        if value << 1 & ((1 << width) - 1) == 0 or (inside and n <= binary.exact_bits):
            expected["upper", value >> (width - 16)] += 1
        elif inside:
            counted_of = int(string[: e + counted_bits(n)], 2) - (found.lowest << counted_bits(n))
            expected["others", int(found.places[n]) + counted_of] += 1
        else:
            outside += 1
    ours = {("upper", at): found.upper[at] for at in np.flatnonzero(found.upper).tolist()}
    ours |= {("others", at): found.others[at] for at in np.flatnonzero(found.others).tolist()}
    assert ours == expected
    assert found.outside == outside


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_symbols_and_fields(width: int, kind: str) -> None:
    """Each value gets the symbol that has it, and its raw field the bits that the symbol leaves open."""
    binary, values = BINARY[width], chunk(kind, 700, width)
    found = counted(values[::2].copy())  # the others may have no symbol but "other"
    alphabet = choose_alphabet(found)
    of_upper, of_others = np.empty(1 << 16, np.uint16), np.empty(found.others.size, np.uint16)
    limits = binary.exponent_bits, binary.exact_bits
    number_symbols(alphabet.exact, alphabet.bins, limits, found.lowest, found.places, of_upper, of_others)
    indices = np.empty(values.size, np.uint16)
    number_values(values, found.lowest, found.places, of_upper, of_others, alphabet.size - 1, indices)
    fixed, raw, place = alphabet.values(binary)
    words = np.zeros(values.size + 2, np.uint64)
    bits = pack_fields(values, indices, len(alphabet.exact), raw, place, words)

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
    assert words.tobytes().startswith(by_hand.bytes())
    assert np.array_equal(fixed[indices] & ~values, np.zeros_like(values)), "fixed bits are the value's own"
