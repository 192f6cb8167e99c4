"""The encoder's alphabets: within what the format allows, whatever the values are, and worth their bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_hub.codecs.tans.choose import WINDOW, Histogram, choose_alphabet, places_of
from paramdelta_hub.codecs.tans.values import count_values
from tests.codecs.tans.alphabets import BINARY
from tests.codecs.tans.wide import KINDS, chunk


def counted(values: np.ndarray, lowest: int | None = None) -> Histogram:
    """Return the counts of values, around the exponent that most of them have."""
    width = 8 * values.itemsize
    binary = BINARY[width]
    if lowest is None:
        fields = (values >> values.dtype.type(binary.fraction_bits)) & values.dtype.type(
            (1 << binary.exponent_bits) - 1
        )
        trees = np.bincount(fields.astype(np.int64) // 32, minlength=(1 << binary.exponent_bits) // 32)
        lowest = 32 * int(np.argmax(trees[:-1] + trees[1:]))
    found = Histogram(binary, lowest, np.zeros(int(places_of(binary)[-1]) + 1, np.int32))
    found.total = count_values(values, 1, found.lowest, found.places, found.counts)
    return found


def assert_allowed(found: Histogram) -> None:
    """Check what the specification says of an alphabet."""
    binary = found.binary
    e, alphabet = binary.exponent_bits, choose_alphabet(found)
    exact = [tuple(symbol) for symbol in alphabet.exact.tolist()]
    assert exact == sorted(set(exact))
    assert all(0 <= n <= 15 - e and 0 <= string < ((1 << e) - 1) << max(n - 1, 0) for n, string, _ in exact)
    before = (-1, 0)
    for n, length, prefix in alphabet.bins.tolist():
        rest = e + max(n - 1, 0) - length
        assert 0 <= n <= binary.fraction_bits
        assert rest >= 0
        assert 0 <= prefix < 1 << length
        assert (n, prefix << rest) >= before, "ascending, and no string in two"
        before = (n, (prefix + 1) << rest)
    assert len(alphabet.bins) <= binary.most_bins
    assert alphabet.size <= 2048


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_alphabets_of_every_kind(width: int, kind: str) -> None:
    for count in (1, 9, 1000, 60_000):
        assert_allowed(counted(chunk(kind, count, width)))


@settings(max_examples=40)
@given(st.sampled_from([32, 64]), st.sampled_from(KINDS), st.integers(0, 63), st.integers(1, 5000))
def test_alphabets_of_any_window(width: int, kind: str, tree: int, count: int) -> None:
    most = (1 << BINARY[width].exponent_bits) - WINDOW
    assert_allowed(counted(chunk(kind, count, width, seed=tree), min(32 * tree, most)))


@pytest.mark.parametrize("width", [32, 64])
def test_more_values_than_symbols(width: int) -> None:
    """So many different values, each often: an alphabet of all would be too large."""
    values = np.repeat(
        chunk("uniform", 100_000, width) & chunk("uniform", 1, width).dtype.type(0xFFFF << (width - 16)), 9
    )
    assert_allowed(counted(values, 32))


@pytest.mark.parametrize("width", [32, 64])
def test_a_frequent_value_is_an_exact_symbol(width: int) -> None:
    values = np.where(np.arange(20_000) % 3 == 0, chunk("one value", 20_000, width), chunk("gaussian", 20_000, width))
    wide = np.dtype(f"f{width // 8}")
    alphabet = choose_alphabet(counted(values.astype(f"u{width // 8}")))
    fixed = alphabet.values(BINARY[width])[0, : len(alphabet.exact)].astype(values.dtype).view(wide)
    assert 2.0**-9 in fixed
    zeros = choose_alphabet(counted(chunk("few changes", 20_000, width)))
    assert zeros.exact.tolist()[0] == [0, 0, 0], "0 is one, though its exponent is far from those that are counted"
