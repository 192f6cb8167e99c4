"""Δ = post − base, and the proof of which sums miss post: every pattern, odd lengths, values that are not finite."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_hub.numerics.differences import Difference, NotFiniteChunkError, Statistics, subtract
from paramdelta_hub.numerics.floats import FLOATS
from paramdelta_hub.numerics.sums import PlainDelta
from tests.numerics.test_floats import finite_bits, pairs, random_bits, special_bits
from tests.support import reference
from tests.support.models import TORCH, WIDE, from_bits, to_bits
from tests.support.reference import delta_of, not_finite

SIXTEEN = ("BF16", "F16")
LENGTHS = [1, 7, 8, 9, 511, 512, 513, 4095, 4096, 4097, 12_345]


def taken(name: str, base: np.ndarray, post: np.ndarray) -> Difference:
    """Take a difference; copies of what lies in buffers."""
    before = base.copy(), post.copy()
    out = np.full(base.size, 7, FLOATS[name].wide)
    found = subtract(FLOATS[name], base, post, out)
    assert found.delta is out
    assert np.array_equal(base, before[0])
    assert np.array_equal(post, before[1])
    return Difference(out, found.exceptions.copy(), found.statistics)


def missed_by_definition(name: str, base: np.ndarray, post: np.ndarray) -> np.ndarray:
    """Return where base + (post − base) is not post, in PyTorch's arithmetic."""
    wide, (b, p) = WIDE[TORCH[name]], (from_bits(bits, TORCH[name]) for bits in (base, post))
    total = (b.to(wide) + (p.to(wide) - b.to(wide))).to(TORCH[name])
    return np.flatnonzero(to_bits(total) != post)


def assert_difference(name: str, base: np.ndarray, post: np.ndarray) -> Difference:
    """Compare Δ, exceptions and statistics with their definitions."""
    found, expected = taken(name, base, post), delta_of(name, base, post)
    assert found.delta.tobytes() == expected.tobytes()
    same = not_finite(name, base)
    with np.errstate(over="ignore", invalid="ignore"):
        total = reference.widen(name, base) + expected
    missed = np.flatnonzero((reference.narrow(name, total) != post) & ~same)
    assert np.array_equal(found.exceptions, missed)
    counted = found.statistics
    assert (counted.changed, counted.exceptions) == (np.count_nonzero(base != post), missed.size)
    largest = float(np.finfo(FLOATS[name].wide).max)
    squares = [np.where(same, 0, side).astype(np.float64) for side in (reference.widen(name, base), expected)]
    squares = [float((side.clip(-largest, largest) ** 2).sum()) for side in squares]
    assert [counted.base_square, counted.delta_square] == pytest.approx(squares, rel=1e-12)
    assert found.is_zero == (np.array_equal(base, post) and not missed.size)
    again = taken(name, base, post).statistics
    assert vars(again) == vars(counted), "to the last digit"
    return found


@pytest.mark.parametrize("name", FLOATS)
def test_special_random_and_near_pairs(name: str) -> None:
    base, post = pairs(name, seed=3, count=20_000)
    found = assert_difference(name, base, post)
    assert found.exceptions.size, "the pairs are meant to hold such elements"
    assert np.array_equal(found.exceptions, missed_by_definition(name, base, post))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("length", LENGTHS)
def test_odd_lengths(name: str, length: int) -> None:
    base = random_bits(name, 2 * length + 50, 1)[:length]
    assert_difference(name, base, base ^ (np.arange(length) % 3).astype(base.dtype))
    every = random_bits(name, 2 * length + 50, 2)[:length]
    assert_difference(name, base, every)
    largest, negative = special_bits(name)[[-1, special_bits(name).size // 2]]
    assert_difference(name, np.full(length, largest), np.full(length, negative))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("place", [0, 7, 8, 4095, 4096, 8191, 8199])
def test_an_exception_at_every_place(name: str, place: int) -> None:
    """−0 is reached by no sum; lists of exceptions are put together of eights and slices."""
    base = np.zeros(8200, FLOATS[name].bits)
    post = base.copy()
    post[place] = special_bits(name)[special_bits(name).size // 2]
    found = assert_difference(name, base, post)
    assert found.exceptions.tolist() == [place]


@pytest.mark.parametrize("name", FLOATS)
def test_nothing_but_exceptions(name: str) -> None:
    minus_zero = np.full(5001, special_bits(name)[special_bits(name).size // 2])
    found = assert_difference(name, minus_zero, minus_zero)
    assert np.array_equal(found.exceptions, np.arange(5001))
    assert found.statistics.changed == 0
    assert not found.is_zero


@pytest.mark.parametrize("name", SIXTEEN)
@pytest.mark.parametrize("post", [0x0000, 0x8000, 0x0001, 0x3F80, 0xBF81, 0x3C00, 0xBC01, "largest", "smallest"])
def test_every_base(name: str, post: int | str) -> None:
    every = finite_bits(name)
    largest = reference.EXPONENT[name] - 1
    bits = {"largest": largest, "smallest": largest | 0x8000}.get(post, post)
    if not not_finite(name, np.array([bits], np.uint16))[0]:
        assert_difference(name, every, np.full_like(every, bits))
        assert_difference(name, np.full_like(every, bits), every)


@pytest.mark.parametrize("name", FLOATS)
def test_minus_zero_and_an_overflowing_delta_are_exceptions(name: str) -> None:
    special = special_bits(name)
    half = special.size // 2
    zero, minus_zero, largest, minus_largest = special[0], special[half], special[half - 1], special[-1]
    base = np.array([zero, minus_zero, minus_largest, special[half - 7]], FLOATS[name].bits)
    post = np.array([minus_zero, minus_zero, largest, special[half - 7]], FLOATS[name].bits)
    found = assert_difference(name, base, post).exceptions.tolist()
    assert {0, 1} <= set(found)
    assert 3 not in found
    if name == "BF16":
        assert 2 in found, "largest − (−largest) overflows float32"


@pytest.mark.parametrize("name", FLOATS)
def test_no_exceptions_between_half_and_twice(name: str) -> None:
    """Sterbenz: such differences are exact in the type itself, and so is what they add up to."""
    base, post = pairs(name, seed=30)
    b, p = (reference.widen(name, bits).astype(np.longdouble) for bits in (base, post))
    near = (np.sign(b) == np.sign(p)) & (np.abs(p) >= np.abs(b) / 2) & (np.abs(p) <= 2 * np.abs(b)) & (b != 0)
    assert near.sum() > 1000
    assert not near[taken(name, base, post).exceptions].any()


@settings(max_examples=200)
@given(data=st.data(), name=st.sampled_from(sorted(FLOATS)))
def test_any_pair_of_finite_values(data: st.DataObject, name: str) -> None:
    """Subtract and add: post, or an element that is listed."""
    kind = FLOATS[name]
    pattern = st.integers(0, (1 << (8 * kind.itemsize)) - 1) | st.sampled_from(special_bits(name).tolist())
    drawn = np.array(data.draw(st.lists(st.tuples(pattern, pattern), min_size=1, max_size=20)), kind.bits)
    drawn = drawn[torch.isfinite(from_bits(drawn.reshape(-1), TORCH[name])).reshape(-1, 2).all(1).numpy()]
    base, post = np.ascontiguousarray(drawn[:, 0]), np.ascontiguousarray(drawn[:, 1])
    found, out = assert_difference(name, base, post), np.empty_like(base)
    assert np.array_equal(found.exceptions, missed_by_definition(name, base, post))
    PlainDelta(found.delta).add(kind, base, 1.0, out)
    assert np.array_equal(np.flatnonzero(out != post), found.exceptions)


@pytest.mark.parametrize("side", ["base", "post"])
@pytest.mark.parametrize("bad", [0x7F80, 0xFF80, 0x7FC0, 0xFFFF])
def test_values_that_are_not_finite_are_counted(side: str, bad: int) -> None:
    values = {side: random_bits("BF16", 5000, seed) for seed, side in enumerate(("base", "post"))}
    values[side][[3, 4097, 4999]] = bad
    with pytest.raises(NotFiniteChunkError) as caught:
        taken("BF16", values["base"], values["post"])
    assert (caught.value.base, caught.value.post) == ((3, 0) if side == "base" else (0, 3))


@pytest.mark.parametrize("name", FLOATS)
def test_other_bits_of_nan_are_a_change(name: str) -> None:
    infinity = reference.EXPONENT[name]
    base, post = (np.array([5, infinity | 1, infinity], FLOATS[name].bits) for _ in range(2))
    assert assert_difference(name, base, post).is_zero
    post[1] |= 2
    with pytest.raises(NotFiniteChunkError) as caught:
        taken(name, base, post)
    assert (caught.value.base, caught.value.post) == (1, 1)


@pytest.mark.parametrize("name", SIXTEEN)
def test_every_value_that_did_not_change(name: str) -> None:
    """All 65,536 patterns, equal on both sides: Δ is +0, and only −0 is reached by no sum."""
    every = np.arange(1 << 16, dtype=np.uint16)
    found = assert_difference(name, every, every)
    assert not found.delta.view(np.uint32).any()
    assert found.exceptions.tolist() == [0x8000], "−0 + 0 is +0"
    assert (found.statistics.changed, found.statistics.delta_square) == (0, 0.0)


@pytest.mark.parametrize("name", SIXTEEN)
@pytest.mark.parametrize("other", [0x0000, 0x3C00, 0x7C00, 0x7F80, 0xFF80, 0x7FC0, 0xFFFF])
def test_every_value_that_changed(name: str, other: int) -> None:
    """Each of the 65,536 patterns beside one other: refused if they differ and one is not finite."""
    base = np.arange(1 << 16, dtype=np.uint16)
    post = np.full_like(base, other)
    counts = tuple(int(np.count_nonzero(not_finite(name, side) & (base != post))) for side in (base, post))
    with pytest.raises(NotFiniteChunkError) as caught:
        taken(name, base, post)
    assert (caught.value.base, caught.value.post) == counts


@settings(max_examples=40)
@given(data=st.data())
def test_mixtures_with_values_that_did_not_change(data: st.DataObject) -> None:
    """Base ⊕ Δ, with the exceptions, is post to the bit."""
    name = data.draw(st.sampled_from(sorted(FLOATS)))
    kind, length = FLOATS[name], data.draw(st.sampled_from(LENGTHS))
    random = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    base, post = random_bits(name, 3 * length + 64, int(random.integers(1 << 30)))[: 2 * length].reshape(2, -1).copy()
    drawn = random.integers(0, 1 << 8 * kind.itemsize, length, dtype=np.uint64).astype(kind.bits)
    same = random.random(length) < data.draw(st.sampled_from([0.001, 0.3, 1.0]))
    base[same] = post[same] = drawn[same] | kind.bits.type(kind.infinity)
    found, out = assert_difference(name, base, post), np.empty_like(base)
    assert not same[found.exceptions].any()
    PlainDelta(found.delta).add(kind, base, 1.0, out)
    out[found.exceptions] = post[found.exceptions]
    assert np.array_equal(out, post)


def test_a_difference_without_change_is_zero_unless_it_holds_minus_zero() -> None:
    for bits, zero in ((0x3F80, True), (0x8000, False), (0x7FC0, True)):
        values = np.full(10, bits, np.uint16)
        assert taken("BF16", values, values).is_zero is zero


def test_statistics_add_up() -> None:
    total = Statistics()
    for chunk in (Statistics(1, 2, 0.5, 0.25), Statistics(10, 20, 4.0, 8.0)):
        total.add(chunk)
    assert total == Statistics(11, 22, 4.5, 8.25)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIXTEEN)
def test_every_base_with_many_posts(name: str) -> None:
    """All finite base patterns × 512 posts: 33 million pairs for each type."""
    every = finite_bits(name)
    drawn = np.random.default_rng(6).choice(every, 512 - special_bits(name).size, replace=False)
    for post in np.concatenate([special_bits(name), drawn]):
        posts = np.full(every.size, post, np.uint16)
        found = taken(name, every, posts).exceptions
        assert np.array_equal(found, missed_by_definition(name, every, posts)), int(post)
