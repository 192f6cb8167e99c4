"""Target + Σ wᵢΔᵢ, compiled: NumPy's bits for every pattern, in the order given, of arrays and of coded chunks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_hub.codecs.by_name import TANS
from paramdelta_hub.numerics.compiled import SLICE
from paramdelta_hub.numerics.floats import FLOATS, Float
from paramdelta_hub.numerics.sums import Delta, PlainDelta, add_all
from tests.support.reference import add, not_finite

LENGTHS = [1, 7, 8, 511, 513, SLICE - 1, SLICE, SLICE + 1, 12_345]
WEIGHTS = (1.0, 0.5, -1.0, 0.3, 0.0, -0.0, 1e-30, -1e38)
Summands = Sequence[tuple[np.ndarray | None, float]]


def coded(delta: np.ndarray) -> Delta:
    """Return a chunk as packages have it."""
    return TANS.open(TANS.encode(delta), delta.size, delta.dtype)


def added(kind: Float, target: np.ndarray, deltas: Summands) -> tuple[np.ndarray, int]:
    """Return the sum; every other delta is coded, and the plain ones lie in one and the same buffer."""
    before, out = target.copy(), np.full_like(target, 0x5A)
    buffer = np.empty(target.size, kind.wide)

    def one_by_one() -> Iterator[tuple[Delta | None, float]]:
        for number, (delta, weight) in enumerate(deltas):
            if delta is None:
                yield None, weight
            elif number % 2:
                yield coded(delta), weight
            else:
                np.copyto(buffer.view(kind.wide_bits), delta.view(kind.wide_bits))
                yield PlainDelta(buffer), weight

    bad = add_all(kind, target, one_by_one(), out)
    assert np.array_equal(target, before)
    return out, bad


def assert_sum(kind: Float, target: np.ndarray, deltas: Summands) -> np.ndarray:
    """Compare all ways to a sum with the reference; return where it is not finite."""
    expected, bad = add(kind.name, target, deltas)
    ways = [added(kind, target, deltas)]
    if len(deltas) == 1 and deltas[0][0] is not None:
        [(delta, weight)] = deltas
        ways += [(np.full_like(target, 0x5A), 0) for _ in range(2)]
        for number, way in enumerate((PlainDelta(delta.copy()), coded(delta)), 1):
            ways[number] = ways[number][0], way.add(kind, target, weight, ways[number][0])
    for found, count in ways:
        # What a NaN is rounded to means nothing, and may even be a number: it is counted, and the result is refused.
        assert np.array_equal(found[~bad], expected[~bad])
        assert count == np.count_nonzero(bad)
    return bad


def any_target(kind: Float, count: int, random: np.random.Generator) -> np.ndarray:
    target = random.integers(0, 1 << 8 * kind.itemsize, count, dtype=np.uint64).astype(kind.bits)
    infinity = kind.bits.type(kind.infinity)
    special = np.array([0, 1, infinity - 1, infinity, infinity + 1, infinity >> 1], kind.bits)
    special = np.concatenate([special, special | kind.bits.type(1 << (8 * kind.itemsize - 1))])
    places = random.integers(0, count, count // 4)
    target[places] = random.choice(special, places.size)
    return target


@settings(max_examples=60)
@given(data=st.data())
def test_sums(data: st.DataObject) -> None:
    kind = FLOATS[data.draw(st.sampled_from(sorted(FLOATS)))]
    length = data.draw(st.sampled_from(LENGTHS))
    random = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    deltas: list[tuple[np.ndarray | None, float]] = []
    for _ in range(data.draw(st.integers(1, 3))):
        weight = data.draw(st.sampled_from(WEIGHTS))
        top = (1 << 8 * kind.wide.itemsize) - 1
        wide = random.integers(0, top, length, dtype=np.uint64, endpoint=True).astype(kind.wide_bits)
        wide[random.random(length) < 0.3] &= kind.wide_bits.type(1 << 8 * kind.wide.itemsize - 1)  # ±0
        deltas.append((wide.view(kind.wide) if data.draw(st.booleans()) else None, weight))
    assert_sum(kind, any_target(kind, length, random), deltas)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("length", LENGTHS)
def test_sums_of_what_models_hold(name: str, length: int) -> None:
    kind, random = FLOATS[name], np.random.default_rng(length)
    target = random.integers(0, kind.infinity, length).astype(kind.bits)
    deltas = [((0.01 * random.standard_normal(length)).astype(kind.wide), weight) for weight in (1.0, 0.5, -1.0)]
    for number in (1, 2, 3):
        assert not assert_sum(kind, target, deltas[:number]).any()
    assert not assert_sum(kind, target, [deltas[1]]).any()


@pytest.mark.parametrize("name", FLOATS)
def test_the_order_is_that_in_which_deltas_are_given(name: str) -> None:
    kind = FLOATS[name]
    target = np.zeros(3, kind.bits)
    large, small = (np.full(3, value, kind.wide) for value in (2.0**10, 2.0**-60))
    first, last = [(large, 1.0), (large, -1.0), (small, 1.0)], [(small, 1.0), (large, 1.0), (large, -1.0)]
    for deltas in (first, last):
        assert_sum(kind, target, deltas)
    if name != "F16":  # to which 2⁻⁶⁰ is 0
        assert added(kind, target, first)[0].all()
    assert not added(kind, target, last)[0].any()


@pytest.mark.parametrize("name", ["BF16", "F16"])
def test_every_value_that_did_not_change(name: str) -> None:
    """All 65,536 patterns: every NaN and infinity comes back bit for bit where zeros are added, and is counted else."""
    kind, every = FLOATS[name], np.arange(1 << 16, dtype=np.uint16)
    bad = not_finite(name, every)
    for weight in (1.0, -0.5, 7.0):
        for delta in (None, np.zeros(every.size, kind.wide), np.full(every.size, -0.0, kind.wide)):
            for deltas in ([(delta, weight)], [(delta, weight), (None, 1.0)]):
                assert not assert_sum(kind, every, deltas).any()
                assert np.array_equal(added(kind, every, deltas)[0][bad], every[bad])
        some = np.full(every.size, 1e-3, kind.wide)
        for deltas in ([(some, weight)], [(None, 1.0), (some, weight)], [(some, weight), (some, -weight)]):
            assert added(kind, every, deltas)[1] == np.count_nonzero(bad)
            assert np.array_equal(assert_sum(kind, every, deltas), bad)


@pytest.mark.parametrize("name", FLOATS)
def test_a_product_that_vanishes_keeps_a_nan(name: str) -> None:
    """It is wΔ that counts, rounded to the wide type, not Δ."""
    kind = FLOATS[name]
    infinity = kind.infinity
    target = np.array([infinity, infinity | 5, 1], kind.bits)
    tiny = np.full(3, np.finfo(kind.wide).smallest_subnormal, kind.wide)
    assert not assert_sum(kind, target, [(tiny, 0.25)]).any()
    assert assert_sum(kind, target, [(tiny, 1.0)]).tolist() == [True, True, False]


@pytest.mark.parametrize("name", FLOATS)
def test_overflow_is_counted(name: str) -> None:
    """What is rounded to infinity is not finite, whether the sum, or only its rounding, goes beyond."""
    kind = FLOATS[name]
    largest = kind.bits.type(kind.infinity - 1)
    target = np.full(4, largest)
    unit = kind.wide.type(kind.overflow) - wide_of(kind, largest)
    steps = np.array([0.0, 0.999, 1.0, 1.5], kind.wide) * unit
    assert assert_sum(kind, target, [(steps, 1.0)]).tolist() == [False, False, True, True]
    huge = np.full(4, np.finfo(kind.wide).max, kind.wide)
    assert assert_sum(kind, target, [(huge, 2.0)]).all()
    assert not assert_sum(kind, np.zeros(4, kind.bits), [(huge, 1.0), (huge, -1.0)]).any(), "there, and back"


def wide_of(kind: Float, bits: int) -> np.floating:
    """Return the wide value of one pattern."""
    return kind.widen(np.array([bits], kind.bits), np.empty(1, kind.wide))[0]


@pytest.mark.parametrize("name", FLOATS)
def test_signs_of_zero(name: str) -> None:
    """−0 stays −0 only where −0 is added: what a weight of 0, or a delta without a payload, adds has a sign, too."""
    kind = FLOATS[name]
    target = np.array([0, 1 << 8 * kind.itemsize - 1, 1, 5], kind.bits)
    some = np.array([0.0, -0.0, 1.0, -1.0], kind.wide)
    for deltas in itertools.product(itertools.product((None, some), (1.0, 0.0, -0.0, -1.0)), repeat=2):
        assert not assert_sum(kind, target, deltas).any()
        for delta in deltas:
            assert not assert_sum(kind, target, [delta]).any()


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_accumulate_rounds_product_and_sum(name: str, weight: float) -> None:
    kind, random = FLOATS[name], np.random.default_rng(5)
    for length in LENGTHS:
        start, delta = (random.standard_normal(length).astype(kind.wide) * kind.wide.type(3e4) for _ in range(2))
        delta[::7], start[::5] = 0, -0.0
        with np.errstate(all="ignore"):
            expected = start + kind.wide.type(weight) * delta
        for summand in (PlainDelta(delta), coded(delta)):
            total = start.copy()
            summand.accumulate(total, weight)
            assert total.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", FLOATS)
def test_values_are_copied(name: str) -> None:
    wide = FLOATS[name].wide
    values = np.array([0.0, -0.0, np.nan, -np.inf, 1.5], wide)
    out = np.empty(5, wide)
    assert PlainDelta(values).values(out) is out
    assert out.tobytes() == values.tobytes()


def test_no_delta_at_all() -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    for name in ("BF16", "F16"):
        found, bad = added(FLOATS[name], every, [])
        assert np.array_equal(found, every)
        assert bad == 0
