"""Casts between float dtypes: exact where they can be, rounded once where not, against exact rational arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paramdelta_hub.numerics.casts import cast, cast_bytes, common_dtype, float_dtype, round_once
from paramdelta_hub.numerics.floats import FLOATS
from tests.support.models import TORCH

ALL_16 = np.arange(1 << 16, dtype=np.uint16)


def converted(bits: np.ndarray, source: str, target: str) -> np.ndarray:
    return cast(bits, FLOATS[source], FLOATS[target], np.empty(bits.size, FLOATS[target].bits))


def by_torch(bits: np.ndarray, source: str, target: str) -> np.ndarray:
    signed = torch.from_numpy(bits.view(f"i{bits.itemsize}").copy()).view(TORCH[source])
    integers = torch.int32 if target == "F32" else torch.int16
    found = signed.to(TORCH[target]).view(integers).numpy()
    return found.view(f"u{found.itemsize}")


def is_nan(bits: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.isnan(FLOATS[dtype].widen(bits, np.empty(bits.size, FLOATS[dtype].wide)))


@pytest.mark.parametrize("target", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("source", ["BF16", "F16"])
def test_every_16_bit_pattern(source: str, target: str) -> None:
    ours, theirs = converted(ALL_16, source, target), by_torch(ALL_16, source, target)
    nan = is_nan(ALL_16, source)
    assert np.array_equal(ours[~nan], theirs[~nan])
    assert is_nan(ours, target)[nan].all()


@pytest.mark.parametrize("source", ["BF16", "F16"])
def test_float32_holds_every_16_bit_number(source: str) -> None:
    finite = ALL_16[~is_nan(ALL_16, source)]
    assert np.array_equal(converted(converted(finite, source, "F32"), "F32", source), finite)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=64), st.sampled_from(["BF16", "F16"]))
def test_float32_as_torch_rounds_it(patterns: list[int], target: str) -> None:
    bits = np.array(patterns, np.uint32)
    nan = is_nan(bits, "F32")
    ours = converted(bits, "F32", target)
    assert np.array_equal(ours[~nan], by_torch(bits, "F32", target)[~nan])
    assert is_nan(ours, target)[nan].all()


def nearest(value: float, dtype: str) -> int:
    """Return the pattern of the number nearest to a value, of two as near the even one, by rational arithmetic."""
    fraction_bits, exponent_bits = {"BF16": (7, 8), "F16": (10, 5)}[dtype]
    bias = 2 ** (exponent_bits - 1) - 1
    patterns = range((2**exponent_bits - 1) << fraction_bits)  # the finite ones, and below infinity

    def number(pattern: int) -> Fraction:
        exponent, fraction = pattern >> fraction_bits, pattern & ((1 << fraction_bits) - 1)
        significand = fraction + ((1 << fraction_bits) if exponent else 0)
        return Fraction(significand) * Fraction(2) ** (max(exponent, 1) - bias - fraction_bits)

    magnitude, low, high = abs(Fraction(value)), 0, len(patterns)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if number(middle) <= magnitude else (low, middle)
    above, below = number(low + 1) - magnitude, magnitude - number(low)
    return low + (above < below or (above == below and low % 2 == 1))


@given(
    st.floats(allow_nan=False, allow_infinity=False)
    | st.floats(-1e-36, 1e-36)
    | st.floats(-7e4, 7e4)
    | st.tuples(st.integers(0, 0x7F7F), st.integers(-2, 2)).map(
        # a tie of BF16, and what lies a little beside it
        lambda tie: float(np.uint32(tie[0] << 16 | 0x8000).view(np.float32)) * (1 + tie[1] * 2.0**-50)
    ),
    st.sampled_from(["BF16", "F16"]),
)
def test_float64_is_rounded_once(value: float, dtype: str) -> None:
    out = round_once(np.array([value, -value]), FLOATS[dtype], np.empty(2, np.uint16))
    sign = int(np.signbit(value)) << 15
    assert out.tolist() == [nearest(value, dtype) | sign, nearest(value, dtype) | (sign ^ 0x8000)]


def test_a_tie_that_float32_hides() -> None:
    """1 + 2⁻⁸ + 2⁻⁴⁰ lies above a tie of BF16; float32 takes it for the tie, and rounds to even, which is down."""
    value = np.array([1 + 2.0**-8 + 2.0**-40])
    assert round_once(value.astype(np.float32), FLOATS["BF16"], np.empty(1, np.uint16)) == 0x3F80
    assert round_once(value, FLOATS["BF16"], np.empty(1, np.uint16)) == 0x3F81


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_what_is_not_finite(dtype: str) -> None:
    values = np.array([np.inf, -np.inf, np.nan, 1e300, -1e300])
    out = round_once(values, FLOATS[dtype], np.empty(5, FLOATS[dtype].bits))
    wide = FLOATS[dtype].widen(out, np.empty(5, FLOATS[dtype].wide))
    assert wide.tolist()[:2] == wide.tolist()[3:] == [np.inf, -np.inf]
    assert np.isnan(wide[2])


def test_bytes() -> None:
    values = torch.randn(100, generator=torch.Generator().manual_seed(1))
    out = np.empty(200, np.uint8)
    cast_bytes(values.numpy().view(np.uint8), "F32", "BF16", out)
    assert torch.equal(torch.from_numpy(out.view(np.int16)).view(torch.bfloat16), values.bfloat16())


def test_names() -> None:
    assert common_dtype("BF16", "BF16") == "BF16"
    assert {common_dtype(*pair) for pair in (("BF16", "F16"), ("F16", "F32"), ("F32", "BF16"))} == {"F32"}
    assert float_dtype("float16") == "F16"
