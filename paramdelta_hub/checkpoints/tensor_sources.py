"""Tensor sources: the values of one tensor in the form the arithmetic needs, however the model's files store them.

A source is a small frozen dataclass. It says where the values are, goes into a plan as JSON, and opens a reader. To add
another way of storing values, write its class in a module of its own, as the classes that :data:`PlainSource` names
are, and name it there. The sources that are made of others are here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from paramdelta_hub.checkpoints.adapters.source import Adapted
from paramdelta_hub.checkpoints.dequantized import Dequantized, Mxfp4
from paramdelta_hub.checkpoints.stored import Files, Stored, Values, Zeros
from paramdelta_hub.fileio.digests import ChunkDigests, tensor_digest
from paramdelta_hub.fileio.safetensors import ITEM_SIZES
from paramdelta_hub.limits import CHUNK_ELEMENTS
from paramdelta_hub.numerics.arrangements import Box, BoxReader
from paramdelta_hub.numerics.casts import cast_bytes
from paramdelta_hub.numerics.row_runs import ElementRuns, Run
from paramdelta_hub.numerics.scratch import scratch

__all__ = ["Arranged", "Cast", "Files", "PlainSource", "Reordered", "TensorSource", "exact_cast_digest"]


@dataclass(frozen=True, slots=True)
class Cast:
    """The float values of another source in another float dtype: exact in a wider one, else rounded once.

    Args:
        inner: the values as they are.
        dtype: of the values here.
    """

    inner: Annotated[Stored | Zeros | Dequantized | Mxfp4 | Adapted, Field(discriminator="kind")]
    dtype: str
    kind: Literal["cast"] = "cast"

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it reads."""
        return self.inner.files

    def open(self, files: Files) -> Values:
        """Return a reader; ``files`` must stay open while it is used."""
        return _CastValues(self, files)


class _CastValues:
    def __init__(self, source: Cast, files: Files) -> None:
        self._inner, self._from, self._to = source.inner.open(files), source.inner.dtype, source.dtype

    def read(self, start: int, out: NDArray[np.uint8]) -> None:
        elements = out.size // ITEM_SIZES[self._to]
        values = scratch("to be cast", elements * ITEM_SIZES[self._from], np.uint8)
        self._inner.read(start, values)
        cast_bytes(values, self._from, self._to, out)


PlainSource: TypeAlias = Stored | Zeros | Dequantized | Mxfp4 | Adapted | Cast
"""Every kind of source that is read as it lies there."""


@dataclass(frozen=True, slots=True)
class Arranged:
    """A tensor put together from blocks of others: stacked, cut out, joined, transposed. Zeros where there is no block.

    Args:
        parts: the other tensors, all of one dtype.
        boxes: which elements come from where, ascending in ``first``.
        elements: how many the tensor has.
        dtype: of the values.
    """

    parts: tuple[Annotated[PlainSource, Field(discriminator="kind")], ...]
    boxes: tuple[Box, ...]
    elements: int
    dtype: str
    kind: Literal["arranged"] = "arranged"

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it reads."""
        return tuple(dict.fromkeys(file for part in self.parts for file in part.files))

    def open(self, files: Files) -> Values:
        """Return a reader; ``files`` must stay open while it is used."""
        return _ArrangedValues(self, files)


class _ArrangedValues:
    """A part is opened when it is first read: a range needs few of hundreds of experts."""

    def __init__(self, source: Arranged, files: Files) -> None:
        self._source, self._files = source, files
        self._open: dict[int, Values] = {}
        self._unsigned = np.dtype(f"u{ITEM_SIZES[source.dtype]}")
        self._boxes = BoxReader(source.boxes, source.elements, self._unsigned, self._read)

    def read(self, start: int, out: NDArray[np.uint8]) -> None:
        self._boxes.read(start, out.view(self._unsigned))

    def _read(self, part: int, start: int, out: NDArray[Any]) -> None:
        if part not in self._open:
            self._open[part] = self._source.parts[part].open(self._files)
        self._open[part].read(start, out.view(np.uint8))


@dataclass(frozen=True, slots=True)
class Reordered:
    """Another source with its rows in another order, such as a vocabulary in another tokenizer's order.

    Args:
        inner: the rows as they are.
        runs: the new order, ascending in ``first`` and without gaps; a run without a source is zeros.
        width: elements of a row.
    """

    inner: Annotated[PlainSource | Arranged, Field(discriminator="kind")]
    runs: tuple[Run, ...]
    width: int
    kind: Literal["reordered"] = "reordered"

    @property
    def dtype(self) -> str:
        """The dtype of the values."""
        return self.inner.dtype

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it reads."""
        return self.inner.files

    def open(self, files: Files) -> Values:
        """Return a reader; ``files`` must stay open while it is used."""
        return _ReorderedValues(self, files)


class _ReorderedValues:
    """Each piece of a range that lies in one place is read at once."""

    def __init__(self, source: Reordered, files: Files) -> None:
        self._inner, self._runs = source.inner.open(files), ElementRuns(source.runs, source.width)
        self._itemsize = ITEM_SIZES[source.dtype]

    def read(self, start: int, out: NDArray[np.uint8]) -> None:
        for place, source, _ in self._runs.pieces(start, out.size // self._itemsize):
            piece = out[place.start * self._itemsize : place.stop * self._itemsize]
            if source is None:
                piece[:] = 0
            else:
                self._inner.read(source, piece)


TensorSource: TypeAlias = Annotated[PlainSource | Arranged | Reordered, Field(discriminator="kind")]
"""Every kind of source."""


def exact_cast_digest(source: Cast, elements: int, files: Files) -> str | None:
    """Return the digest (hex) of the cast values if every one is the same in both dtypes, else None.

    Each is cast back, and must be equal to the bit. The values are read once, until the first that differs.

    Raises:
        CheckpointError: a file is truncated or can't be read.
    """
    values, dtype, digests = source.inner.open(files), source.inner.dtype, ChunkDigests(ITEM_SIZES[source.dtype])
    for start in range(0, elements, CHUNK_ELEMENTS):
        size = min(CHUNK_ELEMENTS, elements - start)
        before = scratch("before a cast", size * ITEM_SIZES[dtype], np.uint8)
        values.read(start, before)
        there = scratch("cast there", size * ITEM_SIZES[source.dtype], np.uint8)
        cast_bytes(before, dtype, source.dtype, there)
        back = cast_bytes(there, source.dtype, dtype, scratch("cast back", before.size, np.uint8))
        if not np.array_equal(before, back):
            return None
        digests.update(there)
    return tensor_digest(digests.finish())
