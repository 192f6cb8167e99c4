"""Δ = post − base and target ⊕ Δ, on flat NumPy arrays: pure, no files, no allocation per call where it matters.

Weights are handled as *bits* (``uint16`` for BF16 and F16, ``uint32`` for F32), because NumPy has no bfloat16 and
because exactness is a property of bits. Sums are made in the *wide* type: float32 for the 16-bit types, float64 for
F32, which is the reference ``((post.float() - base.float()) + target.float()).to(target.dtype)`` and its float64
analogue (Param∆, arXiv 2504.21023, eq. 1).

A wide delta is stored as two parts whose integer sum is its bit pattern::

    bits(Δ) = bits(widen(symbol)) + rest        symbol: the target's own width, Δ rounded toward zero
                                                rest:   zero where symbol alone is exact (Sterbenz: whenever
                                                        base/2 ≤ post ≤ 2·base; 92–99.9 % of real weights)

Rounding toward zero makes ``rest`` a small non-negative number and the split a bijection; rounding to nearest would
leave ties ambiguous. Even so ``base + Δ`` need not be post (post = −0, |post| ≪ |base|, Δ overflows):
:func:`unreachable` finds those elements, and a package stores post's bits for them.

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
from paramdelta_hub.numerics.scratch import scratch

__all__ = [
    "FLOATS",
    "Bits",
    "Difference",
    "Float",
    "NotFiniteChunkError",
    "Statistics",
    "Wide",
    "WorkArrays",
    "accumulate",
    "blocks",
    "difference",
    "join",
    "split",
    "unreachable",
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
    dropped: int
    """How many low bits of the wide pattern a symbol does not hold (for normal numbers)."""
    overflow: float
    """The smallest magnitude, in the wide type, that rounds to infinity."""
    infinity: int
    """The bits of infinity: those of the exponent, all of which are set in NaN and infinity alone."""

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.bits.itemsize

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
    "BF16": Float("BF16", _U2, _F4, _U4, None, dropped=16, overflow=_BF16_OVERFLOW, infinity=0x7F80),
    "F16": Float("F16", _U2, _F4, _U4, np.dtype("f2"), dropped=13, overflow=65520.0, infinity=0x7C00),
    "F32": Float(
        "F32", _U4, np.dtype("f8"), np.dtype("u8"), _F4, dropped=29, overflow=_F32_OVERFLOW, infinity=0x7F800000
    ),
}
"""The weight dtypes a delta can be taken of, by their safetensors names."""


def blocks(elements: int) -> Iterator[slice]:
    """Cut ``elements`` into cache-sized slices of :data:`~paramdelta_hub.limits.BLOCK_ELEMENTS`."""
    for start in range(0, elements, BLOCK_ELEMENTS):
        yield slice(start, min(start + BLOCK_ELEMENTS, elements))


class WorkArrays:
    """This thread's block buffers for one float type: three wide operands and a scratch for integer tricks."""

    def __init__(self, kind: Float) -> None:
        self.base: Wide = scratch("block base", BLOCK_ELEMENTS, kind.wide)
        self.post: Wide = scratch("block post", BLOCK_ELEMENTS, kind.wide)
        self.delta: Wide = scratch("block delta", BLOCK_ELEMENTS, kind.wide)
        self.scratch: Bits = scratch("block scratch", BLOCK_ELEMENTS, kind.wide_bits)


@dataclass
class Statistics:
    """What is counted while deltas are taken; the sums are of squares."""

    changed: int = 0
    remainders: int = 0
    exceptions: int = 0
    base_square: float = 0.0
    delta_square: float = 0.0

    def add(self, other: Statistics) -> None:
        """Add another chunk's figures."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class Difference:
    """The delta of a chunk, split and proven: every element is reached by a sum, or listed as an exception."""

    symbols: Bits
    positions: NDArray[Any]
    """Where ``rest`` completes the symbol; ascending."""
    rest: Bits
    exceptions: NDArray[Any]
    """Where base + Δ, rounded, is not post; ascending."""
    statistics: Statistics

    @property
    def is_zero(self) -> bool:
        """Whether base and post are equal, and stay so when +0 is added, which makes +0 of −0."""
        return not (self.statistics.changed or self.exceptions.size)


class NotFiniteChunkError(ValueError):
    """Base and post differ where one is NaN or infinite: how many such values are in base, and how many in post."""

    def __init__(self, base: int, post: int) -> None:
        super().__init__(base, post)
        self.base, self.post = base, post


def difference(base: Wide, post: Wide, out: Wide) -> Wide:
    """Δ = post − base in the wide type, rounded once; infinite only where it overflows float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.subtract(post, base, out=out)


def split(kind: Float, delta: Wide, symbols: Bits, scratch: Bits) -> tuple[Bits, Bits]:
    """Split a block of wide deltas into ``symbols`` and what they leave out; :func:`join` puts them together again.

    Return positions within the block (ascending ``intp``) and the non-zero rest at each (``wide_bits``' type).
    ``scratch`` is overwritten; it has that type, too, and at least the length of ``delta``.
    """
    bits = delta.view(kind.wide_bits)
    rest = scratch[: bits.size]
    if kind.narrow is None:
        np.right_shift(bits, 16, out=symbols, casting="unsafe")
        np.bitwise_and(bits, 0xFFFF, out=rest)
    else:
        # Masking first makes the conversion exact, so that NumPy has nothing to round. What exceeds the narrow range
        # is clipped to its largest finite number, and the rest holds the difference.
        np.bitwise_and(bits, kind.wide_bits.type(-(1 << kind.dropped) % (1 << 8 * bits.itemsize)), out=rest)
        largest = kind.wide.type(np.finfo(kind.narrow).max)
        towards_zero = rest.view(kind.wide)
        np.clip(towards_zero, -largest, largest, out=towards_zero)
        np.copyto(symbols.view(kind.narrow), towards_zero, casting="same_kind")
        np.subtract(bits, rest, out=rest)
    positions = np.flatnonzero(rest != 0)  # seven times faster than to look for non-zero integers
    return positions, rest[positions]


def join(kind: Float, delta: Wide, positions: Bits, rest: Bits) -> Wide:
    """Complete widened symbols by their rest, in place: the inverse of :func:`split`."""
    if positions.size:
        delta.view(kind.wide_bits)[positions] += rest
    return delta


def unreachable(kind: Float, base: Wide, delta: Wide, post: Wide, post_bits: Bits, work: WorkArrays) -> Bits:
    """Return the ascending positions where base + Δ, rounded, is not post to the bit; ``base`` is overwritten.

    There are none in nearly every block of real weights. ``post_bits`` is the same block as ``post``.
    """
    total = base
    with np.errstate(over="ignore", invalid="ignore"):
        np.add(base, delta, out=total)
    # Where the wide sum is post itself, rounding it gives post; only the others need to be rounded and looked at.
    differs = total.view(kind.wide_bits) != post.view(kind.wide_bits)
    if not differs.any():
        return np.empty(0, np.intp)
    suspects = np.flatnonzero(differs)
    rounded = np.empty(suspects.size, kind.bits)
    kind.round(total[suspects], rounded, work.scratch)
    missed: Bits = suspects[rounded != post_bits[suspects]]
    return missed


def accumulate(total: Wide, delta: Wide, weight: float) -> None:
    """``total += weight · Δ`` in place, product and sum each rounded to the wide type; Δ is overwritten.

    The order of several deltas is the order in which they were given: floating-point addition does not associate.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if weight != 1.0:
            np.multiply(delta, delta.dtype.type(weight), out=delta)
        np.add(total, delta, out=total)
