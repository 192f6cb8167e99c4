"""Target + Σ wᵢΔᵢ of one chunk: summed in the wide type, in the order given, and rounded once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.numerics.compiled import SLICE, compiled
from paramdelta_hub.numerics.floats import Bits, Float, Wide
from paramdelta_hub.numerics.scratch import scratch
from paramdelta_hub.numerics.widening import count_not_finite, narrow, widen

__all__ = ["Delta", "PlainDelta", "add_all", "add_slice"]


class Delta(Protocol):
    """The delta of one chunk, as an array or still coded."""

    def add(self, kind: Float, target: Bits, weight: float, out: Bits) -> int:
        """Write ``target + wΔ``, summed in the wide type and rounded once; return how many are not finite.

        Where the target is NaN or infinite and wΔ is zero, it keeps its bits, and is not counted.

        Args:
            kind: the dtype of target and result.
            target: bits.
            weight: w; it is rounded to the wide type.
            out: receives the bits of the result; not the target's own memory.
        """

    def accumulate(self, total: Wide, weight: float) -> None:
        """``total += wΔ``, the product and the sum each rounded to the wide type."""

    def values(self, out: Wide) -> Wide:
        """Fill ``out`` with the wide values, and return it."""


class PlainDelta:
    """Wide values in an array."""

    def __init__(self, values: Wide) -> None:
        self._values = values

    def add(self, kind: Float, target: Bits, weight: float, out: Bits) -> int:
        """See :class:`Delta`."""
        sides = target.view(kind.operand), out.view(kind.operand)
        factor, overflow = kind.wide.type(weight), kind.wide.type(kind.overflow)
        bad = int(_add(sides[0], self._values, factor, overflow, sides[1]))
        if bad:
            kept = np.flatnonzero(kind.not_finite(target))
            bad -= _keep(_unchanged(kept, self._values, factor), target, out)
        return bad

    def accumulate(self, total: Wide, weight: float) -> None:
        """See :class:`Delta`."""
        _accumulate(total, self._values, total.dtype.type(weight))

    def values(self, out: Wide) -> Wide:
        """See :class:`Delta`."""
        np.copyto(out, self._values)
        return out


def add_all(kind: Float, target: Bits, deltas: Iterable[tuple[Delta | None, float]], out: Bits) -> int:
    """Write ``target + Σ wᵢΔᵢ``, summed in the order given, rounded once; return how many are not finite.

    Where the target is NaN or infinite and all wᵢΔᵢ are zero, it keeps its bits, and is not counted. None stands for
    zeros. Each delta is done with before the next is asked for, so all of them may lie in one buffer.
    """
    total = scratch("total", target.size, kind.wide)
    _widen_all(target.view(kind.operand), total)
    kept = np.flatnonzero(kind.not_finite(target))
    for delta, weight in deltas:
        if delta is None:
            with np.errstate(invalid="ignore"):  # a signaling NaN of the target's
                np.add(total, kind.wide.type(weight) * kind.wide.type(0), out=total)
        else:
            delta.accumulate(total, weight)
            if kept.size:
                change = delta.values(scratch("delta", target.size, kind.wide))
                kept = _unchanged(kept, change, kind.wide.type(weight))
    bad = int(_narrow_all(total, kind.wide.type(kind.overflow), out.view(kind.operand)))
    return bad - _keep(kept, target, out)


def _unchanged(positions: NDArray[np.intp], delta: Wide, weight: Any) -> NDArray[np.intp]:
    """Return those of the positions at which wΔ is zero."""
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is counted, not warned of
        unchanged: NDArray[np.bool_] = weight * delta[positions] == 0
    return positions[unchanged]


def _keep(positions: NDArray[np.intp], target: Bits, out: Bits) -> int:
    """Give the result the target's bits at these positions, and return how many they are."""
    out[positions] = target[positions]
    return positions.size


@compiled
def add_slice(target: Any, delta: Any, weight: Any, overflow: Any, total: Any, spare: Any, out: Any) -> Any:
    """Add a slice, and return how many results are not finite.

    Args:
        target: as :func:`~paramdelta_hub.numerics.widening.widen` takes it.
        delta: wide values.
        weight: a wide value.
        overflow: what is rounded to infinity.
        total: is overwritten; as long as the slice, and wide.
        spare: likewise.
        out: receives the result.
    """
    widen(target, total)
    for i in range(delta.size):
        total[i] = total[i] + weight * delta[i]
    narrow(total, spare, out)
    return count_not_finite(total, overflow)


@compiled
def _add(target: Any, delta: Any, weight: Any, overflow: Any, out: Any) -> Any:
    """Add a chunk, and return how many results are not finite."""
    total, spare = np.empty(SLICE, delta.dtype), np.empty(SLICE, delta.dtype)
    bad = 0
    for start in range(0, target.size, SLICE):
        end = min(start + SLICE, target.size)
        part = total[: end - start], spare[: end - start]
        bad += add_slice(target[start:end], delta[start:end], weight, overflow, part[0], part[1], out[start:end])
    return bad


@compiled
def _widen_all(target: Any, total: Any) -> None:
    for start in range(0, target.size, SLICE):
        end = min(start + SLICE, target.size)
        widen(target[start:end], total[start:end])


@compiled
def _accumulate(total: Any, delta: Any, weight: Any) -> None:
    for start in range(0, total.size, SLICE):
        part, change = total[start : start + SLICE], delta[start : start + SLICE]
        for i in range(part.size):
            part[i] = part[i] + weight * change[i]


@compiled
def _narrow_all(total: Any, overflow: Any, out: Any) -> Any:
    """Round a chunk, and return how many results are not finite."""
    spare = np.empty(SLICE, total.dtype)
    bad = 0
    for start in range(0, total.size, SLICE):
        part = total[start : start + SLICE]
        narrow(part, spare[: part.size], out[start : start + SLICE])
        bad += count_not_finite(part, overflow)
    return bad
