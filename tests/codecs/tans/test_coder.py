"""The loops of tANS by themselves: any frequencies, any symbols, every length around the borders of slices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_hub.codecs.tans.coder import BLOCK, LANES, PADDING, RAW, advance, decode_all, encode, finished
from paramdelta_hub.codecs.tans.tables import STATES, decoding_table, encoding_table
from paramdelta_hub.errors import PackageError
from paramdelta_hub.numerics.compiled import SLICE
from tests.codecs.tans.alphabets import random_frequencies
from tests.codecs.tans.handmade import BitWriter, add_frequencies, begin_table, of_others, stream
from tests.codecs.tans.wide import decode, specials
from tests.support.spec_reader import tans

LENGTHS = (*range(1, 26), 255, 256, 257, 263, 264, 4088, 4095, 4096, 4097, 8192, 12_345)


class Coded:
    """Symbols that are coded by the loops alone, one table a class."""

    def __init__(self, symbols: np.ndarray, classes: np.ndarray, frequencies: np.ndarray) -> None:
        rows, size = frequencies.shape
        self.count, self.classes = symbols.size, classes
        self.table = np.empty(rows * STATES, np.uint32)
        entries, states = np.zeros((rows, size), np.uint64), np.zeros((rows + 1) * STATES, np.uint16)
        for row, own in enumerate(frequencies):
            decoding_table(own, np.arange(size, dtype=np.uint32), self.table[row * STATES : (row + 1) * STATES])
            encoding_table(own, (row + 1) * STATES, entries[row], states)
        even, odd = (np.full((symbols.size + 1) // 2 * 12 // 8 + 17, 0x5A, np.uint8) for _ in range(2))
        self.cursor = np.zeros(LANES + 3, np.uint64)
        for parity, bits in enumerate((even, odd)):
            encode(symbols.astype(np.uint16), classes, entries, states, parity, bits, self.cursor)
        content = even.tobytes() + odd.tobytes()
        self.words = np.frombuffer(content + bytes(-len(content) % 8 + PADDING), np.uint64)
        self.cursor[LANES + 1] += np.uint64(8 * even.nbytes)
        self.ends = np.array([8 * even.nbytes, 8 * (even.nbytes + odd.nbytes), 0], np.uint64)

    def symbols(self) -> tuple[np.ndarray, bool]:
        """Decode them, and tell whether the streams end where they must."""
        cursor, out = self.cursor.copy(), np.empty(self.count, np.uint32)
        for start in range(0, self.count, SLICE):
            advance(self.words, cursor, self.table, self.classes, start, out[start : start + SLICE])
        return out >> 16, bool(finished(cursor, self.ends))


def drawn(count: int, size: int, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return symbols that their classes have, the classes, and frequencies."""
    random = np.random.default_rng(seed)
    frequencies = random_frequencies(size, rows, seed)
    classes = random.integers(0, rows, -(-count // BLOCK)).astype(np.uint8)
    symbols = np.concatenate([random.choice(np.flatnonzero(frequencies[number]), BLOCK) for number in classes])[:count]
    return symbols, classes, frequencies


@pytest.mark.parametrize("count", LENGTHS)
def test_every_length(count: int) -> None:
    for rows in (1, 2, 4):
        for seed in range(4):
            symbols, *rest = drawn(count, 300, rows, seed)
            found, good = Coded(symbols, *rest).symbols()
            assert np.array_equal(found, symbols)
            assert good


@settings(max_examples=80)
@given(st.integers(1, 3000), st.integers(1, 2000), st.sampled_from([1, 2, 3, 4]), st.integers(0, 1 << 20))
def test_any_symbols(count: int, size: int, rows: int, seed: int) -> None:
    symbols, *rest = drawn(count, size, rows, seed)
    found, good = Coded(symbols, *rest).symbols()
    assert np.array_equal(found, symbols)
    assert good


def test_no_bit_may_be_left_over_or_missing() -> None:
    coded = Coded(*drawn(1000, 50, 1, 3))
    for place in range(2):
        for shift in (-1, 1):
            ends = coded.ends.astype(np.int64)
            ends[place] += shift
            coded_ends, coded.ends = coded.ends, ends.astype(np.uint64)
            assert not coded.symbols()[1]
            coded.ends = coded_ends
    assert coded.symbols()[1]


@pytest.mark.parametrize("lane", range(LANES))
def test_every_state_must_end_at_zero(lane: int) -> None:
    cursor, ends = np.zeros(LANES + 3, np.uint64), np.zeros(3, np.uint64)
    assert finished(cursor, ends)
    cursor[lane] = 1
    assert not finished(cursor, ends)


def test_a_decoder_that_has_gone_too_far_stops_after_a_slice() -> None:
    """A million elements are claimed of streams that end after the first ones: no more than a slice is read."""
    table = np.full(STATES, 12, np.uint32)  # all symbols are number 0, and take 12 bits
    words = np.zeros((64 + PADDING) // 8, np.uint64)
    symbols = np.zeros((3, STATES), np.uint64)
    symbols[1, 0] = 64
    cursor, ends = np.zeros(LANES + 3, np.uint64), np.full(3, 8 * 64, np.uint64)
    out = np.full(1 << 20, 7, np.uint64)
    assert not decode_all(words, cursor, ends, table, np.zeros(1 << 12, np.uint8), symbols, out)
    assert cursor[RAW] == 64 * SLICE
    assert (out[SLICE:] == 7).all()


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("count", LENGTHS)
def test_values_that_are_all_other(width: int, count: int) -> None:
    """Raw fields of the whole width, at bits that are no multiple of anything: every value comes back."""
    values = np.resize(specials(width), count)
    coded = of_others(values.tolist(), width)
    assert np.array_equal(decode(coded, count, width), values)
    if count < 300:
        assert np.array_equal(tans(coded, count, width), values)


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("n", [0, 1, 2, 5, 8, 20, 23])
def test_raw_fields_of_every_width(width: int, n: int) -> None:
    """One bin has all states, of L = 0, 1, …: the field holds what the prefix leaves open."""
    e, m = (8, 23) if width == 32 else (11, 52)
    depth = e + max(n - 1, 0)
    random = np.random.default_rng(n)
    for length in range(depth + 1):
        prefix = int(random.integers(0, 1 << length, endpoint=False))
        table = add_frequencies(begin_table(width, bins={n: [(length, prefix)]}), [4096, 0])
        raw, expected = BitWriter(), []
        for _ in range(19):
            sign, rest = int(random.integers(2)), int(random.integers(0, 1 << (depth - length)))
            raw.bits(sign | rest << 1, 1 + depth - length)
            string = prefix << (depth - length) | rest
            expected.append(sign << (width - 1) | string << (m - max(n - 1, 0)) | (1 << (m - n) if n else 0))
        coded = stream(table, raw)
        assert decode(coded, 19, width).tolist() == expected
        assert tans(coded, 19, width).tolist() == expected


@pytest.mark.parametrize("width", [32, 64])
def test_exact_symbols_take_no_bits_at_all(width: int) -> None:
    e, m = (8, 23) if width == 32 else (11, 52)
    string = ((1 << e) - 2) << 1 | 1
    table = add_frequencies(begin_table(width, exact={2: [(string, (1,))]}), [4096, 0])
    expected = 1 << (width - 1) | string << (m - 1) | 1 << (m - 2)
    for count in (1, 8, 100_000):
        assert set(decode(stream(table), count, width).tolist()) == {expected}
    with pytest.raises(PackageError, match="do not end where they must"):
        decode(stream(table, BitWriter().bits(0, 1)), 5, width)
