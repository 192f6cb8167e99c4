"""Byte planes: what goes in comes out, and what can't have been put in is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from paramdelta_hub.codecs import frames
from paramdelta_hub.codecs.by_name import REPLACING
from paramdelta_hub.codecs.planes import compress_plane, decode_planes, encode_planes
from paramdelta_hub.errors import PackageError
from paramdelta_hub.limits import BLOCK_ELEMENTS, CHUNK_ELEMENTS
from tests.codecs.roundtrips import roundtrip
from tests.codecs.symbols import KINDS, TYPES, chunk

SIZES = (1, 2, 3, 254, 255, 256, 257, 4095, 65_536, 65_537)
CODEC = REPLACING["planes"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("itemsize", TYPES)
def test_roundtrip(itemsize: int, kind: str) -> None:
    for size in SIZES:
        roundtrip("planes", chunk(kind, size, itemsize))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("itemsize", TYPES)
def test_roundtrip_of_large_chunks(itemsize: int, kind: str) -> None:
    for size in (BLOCK_ELEMENTS + 1, CHUNK_ELEMENTS - 1, CHUNK_ELEMENTS):
        roundtrip("planes", chunk(kind, size, itemsize))


@settings(max_examples=100)
@given(data=st.data(), itemsize=st.sampled_from(list(TYPES)))
def test_roundtrip_of_any_values(data: st.DataObject, itemsize: int) -> None:
    roundtrip("planes", data.draw(arrays.arrays(TYPES[itemsize], st.integers(1, 600))))


def test_planes_of_zeros_are_empty() -> None:
    assert encode_planes(np.zeros(100, np.uint32)) == [b""] * 4
    low, high = encode_planes(np.full(100, 7, np.uint16))
    assert low
    assert high == b""
    assert compress_plane(np.zeros(5, np.uint8)) == b""


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_the_lowest_byte_is_first(order: str) -> None:
    """The bytes in a package do not depend on the machine: written out here, digit by digit."""
    values = np.array([0x1234, 0x1234, 0xABCD], order)
    low, high = encode_planes(values)
    assert frames.decompress(low, 3) == b"\x34\x34\xcd"
    assert frames.decompress(high, 3) == b"\x12\x12\xab"
    out = np.zeros(3, order)
    decode_planes([low, high], out)
    assert np.array_equal(out, values)


def test_an_empty_plane_overwrites_what_was_there() -> None:
    out = np.full(4, 0x5A5A, np.uint16)
    CODEC.decode([b"", frames.compress(b"\1\2\3\4")], out)
    assert out.tolist() == [0x100, 0x200, 0x300, 0x400]


@pytest.mark.parametrize("wrong", [1, 3, 5, 7, 9])
@pytest.mark.parametrize("which", [0, 1])
def test_another_length_is_refused(wrong: int, which: int) -> None:
    streams = [b"", b""]
    streams[which] = frames.compress(b"x" * wrong)
    with pytest.raises(PackageError):
        CODEC.decode(streams, np.empty(4, np.uint16))


def test_a_damaged_stream_never_decodes_to_other_values() -> None:
    """One byte changed, at every place of every frame."""
    values = chunk("rare escapes", 3000, 2, seed=3)
    streams = CODEC.encode(values)
    random = np.random.default_rng(0)
    refused = 0
    for which in range(len(streams)):
        for at in range(len(streams[which])):
            damaged = bytearray(streams[which])
            damaged[at] ^= int(random.integers(1, 256))
            out = np.zeros(values.size, np.uint16)
            try:
                CODEC.decode([*streams[:which], bytes(damaged), *streams[which + 1 :]], out)
            except PackageError:
                refused += 1
            else:  # bits that mean nothing, such as the reserved one of a frame header
                assert np.array_equal(out, values)
    assert refused > 1000
