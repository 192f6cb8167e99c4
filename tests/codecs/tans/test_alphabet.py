"""Alphabets: what a symbol's fields are made of, by the definition of n, strings and prefixes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_hub.codecs.tans.alphabet import BINARY32, BINARY64, Alphabet
from tests.codecs.tans.alphabets import BINARY, random_alphabet


def fields_of(value: int, width: int) -> tuple[int, int, str]:
    """Return sign, n and string of a value's bits."""
    e = 8 if width == 32 else 11
    digits = format(value, f"0{width}b")
    n = len(digits[1 + e :].rstrip("0"))
    return int(digits[0]), n, digits[1 : 1 + e + max(n - 1, 0)]


def test_formats() -> None:
    for binary, wide, width, exact_bits in ((BINARY32, np.float32, 32, 7), (BINARY64, np.float64, 64, 4)):
        info = np.finfo(wide)
        assert (binary.exponent_bits, binary.fraction_bits) == (info.nexp, info.nmant)
        assert (binary.width, binary.exact_bits) == (width, exact_bits)
        assert binary.bits == np.dtype(f"u{width // 8}")


@settings(max_examples=60)
@given(st.sampled_from([32, 64]), st.integers(0, 40), st.integers(0, 40), st.integers(0, 1 << 20))
def test_what_symbols_stand_for(width: int, exact: int, bins: int, seed: int) -> None:
    alphabet, e = random_alphabet(BINARY[width], exact, bins, seed), BINARY[width].exponent_bits
    values = alphabet.values(BINARY[width])
    assert (values.dtype, values.shape) == (np.uint64, (3, alphabet.size))
    fixed, raw, place = values.tolist()
    assert alphabet.size == len(fixed) == len(raw) == len(place) == len(alphabet.exact) + len(alphabet.bins) + 1
    for symbol, (n, string, sign) in enumerate(alphabet.exact.tolist()):
        assert fields_of(fixed[symbol], width) == (sign, n, format(string, f"0{e + max(n - 1, 0)}b"))
        assert raw[symbol] == 0
        assert fixed[symbol] & ((1 << (width - 16)) - 1) == 0
    random = np.random.default_rng(seed)
    for symbol, (n, length, prefix) in enumerate(alphabet.bins.tolist(), len(alphabet.exact)):
        depth = e + max(n - 1, 0)
        assert raw[symbol] == 1 + depth - length
        begins = format(prefix, f"0{length}b") if length else ""
        for field in {0, (1 << raw[symbol]) - 1, int(random.integers(0, 1 << 63)) & ((1 << raw[symbol]) - 1)}:
            value = fixed[symbol] | (field & 1) << (width - 1) | (field >> 1) << place[symbol]
            found = fields_of(value, width)
            rest = format(field >> 1, f"0{depth - length}b") if depth > length else ""
            assert found == (field & 1, n, begins + rest)
    assert (fixed[-1], raw[-1], place[-1]) == (0, width, 0)


@pytest.mark.parametrize("width", [32, 64])
def test_an_alphabet_of_other_alone(width: int) -> None:
    nothing = Alphabet(np.empty((0, 3), np.int64), np.empty((0, 3), np.int64))
    assert nothing.values(BINARY[width]).tolist() == [[0], [width], [0]]
