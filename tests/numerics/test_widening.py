"""Widening and rounding, compiled: every 16-bit pattern, every tie, and each one's neighbors, against NumPy."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_hub.numerics.compiled import SLICE
from paramdelta_hub.numerics.floats import FLOATS
from paramdelta_hub.numerics.widening import count_not_finite, narrow, widen
from tests.numerics.test_floats import random_bits, special_bits
from tests.support import reference
from tests.support.reference import not_finite

ALL_16 = np.arange(1 << 16, dtype=np.uint16)
SIXTEEN = ("BF16", "F16")


@numba.njit(error_model="numpy")  # not kept on disk: the file of another module is not looked at when that is read
def widen_all(weights: Any, wide: Any) -> None:
    widen(weights, wide)


@numba.njit(error_model="numpy")
def narrow_all(wide: Any, spare: Any, weights: Any) -> None:
    narrow(wide, spare, weights)


def widened(name: str, bits: np.ndarray) -> np.ndarray:
    out = np.full(bits.size, 7, FLOATS[name].wide)
    widen_all(bits.view(FLOATS[name].operand), out)
    return out


def narrowed(name: str, wide: np.ndarray) -> np.ndarray:
    before, out = wide.copy(), np.full(wide.size, 0x5A, FLOATS[name].bits)
    narrow_all(wide, np.empty_like(wide), out.view(FLOATS[name].operand))
    assert wide.tobytes() == before.tobytes(), "what is rounded stays as it is"
    return out


def same_bits(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return ours.tobytes() == theirs.tobytes()


def assert_rounds(name: str, wide: np.ndarray) -> None:
    """Compare rounding with the reference's; NaN stays NaN, or is counted, which refuses the result."""
    ours, theirs, nan = narrowed(name, wide), reference.narrow(name, wide), np.isnan(wide)
    assert np.array_equal(ours[~nan], theirs[~nan])
    bad = count_not_finite(wide, wide.dtype.type(FLOATS[name].overflow))
    assert bad == np.count_nonzero(not_finite(name, theirs))
    if name != "BF16":
        magnitude = ours[nan] & ours.dtype.type((1 << (8 * ours.itemsize - 1)) - 1)
        assert (magnitude > reference.EXPONENT[name]).all()


def test_each_type_of_weights_has_its_loop() -> None:
    assert {name: str(kind.operand) for name, kind in FLOATS.items()} == {
        "BF16": "uint16",
        "F16": "int16",
        "F32": "float32",
    }
    with pytest.raises(KeyError):
        widen_all(np.ones(3, np.uint32), np.empty(3, np.float32))
    with pytest.raises(KeyError):
        narrow_all(np.ones(3, np.float32), np.empty(3, np.float32), np.empty(3, np.uint32))
    with pytest.raises(NotImplementedError):
        widen(np.ones(3, np.float32), np.empty(3))
    with pytest.raises(NotImplementedError):
        narrow(np.ones(3), np.empty(3), np.empty(3, np.float32))


@pytest.mark.parametrize("name", SIXTEEN)
def test_every_pattern_is_widened(name: str) -> None:
    ours, theirs = widened(name, ALL_16), reference.widen(name, ALL_16)
    nan = np.isnan(theirs)
    assert same_bits(ours[~nan], theirs[~nan])
    assert np.array_equal(np.isnan(ours), nan)
    assert np.array_equal(np.signbit(ours), ALL_16 >> 15 == 1)
    fraction = {"BF16": 0x7F, "F16": 0x3FF}[name]
    left = {"BF16": 16, "F16": 13}[name]
    assert np.array_equal((ours[nan].view(np.uint32) >> left) & fraction, ALL_16[nan] & fraction), "payloads stay"


@pytest.mark.parametrize("name", SIXTEEN)
def test_every_pattern_comes_back(name: str) -> None:
    back, bad = narrowed(name, widened(name, ALL_16)), not_finite(name, ALL_16)
    assert np.array_equal(back[~bad], ALL_16[~bad])
    quiet = ALL_16.copy()
    if name == "F16":
        quiet[(ALL_16 & 0x7C00 == 0x7C00) & (ALL_16 & 0x3FF != 0)] |= 0x200  # signaling NaN become quiet
    assert np.array_equal(back, quiet)


def test_widening_f32() -> None:
    bits = np.concatenate([random_bits("F32", 300_000, 0), special_bits("F32")])
    assert same_bits(widened("F32", bits), reference.widen("F32", bits))
    bad = np.array([0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF], np.uint32)
    ours = widened("F32", bad)
    assert ours[:2].tolist() == [np.inf, -np.inf]
    assert np.isnan(ours[2:]).all()
    assert np.array_equal(narrowed("F32", ours)[:3], bad[:3])


@pytest.mark.parametrize("name", FLOATS)
def test_every_tie_and_its_neighbors(name: str) -> None:
    """Each number, the point half-way to the next, and up to three neighbors of both in the wide type."""
    kind = FLOATS[name]
    bits = ALL_16 if name in SIXTEEN else np.concatenate([random_bits(name, 100_000, 5), special_bits(name)])
    here = reference.widen(name, bits[~not_finite(name, bits)])
    following = reference.widen(name, bits[~not_finite(name, bits)] + kind.bits.type(1))
    beyond = np.sign(here) * kind.wide.type(kind.overflow)  # lies half-way to what would follow the largest
    with np.errstate(over="ignore", invalid="ignore"):
        half = np.where(np.isfinite(following), here + (following - here) / 2, beyond)
    for points in (here, half):
        down = up = points
        assert_rounds(name, points)
        for _ in range(3):
            with np.errstate(over="ignore"):
                down, up = np.nextafter(down, kind.wide.type(-np.inf)), np.nextafter(up, kind.wide.type(np.inf))
            assert_rounds(name, down)
            assert_rounds(name, up)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("seed", range(4))
def test_any_wide_pattern(name: str, seed: int) -> None:
    """Random bits: subnormals, NaN of every payload, and numbers far beyond the type."""
    kind = FLOATS[name]
    random = np.random.default_rng(seed)
    patterns = random.integers(0, (1 << 8 * kind.wide.itemsize) - 1, 300_000, dtype=np.uint64, endpoint=True)
    assert_rounds(name, patterns.astype(kind.wide_bits).view(kind.wide))
    near = reference.widen(name, random_bits(name, 50_000, seed)).view(kind.wide_bits)
    steps = random.integers(0, 1 << (16 if kind.wide.itemsize == 4 else 29), near.size).astype(kind.wide_bits)
    assert_rounds(name, (near + steps).view(kind.wide))


@settings(max_examples=100)
@given(st.data(), st.sampled_from(sorted(FLOATS)))
def test_any_values(data: st.DataObject, name: str) -> None:
    kind = FLOATS[name]
    values = st.floats(width=8 * kind.wide.itemsize) | st.floats(-70_000, 70_000, width=8 * kind.wide.itemsize)
    assert_rounds(name, np.array(data.draw(st.lists(values, min_size=1, max_size=40)), kind.wide))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 511, SLICE - 1, SLICE])
def test_odd_lengths(name: str, length: int) -> None:
    """What vectors leave over is done as well, and nothing beyond is touched."""
    kind, bits = FLOATS[name], random_bits(name, 2 * SLICE, length)[:length]
    wide, back = np.full(length + 9, 7, kind.wide), np.full(length + 9, 0x5A, kind.bits)
    widen_all(bits.view(kind.operand), wide[:length])
    assert same_bits(wide[:length], reference.widen(name, bits))
    assert (wide[length:] == 7).all()
    narrow_all(wide[:length], np.empty(length, kind.wide), back.view(kind.operand)[:length])
    assert np.array_equal(back[:length], bits)
    assert (back[length:] == 0x5A).all()


@pytest.mark.parametrize("name", FLOATS)
def test_finite_means_rounds_to_finite(name: str) -> None:
    kind = FLOATS[name]
    edge = kind.wide.type(kind.overflow)
    below = np.nextafter(edge, kind.wide.type(0))
    for value in (edge, -edge, below, -below, *map(kind.wide.type, (np.nan, -np.nan, np.inf, -np.inf))):
        wide = np.array([1.0, value, -2.0], kind.wide)
        expected = int(np.count_nonzero(not_finite(name, narrowed(name, wide))))
        assert count_not_finite(wide, edge) == expected == (0 if abs(value) == below else 1)
    assert count_not_finite(np.empty(0, kind.wide), edge) == 0
    assert count_not_finite(np.full(SLICE, np.nan, kind.wide), edge) == SLICE
