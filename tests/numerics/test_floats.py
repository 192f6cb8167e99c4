"""Float dtypes in NumPy: widening, rounding, what is finite; and the bit patterns that other tests are made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_hub.limits import BLOCK_ELEMENTS
from paramdelta_hub.numerics import floats
from paramdelta_hub.numerics.floats import FLOATS, Float
from tests.support.models import TORCH, WIDE, from_bits, to_bits

SIXTEEN = ("BF16", "F16")


def finite_bits(name: str) -> np.ndarray:
    """Return every finite pattern of a 16-bit type."""
    every = np.arange(1 << 16, dtype=np.uint16)
    return every[torch.isfinite(from_bits(every, TORCH[name])).numpy()]


def special_bits(name: str) -> np.ndarray:
    """Return ±0, the smallest and largest subnormals and normals, one and its neighbours."""
    kind = FLOATS[name]
    mantissa = {"BF16": 7, "F16": 10, "F32": 23}[name]
    exponents = {"BF16": 8, "F16": 5, "F32": 8}[name]
    largest = (((1 << exponents) - 1) << mantissa) - 1
    one = ((1 << (exponents - 1)) - 1) << mantissa
    half_way = ((1 << (exponents - 2)) - 1) << mantissa
    low = [0, 1, 2, 3, (1 << mantissa) - 1, 1 << mantissa, (1 << mantissa) + 1, half_way, half_way + 1]
    high = [one - 1, one, one + 1, one + (1 << mantissa), largest - (1 << mantissa), largest - 1, largest]
    sign = 1 << (8 * kind.itemsize - 1)
    return np.array([pattern | bit for bit in (0, sign) for pattern in low + high], kind.bits)


def widened(kind: Float, bits: np.ndarray) -> np.ndarray:
    return kind.widen(bits, np.empty(bits.size, kind.wide))


def rounded(kind: Float, wide: np.ndarray) -> np.ndarray:
    return kind.round(wide, np.empty(wide.size, kind.bits), np.empty(wide.size, kind.wide_bits))


def random_bits(name: str, count: int, seed: int) -> np.ndarray:
    """Return finite patterns of every exponent, evenly."""
    kind = FLOATS[name]
    bits = (
        np.random.default_rng(seed).integers(0, 1 << (8 * kind.itemsize), 2 * count, dtype=np.uint64).astype(kind.bits)
    )
    return bits[torch.isfinite(from_bits(bits, TORCH[name])).numpy()][:count]


def pairs(name: str, seed: int = 0, count: int = 60_000) -> tuple[np.ndarray, np.ndarray]:
    """Return base and post: specials with specials, random ones, and near ones, which is what models hold."""
    special = special_bits(name)
    base, post = random_bits(name, count, seed), random_bits(name, count, seed + 1)
    steps = np.random.default_rng(seed + 2).integers(-40, 41, base.size)
    near = (base.astype(np.int64) + steps).clip(0, np.iinfo(base.dtype).max).astype(base.dtype)
    near = np.where(torch.isfinite(from_bits(near, TORCH[name])).numpy(), near, base)
    every = [
        (np.repeat(special, special.size), np.tile(special, special.size)),
        (base, post[: base.size]),
        (base, near),
    ]
    return np.concatenate([b for b, _ in every]), np.concatenate([p for _, p in every])


@pytest.mark.parametrize("name", SIXTEEN)
def test_widening_is_torchs_for_every_pattern(name: str) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    expected = from_bits(every, TORCH[name]).float().numpy()
    assert np.array_equal(widened(FLOATS[name], every), expected, equal_nan=True)
    finite = np.isfinite(expected)
    assert np.array_equal(widened(FLOATS[name], every).view(np.uint32)[finite], expected.view(np.uint32)[finite])


def test_widening_f32_is_torchs() -> None:
    bits = np.concatenate([random_bits("F32", 200_000, 0), special_bits("F32")])
    expected = from_bits(bits, torch.float32).double().numpy()
    assert np.array_equal(widened(FLOATS["F32"], bits).view(np.uint64), expected.view(np.uint64))


@pytest.mark.parametrize("name", sorted(FLOATS))
def test_rounding_undoes_widening(name: str) -> None:
    bits = finite_bits(name) if name in SIXTEEN else np.concatenate([random_bits(name, 200_000, 3), special_bits(name)])
    assert np.array_equal(rounded(FLOATS[name], widened(FLOATS[name], bits)), bits)


@pytest.mark.parametrize("name", sorted(FLOATS))
def test_rounding_is_torchs_around_every_tie(name: str) -> None:
    """For every pattern: the point half-way to the next one, its neighbours in the wide type, and points between."""
    kind = FLOATS[name]
    bits = finite_bits(name) if name in SIXTEEN else np.concatenate([random_bits(name, 100_000, 5), special_bits(name)])
    here = widened(kind, bits)
    with np.errstate(invalid="ignore", over="ignore"):
        following = widened(kind, bits + kind.bits.type(1))
        largest = np.abs(here).max()
        following = np.where(np.isfinite(following), following, np.sign(here) * kind.wide.type(kind.overflow))
        half = here + (following - here) / 2
    half = np.clip(half, -2 * largest, 2 * largest) if name != "BF16" else half[np.isfinite(half)]
    for wide in (half, np.nextafter(half, kind.wide.type(np.inf)), np.nextafter(half, kind.wide.type(-np.inf))):
        wide = wide[np.isfinite(wide)]
        expected = to_bits(torch.from_numpy(wide).to(TORCH[name]))
        assert np.array_equal(rounded(kind, wide), expected)


@pytest.mark.parametrize("name", sorted(FLOATS))
def test_rounding_is_torchs_for_sums_and_any_finite_wide_value(name: str) -> None:
    kind = FLOATS[name]
    wide_bits = np.random.default_rng(8).integers(0, 1 << 63, 300_000, dtype=np.uint64)
    wild = (wide_bits >> np.uint64(0 if kind.wide.itemsize == 8 else 31)).astype(kind.wide_bits).view(kind.wide)
    base, post = pairs(name, seed=9)
    with np.errstate(over="ignore"):
        sums = widened(kind, base) + widened(kind, post) * kind.wide.type(0.7)
    wide = np.concatenate([wild, -wild, sums])
    wide = wide[np.isfinite(wide)]
    assert np.array_equal(rounded(kind, wide), to_bits(torch.from_numpy(wide).to(TORCH[name])))


@pytest.mark.parametrize("name", sorted(FLOATS))
def test_finite_means_rounds_to_finite(name: str) -> None:
    kind = FLOATS[name]
    edge = kind.wide.type(kind.overflow)
    below = np.nextafter(edge, kind.wide.type(0))
    for value in (edge, -edge, below, -below, kind.wide.type(np.nan), kind.wide.type(np.inf), -kind.wide.type(np.inf)):
        wide = np.array([1.0, value, -2.0], kind.wide)
        expected = bool(torch.isfinite(torch.from_numpy(wide).to(TORCH[name])).all())
        assert kind.finite(wide) is expected
        assert kind.count_not_finite(wide) == (0 if expected else 1)
    assert kind.finite(np.empty(0, kind.wide))
    assert kind.finite(np.array([below, -below])), "largest finite values of both signs"


@settings(max_examples=200)
@given(
    name=st.sampled_from(sorted(FLOATS)),
    seed=st.integers(0, 10_000),
    weight=st.floats(-4, 4) | st.sampled_from([0.5, -1.0, 1.0, 1 / 3, 1e-30]),
)
def test_accumulate_rounds_product_and_sum(name: str, seed: int, weight: float) -> None:
    kind = FLOATS[name]
    total, delta = (widened(kind, random_bits(name, 50, seed + i)).copy() for i in (0, 1))
    wide = WIDE[TORCH[name]]
    product = torch.from_numpy(delta.copy()) * torch.tensor(weight, dtype=wide)
    expected = (torch.from_numpy(total.copy()) + product).numpy()
    floats.accumulate(total, delta, weight)
    assert np.array_equal(total, expected, equal_nan=True)


def test_blocks_cover_everything_once() -> None:
    for elements in (0, 1, BLOCK_ELEMENTS - 1, BLOCK_ELEMENTS, BLOCK_ELEMENTS + 1, 5 * BLOCK_ELEMENTS + 7):
        covered = [at for block in floats.blocks(elements) for at in (block.start, block.stop)]
        assert covered[::2] == list(range(0, elements, BLOCK_ELEMENTS))
        assert all(0 < block.stop - block.start <= BLOCK_ELEMENTS for block in floats.blocks(elements))
        assert sum(block.stop - block.start for block in floats.blocks(elements)) == elements
