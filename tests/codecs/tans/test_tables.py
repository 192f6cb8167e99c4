"""Tables of states: those of the specification, one the inverse of the other, and frequencies that add up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_hub.codecs.tans.tables import STATES, decoding_table, encoding_table, normalize
from tests.codecs.tans.alphabets import random_frequencies
from tests.support.spec_reader import states_of


@settings(max_examples=60)
@given(st.integers(1, 4096), st.integers(0, 1 << 20))
def test_a_decoding_table_is_the_specifications(symbols: int, seed: int) -> None:
    [frequencies] = random_frequencies(symbols, 1, seed)
    ids = np.random.default_rng(seed).integers(0, 1 << 16, symbols, dtype=np.uint32)
    table = np.empty(STATES, np.uint32)
    decoding_table(frequencies, ids, table)
    expected = [int(ids[symbol]) << 16 | base << 4 | b for symbol, b, base in states_of(frequencies.tolist())]
    assert table.tolist() == expected


@settings(max_examples=60)
@given(st.integers(1, 4096), st.integers(0, 1 << 20), st.integers(0, 3))
def test_an_encoding_table_goes_back(symbols: int, seed: int, number: int) -> None:
    """From every state, by every symbol that has states, to a state from which the decoder gives it, and returns."""
    [frequencies] = random_frequencies(symbols, 1, seed)
    entries, states = np.zeros(symbols, np.uint64), np.full((number + 3) * STATES, 7, np.uint16)
    encoding_table(frequencies, (number + 1) * STATES, entries, states)
    assert (states[: (number + 1) * STATES] == 7).all(), "those of other tables stay"
    assert (states[(number + 2) * STATES :] == 7).all()
    decoder = states_of(frequencies.tolist())
    at = np.arange(STATES, 2 * STATES)
    used = np.flatnonzero(frequencies)
    for symbol in np.random.default_rng(seed).choice(used, min(used.size, 8), replace=False):
        upper, lower = divmod(int(entries[symbol]), 1 << 32)
        count = at + lower >> 16
        following = states[(at >> count) + upper].astype(np.int64) - STATES
        for state, bits, after in zip(at.tolist(), count.tolist(), following.tolist(), strict=True):
            found, b, base = decoder[after]
            assert (found, b) == (symbol, bits)
            assert base + (state & ((1 << bits) - 1)) == state - STATES


def cost(counts: np.ndarray, frequencies: np.ndarray) -> float:
    used = counts > 0
    return float((counts[used] * np.log2(STATES / frequencies[used])).sum())


counts_of_symbols = (
    st.lists(st.integers(0, 40), min_size=1, max_size=200)
    | st.lists(st.integers(0, 1 << 20), min_size=1, max_size=60)
    | st.lists(st.sampled_from([0, 1, 2, 1 << 20]), min_size=1, max_size=2048)
).filter(any)


@settings(max_examples=300)
@given(counts_of_symbols)
def test_frequencies_add_up_and_none_is_lost(listed: list[int]) -> None:
    counts = np.array(listed, np.int64)
    frequencies = np.full(counts.size, -1, np.int64)
    normalize(counts, frequencies)
    assert frequencies.sum() == STATES
    assert np.array_equal(frequencies > 0, counts > 0)


@settings(max_examples=100)
@given(st.integers(1, 300), st.integers(0, 1 << 20), st.sampled_from([1, 4, 9]))
def test_frequencies_cost_hardly_more_than_the_entropy(symbols: int, seed: int, skew: int) -> None:
    """And no unit taken from one symbol and given to another saves anything worth it."""
    random = np.random.default_rng(seed)
    counts = (random.random(symbols) ** skew * 10_000).astype(np.int64) + 1
    frequencies = np.empty(symbols, np.int64)
    normalize(counts, frequencies)
    ideal = float((counts * np.log2(counts.sum() / counts)).sum())
    best = cost(counts, frequencies)
    assert ideal - 1e-6 <= best < 1.01 * ideal + 0.01 * counts.sum()
    for _ in range(20):
        one, other = random.integers(symbols, size=2)
        if one != other and frequencies[one] > 1:
            moved = frequencies.copy()
            moved[one] -= 1
            moved[other] += 1
            assert cost(counts, moved) > best - 1e-3 * counts.sum()


@pytest.mark.parametrize("count", [1, 5, 1 << 40])
def test_one_symbol_has_all_states(count: int) -> None:
    frequencies = np.empty(3, np.int64)
    normalize(np.array([0, count, 0]), frequencies)
    assert frequencies.tolist() == [0, STATES, 0]


def test_as_many_symbols_as_states() -> None:
    frequencies = np.empty(STATES, np.int64)
    normalize(np.arange(1, STATES + 1), frequencies)
    assert (frequencies == 1).all()
