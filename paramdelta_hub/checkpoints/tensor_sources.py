"""Tensor sources: the values of one tensor in the form the arithmetic needs, however the model's files store them.

A source is a small frozen dataclass. It says where the values are, goes into a plan as JSON, and opens a reader. Each
kind is one class here, and :data:`TensorSource` is the union of all of them. To read a new layout, add its class and
name it in :data:`PlainSource`.

Readers return any range of elements, little-endian, in the caller's buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from paramdelta_hub.checkpoints.checkpoint import WeightFile
from paramdelta_hub.errors import CheckpointError
from paramdelta_hub.fileio.digests import begin_digest
from paramdelta_hub.fileio.paths import PathText
from paramdelta_hub.fileio.safetensors import ITEM_SIZES, TensorSpan
from paramdelta_hub.limits import CHUNK_ELEMENTS
from paramdelta_hub.numerics.casts import cast_bytes
from paramdelta_hub.numerics.float8 import DECODED, Grid, dequantize
from paramdelta_hub.numerics.floats import FLOATS
from paramdelta_hub.numerics.row_runs import ElementRuns, Run
from paramdelta_hub.numerics.scratch import scratch

__all__ = [
    "Cast",
    "Dequantized",
    "Files",
    "PlainSource",
    "Reordered",
    "Stored",
    "TensorSource",
    "Values",
    "Zeros",
    "is_exact_cast",
    "read_chunks",
    "source_digest",
]


class Files(Protocol):
    """Read access to files by path; on this machine :class:`~paramdelta_hub.fileio.open_files.OpenFiles`."""

    def read(self, path: str, position: int, out: NDArray[Any]) -> None:
        """Fill ``out`` (uint8) with a file's bytes from ``position``.

        Raises:
            CheckpointError: the file is truncated or can't be read.
        """


class Values(Protocol):
    """Read access to a tensor's values."""

    def read(self, start: int, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` with the values from element ``start``, as little-endian bytes of the source's dtype.

        Raises:
            CheckpointError: the file is truncated or can't be read.
        """


@dataclass(frozen=True, slots=True)
class Stored:
    """Values that lie one after another in a file."""

    file: PathText
    start: int
    dtype: str
    kind: Literal["stored"] = "stored"

    @classmethod
    def of(cls, file: WeightFile, span: TensorSpan) -> Stored:
        """Return the source of a tensor as its file's header describes it."""
        return cls(str(file.path), span.start, span.dtype)

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it reads."""
        return (self.file,)

    def open(self, files: Files) -> Values:
        """Return a reader; ``files`` must stay open while it is used."""
        return _StoredValues(self, files)


@dataclass(frozen=True, slots=True)
class Zeros:
    """A tensor that no file holds: all +0."""

    dtype: str
    kind: Literal["zeros"] = "zeros"

    @property
    def files(self) -> tuple[str, ...]:
        """No files."""
        return ()

    def open(self, files: Files) -> Values:
        """Return a reader; it reads no file."""
        return _ZeroValues()


@dataclass(frozen=True, slots=True)
class Dequantized:
    """8-bit floats times their scales, rounded once to BF16.

    Args:
        codes: the 8-bit floats.
        scale: their scales.
        scale_name: the name of the scales in the checkpoint.
        grid: how the scales lie over the weight.
    """

    codes: Stored
    scale: Stored
    scale_name: str
    grid: Grid
    kind: Literal["dequantized"] = "dequantized"

    @property
    def dtype(self) -> str:
        """The dtype of the values: BF16."""
        return "BF16"

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it reads."""
        return (self.codes.file, self.scale.file)

    def open(self, files: Files) -> Values:
        """Return a reader; the scales are read now, and ``files`` must stay open while it is used.

        Raises:
            CheckpointError: a scale is not finite and above 0, or a file can't be read.
        """
        return _DequantizedValues(self, files)


@dataclass(frozen=True, slots=True)
class Cast:
    """The float values of another source in another float dtype: exact in a wider one, else rounded once.

    Args:
        inner: the values as they are.
        dtype: of the values here.
    """

    inner: Annotated[Stored | Zeros | Dequantized, Field(discriminator="kind")]
    dtype: str
    kind: Literal["cast"] = "cast"

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it reads."""
        return self.inner.files

    def open(self, files: Files) -> Values:
        """Return a reader; ``files`` must stay open while it is used."""
        return _CastValues(self, files)


PlainSource: TypeAlias = Stored | Zeros | Dequantized | Cast
"""Every kind of source whose rows are in their own order."""


@dataclass(frozen=True, slots=True)
class Reordered:
    """Another source with its rows in another order, such as a vocabulary in another tokenizer's order.

    Args:
        inner: the rows as they are.
        runs: the new order, ascending in ``first`` and without gaps; a run without a source is zeros.
        width: elements of a row.
    """

    inner: Annotated[PlainSource, Field(discriminator="kind")]
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


TensorSource: TypeAlias = Annotated[PlainSource | Reordered, Field(discriminator="kind")]
"""Every kind of source."""


def read_chunks(source: TensorSource, elements: int, files: Files) -> Iterator[NDArray[np.uint8]]:
    """Yield the values of a source, a chunk at a time, as little-endian bytes in this thread's buffer.

    Raises:
        CheckpointError: a file is truncated or can't be read.
    """
    values, itemsize = source.open(files), ITEM_SIZES[source.dtype]
    for start in range(0, elements, CHUNK_ELEMENTS):
        chunk = scratch("target", min(CHUNK_ELEMENTS, elements - start) * itemsize, np.uint8)
        values.read(start, chunk)
        yield chunk


def source_digest(
    source: TensorSource, elements: int, files: Files, advance: Callable[[int], None] = lambda _: None
) -> str:
    """Return the BLAKE3 digest (hex) of the values of a source.

    Raises:
        CheckpointError: a file is truncated or can't be read.
    """
    digest = begin_digest()
    for values in read_chunks(source, elements, files):
        digest.update(values.data)
        advance(values.size)
    return digest.hexdigest()


def is_exact_cast(source: Cast, elements: int, files: Files) -> bool:
    """Whether every value of a source is the same in the other dtype, to the bit when cast back.

    Raises:
        CheckpointError: a file is truncated or can't be read.
    """
    values, dtype = source.inner.open(files), source.inner.dtype
    for start in range(0, elements, CHUNK_ELEMENTS):
        size = min(CHUNK_ELEMENTS, elements - start)
        before = scratch("before a cast", size * ITEM_SIZES[dtype], np.uint8)
        values.read(start, before)
        there = scratch("cast there", size * ITEM_SIZES[source.dtype], np.uint8)
        cast_bytes(before, dtype, source.dtype, there)
        back = cast_bytes(there, source.dtype, dtype, scratch("cast back", before.size, np.uint8))
        if not np.array_equal(before, back):
            return False
    return True


class _ZeroValues:
    def read(self, start: int, out: NDArray[np.uint8]) -> None:
        out[:] = 0


class _StoredValues:
    def __init__(self, source: Stored, files: Files) -> None:
        self._files, self._file = files, source.file
        self._start, self._itemsize = source.start, ITEM_SIZES[source.dtype]

    def read(self, start: int, out: NDArray[np.uint8]) -> None:
        self._files.read(self._file, self._start + start * self._itemsize, out)


class _CastValues:
    def __init__(self, source: Cast, files: Files) -> None:
        self._inner, self._from, self._to = source.inner.open(files), source.inner.dtype, source.dtype

    def read(self, start: int, out: NDArray[np.uint8]) -> None:
        elements = out.size // ITEM_SIZES[self._to]
        values = scratch("to be cast", elements * ITEM_SIZES[self._from], np.uint8)
        self._inner.read(start, values)
        cast_bytes(values, self._from, self._to, out)


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


class _DequantizedValues:
    def __init__(self, source: Dequantized, files: Files) -> None:
        self._grid, self._table = source.grid, DECODED[source.codes.dtype]
        self._codes, self._scales = source.codes.open(files), _read_scales(source, files)

    def read(self, start: int, out: NDArray[np.uint8]) -> None:
        codes = scratch("8-bit codes", out.size // 2, np.uint8)
        self._codes.read(start, codes)
        values = scratch("dequantized", codes.size, np.uint16)
        dequantize(codes, self._table, self._grid, self._scales, start, values)
        np.copyto(out, values.astype("<u2", copy=False).view(np.uint8))


def _read_scales(source: Dequantized, files: Files) -> NDArray[np.float32]:
    """Return the scales as float32, in the shape of the grid's ``scale_shape``.

    Raises:
        CheckpointError: a scale is zero, negative, NaN or infinite, or a file can't be read.
    """
    shape, kind = source.grid.scale_shape, FLOATS[source.scale.dtype]
    raw = np.empty(shape[0] * shape[1] * kind.itemsize, np.uint8)
    source.scale.open(files).read(0, raw)
    bits = raw.view(kind.bits.newbyteorder("<")).astype(kind.bits, copy=False)
    scales = kind.widen(bits, np.empty(bits.size, kind.wide)).astype(np.float32)
    usable = np.isfinite(scales) & (scales > 0)
    if not usable.all():
        raise CheckpointError(
            f"the scales {source.scale_name!r} hold {scales[~usable][0]}; scales must be finite and above 0",
            where=source.scale.file,
            remedy="get the file again",
        )
    return scales.reshape(shape)
