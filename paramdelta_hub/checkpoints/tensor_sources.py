"""Tensor sources: the values of one tensor in the form the arithmetic needs, however the model's files store them.

A source is a small frozen dataclass. It says where the values are, goes into a plan as JSON, and opens a reader. Each
kind is one class here, and :data:`TensorSource` is the union of all of them. To read another way of storing values, add
its class and name it in :data:`PlainSource`.

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
from paramdelta_hub.numerics.arrangements import Box, BoxReader
from paramdelta_hub.numerics.casts import as_bits, cast, cast_bytes, round_once
from paramdelta_hub.numerics.float8 import Grid, dequantize
from paramdelta_hub.numerics.floats import FLOATS
from paramdelta_hub.numerics.low_rank import add_low_rank
from paramdelta_hub.numerics.packed import TABLES, power_scales, unpack
from paramdelta_hub.numerics.row_runs import ElementRuns, Run
from paramdelta_hub.numerics.scratch import scratch

__all__ = [
    "Adapted",
    "Arranged",
    "Cast",
    "Dequantized",
    "Files",
    "LowRank",
    "Mxfp4",
    "NewRows",
    "PlainSource",
    "Reordered",
    "Stored",
    "TensorSource",
    "Values",
    "Zeros",
    "exact_cast_digest",
    "read_chunks",
    "read_floats",
    "source_digest",
]
_MX_BLOCK = 32
"""Neighbours in a row that share a scale of MXFP4."""
_FEW = 64
"""Values that are read one by one, so that a sample doesn't cost a whole matrix."""


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
    """Codes of 8 or 4 bits times their scales, rounded once.

    Args:
        codes: the codes as they are stored.
        scale: their scales.
        scale_name: the name of the scales in the checkpoint.
        grid: how the scales lie over the weight.
        code: what the codes stand for: a key of :data:`~paramdelta_hub.numerics.packed.TABLES`.
        dtype: of the values: BF16 or F16.
        shape: a tensor of the checkpoint that holds the weight's rows and columns; None where there is none.
    """

    codes: Stored
    scale: Stored
    scale_name: str
    grid: Grid
    code: str
    dtype: str = "BF16"
    shape: Stored | None = None
    kind: Literal["dequantized"] = "dequantized"

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it reads."""
        return (self.codes.file, self.scale.file, *([self.shape.file] if self.shape else []))

    def open(self, files: Files) -> Values:
        """Return a reader; the scales are read now, and ``files`` must stay open while it is used.

        Raises:
            CheckpointError: a scale is not finite and above 0, or a file can't be read.
        """
        return _DequantizedValues(self, files)


@dataclass(frozen=True, slots=True)
class Mxfp4:
    """Stacked matrices of MXFP4, as gpt-oss has them, read transposed, in BF16: (matrices, columns, rows).

    Args:
        blocks: codes of 4 bits, (matrices, rows, columns / 32, 16) bytes.
        scales: exponents, (matrices, rows, columns / 32).
        scale_name: the name of the scales in the checkpoint.
        rows: of a matrix as it is stored.
        columns: of a matrix as it is stored; a multiple of 32.
    """

    blocks: Stored
    scales: Stored
    scale_name: str
    rows: int
    columns: int
    kind: Literal["mxfp4"] = "mxfp4"

    @property
    def dtype(self) -> str:
        """The dtype of the values: BF16."""
        return "BF16"

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it reads."""
        return (self.blocks.file, self.scales.file)

    def open(self, files: Files) -> Values:
        """Return a reader; ``files`` must stay open while it is used."""
        return _Mxfp4Values(self, files)


@dataclass(frozen=True, slots=True)
class LowRank:
    """The factors of a product that is added to a matrix: scale · B · A.

    Args:
        down: A, of shape (rank, inputs); None for a summand of a vector, whose only column is B.
        up: B, of shape (outputs, rank).
        rank: of the product.
        outputs: rows of B.
        inputs: columns of A.
        scale: multiplies the product.
        transposed: whether the product is transposed before it is added.
    """

    down: Stored | None
    up: Stored
    rank: int
    outputs: int
    inputs: int
    scale: float
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class NewRows:
    """Rows that replace those of a matrix.

    Args:
        values: the rows, one after another.
        indices: which rows they replace.
        width: elements of a row.
    """

    values: Stored
    indices: tuple[int, ...]
    width: int


@dataclass(frozen=True, slots=True)
class Adapted:
    """Another source's values plus a product of low rank, in float32, rounded once; see :mod:`~..numerics.low_rank`.

    Args:
        inner: the values as they are; F32, BF16 or F16.
        dtype: what the sums are rounded to: F32, BF16 or F16.
        product: what is added; None to round alone.
        rows: what replaces rows of the sum.
    """

    inner: Annotated[Stored | Dequantized | Mxfp4, Field(discriminator="kind")]
    dtype: str
    product: LowRank | None
    rows: NewRows | None = None
    kind: Literal["adapted"] = "adapted"

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it reads."""
        factors = [self.product.down, self.product.up] if self.product else []
        factors += [self.rows.values] if self.rows else []
        return (*self.inner.files, *(factor.file for factor in factors if factor))

    def open(self, files: Files) -> Values:
        """Return a reader; the factors are read now, and ``files`` must stay open while it is used.

        Raises:
            CheckpointError: a file can't be read.
        """
        return _AdaptedValues(self, files)


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


TensorSource: TypeAlias = Annotated[PlainSource | Arranged | Reordered, Field(discriminator="kind")]
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


def read_floats(source: Stored, elements: int, files: Files) -> NDArray[np.float32]:
    """Return the values of a float tensor as float32, which holds them exactly, flat.

    Raises:
        CheckpointError: the file is truncated or can't be read.
    """
    kind = FLOATS[source.dtype]
    raw = np.empty(elements * kind.itemsize, np.uint8)
    source.open(files).read(0, raw)
    return _to_float32(raw, source.dtype, np.empty(elements, np.float32))


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


def exact_cast_digest(source: Cast, elements: int, files: Files) -> str | None:
    """Return the BLAKE3 digest (hex) of the cast values if every one is the same in both dtypes, else None.

    Each is cast back, and must be equal to the bit. The values are read once, until the first that differs.

    Raises:
        CheckpointError: a file is truncated or can't be read.
    """
    values, dtype, digest = source.inner.open(files), source.inner.dtype, begin_digest()
    for start in range(0, elements, CHUNK_ELEMENTS):
        size = min(CHUNK_ELEMENTS, elements - start)
        before = scratch("before a cast", size * ITEM_SIZES[dtype], np.uint8)
        values.read(start, before)
        there = scratch("cast there", size * ITEM_SIZES[source.dtype], np.uint8)
        cast_bytes(before, dtype, source.dtype, there)
        back = cast_bytes(there, source.dtype, dtype, scratch("cast back", before.size, np.uint8))
        if not np.array_equal(before, back):
            return None
        digest.update(there.data)
    return digest.hexdigest()


class _ZeroValues:
    def read(self, start: int, out: NDArray[np.uint8]) -> None:
        out[:] = 0


class _StoredValues:
    def __init__(self, source: Stored, files: Files) -> None:
        self._files, self._file = files, source.file
        self._start, self._itemsize = source.start, ITEM_SIZES[source.dtype]

    def read(self, start: int, out: NDArray[np.uint8]) -> None:
        self._files.read(self._file, self._start + start * self._itemsize, out)


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
        self._grid, self._table, self._dtype = source.grid, TABLES[source.code], source.dtype
        self._packed = source.code == "I4"
        self._codes, self._scales = (
            Stored(source.codes.file, source.codes.start, "U8").open(files),
            _read_scales(source, files),
        )
        if source.shape is not None:
            _check_shape(source.shape, source.grid, files)

    def read(self, start: int, out: NDArray[np.uint8]) -> None:
        codes = scratch("8-bit codes", out.size // 2, np.uint8)
        if self._packed:
            packed = scratch("4-bit codes", (start + codes.size + 1) // 2 - start // 2, np.uint8)
            self._codes.read(start // 2, packed)
            unpack(packed, start % 2 == 1, codes)
        else:
            self._codes.read(start, codes)
        values = scratch("dequantized", codes.size, np.uint16)
        dequantize(codes, self._table, self._grid, self._scales, start, values, self._dtype)
        np.copyto(out, values.astype("<u2", copy=False).view(np.uint8))


class _Mxfp4Values:
    """A matrix is read whole, and kept until another is asked for; of a few values, only their bytes are read."""

    def __init__(self, source: Mxfp4, files: Files) -> None:
        self._blocks = Stored(source.blocks.file, source.blocks.start, "U8").open(files)
        self._exponents = Stored(source.scales.file, source.scales.start, "U8").open(files)
        self._source, self._held = source, -1
        self._packed, self._scales = np.empty(0, np.uint8), np.empty(0, np.float32)

    def read(self, start: int, out: NDArray[np.uint8]) -> None:
        rows, columns = self._source.rows, self._source.columns
        values = scratch("mxfp4", out.size // 2, np.uint16)
        at = 0
        while at < values.size:
            matrix, within = divmod(start + at, rows * columns)
            size = min(rows * columns - within, values.size - at)
            first, last = within // rows, (within + size - 1) // rows + 1
            if size <= _FEW and last - first == 1 and matrix != self._held:
                self._read_column(matrix, first, within % rows, values[at : at + size])
            else:
                self._hold(matrix)
                skipped = within - first * rows
                flat = self._columns(first, last).reshape(-1)
                values[at : at + size] = flat[skipped : skipped + size]
            at += size
        np.copyto(out, values.astype("<u2", copy=False).view(np.uint8))

    def _hold(self, matrix: int) -> None:
        if matrix == self._held:
            return
        rows, columns = self._source.rows, self._source.columns
        self._packed = np.empty((rows, columns // 2), np.uint8)
        self._blocks.read(matrix * self._packed.size, self._packed.reshape(-1))
        exponents = np.empty((rows, columns // _MX_BLOCK), np.uint8)
        self._exponents.read(matrix * exponents.size, exponents.reshape(-1))
        self._scales, self._held = self._usable(exponents), matrix

    def _columns(self, first: int, last: int) -> NDArray[np.uint16]:
        """Return columns of the matrix that is held, each as a row, as bits."""
        packed = np.ascontiguousarray(self._packed[:, first // 2 : (last + 1) // 2])
        codes = np.empty((len(packed), 2 * packed.shape[1]), np.uint8)
        unpack(packed.reshape(-1), False, codes.reshape(-1))
        codes = codes[:, first % 2 : first % 2 + last - first]
        scales = self._scales[:, np.arange(first, last) // _MX_BLOCK]
        return _rounded(np.ascontiguousarray((TABLES["F4_E2M1"][codes] * scales).T))

    def _read_column(self, matrix: int, column: int, row: int, out: NDArray[np.uint16]) -> None:
        rows, columns = self._source.rows, self._source.columns
        code, exponent = np.empty(out.size, np.uint8), np.empty(out.size, np.uint8)
        for number in range(out.size):
            at = (matrix * rows + row + number) * columns + column
            self._blocks.read(at // 2, code[number : number + 1])
            self._exponents.read(at // _MX_BLOCK, exponent[number : number + 1])
        code = np.right_shift(code, 4) if column % 2 else np.bitwise_and(code, 15)
        out[:] = _rounded(TABLES["F4_E2M1"][code] * self._usable(exponent))

    def _usable(self, exponents: NDArray[np.uint8]) -> NDArray[np.float32]:
        if (exponents == 255).any():
            raise CheckpointError(
                f"the scales {self._source.scale_name!r} hold NaN",
                where=self._source.scales.file,
                remedy="get the file again",
            )
        return power_scales(exponents)


def _rounded(wide: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits: NDArray[np.uint16] = round_once(wide, FLOATS["BF16"], np.empty(wide.shape, np.uint16))
    return bits


def _check_shape(shape: Stored, grid: Grid, files: Files) -> None:
    """Refuse a weight whose rows are padded where they are packed.

    Raises:
        CheckpointError: the checkpoint says another shape than the packed weight has.
    """
    raw = np.empty(2 * ITEM_SIZES[shape.dtype], np.uint8)
    shape.open(files).read(0, raw)
    said = raw.view(f"<i{ITEM_SIZES[shape.dtype]}").tolist()
    if said != [grid.rows, grid.columns]:
        raise CheckpointError(
            f"a packed weight of shape {[grid.rows, grid.columns]} whose weight_shape is {said}", where=shape.file
        )


class _AdaptedValues:
    def __init__(self, source: Adapted, files: Files) -> None:
        self._inner, self._from, self._to = source.inner.open(files), source.inner.dtype, source.dtype
        self._factors: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
        self._rows: list[tuple[int, NDArray[np.float32]]] = []
        if (rows := source.rows) is not None:
            table = read_floats(rows.values, len(rows.indices) * rows.width, files).reshape(-1, rows.width)
            self._rows = [(index * rows.width, row) for index, row in zip(rows.indices, table, strict=True)]
        if (product := source.product) is None:
            return
        self._scale = product.scale
        up = read_floats(product.up, product.outputs * product.rank, files).reshape(product.outputs, product.rank)
        down = np.ones((1, 1), np.float32)
        if product.down is not None:
            flat = read_floats(product.down, product.rank * product.inputs, files)
            down = flat.reshape(product.rank, product.inputs)
        self._factors = (down.T, up.T) if product.transposed else (up, down)

    def read(self, start: int, out: NDArray[np.uint8]) -> None:
        elements = out.size // ITEM_SIZES[self._to]
        raw = scratch("adapted bytes", elements * ITEM_SIZES[self._from], np.uint8)
        self._inner.read(start, raw)
        wide = _to_float32(raw, self._from, scratch("adapted wide", elements, np.float32))
        if self._factors is not None:
            add_low_rank(wide, *self._factors, self._scale, start)
        for place, row in self._rows:
            first, last = max(place, start), min(place + row.size, start + elements)
            if first < last:
                wide[first - start : last - start] = row[first - place : last - place]
        kind = FLOATS[self._to]
        bits = round_once(wide, kind, scratch("adapted bits", elements, kind.bits))
        np.copyto(out, bits.astype(kind.bits.newbyteorder("<"), copy=False).view(np.uint8))


def _to_float32(raw: NDArray[np.uint8], dtype: str, out: NDArray[np.float32]) -> NDArray[np.float32]:
    """Fill ``out`` with the values of little-endian floats of at most 32 bits, exactly."""
    kind = FLOATS[dtype]
    cast(as_bits(raw, kind), kind, FLOATS["F32"], out.view(np.uint32))
    return out


def _read_scales(source: Dequantized, files: Files) -> NDArray[np.float32]:
    """Return the scales as float32, in the shape of the grid's ``scale_shape``.

    Raises:
        CheckpointError: a scale is zero, negative, NaN or infinite, or a file can't be read.
    """
    shape = source.grid.scale_shape
    if source.scale.dtype in FLOATS:
        scales = read_floats(source.scale, shape[0] * shape[1], files)
    else:
        exponents = np.empty(shape[0] * shape[1], np.uint8)
        source.scale.open(files).read(0, exponents)
        scales = power_scales(exponents)
    usable = np.isfinite(scales) & (scales > 0)
    if not usable.all():
        raise CheckpointError(
            f"the scales {source.scale_name!r} hold {scales[~usable][0]}; scales must be finite and above 0",
            where=source.scale.file,
            remedy="get the file again",
        )
    return scales.reshape(shape)
