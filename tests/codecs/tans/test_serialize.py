"""Tables as bits: round trips of any alphabet, the same by the specification's reader, and every refusal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_hub.codecs.tans.alphabet import Alphabet
from paramdelta_hub.codecs.tans.serialize import read_table, write_table
from paramdelta_hub.errors import PackageError
from tests.codecs.tans.alphabets import BINARY, random_alphabet, random_frequencies
from tests.codecs.tans.handmade import FIELDS, BitWriter, add_frequencies, begin_table
from tests.support.spec_reader import BitReader, RefusedError, read_frequencies, read_symbols


def read_bytes(table: bytes, width: int, blocks: int = 1) -> tuple[Alphabet, np.ndarray, np.ndarray]:
    return read_table(np.frombuffer(table, np.uint8), BINARY[width], blocks)


@settings(max_examples=150)
@given(
    width=st.sampled_from([32, 64]),
    exact=st.integers(0, 200) | st.integers(0, 3000),
    bins=st.integers(0, 120) | st.just(400),
    class_bits=st.integers(0, 2),
    blocks=st.integers(1, 70),
    seed=st.integers(0, 1 << 20),
)
def test_any_table(width: int, exact: int, bins: int, class_bits: int, blocks: int, seed: int) -> None:
    alphabet = random_alphabet(BINARY[width], exact, bins, seed)
    frequencies = random_frequencies(alphabet.size, 1 << class_bits, seed)
    classes = np.random.default_rng(seed).integers(0, 1 << class_bits, blocks).astype(np.uint8)
    table = write_table(alphabet, BINARY[width], frequencies, classes)
    found, rows, of_blocks = read_bytes(table, width, blocks)
    assert np.array_equal(found.exact, alphabet.exact)
    assert np.array_equal(found.bins, alphabet.bins)
    assert np.array_equal(rows, frequencies)
    assert np.array_equal(of_blocks, classes)

    reader = BitReader(table)
    assert reader.bits(2) == class_bits
    symbols = read_symbols(reader, *FIELDS[width])
    expected = [[getattr(symbol, name) for symbol in symbols] for name in ("fixed", "raw", "shift")]
    assert alphabet.values(BINARY[width]).tolist() == expected
    assert [read_frequencies(reader, len(symbols)) for _ in frequencies] == frequencies.tolist()
    assert [reader.bits(class_bits) for _ in range(blocks)] == classes.tolist()
    assert reader.bits(-reader.position % 8) == 0
    assert reader.position == 8 * len(table)


@pytest.mark.parametrize("r", [0, 5, 12, 15])
@pytest.mark.parametrize("width", [32, 64])
def test_a_table_written_by_hand(width: int, r: int) -> None:
    e = FIELDS[width][0]
    exact = {0: [(0, (0, 1)), (5, (1,))], 3: [((1 << (e + 2)) - 5, (0,))]}
    bins = {2: [(e + 1, 0), (3, 1), (e, (1 << e) - 1)], 20: [(0, 0)]}
    table = begin_table(width, 1, exact, bins)
    add_frequencies(table, [4096] + [0] * 8, r)
    add_frequencies(table, [0, 1, 0, 4000, 90, 2, 1, 1, 1], r)
    table.bits(0b101, 3)
    alphabet, frequencies, classes = read_bytes(table.bytes(), width, 3)
    assert alphabet.exact.tolist() == [[0, 0, 0], [0, 0, 1], [0, 5, 1], [3, (1 << (e + 2)) - 5, 0]]
    assert alphabet.bins.tolist() == [[2, e + 1, 0], [2, 3, 1], [2, e, (1 << e) - 1], [20, 0, 0]]
    assert frequencies.tolist() == [[4096] + [0] * 8, [0, 1, 0, 4000, 90, 2, 1, 1, 1]]
    assert classes.tolist() == [1, 0, 1]


def test_a_table_is_the_shortest_of_those_lists() -> None:
    """Written by hand with each list in its best order, the same table comes out."""
    exact = {0: [(0, (0, 1)), (127, (1,))], 3: [(40, (0,)), (41, (0, 1)), (900, (0,))]}
    bins = {0: [(0, 0)], 4: [(3, 1), (9, 0b11010_1010)], 23: [(8, 100), (8, 120)]}
    alphabet, _, _ = read_bytes(add_frequencies(begin_table(32, 0, exact, bins), [4096] + [0] * 12).bytes(), 32)
    frequencies = np.array([[1000, 900, 1, 0, 5, 6, 7, 80, 90, 100, 7, 900, 1000]])
    by_hand = BitWriter().bits(0, 2)
    for numbers in (
        [2, 0, 0, 3, 0, 0, 0, 0],
        [0, 126, 40, 0, 858],
        [0, 2, 1, 0, 1],
        [1, 0, 0, 0, 2, *[0] * 18, 2],
        [15, 9, 12, 0, 0],
        [0, 1, 426 - 128, 100, 19],
        [2000, 199, 1797, 1, 10, 2, 2, 146, 20, 20, 185, 1786, 200],
    ):
        best = min((BitWriter().list(numbers, r) for r in range(16)), key=lambda form: form.count)
        by_hand.bits(best.value, best.count)
    assert write_table(alphabet, BINARY[32], frequencies, np.zeros(1, np.uint8)) == by_hand.bytes()


def table_of(width: int, *frequencies: int, **symbols: object) -> BitWriter:
    return add_frequencies(begin_table(width, **symbols), frequencies)


def listed(
    width: int,
    strings: Mapping[int, int] | None = None,
    gaps: Sequence[int] = (),
    signs: Sequence[int] = (),
    bins: Mapping[int, int] | None = None,
    lengths: Sequence[int] = (),
    prefixes: Sequence[int] = (),
) -> BitWriter:
    """A table's lists up to its frequencies, as they are: how many strings and bins each n has, and the others."""
    e, m = FIELDS[width]
    out = BitWriter().bits(0, 2).list([(strings or {}).get(n, 0) for n in range(16 - e)]).list(gaps).list(signs)
    return out.list([(bins or {}).get(n, 0) for n in range(m + 1)]).signed(lengths).list(prefixes)


def many_bins(width: int, count: int) -> BitWriter:
    """A table with so many bins of n = 20, one for each prefix of 12 bits, and all else right."""
    lengths = [12 - FIELDS[width][0], *[0] * (count - 1)]
    return add_frequencies(listed(width, bins={20: count}, lengths=lengths, prefixes=[0] * count), [0] * count + [4096])


def full_table(width: int, exact: int, bins: int) -> BitWriter:
    """A table of so many exact symbols, an even number, and bins, and all else right."""
    lengths = [12 - FIELDS[width][0], *[0] * (bins - 1)]
    n, strings = 15 - FIELDS[width][0], exact // 2
    table = listed(width, {n: strings}, [0] * strings, [0] * strings, {20: bins}, lengths, [0] * bins)
    return add_frequencies(table, [0] * (exact + bins) + [4096])


def wrong_tables(width: int) -> dict[str, tuple[BitWriter, str]]:
    """Tables that no encoder writes, and what they hold."""
    e, m = FIELDS[width]
    most = 255 if width == 32 else 4095
    top, huge = (1 << e) - 1, (1 << 62) - 2
    return {
        "five classes": (begin_table(width, 3), "more classes"),
        "nothing": (BitWriter(), "never ends"),
        "zeros": (BitWriter().bits(0, 8000), "never ends"),
        "a huge number of strings": (listed(width, {0: huge}), "more symbols"),
        "huge numbers of strings": (listed(width, dict.fromkeys(range(16 - e), huge)), "more symbols"),
        "4,097 strings": (listed(width, {0: 4097}), "more symbols"),
        "4,097 strings of several n": (listed(width, {0: 2000, 1: 2000, 3: 97}), "more symbols"),
        "a huge gap between strings": (listed(width, {0: 1}, [huge], [0]), "exact symbol that is none"),
        "huge gaps between strings": (listed(width, {0: 3}, [1, huge, huge], [0, 1, 2]), "exact symbol that is none"),
        "a fourth kind of signs": (listed(width, {0: 1}, [0], [3]), "exact symbol that is none"),
        "a huge kind of signs": (listed(width, {0: 2}, [0, 0], [0, huge]), "exact symbol that is none"),
        "an infinite exponent": (table_of(width, 4096, 0, exact={0: [(top, (0,))]}), "exact symbol that is none"),
        "an infinite exponent, n = 3": (
            table_of(width, 4096, 0, exact={3: [(top << 2, (1,))]}),
            "exact symbol that is none",
        ),
        "NaN as an exact symbol": (table_of(width, 4096, 0, exact={3: [(top << 2 | 3, (1,))]}), "that is none"),
        "a huge number of bins": (listed(width, bins={0: huge}), "more symbols"),
        "huge numbers of bins": (listed(width, bins=dict.fromkeys(range(m + 1), huge)), "more symbols"),
        "one bin too many": (many_bins(width, most + 1), "more symbols"),
        "one symbol too many": (full_table(width, 3996, 100), "more symbols"),
        "a bin of a negative length": (listed(width, bins={0: 5}, lengths=[-e - 1, *[0] * 4], prefixes=[0] * 5), "bin"),
        "a bin longer than its string": (listed(width, bins={0: 1}, lengths=[1], prefixes=[0]), "bin that is none"),
        "a bin of a huge length": (
            listed(width, bins={0: 1}, lengths=[huge // 2], prefixes=[0]),
            "bin that is none",
        ),
        "a bin of a huge negative length": (
            listed(width, bins={0: 1}, lengths=[1 - huge // 2], prefixes=[0]),
            "bin that is none",
        ),
        "a bin past the end": (table_of(width, 4096, 0, bins={0: [(e, 1 << e)]}), "bin that is none"),
        "a bin far past the end": (listed(width, bins={0: 1}, lengths=[0], prefixes=[huge]), "bin that is none"),
        "a bin after the last": (table_of(width, 4096, 0, 0, bins={5: [(0, 0), (e, 1 << e)]}), "bin that is none"),
        "the longest strings after the last": (
            table_of(width, 4096, 0, 0, bins={m: [(0, 0), (e + m - 1, 1 << (e + m - 1))]}),
            "bin that is none",
        ),
        "the longest strings far after the last": (
            listed(width, bins={m: 2}, lengths=[-e, e + m - 1], prefixes=[0, huge]),
            "bin that is none",
        ),
        "too little": (table_of(width, 4095), "add up"),
        "too much": (table_of(width, 4096, 1, bins={0: [(e, 0)]}), "add up"),
        "a frequency of 4,097": (table_of(width, 4097), "add up"),
        "a huge frequency": (table_of(width, (1 << 60)), "add up"),
        "a huge negative frequency": (table_of(width, -(1 << 60)), "add up"),
        "huge changes": (table_of(width, 1 << 60, 0, 1 << 60, bins={0: [(e, 0), (e, 1)]}), "add up"),
        "a negative frequency": (
            add_frequencies(begin_table(width, bins={0: [(e, 0)]}), [-1, 4097]),
            "add up",
        ),
        "changes beyond all states": (
            add_frequencies(begin_table(width, bins={0: [(e, 0)]}), [5000, 0]),
            "add up",
        ),
        "a second class that is short": (add_frequencies(table_of(width, 4096, class_bits=1), [4000]), "add up"),
        "no second class": (table_of(width, 4096, class_bits=1), "never ends"),
        "a byte too many": (
            BitWriter().bits(int.from_bytes(table_of(width, 4096).bytes(), "little"), 200),
            "other bits",
        ),
        "a bit after the end": (_ending(table_of(width, 4096)), "other bits"),
        "no class of a block": (add_frequencies(table_of(width, 4096, class_bits=1), [4096]), "other bits"),
    }


def _ending(table: BitWriter) -> BitWriter:
    """The table with its last bit of padding set."""
    assert table.count % 8
    table.value |= 1 << (-(-table.count // 8) * 8 - 1)
    table.count = -(-table.count // 8) * 8
    return table


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("name", wrong_tables(32))
def test_what_no_encoder_writes_is_refused(width: int, name: str) -> None:
    table, what = wrong_tables(width)[name]
    blocks = 100 if name == "no class of a block" else 1
    with pytest.raises(PackageError, match=what):
        read_bytes(table.bytes(), width, blocks)


@pytest.mark.parametrize("width", [32, 64])
def test_as_many_bins_as_there_may_be(width: int) -> None:
    most = 255 if width == 32 else 4095
    alphabet, frequencies, _ = read_bytes(many_bins(width, most).bytes(), width)
    assert len(alphabet.bins) == most
    assert frequencies[0, -1] == 4096


@pytest.mark.parametrize("width", [32, 64])
def test_as_many_symbols_as_there_may_be(width: int) -> None:
    alphabet, frequencies, _ = read_bytes(full_table(width, 3996, 99).bytes(), width)
    assert (len(alphabet.exact), len(alphabet.bins), frequencies[0, -1]) == (3996, 99, 4096)


@pytest.mark.parametrize(("width", "n"), [(32, 7), (64, 4)])
def test_4095_exact_symbols_are_the_most(width: int, n: int) -> None:
    def table(count: int) -> bytes:
        strings = [(string, (0, 1)) for string in range(count // 2)] + [(count // 2, (0,))] * (count % 2)
        return table_of(width, *[0] * count, 4096, exact={n: strings}).bytes()

    assert len(read_bytes(table(4095), width)[0].exact) == 4095
    for count in (4096, 4097):
        with pytest.raises(PackageError, match="more symbols"):
            read_bytes(table(count), width)
        with pytest.raises(RefusedError, match="symbols"):
            read_symbols(BitReader(table(count), 2), *FIELDS[width])


@pytest.mark.parametrize("width", [32, 64])
def test_a_table_cut_anywhere(width: int) -> None:
    alphabet = random_alphabet(BINARY[width], 30, 30, 1)
    frequencies = random_frequencies(alphabet.size, 4, 8)
    table = write_table(alphabet, BINARY[width], frequencies, np.array([3, 0, 1, 2, 3], np.uint8))
    for end in range(len(table)):
        with pytest.raises(PackageError):
            read_bytes(table[:end], width, 5)
