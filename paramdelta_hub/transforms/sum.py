"""Θ' + Σ wᵢΔᵢ for one tensor, chunk by chunk: payloads decoded, added to the target's values, rounded once.

A payload is decoded front to back, and a result is written front to back. If a delta's rows go to other places in the
result, as the vocabularies differ, the decoded delta waits in a temporary file: memory stays constant whatever the
orders are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.checkpoints.tensor_sources import Files, TensorSource
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.fileio.safetensors import ITEM_SIZES
from paramdelta_hub.numerics.casts import as_bits, round_once, summing_type
from paramdelta_hub.numerics.floats import FLOATS, Bits, Float, Wide, accumulate
from paramdelta_hub.numerics.row_runs import ElementRuns
from paramdelta_hub.numerics.scratch import scratch
from paramdelta_hub.numerics.sums import Delta, PlainDelta, add_all
from paramdelta_hub.package.tensor_delta import DeltaReader, StoredDelta
from paramdelta_hub.transforms.arranged import ArrangedAddend, ArrangedDelta, DecodedDeltas
from paramdelta_hub.transforms.decoded_delta import decode_delta

__all__ = ["Addend", "PlacedRun", "RowPlacement", "TensorSum", "little_endian"]


class PlacedRun(NamedTuple):
    """Rows [first, first + number) of the result get rows [source, …) of the delta, or none if source is None."""

    first: int
    source: int | None
    number: int
    whole: bool
    """Whether they are whole rows of post, which take no weight."""


@dataclass(frozen=True, slots=True)
class RowPlacement:
    """Which rows of a delta go to which rows of the result.

    Args:
        runs: one after another, all rows of the result.
        width: elements of a row.
        target: the target's values in the order of the delta's rows.
    """

    runs: tuple[PlacedRun, ...]
    width: int
    target: TensorSource


@dataclass(frozen=True, slots=True)
class Addend:
    """A delta of one tensor, and its weight; with a placement, if its rows are not in the order of the result's."""

    delta: StoredDelta
    weight: float
    placement: RowPlacement | None = None

    @property
    def dtype(self) -> str:
        """The delta's dtype."""
        return self.delta.dtype

    @property
    def is_zero(self) -> bool:
        """Whether the delta changes nothing."""
        return self.delta.is_zero

    @property
    def spilled_elements(self) -> int:
        """How many elements wait in a temporary file while the sum is made."""
        return 0 if self.placement is None or self.delta.is_zero else self.delta.elements


class TensorSum:
    """The sum of one tensor, chunk after chunk: in the wide type, in the order of the deltas, rounded once.

    One delta is decoded at a time, so that memory does not grow with their number. A single delta of weight 1 whose
    chunk has exceptions looks at the digest of the target's chunk: on base's own values the result is post, bit for
    bit; on any other target the sum stands. To be used in a ``with`` block.

    Target, deltas and result may have different float dtypes. The sum is then made in float64 if a float32 is among
    them, else in float32.

    Args:
        dtype: the dtype of the target's values.
        addends: what is added.
        shards: open files of the packages.
        result: the dtype of the result; default: the target's.
        is_base: whether the target's values are known to be base's, in the delta's dtype: the sum is then post, and is
            rounded once to the dtype of the result.
        sources: read access to the target; needed for addends with a placement.
        folder: where their temporary files are.
        decoded: the deltas of arranged addends.
        first: the element to begin with, the first of a chunk; other than 0 only where all addends are in order.
    """

    def __init__(
        self,
        dtype: str,
        addends: Sequence[Addend | ArrangedAddend],
        shards: OpenFiles,
        *,
        first: int = 0,
        result: str | None = None,
        is_base: bool = False,
        sources: Files | None = None,
        folder: Path | None = None,
        decoded: DecodedDeltas | None = None,
    ) -> None:
        self._dtype, self._result = dtype, result or dtype
        dtypes = {dtype, self._result, *(addend.dtype for addend in addends)}
        self._summing_type = summing_type(dtypes) if len(dtypes) > 1 and not is_base else None
        self.not_finite = 0
        """How many values of the result are NaN or infinite, without those that the target has and nothing changes."""
        self._replaced_by: DeltaReader | None = None
        self._additions: list[_Addition] = []
        self._exit = ExitStack()
        with self._exit:
            is_post = len(addends) == 1 and addends[0].weight == 1.0 and self._summing_type is None
            for addend in addends:
                if isinstance(addend, ArrangedAddend):
                    assert decoded is not None
                    self._additions.append(_InPieces(addend, decoded, is_post=is_post))
                elif addend.delta.effect == "replace":
                    if not addend.delta.is_zero:
                        self._replaced_by = DeltaReader(addend.delta, shards, first=first)
                elif addend.placement is None:
                    self._additions.append(_InOrder(addend, shards, first=first, is_post=is_post))
                else:
                    assert sources is not None
                    assert folder is not None
                    placed = _Placed(addend, shards, sources, folder, is_post=is_post)
                    self._additions.append(self._exit.enter_context(placed))
            self._exit = self._exit.pop_all()

    def add(self, target: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the bytes of the result's next chunk, given the target's.

        They are in this thread's buffer, until its next use.
        """
        if self._summing_type is not None:
            return self._add_across_dtypes(target, self._summing_type)
        summed = self._add(target)
        if self._result == self._dtype:
            return summed
        kind, result = FLOATS[self._dtype], FLOATS[self._result]
        bits = as_bits(summed, kind)
        wide = kind.widen(bits, scratch("post's values", bits.size, kind.wide))
        self.not_finite += result.count_not_finite(wide) - kind.count_not_finite(wide)
        return little_endian(round_once(wide, result, scratch("cast result", bits.size, result.bits)))

    def _add(self, target: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the result's next chunk where target, deltas and result have one dtype."""
        if self._replaced_by is not None:
            values = scratch("result", target.size, np.uint8).view(f"u{ITEM_SIZES[self._dtype]}")
            self._replaced_by.next_replaced(values)
            return little_endian(values)
        if not self._additions:
            return target
        kind = FLOATS[self._dtype]
        bits = as_bits(target, kind)
        out = scratch("result", target.size, np.uint8).view(kind.bits)
        if len(self._additions) > 1:
            self.not_finite += add_all(kind, bits, self._deltas(kind, target), out)
            return little_endian(out)
        [addition] = self._additions
        added = addition.next(target, scratch("added", bits.size, kind.wide))
        if added.delta is None:
            self.not_finite += add_all(kind, bits, [(None, addition.weight)], out)
        else:
            self.not_finite += added.delta.add(kind, bits, addition.weight, out)
        if added.positions.size:
            self.not_finite += _not_finite_instead(kind, bits, out, added)
            out[added.positions] = added.exact
        return little_endian(out)

    def _deltas(self, kind: Float, target: NDArray[np.uint8]) -> Iterator[tuple[Delta | None, float]]:
        """Return one delta after another, in the buffers that all of them share."""
        for addition in self._additions:
            out = scratch("added", target.size // kind.itemsize, addition.wide)
            yield addition.next(target, out).delta, addition.weight

    def _add_across_dtypes(self, target: NDArray[np.uint8], wide: np.dtype[Any]) -> NDArray[np.uint8]:
        """Return the result's next chunk where target, deltas and result do not have one dtype."""
        kind, result = FLOATS[self._dtype], FLOATS[self._result]
        bits = as_bits(target, kind)
        total = scratch("sum", bits.size, wide)
        with np.errstate(invalid="ignore"):  # a signaling NaN of the target's
            np.copyto(total, kind.widen(bits, scratch("widened target", bits.size, kind.wide)))
        kept = np.flatnonzero(kind.not_finite(bits))
        term = scratch("term", bits.size, wide)
        for addition, (delta, weight) in zip(self._additions, self._deltas(kind, target), strict=True):
            if delta is None:
                term.fill(0.0)  # as where all dtypes are equal: −0 + 0 is +0
            else:
                np.copyto(term, delta.values(scratch("delta", bits.size, addition.wide)))
            kept = kept[term[kept] == 0]
            accumulate(total, term, weight)
        # NaN and infinity of the target's to which nothing is added are no fault of the sum's.
        self.not_finite += result.count_not_finite(total) - kept.size
        out = round_once(total, result, scratch("result", bits.size * result.itemsize, np.uint8).view(result.bits))
        if result is kind:
            out[kept] = bits[kept]
        return little_endian(out)

    @property
    def exceptions(self) -> int:
        """How many exceptions the chunks had so far of addends whose elements are in the order of the result."""
        return sum(addition.reader.exceptions for addition in self._additions if isinstance(addition, _InOrder))

    def __enter__(self) -> TensorSum:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()


class _Added(NamedTuple):
    """One delta's part in a chunk of the sum."""

    delta: Delta | None
    """What is added, in the order of the result; None for zeros."""
    positions: NDArray[np.intp]
    """The elements that get ``exact`` in place of the sum, as the target has base's values there."""
    exact: Bits


class _Addition(Protocol):
    """One delta of a sum, in the order of the result."""

    @property
    def weight(self) -> float:
        """What its values are multiplied by."""

    @property
    def wide(self) -> np.dtype[Any]:
        """The type of its values."""

    def next(self, target: NDArray[np.uint8], out: Wide) -> _Added:
        """Return its part in the next chunk; ``out`` is a buffer for the values.

        Args:
            target: the target's values, as bytes.
            out: as many wide values.
        """


class _InOrder:
    """A delta whose elements are in the order of the result: decoded as the sum is made."""

    def __init__(self, addend: Addend, shards: OpenFiles, *, first: int, is_post: bool) -> None:
        kind = FLOATS[addend.delta.dtype]
        self.weight, self.wide = addend.weight, kind.wide
        self.reader = DeltaReader(addend.delta, shards, first=first)
        self._is_post = is_post
        self._none = np.empty(0, np.intp), np.empty(0, kind.bits)

    def next(self, target: NDArray[np.uint8], out: Wide) -> _Added:
        chunk = self.reader.next_added()
        if chunk is None:
            return _Added(None, *self._none)
        if self._is_post and chunk.is_of(target):
            return _Added(chunk.delta, chunk.exceptions, chunk.exact)
        return _Added(chunk.delta, *self._none)


class _InPieces:
    """Blocks of deltas whose tensors are those of the target in other pieces."""

    def __init__(self, addend: ArrangedAddend, decoded: DecodedDeltas, *, is_post: bool) -> None:
        self.weight, self.wide = addend.weight, FLOATS[addend.dtype].wide
        self._delta = ArrangedDelta(addend, decoded, is_post=is_post)

    def next(self, target: NDArray[np.uint8], out: Wide) -> _Added:
        positions, exact = self._delta.next(out)
        return _Added(PlainDelta(out), positions, exact)


class _Placed:
    """One delta of a sum, decoded and checked at once; its rows are handed out in the order of the result.

    To be used in a ``with`` block, at whose end the temporary file is gone.

    Args:
        addend: the delta, with its placement.
        shards: open files of the package.
        sources: read access to the target.
        folder: where the temporary file is.
        is_post: whether this delta alone is added, with a weight of 1: on base's values the result is then post.

    Raises:
        PackageError: the payload is damaged.
    """

    weight = 1.0
    """The values that it hands out are weighted already, as whole rows of post take no weight."""

    def __init__(
        self,
        addend: Addend,
        shards: OpenFiles,
        sources: Files,
        folder: Path,
        *,
        is_post: bool,
    ) -> None:
        assert addend.placement is not None
        self._kind = FLOATS[addend.delta.dtype]
        self.wide = self._kind.wide
        self._runs = ElementRuns(addend.placement.runs, addend.placement.width)
        self._weights = [1.0 if run.whole else addend.weight for run in addend.placement.runs]
        self._next = 0
        target = addend.placement.target if is_post else None
        self._decoded = decode_delta(addend.delta, target, shards, sources, folder)

    def next(self, target: NDArray[np.uint8], out: Wide) -> _Added:
        """Return its part in the next chunk."""
        exceptions = self._decoded.exceptions
        positions, exact = [], []
        for place, source, run in self._runs.pieces(self._next, out.size):
            part, weight = out[place], self._weights[run]
            if source is None:
                part.fill(-0.0)  # what changes no value at all: +0 would make +0 of −0
                continue
            self._decoded.read(source, part)
            if weight != 1.0:
                with np.errstate(over="ignore", invalid="ignore"):
                    np.multiply(part, part.dtype.type(weight), out=part)
            inside = slice(*np.searchsorted(exceptions, (source, source + part.size)).tolist())
            positions.append(exceptions[inside] - source + place.start)
            exact.append(self._decoded.exact[inside])
        self._next += out.size
        if not positions:
            return _Added(PlainDelta(out), exceptions[:0], self._decoded.exact[:0])
        return _Added(PlainDelta(out), np.concatenate(positions), np.concatenate(exact))

    def __enter__(self) -> _Placed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._decoded.close()


def _not_finite_instead(kind: Float, target: Bits, sums: Bits, added: _Added) -> int:
    """Return how many more values of a chunk are not finite if it gets the exact ones in place of the sums."""
    at = added.positions
    kept = kind.not_finite(target[at])  # no extract lists such an element
    before = np.count_nonzero(kind.not_finite(sums[at]) & ~kept)
    return int(np.count_nonzero(kind.not_finite(added.exact)) - before)


def little_endian(bits: Bits) -> NDArray[np.uint8]:
    """Return the little-endian bytes of bits: a view, except on big-endian machines."""
    return bits.astype(bits.dtype.newbyteorder("<"), copy=False).view(np.uint8)
