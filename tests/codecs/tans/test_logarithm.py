"""Logarithms in integers: near enough to the right ones, and the same whatever the C library rounds to."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_hub.codecs.tans.logarithm import _TABLE, UNIT, log2
from paramdelta_hub.numerics.compiled import compiled

MOST = (1 << 50) - 1
ERROR = 12


@compiled
def _all(numbers: np.ndarray, out: np.ndarray) -> None:
    for i in range(numbers.size):
        out[i] = log2(numbers[i])


def logarithms(numbers: np.ndarray) -> np.ndarray:
    """Return the logarithms as compiled code has them, which is where they are taken."""
    out = np.empty(numbers.size, np.int64)
    _all(numbers.astype(np.int64), out)
    return out


def assert_near(numbers: np.ndarray) -> None:
    ours = logarithms(numbers)
    right = np.array([math.log2(number) for number in numbers.tolist()]) * UNIT
    assert np.abs(ours - right).max() <= ERROR


def test_counts_of_a_chunk() -> None:
    """Every number up to 300,000: the error, and that no larger one has a smaller logarithm."""
    numbers = np.arange(1, 300_000)
    assert_near(numbers)
    assert (np.diff(logarithms(numbers)) >= 0).all()


@pytest.mark.parametrize("exponent", range(50))
def test_around_each_power_of_2(exponent: int) -> None:
    power = 1 << exponent
    around = np.arange(max(power - 3, 1), min(power + 4, MOST + 1))
    assert_near(around)
    assert (np.diff(logarithms(around)) >= 0).all()
    assert log2(power) == exponent * UNIT + (0 if exponent <= 12 else ERROR), "exact where counts are small"


def test_both_ends_of_what_is_one_in_the_table() -> None:
    """Where the error is largest, with as many bits as there may be."""
    first = (1 << 49) + (np.arange(1 << 12) << 37)
    assert_near(first)
    assert_near(first + (1 << 37) - 1)


@settings(max_examples=200)
@given(st.lists(st.integers(1, MOST), min_size=1, max_size=50))
def test_any_numbers(numbers: list[int]) -> None:
    assert_near(np.array(numbers, np.int64))


def test_they_are_integers() -> None:
    assert all(type(log2(number)) is int for number in (1, 3, 4096, 5000, MOST))
    assert log2.nopython_signatures
    assert all(signature.return_type.name == "int64" for signature in log2.nopython_signatures)
    assert _TABLE.dtype == np.int64


def test_no_entry_of_the_table_depends_on_a_last_digit() -> None:
    """It is made by the C library's logarithm: none lies so near to half a unit that its error could round it."""
    exact = [math.log2(1 + (part + 0.5) / 4096) * UNIT for part in range(4096)]
    assert _TABLE.tolist() == [round(number) for number in exact]
    assert min(abs(number % 1 - 0.5) for number in exact) > 1e-6
