"""Chunks of wide values: every pattern comes back, and what is coded takes hardly more than its entropy."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from paramdelta_hub.codecs.tans.chunk import SAMPLED_FROM, encode_values, parse_values
from paramdelta_hub.codecs.tans.classes import FROM_ELEMENTS
from paramdelta_hub.errors import PackageError
from paramdelta_hub.limits import CHUNK_ELEMENTS
from tests.codecs.tans.wide import KINDS, TYPES, chunk, decode, entropy, gaussian, roundtrip, specials
from tests.support.spec_reader import tans

SMALL = (1, 2, 3, 7, 8, 9, 15, 16, 17, 255, 256, 257, 264)
LARGE = (4095, 4096, 4097, 4104, 8192, 8193, FROM_ELEMENTS - 1, FROM_ELEMENTS, FROM_ELEMENTS + 1, 70_000)


@pytest.mark.parametrize("width", TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_small_chunks_of_every_kind(width: int, kind: str) -> None:
    for count in SMALL:
        values = chunk(kind, count, width)
        assert np.array_equal(tans(roundtrip(values), count, width), values)


@pytest.mark.parametrize("width", TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_around_every_border(width: int, kind: str) -> None:
    for count in LARGE:
        roundtrip(chunk(kind, count, width))
    values = chunk(kind, 4097, width)
    assert np.array_equal(tans(encode_values(values), 4097, width), values)


@pytest.mark.parametrize("width", TYPES)
@pytest.mark.parametrize("kind", ["gaussian", "scales", "outliers", "specials"])
def test_chunks_of_which_a_part_tells_the_alphabet(width: int, kind: str) -> None:
    for count in (SAMPLED_FROM - 1, SAMPLED_FROM, SAMPLED_FROM + 1):
        roundtrip(chunk(kind, count, width))


@pytest.mark.slow
@pytest.mark.parametrize("width", TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_whole_chunks(width: int, kind: str) -> None:
    for count in (CHUNK_ELEMENTS - 1, CHUNK_ELEMENTS):
        roundtrip(chunk(kind, count, width))


@pytest.mark.parametrize("width", TYPES)
def test_what_the_sample_does_not_see(width: int) -> None:
    """One value of four is looked at, and one of sixteen for its exponent: the others are coded, too."""
    values = chunk("uniform", SAMPLED_FROM + 3, width)
    values[::4] = 0
    roundtrip(values)
    values[:] = gaussian(values.size, width)
    values[::16] = specials(width)[-1]
    roundtrip(values)


@st.composite
def any_values(draw: st.DrawFn) -> np.ndarray:
    """Draw bits of wide values: free ones, among few, or among those that are special."""
    width = draw(st.sampled_from(list(TYPES)))
    dtype = TYPES[width]
    pattern = st.integers(0, (1 << width) - 1)
    few = draw(st.lists(pattern | st.sampled_from(specials(width).tolist()), min_size=1, max_size=6))
    elements = draw(st.sampled_from([pattern, st.sampled_from(few), st.sampled_from(specials(width).tolist())]))
    return draw(arrays.arrays(dtype, st.integers(1, 600), elements=elements))


@settings(max_examples=150)
@given(any_values())
def test_any_bits(values: np.ndarray) -> None:
    coded = roundtrip(values)
    if values.size < 60:
        assert np.array_equal(tans(coded, values.size, 8 * values.itemsize), values)


@settings(max_examples=60)
@given(
    width=st.sampled_from(list(TYPES)),
    parts=st.lists(st.tuples(st.sampled_from(KINDS), st.integers(1, 9000)), min_size=1, max_size=8),
    seed=st.integers(0, 1 << 20),
)
def test_any_mixture(width: int, parts: list[tuple[str, int]], seed: int) -> None:
    """70,000 values at most, of kinds that follow each other: blocks differ, and classes may come of it."""
    roundtrip(np.concatenate([chunk(kind, count, width, seed) for kind, count in parts]))


@pytest.mark.parametrize("width", TYPES)
@pytest.mark.parametrize("outlier", [2.0**120, -(2.0**-140), float("inf"), float("nan"), 1.0000001])
def test_an_outlier_among_equal_values(width: int, outlier: float) -> None:
    wide = np.dtype(f"f{width // 8}")
    for place in (0, 1, 4999):
        values = np.full(5000, 2.0**-12, wide)
        values[place] = outlier
        coded = roundtrip(values.view(TYPES[width]))
        assert len(coded) < 300


@pytest.mark.parametrize("dtype", ["<u4", "<u8"])
def test_streams_are_little_endian(dtype: str) -> None:
    """The head, by its definition: lengths in bits, states; and all streams together fill the bytes."""
    values = chunk("gaussian", 999, 8 * np.dtype(dtype).itemsize)
    coded = roundtrip(values)
    lengths = struct.unpack("<3I", coded[:12])
    assert 0 < lengths[0] <= 12 * 500
    assert 0 < lengths[1] <= 12 * 499
    table = len(coded) - 24 - sum(-(-length // 8) for length in lengths)
    assert 0 < table < 1500


def test_one_value_takes_no_bits() -> None:
    for width in TYPES:
        short, long = (roundtrip(chunk("one value", count, width)) for count in (10, 60_000))
        assert struct.unpack("<3I", long[:12]) == (0, 0, 0)
        assert len(long) == len(short) < 60


@pytest.mark.parametrize("scale", [0.3, 0.02, 0.002, 0.0001])
def test_deltas_of_bf16_take_hardly_more_than_their_entropy(scale: float) -> None:
    values = gaussian(CHUNK_ELEMENTS, 32, scale)
    bits = 8 * len(roundtrip(values)) / values.size
    assert 0.98 * entropy(values) < bits < 1.015 * entropy(values) + 0.003


@pytest.mark.parametrize("scale", [0.02, 0.0005])
def test_deltas_of_f16_take_hardly_more_than_their_entropy(scale: float) -> None:
    random = np.random.default_rng(2)
    base = random.standard_normal(CHUNK_ELEMENTS).astype(np.float16)
    post = (base + scale * random.standard_normal(CHUNK_ELEMENTS)).astype(np.float16)
    values = (post.astype(np.float32) - base.astype(np.float32)).view(np.uint32)
    bits = 8 * len(roundtrip(values)) / values.size
    assert 0.97 * entropy(values) < bits < 1.02 * entropy(values) + 0.003


@pytest.mark.parametrize("units", [1, 6])
def test_deltas_of_f32_of_few_units_take_hardly_more_than_their_entropy(units: int) -> None:
    random = np.random.default_rng(3)
    base = random.standard_normal(CHUNK_ELEMENTS).astype(np.float32)
    steps = np.round(units * random.standard_normal(CHUNK_ELEMENTS)).astype(np.int32)
    post = (base.view(np.int32) + steps).view(np.float32)
    values = (post.astype(np.float64) - base.astype(np.float64)).view(np.uint64)
    bits = 8 * len(roundtrip(values)) / values.size
    assert 0.97 * entropy(values) < bits < 1.02 * entropy(values) + 0.003


def test_deltas_of_f32_that_are_all_different_take_what_their_scale_leaves() -> None:
    """Their entropy can't be counted: a normal number of standard deviation σ has log₂(σ√(2πe) / 2⁻²⁴) bits at 2⁻²⁴."""
    random, grid, sigma = np.random.default_rng(4), 2.0**-24, 0.001
    steps = np.round(sigma / grid * random.standard_normal(CHUNK_ELEMENTS))
    bits = 8 * len(roundtrip((steps * grid).view(np.uint64))) / CHUNK_ELEMENTS
    ideal = np.log2(sigma / grid * np.sqrt(2 * np.pi * np.e))
    assert 0.99 * ideal < bits < 1.02 * ideal


@pytest.mark.parametrize("place", ["first", "middle", "last", "scattered"])
@pytest.mark.parametrize("count", [300, 5_000, 200_000])
def test_where_values_lie_among_zeros_costs_little(count: int, place: str) -> None:
    """Rows of an embedding that were not trained: the exponents of the others are found wherever these are."""
    noise = np.random.default_rng(3)
    base = (noise.standard_normal(count) * 0.05).astype(np.float16).astype(np.float32)
    some = (base * np.float32(1.01)).astype(np.float16).astype(np.float32) - base
    values = np.zeros(CHUNK_ELEMENTS, np.float32)
    free = CHUNK_ELEMENTS - count
    start = {"first": 0, "middle": free // 2, "last": free}.get(place)
    if start is None:
        values[np.sort(noise.choice(CHUNK_ELEMENTS, count, replace=False))] = some
    else:
        values[start : start + count] = some
    bits = 8 * len(roundtrip(values.view(np.uint32)))
    assert bits < 1.05 * entropy(values.view(np.uint32)) * values.size + 20_000


@pytest.mark.parametrize("width", TYPES)
def test_noise_takes_its_own_size(width: int) -> None:
    values = chunk("uniform", 50_000, width)
    assert len(roundtrip(values)) < 1.02 * values.nbytes


@pytest.mark.parametrize("width", TYPES)
def test_the_streams_must_have_the_values(width: int) -> None:
    coded = bytearray(encode_values(chunk("gaussian", 5000, width)))
    end_of_even = len(coded) - sum(-(-length // 8) for length in struct.unpack("<3I", coded[:12])[1:])
    coded[end_of_even - 200] ^= 1
    parsed = parse_values(bytes(coded), 5000, width // 8)
    with pytest.raises(PackageError, match="do not end where they must"):
        parsed.decode(np.empty(5000, TYPES[width]))


@pytest.mark.parametrize("width", TYPES)
def test_any_buffer_at_any_place(width: int) -> None:
    """Streams are cut out of a payload: they begin anywhere in memory."""
    values = chunk("outliers", 3000, width)
    coded = encode_values(values)
    for before in range(9):
        payload = memoryview(bytearray(bytes(before) + coded + bytes(5)))
        assert np.array_equal(decode(payload[before : before + len(coded)], 3000, width), values)


def test_a_parsed_chunk_can_be_decoded_again() -> None:
    values = chunk("scales", 50_000, 32)
    parsed = parse_values(encode_values(values), values.size, 4)
    for _ in range(2):
        out = np.zeros(values.size, np.uint32)
        parsed.decode(out)
        assert np.array_equal(out, values)


@pytest.mark.parametrize("width", TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_coded_before_leaves_no_trace(width: int, kind: str) -> None:
    """Buffers are used again, with what is in them."""
    for count in (1, 9, 300, 40_000):
        values = chunk(kind, count, width)
        first = encode_values(values)
        encode_values(chunk("uniform", count + 1000, width, seed=1))
        encode_values(chunk("scales", count + 40_000, width, seed=2))
        assert encode_values(values) == first
        assert np.array_equal(decode(first, count, width), values)


def fixed_chunk(width: int) -> np.ndarray:
    """Return the same values on every machine: of several scales, by exact products, and some of any bits."""
    count = SAMPLED_FROM + 77
    draws = np.frombuffer(hashlib.shake_128(b"paramdelta").digest(8 * count), "<u2").reshape(count, 4).astype(np.int64)
    steps = draws.sum(axis=1) - 131_070 >> 6
    scales = np.ldexp(1.0, -20 - 3 * (np.arange(count) // 1024 * 7 % 4))
    bits = (steps * scales).astype(f"f{width // 8}").view(TYPES[width])
    bits[::997] = draws[::997] @ (1 << np.arange(0, 64, 16)).astype(np.int64) & ((1 << width - 1) - 1)
    return bits


DIGESTS = {
    32: ("c49a2eb41ba2d77e", "6f598938d87eedbd"),
    64: ("9c71dd5e64bf0253", "42f94e91c8a7fe92"),
}
"""Of the values, and of their stream. The second changes with the encoder, and must be the same on every machine."""


@pytest.mark.parametrize("width", TYPES)
def test_every_machine_makes_the_same_choices(width: int) -> None:
    values = fixed_chunk(width)
    coded = roundtrip(values)
    assert coded[24] & 3 == 2, "four classes"
    little = values.astype(values.dtype.newbyteorder("<"))
    assert tuple(hashlib.sha256(content).hexdigest()[:16] for content in (little, coded)) == DIGESTS[width]
