"""Positions and numbers: gaps around 255, ends of chunks, and lists that no encoder writes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_hub.codecs import frames
from paramdelta_hub.codecs.planes import encode_planes
from paramdelta_hub.codecs.sparse import (
    decode_gaps,
    decode_sparse,
    encode_sparse,
    gather,
    sparse_streams,
    spread,
)
from paramdelta_hub.errors import PackageError
from paramdelta_hub.limits import CHUNK_ELEMENTS
from tests.codecs.symbols import TYPES
from tests.support.spec_reader import positions as positions_by_spec
from tests.support.spec_reader import sparse as sparse_by_spec


def roundtrip(positions: np.ndarray, elements: int, itemsize: int) -> list[bytes]:
    numbers = np.random.default_rng(positions.size).integers(0, 1 << (8 * itemsize), positions.size, dtype=np.uint64)
    numbers = numbers.astype(TYPES[itemsize])
    streams = encode_sparse(positions, numbers)
    assert len(streams) == sparse_streams(itemsize)
    found, values = decode_sparse([memoryview(stream) for stream in streams], elements, TYPES[itemsize])
    assert np.array_equal(found, positions)
    assert np.array_equal(values, numbers)
    assert values.dtype == numbers.dtype
    by_spec = sparse_by_spec(streams, elements)
    assert np.array_equal(by_spec[0], positions)
    assert np.array_equal(by_spec[1], numbers)
    return streams


@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize("gap", [0, 1, 253, 254, 255, 256, 509, 510, 511, 512, 765, 100_000])
def test_every_gap(gap: int, itemsize: int) -> None:
    for count in (1, 2, 7):
        positions = gap + np.arange(count) * (gap + 1)
        roundtrip(positions, int(positions[-1]) + 1, itemsize)
        roundtrip(positions, int(positions[-1]) + 300, itemsize)


@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_none_all_and_the_last(itemsize: int) -> None:
    assert roundtrip(np.empty(0, np.intp), 5, itemsize) == [b""] * (1 + itemsize)
    roundtrip(np.arange(5000), 5000, itemsize)
    roundtrip(np.array([CHUNK_ELEMENTS - 1]), CHUNK_ELEMENTS, itemsize)
    roundtrip(np.array([0, CHUNK_ELEMENTS - 1]), CHUNK_ELEMENTS, itemsize)


@settings(max_examples=200)
@given(positions=st.sets(st.integers(0, 5000)), itemsize=st.sampled_from([2, 4, 8]), more=st.integers(0, 700))
def test_any_positions(positions: set[int], itemsize: int, more: int) -> None:
    listed = np.array(sorted(positions), np.intp)
    roundtrip(listed, (int(listed[-1]) + 1 if listed.size else 0) + more, itemsize)


@pytest.mark.parametrize("share", [0.005, 0.02, 0.08])
def test_a_position_costs_few_bits(share: float) -> None:
    """The positions alone stay close to the entropy of a random choice."""
    random = np.random.default_rng(1)
    positions = np.flatnonzero(random.random(CHUNK_ELEMENTS) < share)
    streams = encode_sparse(positions, np.zeros(positions.size, np.uint16))
    entropy = -(share * np.log2(share) + (1 - share) * np.log2(1 - share)) / share
    assert 8 * len(streams[0]) / positions.size < 1.15 * entropy + 0.2


def gaps(*values: int) -> bytes:
    return frames.compress(bytes(values))


def decode(streams: list[bytes], elements: int = 300) -> list[int]:
    return decode_sparse(streams, elements, np.dtype(np.uint16))[0].tolist()


def test_lists_that_no_encoder_writes_are_refused() -> None:
    one = encode_planes(np.array([0x0102], np.uint16))
    assert decode([gaps(255, 44), *one]) == [299]
    with pytest.raises(PackageError, match="past the end"):
        decode([gaps(255, 45), *one])
    with pytest.raises(PackageError, match="middle of a gap"):
        decode([gaps(3, 255), *one])
    with pytest.raises(PackageError, match="middle of a gap"):
        decode([gaps(255), b"", b""])
    with pytest.raises(PackageError, match="numbers without positions"):
        decode([b"", *one])
    with pytest.raises(PackageError):
        decode([gaps(1, 1), *one])  # two positions, one number
    with pytest.raises(PackageError):
        decode([gaps(1), *encode_planes(np.array([1, 2], np.uint16))])


def test_more_gaps_than_elements_are_refused_before_they_are_decoded() -> None:
    with pytest.raises(PackageError, match="1 to 300 are possible"):
        decode([frames.compress(bytes(301)), b"", b""])


def test_a_chunk_of_nothing_but_long_gaps_ends_past_its_end() -> None:
    with pytest.raises(PackageError):
        decode([gaps(*[255] * 299, 0), b"", b""])


def spread_whole(found: np.ndarray, values: np.ndarray, size: int, dtype: type = np.uint32) -> np.ndarray:
    out = np.full(size, 7, dtype)
    spread(found, values, np.zeros(3, np.int64), out)
    return out


LENGTHS = [1, 7, 8, 511, 513, 4095, 4096, 4097, 12_345]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("share", [0.0, 0.002, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_gather_and_spread(length: int, share: float, dtype: type) -> None:
    random = np.random.default_rng(length)
    values = np.where(random.random(length) < share, random.integers(1, 1 << 32, length), 0).astype(dtype)
    found, some = (part.copy() for part in gather(values))
    assert np.array_equal(some, values[values != 0])
    if some.size:
        coded = encode_sparse(np.flatnonzero(values), some)[0]
        assert frames.compress(found.data) == coded, "the gaps are those of a sparse list"
        assert decode_gaps(coded, length)[1] == some.size
        assert np.array_equal(positions_by_spec(coded, length), np.flatnonzero(values))
    else:
        assert not found.size
    assert spread_whole(found, some, length, dtype).tobytes() == values.tobytes(), "and zeros are +0"


@pytest.mark.parametrize("gap", [0, 1, 254, 255, 256, 509, 510, 511, 4095, 4096, 70_000])
def test_gather_and_spread_with_long_gaps(gap: int) -> None:
    values = np.zeros(3 * (gap + 1) + 5, np.uint32)
    values[gap :: gap + 1] = 9
    found, some = (part.copy() for part in gather(values))
    assert np.array_equal(found, np.frombuffer(bytes([255] * (gap // 255) + [gap % 255]) * some.size, np.uint8))
    assert np.array_equal(spread_whole(found, some, values.size), values)


@settings(max_examples=100)
@given(data=st.data(), share=st.floats(0, 0.1), size=st.integers(1, 3000))
def test_spread_goes_on_where_it_stopped(data: st.DataObject, share: float, size: int) -> None:
    """A chunk may be filled in parts, cut anywhere, in the midst of a long gap, too."""
    values = np.zeros(size, np.uint64)
    places = np.flatnonzero(np.random.default_rng(size).random(size) < share)
    values[places] = places + 1
    found, some = (part.copy() for part in gather(values))
    cuts = sorted(data.draw(st.lists(st.integers(0, size), max_size=12)))
    out, first = np.full(size, 7, np.uint64), np.zeros(3, np.int64)
    for start, end in zip([0, *cuts], [*cuts, size], strict=True):
        spread(found, some, first, out[start:end])
    assert np.array_equal(out, values)
    assert first[:2].tolist() == [found.size, some.size]


def test_gaps_that_no_encoder_writes_are_refused() -> None:
    assert decode_gaps(gaps(255, 255, 4), 515)[1] == 1
    assert decode_gaps(b"", 5)[1] == 0
    for coded, elements, what in (
        (gaps(255, 255, 4), 514, "past the end"),
        (gaps(0, 0, 0), 2, "1 to 2 are possible"),
        (gaps(0, 1), 2, "past the end"),
        (gaps(1, 255), 300, "middle of a gap"),
        (gaps(1)[:-1], 300, "damaged"),
        (gaps(1) + b"\0", 300, "damaged"),
        (b"no frame at all", 300, "not a zstd frame"),
    ):
        with pytest.raises(PackageError, match=what):
            decode_gaps(coded, elements)


def test_a_damaged_list_never_decodes_to_another() -> None:
    random = np.random.default_rng(5)
    listed = np.flatnonzero(random.random(20_000) < 0.05)
    streams = encode_sparse(listed, random.integers(0, 1 << 16, listed.size).astype(np.uint16))
    expected = decode_sparse(streams, 20_000, np.dtype(np.uint16))
    for which, stream in enumerate(streams):
        for at in range(len(stream)):
            damaged = bytearray(stream)
            damaged[at] ^= 1 << int(random.integers(8))
            try:
                found = decode_sparse(
                    [*streams[:which], bytes(damaged), *streams[which + 1 :]], 20_000, np.dtype(np.uint16)
                )
            except PackageError:
                continue
            assert all(np.array_equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
