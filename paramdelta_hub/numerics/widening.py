"""Loops that widen weights, round sums, and count what is not finite, a slice at a time.

    code 0   BF16   bits as uint16      wide float32
    code 1   F16    bits as uint16      wide float32
    code 2   F32    values as float32   wide float64

F16 has no type in compiled code: its numbers are made by integers, and by one product or sum that is exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from paramdelta_hub.numerics.compiled import compiled

__all__ = ["BF16", "CODES", "F16", "F32", "count_not_finite", "narrow", "widen"]

BF16, F16, F32 = 0, 1, 2
CODES = {"BF16": BF16, "F16": F16, "F32": F32}
_U4 = np.uint32
_1, _13, _16 = np.uint32(1), np.uint32(13), np.uint32(16)
_MAGNITUDE, _INFINITY, _SIGN = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000), np.uint32(0x8000)
_HALF_MAGNITUDE, _HALF_INFINITY, _HALF_QUIET = np.uint32(0x7FFF), np.uint32(0x7C00), np.uint32(0x7E00)
_HALF_BIAS = np.float32(2.0**112)  # from binary32's exponents to binary16's
_HALF_NORMAL = np.uint32(0x38800000)  # 2⁻¹⁴ as binary32
_HALF_BEYOND = np.uint32(0x47800000)  # 2¹⁶, whatever lies below is rounded to infinity by the carry alone
_HALF_EXPONENTS = np.uint32(0x38000000)
_ONE_HALF, _ONE_HALF_BITS = np.float32(0.5), np.uint32(0x3F000000)  # whose last place is 2⁻²⁴, as a subnormal's


@compiled
def widen(bits: Any, code: int, wide: Any) -> None:
    """Convert weights to the wide type, exactly; a signaling NaN of F32 becomes a quiet one."""
    if code == 2:
        for i in range(bits.size):
            wide[i] = bits[i]
        return
    words = wide.view(np.uint32)
    if code == 0:
        for i in range(bits.size):
            words[i] = _U4(_U4(bits[i]) << _16)
        return
    for i in range(bits.size):
        words[i] = _U4((_U4(bits[i]) & _HALF_MAGNITUDE) << _13)
    for i in range(bits.size):
        wide[i] = wide[i] * _HALF_BIAS
    for i in range(bits.size):
        half = _U4(bits[i])
        word = words[i]
        if half & _HALF_INFINITY == _HALF_INFINITY:
            word = _U4(word | _INFINITY)
        words[i] = _U4(word | _U4((half & _SIGN) << _16))


@compiled
def narrow(wide: Any, code: int, spare: Any, bits: Any) -> None:
    """Round to nearest, ties to even, overflow to infinity. ``spare`` is overwritten: as long, and as wide."""
    if code == 2:
        for i in range(bits.size):
            bits[i] = wide[i]
        return
    words = wide.view(np.uint32)
    if code == 0:
        for i in range(bits.size):
            word = words[i]
            up = _U4(_U4(0x7FFF) + _U4(_U4(word >> _16) & _1))
            bits[i] = np.uint16(_U4(_U4(word + up) >> _16))
        return
    sums = spare.view(np.uint32)
    for i in range(bits.size):
        spare[i] = abs(wide[i]) + _ONE_HALF
    for i in range(bits.size):
        word = _U4(words[i] & _MAGNITUDE)
        half = _U4(_U4(_U4(word + _U4(0xFFF)) + _U4(_U4(word >> _13) & _1)) - _HALF_EXPONENTS) >> _13
        if word < _HALF_NORMAL:
            half = _U4(sums[i] - _ONE_HALF_BITS)
        if word >= _HALF_BEYOND:
            half = _HALF_INFINITY
        if word > _INFINITY:
            half = _U4(_HALF_QUIET | _U4(_U4(word >> _13) & _U4(0x3FF)))
        bits[i] = np.uint16(_U4(half) | _U4(_U4(words[i] >> _16) & _SIGN))


@compiled
def count_not_finite(wide: Any, overflow: Any) -> Any:
    """Return how many values are NaN, or at least as large as what is rounded to infinity."""
    found = np.int32(0)
    for i in range(wide.size):
        found = np.int32(found + np.int32(not abs(wide[i]) < overflow))
    return int(found)
