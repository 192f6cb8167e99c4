"""The codec of float deltas: positions where few elements changed, and sums that are those of the plain values."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_hub.codecs import frames
from paramdelta_hub.codecs.by_name import TANS
from paramdelta_hub.codecs.tans.chunk import encode_values
from paramdelta_hub.codecs.tans.delta import FEW
from paramdelta_hub.errors import PackageError
from paramdelta_hub.limits import CHUNK_ELEMENTS
from paramdelta_hub.numerics.floats import FLOATS, Float
from paramdelta_hub.numerics.sums import PlainDelta
from tests.codecs.tans.wide import KINDS, TYPES, chunk, entropy
from tests.support.reference import add, delta_of
from tests.support.spec_reader import values as values_by_spec

WEIGHTS = (1.0, 0.5, -1.0, 0.3, 2.0**-120, -(2.0**100), 7e37)
LENGTHS = (1, 7, 8, 9, 300, 4095, 4096, 4097, 12_345)


def opened(streams: list[bytes], count: int, width: int):
    return TANS.open([memoryview(stream) for stream in streams], count, np.dtype(f"f{width // 8}"))


def roundtrip(bits: np.ndarray) -> list[bytes]:
    """Encode and decode a chunk; return its streams."""
    width, wide = 8 * bits.itemsize, bits.view(f"f{bits.itemsize}")
    streams = TANS.encode(wide)
    assert len(streams) == TANS.streams
    assert TANS.encode(wide.copy()) == streams
    found = opened(streams, bits.size, width).values(np.full_like(wide, 7))
    assert found.tobytes() == bits.tobytes()
    return streams


@pytest.mark.parametrize("width", TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_roundtrip(width: int, kind: str) -> None:
    for count in LENGTHS:
        bits = chunk(kind, count, width)
        streams = roundtrip(bits)
        if count < 5000:
            assert np.array_equal(values_by_spec(streams, count, width), bits)


@pytest.mark.parametrize("width", TYPES)
@pytest.mark.parametrize("share", [0.0, 0.0001, 0.02, 0.1, FEW - 0.005, FEW + 0.005, 0.3, 1.0])
def test_positions_are_coded_where_few_elements_changed(width: int, share: float) -> None:
    random = np.random.default_rng(1)
    bits = np.where(random.random(60_000) < share, chunk("gaussian", 60_000, width) | TYPES[width].type(1), 0)
    bits = bits.astype(TYPES[width])
    changed = int(np.count_nonzero(bits))
    gaps, _ = roundtrip(bits)
    assert bool(gaps) == (0 < changed < FEW * bits.size)


@settings(max_examples=80)
@given(st.data(), st.sampled_from(list(TYPES)), st.floats(0, 0.3))
def test_any_few_changes(data: st.DataObject, width: int, share: float) -> None:
    bits = np.zeros(data.draw(st.integers(1, 3000)), TYPES[width])
    places = data.draw(st.sets(st.integers(0, bits.size - 1), max_size=int(share * bits.size)))
    pattern = st.integers(1, (1 << width) - 1)
    bits[sorted(places)] = data.draw(st.lists(pattern, min_size=len(places), max_size=len(places)))
    streams = roundtrip(bits)
    assert bool(streams[0]) == (0 < len(places) < FEW * bits.size)
    assert np.array_equal(values_by_spec(streams, bits.size, width), bits)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.6])
def test_few_changes_take_few_bits(share: float) -> None:
    random = np.random.default_rng(1)
    bits = np.where(random.random(CHUNK_ELEMENTS) < share, chunk("gaussian", CHUNK_ELEMENTS, 32), 0).astype(np.uint32)
    streams = roundtrip(bits)
    assert 8 * sum(map(len, streams)) / bits.size < 1.07 * entropy(bits)


def test_one_percent_moved_by_a_unit_takes_an_eighth_of_a_bit() -> None:
    random = np.random.default_rng(7)
    base = (random.standard_normal(CHUNK_ELEMENTS).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    steps = np.where(random.random(CHUNK_ELEMENTS) < 0.01, random.choice([-1, 1], CHUNK_ELEMENTS), 0)
    post = (base + steps).astype(np.uint16)
    streams = roundtrip(delta_of("BF16", base, post).view(np.uint32))
    assert 8 * sum(map(len, streams)) / CHUNK_ELEMENTS <= 0.13


def gaps(*values: int) -> bytes:
    return frames.compress(bytes(values))


@pytest.mark.parametrize("width", TYPES)
def test_positions_that_no_encoder_writes_are_refused(width: int) -> None:
    one, two = (encode_values(chunk("one value", count, width)) for count in (1, 2))
    nonzero = opened([gaps(2), one], 4, width).values(np.empty(4, f"f{width // 8}"))
    assert np.flatnonzero(nonzero).tolist() == [2]
    for listed, what in (
        ((1, 2), "past the end"),
        ((1, 255), "middle of a gap"),
        ((255,), "middle of a gap"),
        ((0,) * 5, "5 bytes where 1 to 4 are possible"),
    ):
        with pytest.raises(PackageError, match=what):
            opened([gaps(*listed), two], 4, width)
    for streams in ([b"no frame", one], [gaps(1), b""], [b"", b""], [gaps(2), one[:-1]]):
        with pytest.raises(PackageError):
            opened(streams, 4, width)


@pytest.mark.parametrize("width", TYPES)
def test_another_number_of_values_than_positions_is_refused(width: int) -> None:
    bits = chunk("gaussian", 50, width)
    with pytest.raises(PackageError):
        opened([gaps(*[0] * 40), encode_values(bits)], 50, width)
    with pytest.raises(PackageError):
        opened([gaps(*[0] * 50), encode_values(bits[:49].copy())], 50, width)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_damage_is_found_in_the_midst_of_a_sum(name: str, weight: float) -> None:
    """Streams that do not end where they must are seen when the values are taken, whatever for."""
    kind = FLOATS[name]
    width = 8 * kind.wide.itemsize
    empty, values = TANS.encode(chunk("gaussian", 9000, width).view(kind.wide))
    damaged = bytearray(values)
    damaged[-sum(-(-length // 8) for length in struct.unpack("<3I", values[:12])[1:]) - 300] ^= 1
    target, out = np.zeros(9000, kind.bits), np.empty(9000, kind.bits)
    delta = opened([empty, bytes(damaged)], 9000, width)
    for use in (
        lambda: delta.add(kind, target, weight, out),
        lambda: delta.accumulate(np.zeros(9000, kind.wide), weight),
        lambda: delta.values(np.zeros(9000, kind.wide)),
    ):
        with pytest.raises(PackageError, match="do not end where they must"):
            use()


def assert_adds(kind: Float, bits: np.ndarray, target: np.ndarray, weight: float) -> None:
    """The coded chunk, its plain values, and the reference give the same sums."""
    wide = bits.view(kind.wide)
    streams = TANS.encode(wide)
    expected, bad = add(kind.name, target, [(wide, weight)])
    coded = opened(streams, bits.size, 8 * kind.wide.itemsize)
    for delta in (coded, PlainDelta(wide)):
        before, out = target.copy(), np.full_like(target, 0x5A)
        assert delta.add(kind, target, weight, out) == np.count_nonzero(bad)
        assert np.array_equal(out[~bad], expected[~bad])
        assert np.array_equal(target, before)
    total, plain = (np.resize(np.array([0.0, -0.0, 1.5, -1e-30], kind.wide), bits.size) for _ in range(2))
    coded.accumulate(total, weight)
    PlainDelta(wide).accumulate(plain, weight)
    with np.errstate(all="ignore"):
        by_numpy = np.resize(np.array([0.0, -0.0, 1.5, -1e-30], kind.wide), bits.size) + kind.wide.type(weight) * wide
    for ours in (total, plain):
        number = ~np.isnan(by_numpy)
        assert np.array_equal(np.isnan(ours), ~number)
        assert np.array_equal(ours[number].view(bits.dtype), by_numpy[number].view(bits.dtype))
    assert coded.values(np.empty_like(wide)).tobytes() == wide.tobytes(), "and it can be decoded again"


def targets(kind: Float, count: int, seed: int) -> dict[str, np.ndarray]:
    """Return targets: finite ones, any patterns, and NaN and infinity everywhere."""
    random = np.random.default_rng(seed)
    every = random.integers(0, 1 << 8 * kind.itemsize, count, dtype=np.uint64).astype(kind.bits)
    infinity = kind.bits.type(kind.infinity)
    return {"any": every, "finite": every & ~infinity | every & infinity >> 1 & infinity, "none": every | infinity}


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("kind", ["gaussian", "few changes", "zeros", "minus zeros", "specials", "outliers", "uniform"])
def test_sums_of_coded_chunks(name: str, kind: str, weight: float) -> None:
    dtype = FLOATS[name]
    for count in (1, 9, 4097):
        bits = chunk(kind, count, 8 * dtype.wide.itemsize)
        for target in targets(dtype, count, count).values():
            assert_adds(dtype, bits, target, weight)


@settings(max_examples=60)
@given(
    name=st.sampled_from(sorted(FLOATS)),
    kind=st.sampled_from(KINDS),
    count=st.sampled_from(LENGTHS) | st.integers(1, 600),
    weight=st.sampled_from(WEIGHTS) | st.floats(-4, 4).filter(bool),
    seed=st.integers(0, 1 << 20),
)
def test_any_sum(name: str, kind: str, count: int, weight: float, seed: int) -> None:
    dtype = FLOATS[name]
    target = targets(dtype, count, seed)["any"]
    assert_adds(dtype, chunk(kind, count, 8 * dtype.wide.itemsize, seed), target, weight)
