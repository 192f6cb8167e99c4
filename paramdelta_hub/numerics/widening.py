"""Loops that widen weights, round sums, and count what is not finite, a slice at a time.

    BF16   bits as uint16      wide float32
    F16    bits as int16       wide float32
    F32    values as float32   wide float64

The type of the weights tells a compiled loop which of the three they are (:attr:`Float.operand`). F16 has no type in
compiled code: its numbers are made by integers, and by one product or sum that is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from paramdelta_hub.numerics.compiled import by_type, compiled

__all__ = ["count_not_finite", "narrow", "widen"]

_U4 = np.uint32
_1, _13, _16 = np.uint32(1), np.uint32(13), np.uint32(16)
_MAGNITUDE, _INFINITY, _SIGN = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000), np.uint32(0x8000)
_HALF_MAGNITUDE, _HALF_INFINITY, _HALF_QUIET = np.uint32(0x7FFF), np.uint32(0x7C00), np.uint32(0x7E00)
_HALF_BIAS = np.float32(2.0**112)  # from binary32's exponents to binary16's
_HALF_NORMAL = np.uint32(0x38800000)  # 2⁻¹⁴ as binary32
_HALF_BEYOND = np.uint32(0x47800000)  # 2¹⁶: what lies below is rounded to infinity by the carry alone
_HALF_EXPONENTS = np.uint32(0x38000000)
_ONE_HALF, _ONE_HALF_BITS = np.float32(0.5), np.uint32(0x3F000000)  # its last place is 2⁻²⁴, as a subnormal's


def widen(weights: Any, wide: Any) -> None:
    """Convert weights to the wide type, exactly; a signaling NaN of F32 becomes a quiet one."""
    raise NotImplementedError  # compiled code has the loops below


@by_type(widen)
def _widening(weights: Any, wide: Any) -> Callable[[Any, Any], None]:
    return {types.uint16: _widen_bf16, types.int16: _widen_f16, types.float32: _widen_f32}[weights.dtype]


def _widen_f32(weights: Any, wide: Any) -> None:
    for i in range(weights.size):
        wide[i] = weights[i]


def _widen_bf16(weights: Any, wide: Any) -> None:
    words = wide.view(np.uint32)
    for i in range(weights.size):
        words[i] = _U4(_U4(weights[i]) << _16)


def _widen_f16(weights: Any, wide: Any) -> None:
    words = wide.view(np.uint32)
    for i in range(weights.size):
        words[i] = _U4((_U4(weights[i]) & _HALF_MAGNITUDE) << _13)
    for i in range(weights.size):
        wide[i] = wide[i] * _HALF_BIAS
    for i in range(weights.size):
        half = _U4(weights[i])
        word = words[i]
        if half & _HALF_INFINITY == _HALF_INFINITY:
            word = _U4(word | _INFINITY)
        words[i] = _U4(word | _U4((half & _SIGN) << _16))


def narrow(wide: Any, spare: Any, weights: Any) -> None:
    """Round to nearest, ties to even, overflow to infinity. ``spare`` is overwritten: as long, and as wide."""
    raise NotImplementedError  # compiled code has the loops below


@by_type(narrow)
def _narrowing(wide: Any, spare: Any, weights: Any) -> Callable[[Any, Any, Any], None]:
    return {types.uint16: _narrow_bf16, types.int16: _narrow_f16, types.float32: _narrow_f32}[weights.dtype]


def _narrow_f32(wide: Any, spare: Any, weights: Any) -> None:
    for i in range(weights.size):
        weights[i] = wide[i]


def _narrow_bf16(wide: Any, spare: Any, weights: Any) -> None:
    words = wide.view(np.uint32)
    for i in range(weights.size):
        word = words[i]
        up = _U4(_U4(0x7FFF) + _U4(_U4(word >> _16) & _1))
        weights[i] = np.uint16(_U4(_U4(word + up) >> _16))


def _narrow_f16(wide: Any, spare: Any, weights: Any) -> None:
    words, sums = wide.view(np.uint32), spare.view(np.uint32)
    for i in range(weights.size):
        spare[i] = abs(wide[i]) + _ONE_HALF
    for i in range(weights.size):
        word = _U4(words[i] & _MAGNITUDE)
        half = _U4(_U4(_U4(word + _U4(0xFFF)) + _U4(_U4(word >> _13) & _1)) - _HALF_EXPONENTS) >> _13
        if word < _HALF_NORMAL:
            half = _U4(sums[i] - _ONE_HALF_BITS)
        if word >= _HALF_BEYOND:
            half = _HALF_INFINITY
        if word > _INFINITY:
            half = _U4(_HALF_QUIET | _U4(_U4(word >> _13) & _U4(0x3FF)))
        weights[i] = np.int16(_U4(half) | _U4(_U4(words[i] >> _16) & _SIGN))


@compiled
def count_not_finite(wide: Any, overflow: Any) -> Any:
    """Return how many values are NaN, or at least as large as what is rounded to infinity."""
    found = np.int32(0)
    for i in range(wide.size):
        found = np.int32(found + np.int32(not abs(wide[i]) < overflow))
    return int(found)
