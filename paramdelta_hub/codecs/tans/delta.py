"""The codec of float deltas: where Δ is not 0, if that is seldom, and its values by tANS.

A chunk has two streams: *gaps* between the elements that are coded, all others being +0, or nothing where all are; and
the *values* of those. tANS spends a fraction of a bit on what is frequent, so that positions save hardly any bits; but
few elements are decoded faster than many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from paramdelta_hub.codecs import frames
from paramdelta_hub.codecs.frames import Buffer
from paramdelta_hub.codecs.sparse import decode_gaps, gather, spread
from paramdelta_hub.codecs.tans.chunk import CodedValues, damaged, encode_values, parse_values
from paramdelta_hub.codecs.tans.coder import finished, next_values
from paramdelta_hub.errors import PackageError
from paramdelta_hub.numerics.compiled import SLICE, compiled
from paramdelta_hub.numerics.floats import Bits, Float, Wide
from paramdelta_hub.numerics.scratch import scratch
from paramdelta_hub.numerics.sums import Delta, PlainDelta, add_slice

__all__ = ["Tans"]

FEW = 0.12
"""The share of elements other than 0 below which positions are coded: measured, where decoding takes as long."""


@dataclass(frozen=True)
class Tans:
    """The codec of chunks of wide values."""

    name: ClassVar[str] = "tans"
    streams: ClassVar[int] = 2

    def encode(self, delta: Wide) -> list[bytes]:
        """Code a flat, contiguous, non-empty chunk; equal values always give equal streams."""
        bits = delta.view(f"u{delta.itemsize}")
        coded = int(np.count_nonzero(bits))
        if not 0 < coded < FEW * bits.size:
            return [b"", encode_values(bits)]
        gaps, values = gather(bits)
        return [frames.compress(gaps.data), encode_values(values)]

    def open(self, streams: Sequence[Buffer], count: int, wide: np.dtype[Any]) -> Delta:
        """Return a chunk of ``count`` elements that is ready to be decoded; it may be in this thread's buffers.

        Raises:
            PackageError: damaged.
        """
        coded_gaps, values = streams
        if not len(coded_gaps):
            return _CodedDelta(parse_values(values, count, wide.itemsize), count, wide)
        gaps, positions = decode_gaps(coded_gaps, count)
        if not positions:
            raise PackageError("a chunk's positions are none")
        few = scratch("values at positions", positions, f"u{wide.itemsize}")
        parse_values(values, positions, wide.itemsize).decode(few)
        return _SparseDelta(gaps, few, count, wide)


class _CodedDelta:
    """A chunk of which all elements are coded: decoded in the loop that adds them."""

    def __init__(self, coded: CodedValues, count: int, wide: np.dtype[Any]) -> None:
        self._coded, self._count, self._wide = coded, count, wide

    def add(self, kind: Float, target: Bits, weight: float, out: Bits) -> int:
        """See :class:`Delta`."""
        sides = target.view(kind.operand), out.view(kind.operand)
        factor, overflow = kind.wide.type(weight), kind.wide.type(kind.overflow)
        values = scratch("slice of values", SLICE, self._wide)
        bad = int(
            _add_coded(
                *self._coded.begin(),
                values,
                values.view(f"u{values.itemsize}"),
                sides[0],
                factor,
                overflow,
                sides[1],
            )
        )
        if bad < 0:
            raise damaged()
        return self._plain().add(kind, target, weight, out) if bad else 0

    def accumulate(self, total: Wide, weight: float) -> None:
        """See :class:`Delta`."""
        values = scratch("slice of values", SLICE, self._wide)
        if not _accumulate_coded(
            *self._coded.begin(), values, values.view(f"u{values.itemsize}"), total, total.dtype.type(weight)
        ):
            raise damaged()

    def values(self, out: Wide) -> Wide:
        """See :class:`Delta`."""
        self._coded.decode(out.view(f"u{self._wide.itemsize}"))
        return out

    def _plain(self) -> PlainDelta:
        return PlainDelta(self.values(scratch("delta", self._count, self._wide)))


class _SparseDelta:
    """A chunk of which few elements are coded."""

    def __init__(self, gaps: Bits, few: Bits, count: int, wide: np.dtype[Any]) -> None:
        self._gaps, self._few, self._count, self._wide = gaps, few, count, wide

    def add(self, kind: Float, target: Bits, weight: float, out: Bits) -> int:
        """See :class:`Delta`."""
        return self._plain().add(kind, target, weight, out)

    def accumulate(self, total: Wide, weight: float) -> None:
        """See :class:`Delta`."""
        self._plain().accumulate(total, weight)

    def values(self, out: Wide) -> Wide:
        """See :class:`Delta`."""
        spread(self._gaps, self._few, np.zeros(3, np.int64), out.view(self._few.dtype))
        return out

    def _plain(self) -> PlainDelta:
        return PlainDelta(self.values(scratch("delta", self._count, self._wide)))


@compiled
def _add_coded(
    words: Any,
    cursor: Any,
    ends: Any,
    table: Any,
    classes: Any,
    symbols: Any,
    values: Any,
    bits: Any,
    target: Any,
    weight: Any,
    overflow: Any,
    out: Any,
) -> Any:
    """Decode and add a chunk, slice by slice; return how many results are not finite, or −1 for damaged streams.

    ``values`` is overwritten: a slice, wide; ``bits`` is the same memory.
    """
    total, spare = np.empty_like(values), np.empty_like(values)
    bad = 0
    for start in range(0, target.size, SLICE):
        end = min(start + SLICE, target.size)
        part = bits[: end - start]
        if not next_values(words, cursor, ends, table, classes, symbols, start, part):
            return -1
        size = end - start
        bad += add_slice(target[start:end], values[:size], weight, overflow, total[:size], spare[:size], out[start:end])
    return bad if finished(cursor, ends) else -1


@compiled
def _accumulate_coded(
    words: Any,
    cursor: Any,
    ends: Any,
    table: Any,
    classes: Any,
    symbols: Any,
    values: Any,
    bits: Any,
    total: Any,
    weight: Any,
) -> Any:
    """Decode a chunk and add it to wide sums, slice by slice; return whether the streams end where they must."""
    for start in range(0, total.size, SLICE):
        sums = total[start : start + SLICE]
        part = bits[: sums.size]
        if not next_values(words, cursor, ends, table, classes, symbols, start, part):
            return False
        for i in range(sums.size):
            sums[i] = sums[i] + weight * values[i]
    return finished(cursor, ends)
