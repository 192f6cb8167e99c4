"""Δ = post − base of one chunk, and the proof that base ⊕ Δ is post."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.numerics.compiled import SLICE, compiled
from paramdelta_hub.numerics.floats import Bits, Float, Wide
from paramdelta_hub.numerics.scratch import scratch
from paramdelta_hub.numerics.widening import narrow, widen

__all__ = ["Difference", "NotFiniteChunkError", "Statistics", "subtract"]

_LANES = 512  # sums side by side, added up in a fixed order: the digits are the same on every machine


@dataclass
class Statistics:
    """What is counted while deltas are taken; the sums are of squares."""

    changed: int = 0
    exceptions: int = 0
    base_square: float = 0.0
    delta_square: float = 0.0

    def add(self, other: Statistics) -> None:
        """Add another chunk's figures."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class Difference:
    """The delta of a chunk, proven: every element is reached by a sum, or listed as an exception."""

    delta: Wide
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


def subtract(kind: Float, base: Bits, post: Bits, out: Wide) -> Difference:
    """Take Δ = post − base and prove it: every element is reached by a sum, or listed as an exception.

    NaN and infinity take no part: where base and post have the same bits, nothing changed, and Δ is +0.

    Args:
        kind: the dtype of base and post.
        base: bits.
        post: as many.
        out: receives Δ.

    Raises:
        NotFiniteChunkError: they differ where one is NaN or infinite.
    """
    missed = scratch("places missed", base.size, np.int32)
    squares = np.zeros((2, _LANES))
    sides = base.view(kind.operand), post.view(kind.operand)
    largest = np.finfo(kind.wide).max
    infinity = base.dtype.type(kind.infinity)
    changed, exceptions, finite = _subtract(base, post, *sides, infinity, out, missed, squares, largest)
    if not finite:
        base, post = _without_unchanged(kind, base, post)
        sides = base.view(kind.operand), post.view(kind.operand)
        _, exceptions, _ = _subtract(base, post, *sides, infinity, out, missed, squares, largest)
    base_square, delta_square = squares.sum(axis=1).tolist()
    counted = Statistics(changed, exceptions, base_square, delta_square)
    return Difference(out, missed[:exceptions], counted)


def _without_unchanged(kind: Float, base: Bits, post: Bits) -> tuple[Bits, Bits]:
    """Return both sides with 0 for NaN and infinity that are equal on both, to the bit.

    Raises:
        NotFiniteChunkError: others are left.
    """
    unchanged = (base == post) & kind.not_finite(base)
    sides = np.where(unchanged, kind.bits.type(0), base), np.where(unchanged, kind.bits.type(0), post)
    left = [int(np.count_nonzero(kind.not_finite(side))) for side in sides]
    if any(left):
        raise NotFiniteChunkError(*left)
    return sides


@compiled
def _add_squares(base: Any, delta: Any, largest: Any, squares: Any) -> None:
    """Add the squares of a slice of base and of Δ to ``squares``, lane by lane; Δ may have overflowed."""
    for at in range(0, base.size, _LANES):
        some_base, some_delta = base[at : min(at + _LANES, base.size)], delta[at : min(at + _LANES, base.size)]
        for lane in range(some_base.size):
            change = min(max(np.float64(some_delta[lane]), -largest), largest)
            squares[0, lane] += np.float64(some_base[lane]) * np.float64(some_base[lane])
            squares[1, lane] += change * change


@compiled
def _subtract(
    base_bits: Any,
    post_bits: Any,
    base: Any,
    post: Any,
    infinity: Any,
    out: Any,
    missed: Any,
    squares: Any,
    largest: Any,
) -> Any:
    """Take Δ = post − base, and find where no sum of base and Δ gives post.

    Return how many elements differ, how many are missed, and whether base and post are finite.

    Args:
        base_bits: unsigned integers.
        post_bits: likewise.
        base: the same memory, as :func:`~paramdelta_hub.numerics.widening.widen` takes it.
        post: likewise.
        infinity: the exponent that NaN and infinity have.
        out: receives Δ.
        missed: ``int32``, receives the positions where base + Δ, rounded, is not post.
        squares: receives the sums of squares of base and of Δ: two rows of 512 ``float64``.
        largest: the largest finite wide value.
    """
    changed, missed_count = 0, 0
    not_finite = 0
    old, new, spare = np.empty(SLICE, out.dtype), np.empty(SLICE, out.dtype), np.empty(SLICE, out.dtype)
    sums = np.empty(SLICE, base.dtype)
    sum_bits = sums.view(base_bits.dtype)
    flags = np.empty(SLICE, np.uint8)
    eights = flags.view(np.uint64)
    squares[:] = 0.0
    for start in range(0, base.size, SLICE):
        end = min(start + SLICE, base.size)
        size = end - start
        delta, post_slice, base_slice = out[start:end], post_bits[start:end], base_bits[start:end]
        widen(base[start:end], old[:size])
        widen(post[start:end], new[:size])
        differing = np.int32(0)
        bad = np.int32(0)
        for i in range(size):
            differing = np.int32(differing + np.int32(base_slice[i] != post_slice[i]))
            bad = np.int32(bad | np.int32(base_slice[i] & infinity == infinity))
            bad = np.int32(bad | np.int32(post_slice[i] & infinity == infinity))
        changed += differing
        not_finite |= bad
        for i in range(size):
            delta[i] = new[i] - old[i]
        _add_squares(old[:size], delta, largest, squares)
        for i in range(size):
            old[i] = old[i] + delta[i]
        narrow(old[:size], spare[:size], sums[:size])
        for i in range(size):
            flags[i] = np.uint8(sum_bits[i] != post_slice[i])
        for i in range(size, -(-size // 8) * 8):
            flags[i] = 0
        for eight in range(-(-size // 8)):
            if eights[eight]:  # hardly ever
                for i in range(eight * 8, eight * 8 + 8):
                    if flags[i]:
                        missed[missed_count] = start + i
                        missed_count += 1
    return changed, missed_count, not_finite == 0
