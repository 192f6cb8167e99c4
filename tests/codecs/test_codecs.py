"""palette, planes, raw: what goes in comes out, and what can't have been put in is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from paramdelta_hub.numerics.kernels.numpy import NumpyKernel

from paramdelta_hub import codecs
from paramdelta_hub.codecs import CODECS, frames, palette
from paramdelta_hub.errors import PackageError
from paramdelta_hub.limits import BLOCK_ELEMENTS, CHUNK_ELEMENTS
from tests.codecs.symbols import KINDS, TYPES, chunk

KERNEL = NumpyKernel()
SIZES = (1, 2, 3, 254, 255, 256, 257, 4095, 65_536, 65_537)
PAIRS = [(name, size) for name, codec in CODECS.items() for size in TYPES if codec.streams(size)]


def roundtrip(name: str, symbols: np.ndarray) -> list[bytes]:
    codec = CODECS[name]
    before = symbols.copy()
    streams = codec.encode(symbols, KERNEL)
    assert np.array_equal(symbols, before), "encoding leaves its input alone"
    assert len(streams) == codec.streams(symbols.itemsize)
    assert streams == codec.encode(symbols.copy(), KERNEL), "equal chunks give equal streams"
    out = np.full(symbols.size, 0x5A, symbols.dtype)
    codec.decode([memoryview(stream) for stream in streams], out, KERNEL)
    assert np.array_equal(out, symbols)
    return streams


def test_the_registry() -> None:
    assert all(codec.name == name for name, codec in CODECS.items())
    for itemsize in (1, 2, 4, 8):
        tried = codecs.candidates(itemsize)
        assert tried == [codec for codec in CODECS.values() if codec.streams(itemsize)]
        assert tried[-1].name == "raw", "the fallback takes every size"
    assert codecs.codec_named("raw") is CODECS["raw"]
    for name in ("zero", "", "Palette", "../raw"):
        with pytest.raises(PackageError, match="unknown codec"):
            codecs.codec_named(name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "itemsize"), PAIRS)
def test_roundtrip(name: str, itemsize: int, kind: str) -> None:
    for size in SIZES:
        roundtrip(name, chunk(kind, size, itemsize))


@pytest.mark.parametrize("kind", ["skewed", "rare escapes", "uniform"])
@pytest.mark.parametrize(
    "size", [palette._SAMPLE_FROM - 1, palette._SAMPLE_FROM, palette._SAMPLE_FROM + 1, CHUNK_ELEMENTS]
)
def test_the_palette_around_its_own_limits(kind: str, size: int) -> None:
    roundtrip("palette", chunk(kind, size, 2))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "itemsize"), PAIRS)
def test_roundtrip_of_large_chunks(name: str, itemsize: int, kind: str) -> None:
    sizes = (BLOCK_ELEMENTS + 1, palette._SAMPLE_FROM - 1, palette._SAMPLE_FROM + 1, CHUNK_ELEMENTS - 1, CHUNK_ELEMENTS)
    for size in sizes:
        roundtrip(name, chunk(kind, size, itemsize))


@settings(max_examples=200, deadline=None)
@given(data=st.data(), pair=st.sampled_from(PAIRS))
def test_roundtrip_of_any_symbols(data: st.DataObject, pair: tuple[str, int]) -> None:
    name, itemsize = pair
    roundtrip(name, data.draw(arrays.arrays(TYPES[itemsize], st.integers(1, 600))))


@settings(max_examples=60, deadline=None)
@given(symbols=arrays.arrays(np.uint16, st.integers(1, 3000), elements=st.integers(0, 400)))
def test_samples_change_nothing(symbols: np.ndarray) -> None:
    """The short cut for large chunks, forced on small ones: any palette must decode to the same symbols."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(palette, "_SAMPLE_FROM", 1)
        roundtrip("palette", symbols)


def test_a_palette_of_few_values_takes_few_bits() -> None:
    symbols = chunk("skewed", CHUNK_ELEMENTS, 2)
    counts = np.unique(symbols, return_counts=True)[1] / symbols.size
    entropy = float(-(counts * np.log2(counts)).sum())
    bits = 8 * sum(map(len, roundtrip("palette", symbols))) / symbols.size
    assert entropy <= bits < 1.03 * entropy


def test_streams_of_zeros_are_empty() -> None:
    assert CODECS["planes"].encode(np.zeros(100, np.uint32), KERNEL) == [b""] * 4
    low, high = CODECS["planes"].encode(np.full(100, 7, np.uint16), KERNEL)
    assert low
    assert high == b""


def test_codes_are_little_endian() -> None:
    """The bytes in a package do not depend on the machine: written out here, digit by digit."""
    symbols = np.array([0x1234, 0x1234, 0xABCD], np.uint16)
    assert CODECS["raw"].encode(symbols, KERNEL) == [b"\x34\x12\x34\x12\xcd\xab"]
    assert CODECS["palette"].encode(symbols, KERNEL)[1] == b"\x34\x12\xcd\xab"
    low, high = CODECS["planes"].encode(symbols, KERNEL)
    assert frames.decompress(low, 3) == b"\x34\x34\xcd"
    assert frames.decompress(high, 3) == b"\x12\x12\xab"


def test_ties_in_a_palette_go_to_the_smaller_symbol() -> None:
    symbols = np.arange(1000, 1400, dtype=np.uint16)
    coded = CODECS["palette"].encode(symbols, KERNEL)[1]
    assert np.frombuffer(coded, "<u2").tolist() == list(range(1000, 1255))


def decode_palette(streams: list[bytes], size: int = 4, gaps: bytes = b"") -> np.ndarray:
    out = np.empty(size, np.uint16)
    CODECS["palette"].decode([gaps, *streams], out, KERNEL)
    return out


def ranks(*values: int) -> bytes:
    return frames.compress(bytes(values))


def test_what_no_palette_encoder_writes_is_refused() -> None:
    entry, plane = b"\x01\x00", frames.compress(b"\x07")
    assert decode_palette([entry, ranks(0, 0, 255, 0), plane, plane]).tolist() == [1, 1, 0x0707, 1]
    with pytest.raises(PackageError, match="255 two-byte entries"):
        decode_palette([b"\x01", ranks(0, 0, 0, 0), b"", b""])
    with pytest.raises(PackageError, match="255 two-byte entries"):
        decode_palette([b"\x01\x00" * 256, ranks(0, 0, 0, 0), b"", b""])
    for rank in (1, 2, 254):
        with pytest.raises(PackageError, match="past the end of its palette"):
            decode_palette([entry, ranks(0, rank, 0, 0), b"", b""])
    for escapes in ([plane, b""], [b"", plane]):
        with pytest.raises(PackageError, match="no element refers to"):
            decode_palette([entry, ranks(0, 0, 0, 0), *escapes])
    two = frames.compress(b"\x07\x07")
    for escapes in ([two, plane], [plane, two]):
        with pytest.raises(PackageError, match=r"2 bytes where 1 to 1|does not hold"):
            decode_palette([entry, ranks(0, 0, 255, 0), *escapes])
    for wrong in (ranks(0, 0, 0), ranks(0, 0, 0, 0, 0), b""):
        with pytest.raises(PackageError):
            decode_palette([entry, wrong, b"", b""])


def test_positions_that_no_encoder_writes_are_refused() -> None:
    plane = frames.compress(b"\x07")
    coded = [b"\x01\x00", ranks(0, 255), plane, plane]
    for gaps, found in (((0, 0), [1, 0x0707, 0, 0]), ((1, 1), [0, 1, 0, 0x0707])):
        assert decode_palette(coded, gaps=ranks(*gaps)).tolist() == found
    for gaps, what in (
        ((1, 2), "past the end"),
        ((1, 255), "middle of a gap"),
        ((3,), "2 bytes where"),
        ((0,) * 5, "5"),
    ):
        with pytest.raises(PackageError, match=what):
            decode_palette(coded, gaps=ranks(*gaps))
    with pytest.raises(PackageError):
        decode_palette(coded, gaps=ranks(0, 0, 0))


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.44, 0.6])
def test_few_changes_take_few_bits(share: float) -> None:
    random = np.random.default_rng(1)
    symbols = np.where(random.random(CHUNK_ELEMENTS) < share, random.geometric(0.3, CHUNK_ELEMENTS), 0).astype(
        np.uint16
    )
    counts = np.unique(symbols, return_counts=True)[1] / symbols.size
    entropy = float(-(counts * np.log2(counts)).sum())
    streams = roundtrip("palette", symbols)
    assert bool(streams[0]) == (share < palette.FEW)
    assert 8 * sum(map(len, streams)) / symbols.size < 1.07 * entropy


@settings(max_examples=100, deadline=None)
@given(data=st.data(), share=st.floats(0, 0.4))
def test_any_few_changes(data: st.DataObject, share: float) -> None:
    symbols = np.zeros(data.draw(st.integers(1, 3000)), np.uint16)
    places = data.draw(st.sets(st.integers(0, symbols.size - 1), max_size=int(share * symbols.size)))
    symbols[sorted(places)] = data.draw(arrays.arrays(np.uint16, len(places), elements=st.integers(1, 0xFFFF)))
    assert bool(roundtrip("palette", symbols)[0]) == (0 < len(places) < palette.FEW * symbols.size)


@pytest.mark.parametrize("wrong", [0, 1, 3, 5, 7, 9])
def test_planes_and_raw_of_another_length_are_refused(wrong: int) -> None:
    out = np.empty(4, np.uint16)
    with pytest.raises(PackageError):
        CODECS["raw"].decode([bytes(wrong)], out, KERNEL)
    if wrong:  # an empty stream is a plane of zeros
        with pytest.raises(PackageError):
            CODECS["planes"].decode([frames.compress(b"x" * wrong), b""], out, KERNEL)


@pytest.mark.parametrize("name", ["palette", "planes"])
def test_a_damaged_stream_never_decodes_to_other_symbols(name: str) -> None:
    """One byte changed, at every place of every frame; the palette itself is the payload digest's to guard."""
    symbols = chunk("rare escapes", 3000, 2, seed=3)
    codec = CODECS[name]
    streams = codec.encode(symbols, KERNEL)
    random = np.random.default_rng(0)
    refused = 0
    for which in range(2 if name == "palette" else 0, len(streams)):
        for at in range(len(streams[which])):
            damaged = bytearray(streams[which])
            damaged[at] ^= int(random.integers(1, 256))
            out = np.zeros(symbols.size, np.uint16)
            try:
                codec.decode([*streams[:which], bytes(damaged), *streams[which + 1 :]], out, KERNEL)
            except PackageError:
                refused += 1
            else:  # bits that mean nothing, such as the reserved one of a frame header
                assert np.array_equal(out, symbols)
    assert refused > 1000
