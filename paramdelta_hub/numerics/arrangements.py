"""Arrangements: a tensor that is put together from blocks of other tensors, and how to read any range of it.

Stacking, cutting, joining and transposing all come to the same: each block of the new tensor is a block of another one,
walked with other steps. However many such rules are applied one after another, the result is one list of blocks, and
the way back is the same list read from the other side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import DTypeLike, NDArray

from paramdelta_hub.numerics.scratch import scratch

__all__ = ["Arrangement", "Box", "BoxReader", "invert", "positions_in_result"]

_SPAN = 8 << 20
"""Bytes that are read at once to pick some of their elements, and bytes of a band."""
_SPARSE = 16
"""If only every 16th element, or fewer, of a range is wanted, single runs are read instead of the range."""
_BANDED = 1 << 16
"""Reads of fewer elements than these are samples, for which no band is read ahead."""

Shape: TypeAlias = "tuple[int, ...]"


class Box(NamedTuple):
    """Elements that a tensor gets from another one.

    For all indices below ``sizes``, element ``first + Σ index·steps`` of the tensor is element
    ``source_first + Σ index·source_steps`` of the other. ``steps`` descend, as in a tensor in C order.
    """

    source: int
    """Which of the other tensors."""
    sizes: Shape
    first: int
    steps: Shape
    source_first: int
    source_steps: Shape

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return math.prod(self.sizes)

    @property
    def last(self) -> int:
        """Its last element in the tensor."""
        return self.first + sum((size - 1) * step for size, step in zip(self.sizes, self.steps, strict=True))


class _Block(NamedTuple):
    """A box in coordinates: so many indices of every axis of the tensor, each a stride after the one before."""

    source: str
    starts: Shape
    sizes: Shape
    strides: Shape
    source_first: int
    source_steps: Shape

    def range(self, axis: int, low: int, high: int) -> _Block:
        """Return some of its indices of an axis, by their number, at their places."""
        return self._replace(
            starts=_set(self.starts, axis, self.starts[axis] + low * self.strides[axis]),
            sizes=_set(self.sizes, axis, high - low),
            source_first=self.source_first + low * self.source_steps[axis],
        )

    def spread(self, axis: int, step: int, place: int) -> _Block:
        """Return the block with its indices of an axis times ``step``, and ``place`` further on."""
        return self._replace(
            starts=_set(self.starts, axis, self.starts[axis] * step + place),
            strides=_set(self.strides, axis, self.strides[axis] * step),
        )

    def every(self, axis: int, first: int, step: int) -> Iterator[_Block]:
        """Give the part at the places ``first + n·step`` of an axis, at its place ``n``."""
        at, size, stride = self.starts[axis], self.sizes[axis], self.strides[axis]
        every = step // math.gcd(stride, step)  # so many-th of its indices lie at such places, if any does
        low = next((low for low in range(min(size, every)) if (at + low * stride - first) % step == 0), None)
        if low is not None:
            yield self._replace(
                starts=_set(self.starts, axis, (at + low * stride - first) // step),
                sizes=_set(self.sizes, axis, -((low - size) // every)),
                strides=_set(self.strides, axis, every * stride // step),
                source_first=self.source_first + low * self.source_steps[axis],
                source_steps=_set(self.source_steps, axis, every * self.source_steps[axis]),
            )


@dataclass(frozen=True)
class Arrangement:
    """A tensor made of blocks of named tensors. What no block covers is nothing's."""

    shape: Shape
    blocks: tuple[_Block, ...]

    @classmethod
    def whole(cls, name: str, shape: Shape) -> Arrangement:
        """Return a tensor as it is."""
        return cls(shape, (_Block(name, (0,) * len(shape), shape, (1,) * len(shape), 0, _steps(shape)),))

    @classmethod
    def concatenated(cls, parts: Sequence[Arrangement], axis: int) -> Arrangement:
        """Join tensors along an axis. Their shapes must agree in all others."""
        blocks: list[_Block] = []
        end = 0
        for part in parts:
            blocks += [
                block._replace(starts=_set(block.starts, axis, block.starts[axis] + end)) for block in part.blocks
            ]
            end += part.shape[axis]
        return cls(_set(parts[0].shape, axis, end), tuple(blocks))

    @classmethod
    def stacked(cls, parts: Sequence[Arrangement], axis: int) -> Arrangement:
        """Join tensors of one shape along a new axis."""
        blocks = tuple(
            _Block(
                block.source,
                _insert(block.starts, axis, number),
                _insert(block.sizes, axis, 1),
                _insert(block.strides, axis, 1),
                block.source_first,
                _insert(block.source_steps, axis, 0),
            )
            for number, part in enumerate(parts)
            for block in part.blocks
        )
        return cls(_insert(parts[0].shape, axis, len(parts)), blocks)

    @classmethod
    def interleaved(cls, parts: Sequence[Arrangement], axis: int, groups: int) -> Arrangement:
        """Join tensors along an axis in so many groups, each with an equal piece of every tensor."""
        widths = [part.shape[axis] // groups for part in parts]
        blocks: list[_Block] = []
        for number, (part, width) in enumerate(zip(parts, widths, strict=True)):
            place = sum(widths[:number])
            if width == 1:
                blocks += [block.spread(axis, sum(widths), place) for block in part.blocks]
                continue
            for group in range(groups):
                piece = part.part(axis, group * width, (group + 1) * width)
                blocks += [block.spread(axis, 1, group * sum(widths) + place) for block in piece.blocks]
        return cls(_set(parts[0].shape, axis, groups * sum(widths)), tuple(blocks))

    def dealt(self, axis: int, groups: int, sizes: Sequence[int]) -> list[Arrangement]:
        """Cut an axis into equal groups, and those into pieces; a tensor of a size has its piece of every group."""
        width = self.shape[axis] // groups
        made, start = [], 0
        for stop in accumulate(size // groups for size in sizes):
            if stop - start == 1:
                made.append(self._every(axis, start, width))
            else:
                firsts = range(0, self.shape[axis], width)
                pieces = [self.part(axis, first + start, first + stop) for first in firsts]
                made.append(Arrangement.concatenated(pieces, axis))
            start = stop
        return made

    def _every(self, axis: int, first: int, step: int) -> Arrangement:
        """Return the indices ``first``, ``first + step``, … of an axis."""
        blocks = (found for block in self.blocks for found in block.every(axis, first, step))
        return Arrangement(_set(self.shape, axis, self.shape[axis] // step), tuple(blocks))

    def part(self, axis: int, start: int, stop: int) -> Arrangement:
        """Cut out a range of an axis."""
        blocks = []
        for block in self.blocks:
            at, stride = block.starts[axis], block.strides[axis]
            low = max(0, -((at - start) // stride))
            high = min(block.sizes[axis], -((at - stop) // stride))
            if low < high:
                blocks.append(block.range(axis, low, high).spread(axis, 1, -start))
        return Arrangement(_set(self.shape, axis, stop - start), tuple(blocks))

    def unstacked(self, axis: int) -> list[Arrangement]:
        """Cut into the tensors of one axis, which they no longer have."""
        parts = [self.part(axis, index, index + 1) for index in range(self.shape[axis])]
        return [
            Arrangement(
                _drop(part.shape, axis),
                tuple(
                    block._replace(
                        starts=_drop(block.starts, axis),
                        sizes=_drop(block.sizes, axis),
                        strides=_drop(block.strides, axis),
                        source_steps=_drop(block.source_steps, axis),
                    )
                    for block in part.blocks
                ),
            )
            for part in parts
        ]

    def transposed(self) -> Arrangement:
        """Swap the last two axes."""
        blocks = tuple(
            block._replace(
                starts=_swap(block.starts),
                sizes=_swap(block.sizes),
                strides=_swap(block.strides),
                source_steps=_swap(block.source_steps),
            )
            for block in self.blocks
        )
        return Arrangement(_swap(self.shape), blocks)

    def resized(self, shape: Shape) -> Arrangement:
        """Return the leading part that fits into ``shape``, in a tensor of this shape."""
        cut = self
        for axis, size in enumerate(shape):
            cut = cut.part(axis, 0, min(size, cut.shape[axis]))
        return replace(cut, shape=shape)

    @property
    def sources(self) -> tuple[str, ...]:
        """The named tensors, each once."""
        return tuple(dict.fromkeys(block.source for block in self.blocks))

    @property
    def is_whole(self) -> bool:
        """Whether every element comes from some tensor; no two blocks cover the same."""
        return sum(math.prod(block.sizes) for block in self.blocks) == math.prod(self.shape)

    def boxes(self, sources: Sequence[str]) -> tuple[Box, ...]:
        """Return the blocks as boxes; ``sources`` says which number each named tensor has."""
        number_of = {name: number for number, name in enumerate(sources)}
        steps = _steps(self.shape)
        boxes = [
            _merged(
                Box(
                    number_of[block.source],
                    block.sizes,
                    sum(start * step for start, step in zip(block.starts, steps, strict=True)),
                    tuple(stride * step for stride, step in zip(block.strides, steps, strict=True)),
                    block.source_first,
                    block.source_steps,
                )
            )
            for block in self.blocks
            if math.prod(block.sizes)
        ]
        return tuple(sorted(boxes, key=lambda box: box.first))


def invert(boxes: Sequence[tuple[int, Box]]) -> tuple[Box, ...]:
    """Return boxes as their source sees them: it gets its elements from the tensors that they made.

    Args:
        boxes: all of one source, each with the number of the tensor that it is a part of.
    """
    turned = []
    for number, box in boxes:
        axes = sorted(range(len(box.sizes)), key=lambda axis: -box.source_steps[axis])
        turned.append(
            _merged(
                Box(
                    number,
                    tuple(box.sizes[axis] for axis in axes),
                    box.source_first,
                    tuple(box.source_steps[axis] for axis in axes),
                    box.first,
                    tuple(box.steps[axis] for axis in axes),
                )
            )
        )
    return tuple(sorted(turned, key=lambda box: box.first))


def positions_in_result(box: Box, elements: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return where elements of the source lie in the tensor, and which of them do at all, by their number."""
    rest = elements - box.source_first
    inside = rest >= 0
    place = np.full(elements.size, box.first, np.intp)
    for axis in sorted(range(len(box.sizes)), key=lambda axis: -box.source_steps[axis]):
        index, rest = np.divmod(rest, box.source_steps[axis])
        inside &= index < box.sizes[axis]
        place += index * box.steps[axis]
    inside &= rest == 0
    numbers = np.flatnonzero(inside)
    return place[numbers], numbers


Read: TypeAlias = "Callable[[int, int, NDArray[Any]], None]"
"""Fill an array with elements of one of the sources, from a position."""


class BoxReader:
    """Reads any range of a tensor that is made of boxes.

    Where rows become columns, bands of the tensor are read ahead, so that a source is not read once per row.

    Args:
        boxes: ascending in ``first``.
        elements: how many the tensor has.
        dtype: of an element.
        read: fills an array with elements of a source: (which, from which element on, the array).
    """

    def __init__(self, boxes: Sequence[Box], elements: int, dtype: DTypeLike, read: Read) -> None:
        self._boxes, self._elements, self._read = boxes, elements, read
        self._dtype = np.dtype(dtype)
        self._span = _SPAN // self._dtype.itemsize
        self._firsts = np.array([box.first for box in boxes], np.int64)
        self._lasts = np.array([box.last for box in boxes], np.int64)
        self._is_whole = sum(box.elements for box in boxes) == elements
        rows = [box.steps[-2] for box in boxes if len(box.sizes) > 1 and box.source_steps[-1] != 1]
        self._band_size = max(1, self._span // max(rows)) * max(rows) if rows else 0
        self._band: NDArray[Any] | None = None
        self._band_start = -1

    def read(self, start: int, out: NDArray[Any], missing: float = 0) -> None:
        """Fill ``out`` with the elements from ``start``; with ``missing`` where no box has any."""
        if not self._band_size or out.size < _BANDED:
            self._copy(start, out, missing)
            return
        at, end = start, start + out.size
        while at < end:
            band = at - at % self._band_size
            if band != self._band_start or self._band is None:
                if self._band is None:
                    self._band = np.empty(min(self._band_size, self._elements), self._dtype)
                self._band_start = -1  # if reading fails, the band is not valid
                self._copy(band, self._band[: self._elements - band], missing)
                self._band_start = band
            stop = min(end, band + self._band_size)
            out[at - start : stop - start] = self._band[at - band : stop - band]
            at = stop

    def _copy(self, start: int, out: NDArray[Any], missing: float) -> None:
        if not self._is_whole:
            out.fill(missing)
        end = start + out.size
        for number in np.flatnonzero((self._firsts < end) & (self._lasts >= start)).tolist():
            for box in _clip(self._boxes[number], start, end):
                self._fill(_strided(out[box.first - start :], box.sizes, box.steps), box)

    def _fill(self, view: NDArray[Any], box: Box) -> None:
        axes = sorted(range(view.ndim), key=lambda axis: -box.source_steps[axis])
        self._fill_in_order(
            view.transpose(axes), box.source, box.source_first, tuple(box.source_steps[axis] for axis in axes)
        )

    def _fill_in_order(self, view: NDArray[Any], source: int, first: int, steps: Shape) -> None:
        """Fill a view whose axes are in the order of the source's."""
        span = 1 + sum((size - 1) * step for size, step in zip(view.shape, steps, strict=True))
        if span == view.size and view.flags.c_contiguous:
            self._read(source, first, view.reshape(-1))
            return
        dense = span <= _SPARSE * view.size
        if dense and span <= self._span:
            values = scratch("a span of a source", span, self._dtype)
            self._read(source, first, values)
            view[...] = _strided(values, view.shape, steps)
            return
        inner = view.size // view.shape[0]
        single = view.shape[0] == 1 or steps[0] > _SPARSE * inner
        at_once = 1 if single else max(1, self._span // steps[0])
        for index in range(0, view.shape[0], at_once):
            part, position = view[index : index + at_once], first + index * steps[0]
            if single and view.ndim > 1:
                self._fill_in_order(part[0], source, position, steps[1:])
            else:
                self._fill_in_order(part, source, position, steps)


def _clip(box: Box, start: int, end: int) -> Iterator[Box]:
    """Give the parts of a box within a range of the tensor: whole boxes, few of them."""
    last = box.last
    if box.first >= end or last < start:
        return
    if start <= box.first and last < end:
        yield box
        return
    step = box.steps[0]
    inner = last - box.first - (box.sizes[0] - 1) * step  # from the first to the last element of one index

    def part(low: int, high: int) -> Box:
        return box._replace(
            sizes=(high - low, *box.sizes[1:]),
            first=box.first + low * step,
            source_first=box.source_first + low * box.source_steps[0],
        )

    low = max(0, -(-(start - box.first) // step))  # the first index that begins inside
    high = min(box.sizes[0], (end - 1 - inner - box.first) // step + 1)  # past the last that ends inside
    if low < high:
        yield part(low, high)
    for index in sorted({*range(max(0, low - 1), low), *range(max(high, low), min(max(high, low) + 1, box.sizes[0]))}):
        if len(box.sizes) > 1:
            single = part(index, index + 1)
            yield from _clip(
                single._replace(sizes=single.sizes[1:], steps=single.steps[1:], source_steps=single.source_steps[1:]),
                start,
                end,
            )


def _merged(box: Box) -> Box:
    """Return a box without axes of one element, and with those joined that are one on both sides; at least one axis."""
    sizes: list[int] = []
    steps: list[int] = []
    source_steps: list[int] = []
    for size, step, source_step in zip(box.sizes, box.steps, box.source_steps, strict=True):
        if size == 1:
            continue
        if sizes and steps[-1] == size * step and source_steps[-1] == size * source_step:
            sizes[-1] *= size
            steps[-1], source_steps[-1] = step, source_step
        else:
            sizes.append(size)
            steps.append(step)
            source_steps.append(source_step)
    if not sizes:
        sizes, steps, source_steps = [1], [1], [1]
    return box._replace(sizes=tuple(sizes), steps=tuple(steps), source_steps=tuple(source_steps))


def _strided(values: NDArray[Any], sizes: Shape, steps: Shape) -> NDArray[Any]:
    return as_strided(values, sizes, tuple(step * values.itemsize for step in steps))


def _steps(shape: Shape) -> Shape:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _set(values: Shape, axis: int, value: int) -> Shape:
    return (*values[:axis], value, *values[axis + 1 :])


def _insert(values: Shape, axis: int, value: int) -> Shape:
    return (*values[:axis], value, *values[axis:])


def _drop(values: Shape, axis: int) -> Shape:
    return (*values[:axis], *values[axis + 1 :])


def _swap(values: Shape) -> Shape:
    return (*values[:-2], values[-1], values[-2])
