"""Δ = post − base and target ⊕ Δ, on flat NumPy arrays: pure, no files, no allocation per call where it matters.

Weights are handled as *bits* (``uint16`` for BF16 and F16, ``uint32`` for F32), because NumPy has no bfloat16 and
because exactness is a property of bits. Sums are made in the *wide* type: float32 for the 16-bit types, float64 for
F32, which is the reference ``((post.float() - base.float()) + target.float()).to(target.dtype)`` and its float64
analogue (Param∆, arXiv 2504.21023, eq. 1).

Even so ``base + Δ`` need not be post (post = −0, |post| ≪ |base|, Δ overflows): a package stores post's bits for these
elements.

NaN and infinity take no part in sums. Where base and post hold the same bits, nothing changed, and Δ is +0; where Δ is
zero, such a value of a target keeps its bits, a NaN's payload included (padding rows, masks of −∞).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.limits import BLOCK_ELEMENTS

__all__ = [
    "FLOATS",
    "Bits",
    "Float",
    "Wide",
    "accumulate",
    "blocks",
]

Bits: TypeAlias = NDArray[Any]
"""Unsigned integers holding float bit patterns, or other plain symbols."""
Wide: TypeAlias = NDArray[Any]
"""float32 or float64: the type in which a sum is made."""


@dataclass(frozen=True)
class Float:
    """How one weight dtype is widened, rounded and split. The three instances are in :data:`FLOATS`."""

    name: str
    bits: np.dtype[Any]
    wide: np.dtype[Any]
    wide_bits: np.dtype[Any]
    narrow: np.dtype[Any] | None
    """NumPy's own type of this width, or None for BF16, which is the upper half of float32."""
    overflow: float
    """The smallest magnitude, in the wide type, that rounds to infinity."""
    infinity: int
    """The bits of infinity: those of the exponent, all of which are set in NaN and infinity alone."""

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.bits.itemsize

    @property
    def operand(self) -> np.dtype[Any]:
        """The type that compiled loops take its values as, see :mod:`~paramdelta_hub.numerics.widening`."""
        return np.dtype({"BF16": "u2", "F16": "i2", "F32": "f4"}[self.name])

    def widen(self, bits: Bits, out: Wide) -> Wide:
        """Convert bit patterns to the wide type, exactly. ``out`` has the same length and is returned."""
        if self.narrow is None:
            np.left_shift(bits, 16, out=out.view(np.uint32), dtype=np.uint32, casting="unsafe")
        else:
            with np.errstate(invalid="ignore"):  # a signalling NaN is found later, by its value
                np.copyto(out, bits.view(self.narrow))
        return out

    def round(self, wide: Wide, out: Bits, scratch: Bits) -> Bits:
        """Round finite wide values to the nearest bit pattern, ties to even, overflow to infinity (IEEE 754 §4.3.1).

        ``scratch`` is overwritten; it has ``wide_bits``' type and at least the length of ``wide``.
        """
        if self.narrow is None:
            # Adding 0x7FFF plus the last kept bit carries into the kept half exactly when rounding up is right.
            bits = wide.view(np.uint32)
            half = scratch[: bits.size]
            np.right_shift(bits, 16, out=half)
            np.bitwise_and(half, 1, out=half)
            np.add(half, 0x7FFF, out=half)
            np.add(half, bits, out=half)
            np.right_shift(half, 16, out=out, casting="unsafe")
        else:
            with np.errstate(over="ignore"):
                np.copyto(out.view(self.narrow), wide, casting="same_kind")
        return out

    def finite(self, wide: Wide) -> bool:
        """Whether every value rounds to a finite number of this type; NaN counts as not finite."""
        return wide.size == 0 or bool(wide.max() < self.overflow and wide.min() > -self.overflow)

    def count_not_finite(self, wide: Wide) -> int:
        """How many values are NaN, infinite, or would round to infinity."""
        if wide.itemsize == self.itemsize:  # float32 as it is, which nothing is rounded to
            return int(wide.size - np.count_nonzero(np.isfinite(wide)))
        return int(wide.size - np.count_nonzero(np.abs(wide) < self.overflow))

    def not_finite(self, bits: Bits) -> NDArray[np.bool_]:
        """Return where bit patterns are NaN or infinite. No value is converted, so that a signalling NaN stays one."""
        exponent = self.bits.type(self.infinity)
        found: NDArray[np.bool_] = (bits & exponent) == exponent
        return found


_U2, _U4, _F4 = np.dtype("u2"), np.dtype("u4"), np.dtype("f4")
# The overflow thresholds lie half a unit in the last place above the largest finite number of each type.
_F32_OVERFLOW = 2.0**128 - 2.0**103
_BF16_OVERFLOW = float(np.uint32(0x7F7F8000).view(np.float32))
FLOATS: dict[str, Float] = {
    "BF16": Float("BF16", _U2, _F4, _U4, None, overflow=_BF16_OVERFLOW, infinity=0x7F80),
    "F16": Float("F16", _U2, _F4, _U4, np.dtype("f2"), overflow=65520.0, infinity=0x7C00),
    "F32": Float("F32", _U4, np.dtype("f8"), np.dtype("u8"), _F4, overflow=_F32_OVERFLOW, infinity=0x7F800000),
}
"""The weight dtypes a delta can be taken of, by their safetensors names."""


def blocks(elements: int) -> Iterator[slice]:
    """Cut ``elements`` into cache-sized slices of :data:`~paramdelta_hub.limits.BLOCK_ELEMENTS`."""
    for start in range(0, elements, BLOCK_ELEMENTS):
        yield slice(start, min(start + BLOCK_ELEMENTS, elements))


def accumulate(total: Wide, delta: Wide, weight: float) -> None:
    """``total += weight · Δ`` in place, product and sum each rounded to the wide type; Δ is overwritten.

    The order of several deltas is the order in which they were given: floating-point addition does not associate.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if weight != 1.0:
            np.multiply(delta, delta.dtype.type(weight), out=delta)
        np.add(total, delta, out=total)
