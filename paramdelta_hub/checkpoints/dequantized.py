"""Quantized values, dequantized as they are read: codes times their scales, rounded once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.checkpoints.stored import Files, Stored, Values, read_floats
from paramdelta_hub.errors import CheckpointError
from paramdelta_hub.fileio.safetensors import ITEM_SIZES
from paramdelta_hub.numerics.casts import round_once
from paramdelta_hub.numerics.float8 import Grid, dequantize
from paramdelta_hub.numerics.floats import FLOATS
from paramdelta_hub.numerics.packed import TABLES, power_scales, unpack
from paramdelta_hub.numerics.scratch import scratch

__all__ = ["Dequantized", "Mxfp4"]

_MX_BLOCK = 32
"""Neighbours in a row that share a scale of MXFP4."""
_FEW = 64
"""Values that are read one by one, so that a sample doesn't cost a whole matrix."""


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
