"""Positions and numbers: gaps around 255, ends of chunks, and lists that no encoder writes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_hub.codecs import frames
from paramdelta_hub.codecs.planes import encode_planes
from paramdelta_hub.codecs.sparse import decode_sparse, encode_sparse, sparse_streams
from paramdelta_hub.errors import PackageError
from paramdelta_hub.limits import CHUNK_ELEMENTS
from tests.codecs.symbols import TYPES


def roundtrip(positions: np.ndarray, elements: int, itemsize: int) -> list[bytes]:
    numbers = np.random.default_rng(positions.size).integers(0, 1 << (8 * itemsize), positions.size, dtype=np.uint64)
    numbers = numbers.astype(TYPES[itemsize])
    streams = encode_sparse(positions, numbers)
    assert len(streams) == sparse_streams(itemsize)
    found, values = decode_sparse([memoryview(stream) for stream in streams], elements, TYPES[itemsize])
    assert np.array_equal(found, positions)
    assert np.array_equal(values, numbers)
    assert values.dtype == numbers.dtype
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


@settings(max_examples=200, deadline=None)
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
