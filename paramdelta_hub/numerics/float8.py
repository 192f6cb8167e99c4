"""8-bit floats with scales, on flat NumPy arrays: decode, scale and encode them; pure, no files.

A quantized weight is a code of one byte times a scale that its neighbours share: all of a block (DeepSeek-V3: 128 ×
128), of a row, of a column, or of the tensor; a :class:`Grid` says which. What the code stands for is
``(code.float() * scale.float()).bfloat16()``, and that is the value deltas are taken of and added to.

A function is given a run of a tensor's elements, flat. ``first`` is the position in the tensor of the first of them;
the run may begin and end within a row. ``grid`` and ``scales`` are those of the whole tensor. ``out`` is as long as the
run, and is returned.

The codes are those of the OCP 8-bit floating point specification 1.0: E4M3 without infinities, E5M2 with them.
Measured on one core of a virtual EPYC, ns an element: to bf16 1.7, to fp8 with fresh scales 2.0, its error 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.numerics.floats import FLOATS, Bits, blocks
from paramdelta_hub.numerics.scratch import scratch
from paramdelta_hub.numerics.tiles import tiles

__all__ = [
    "DECODED",
    "LARGEST",
    "Codes",
    "Deviation",
    "Grid",
    "Scales",
    "decode",
    "dequantize",
    "deviation",
    "encode",
    "fresh_scales",
    "quantize",
    "raise_peaks",
]

Codes: TypeAlias = NDArray[np.uint8]
"""One byte an element."""
Scales: TypeAlias = NDArray[np.float32]
"""Shape :attr:`Grid.scale_shape`."""

LARGEST = 448.0
"""The largest number of E4M3."""
_SCALES = {"F32": (2.0**-126, 2.0**127), "BF16": (2.0**-126, 2.0**127), "F16": (2.0**-14, 65504.0)}
"""The least and the largest scale by dtype: below it they would be subnormal: imprecise, zero on devices that flush."""


def _decoded(exponent_bits: int, infinities: bool) -> NDArray[np.float32]:
    mantissa_bits = 7 - exponent_bits
    bias = (1 << exponent_bits - 1) - 1
    codes = np.arange(128)
    exponents, fractions = codes >> mantissa_bits, (codes & (1 << mantissa_bits) - 1) / (1 << mantissa_bits)
    values = np.ldexp(fractions + (exponents > 0), np.maximum(exponents, 1) - bias)
    if infinities:
        values[exponents == (1 << exponent_bits) - 1] = np.nan
        values[((1 << exponent_bits) - 1) << mantissa_bits] = np.inf
    else:
        values[-1] = np.nan
    return np.concatenate([values, -values]).astype(np.float32)


DECODED = {"F8_E4M3": _decoded(4, infinities=False), "F8_E5M2": _decoded(5, infinities=True)}
"""The value of each of the 256 codes, by the safetensors name of the dtype."""


@dataclass(frozen=True)
class Grid:
    """How scales lie over a weight: one for each block of each matrix; blocks at the edges may be cut off."""

    rows: int
    columns: int
    block: tuple[int, int]
    """Rows and columns that share a scale: (128, 128), (1, columns) for one a row, (rows, columns) for a matrix."""
    matrices: int = 1
    """Stacked experts: each begins its own blocks."""

    @property
    def scale_rows(self) -> int:
        """Rows of scales of one matrix."""
        return -(-self.rows // self.block[0])

    @property
    def scale_shape(self) -> tuple[int, int]:
        """(rows of scales of all matrices, columns of scales)."""
        return self.matrices * self.scale_rows, -(-self.columns // self.block[1])

    def scale_row(self, row: Any) -> Any:
        """Return the row of scales of a row, or of an array of rows, counted through all matrices."""
        return row // self.rows * self.scale_rows + row % self.rows // self.block[0]

    def band_end(self, row: int) -> int:
        """Return the first row after ``row`` that has other scales."""
        within = row % self.rows
        return row - within + min((within // self.block[0] + 1) * self.block[0], self.rows)


def decode(codes: Codes, table: NDArray[np.float32], out: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the exact value of every code, by a table of :data:`DECODED`."""
    for block in blocks(codes.size):
        index = scratch("float8 index", block.stop - block.start, np.intp)
        np.copyto(index, codes[block])
        table.take(index, out=out[block], mode="clip")
    return out


def dequantize(
    codes: Codes,
    table: NDArray[np.float32],
    grid: Grid,
    scales: Scales,
    first: int,
    out: NDArray[np.uint16],
    dtype: str = "BF16",
) -> NDArray[np.uint16]:
    """Return bf16 bits of code · scale, equal to torch's ``(codes.float() * scales.float()).bfloat16()``.

    The product is rounded to float32, then to bf16, ties to even; what overflows becomes infinite, NaN stays NaN.
    ``table`` is one of :data:`DECODED`, or of the same kind. With ``dtype`` F16, the bits are those of fp16.
    """
    for block in blocks(codes.size):
        size = block.stop - block.start
        wide = decode(codes[block], table, scratch("float8 wide", size, np.float32))
        _with_scales(np.multiply, wide, grid, scales, first + block.start)
        FLOATS[dtype].round(wide, out[block], scratch("float8 round", size, np.uint32))
    return out


def encode(values: NDArray[np.float32], out: Codes) -> Codes:
    """Return the E4M3 code nearest to each value, ties to even; what exceeds 448 becomes ±448, NaN stays NaN.

    So does torch's ``.to(torch.float8_e4m3fn)`` since it saturates; older ones make NaN of magnitudes above 464.
    """
    table = _encoded()
    for block in blocks(values.size):
        size = block.stop - block.start
        bits, half = values[block].view(np.uint32), scratch("float8 round", size, np.uint32)
        sticky, index = scratch("float8 sticky", size, np.bool_), scratch("float8 index", size, np.intp)
        # The upper half decides, except close to a tie. There, its last bit tells on which side the value lies, if it
        # is set wherever the lower half is not zero ("rounding to odd").
        np.bitwise_and(bits, 0xFFFF, out=half)
        np.not_equal(half, 0, out=sticky)
        np.right_shift(bits, 16, out=half)
        np.bitwise_or(half, sticky, out=index, casting="unsafe")
        table.take(index, out=out[block], mode="clip")
    return out


@cache
def _encoded() -> Codes:
    """Return the E4M3 code of every float32 whose lower half is zero, by its upper half."""
    values = DECODED["F8_E4M3"][:127].astype(np.float64)
    with np.errstate(invalid="ignore"):  # signalling NaN
        magnitudes = (np.arange(1 << 15, dtype=np.uint32) << 16).view(np.float32).astype(np.float64)
    below = np.searchsorted(values, magnitudes, side="right") - 1
    above = np.minimum(below + 1, 126)
    half = (values[below] + values[above]) / 2
    nearest = np.where((magnitudes > half) | ((magnitudes == half) & (below % 2 == 1)), above, below)
    codes = np.where(np.isnan(magnitudes), 0x7F, nearest).astype(np.uint8)
    return np.concatenate([codes, codes | 0x80])


def raise_peaks(values: NDArray[np.float32], grid: Grid, first: int, peaks: Scales) -> None:
    """Raise ``peaks``, in place, to the largest magnitude in each block, as far as these values reach.

    Begin with zeros, of :attr:`Grid.scale_shape`.
    """
    with np.errstate(invalid="ignore"):  # NaN in sums is found and reported elsewhere
        for part in blocks(values.size):
            magnitudes = np.abs(values[part], out=scratch("float8 wide", part.stop - part.start, np.float32))
            for tile, row, column in tiles(magnitudes, grid.columns, first + part.start):
                _raise_tile(tile, grid, row, column, peaks)


def _raise_tile(tile: NDArray[np.float32], grid: Grid, row: int, column: int, peaks: Scales) -> None:
    if peaks.shape[1] == 1:  # a row may be a band of its own, so all are done at once
        np.maximum.at(peaks[:, 0], grid.scale_row(np.arange(row, row + len(tile))), tile.max(axis=1))
        return
    width = grid.block[1]
    along = slice(column // width, (column + tile.shape[1] - 1) // width + 1)
    starts = np.maximum(np.arange(along.start, along.stop) * width - column, 0)
    for band, scale_row in _bands(tile, grid, row):
        reached = peaks[scale_row, along]
        np.maximum(reached, np.maximum.reduceat(band.max(axis=0), starts), out=reached)


def fresh_scales(peaks: Scales, dtype: str) -> tuple[Scales, Bits]:
    """Return the scales that map each block's largest magnitude to 448, and their bits, rounded to the stored dtype.

    Codes are to be made with the rounded scales, which are those that readers multiply with. A block of zeros has the
    scale 1; no scale is subnormal. Peaks are finite, and ``dtype`` is F32, BF16 or F16.
    """
    kind, (least, largest) = FLOATS[dtype], _SCALES[dtype]
    exact = peaks / np.float32(LARGEST)
    exact = np.where(peaks == 0, np.float32(1), np.clip(exact, np.float32(least), np.float32(largest)))
    bits = np.empty(peaks.size, kind.bits)
    kind.round(exact.reshape(-1).astype(kind.wide), bits, np.empty(peaks.size, kind.wide_bits))
    rounded = kind.widen(bits, np.empty(peaks.size, kind.wide))
    return rounded.astype(np.float32).reshape(peaks.shape), bits


def quantize(values: NDArray[np.float32], grid: Grid, scales: Scales, first: int, out: Codes) -> Codes:
    """Return the E4M3 code nearest to each value / scale; what exceeds 448 then becomes ±448."""
    for part in blocks(values.size):
        wide = scratch("float8 wide", part.stop - part.start, np.float32)
        np.copyto(wide, values[part])
        encode(_with_scales(np.divide, wide, grid, scales, first + part.start), out[part])
    return out


@dataclass(frozen=True)
class Deviation:
    """How far quantized values are from what they were made of; parts of a tensor, or tensors, add up by ``+``."""

    squared_errors: float = 0.0
    squared_values: float = 0.0
    largest_error: float = 0.0
    largest_value: float = 0.0

    def __add__(self, other: Deviation) -> Deviation:
        return Deviation(
            self.squared_errors + other.squared_errors,
            self.squared_values + other.squared_values,
            max(self.largest_error, other.largest_error),
            max(self.largest_value, other.largest_value),
        )

    @property
    def relative(self) -> float:
        """Root-mean-square error over root-mean-square value: about 0.026 for weights in blocks."""
        return math.sqrt(self.squared_errors / self.squared_values) if self.squared_values else 0.0

    @property
    def largest_relative(self) -> float:
        """The largest error over the largest magnitude: at most 1/28, half of the step below 448."""
        return self.largest_error / self.largest_value if self.largest_value else 0.0


def deviation(values: NDArray[np.float32], codes: Codes, grid: Grid, scales: Scales, first: int) -> Deviation:
    """Return how far E4M3 code · scale, in float32, is from the values that :func:`quantize` was given."""
    total = Deviation()
    for part in blocks(values.size):
        wide = decode(codes[part], DECODED["F8_E4M3"], scratch("float8 wide", part.stop - part.start, np.float32))
        _with_scales(np.multiply, wide, grid, scales, first + part.start)
        errors = np.subtract(wide, values[part], out=wide)
        square = scratch("float8 square", wide.size, np.float64)  # float32 has no squares of numbers beyond 2**64
        sums, largest = [], []
        for numbers in (errors, values[part]):
            sums.append(float(np.multiply(numbers, numbers, out=square, dtype=np.float64).sum()))
            largest.append(max(float(numbers.max()), -float(numbers.min())))
        total += Deviation(*sums, *largest)
    return total


def _with_scales(
    operation: Callable[..., Any], wide: NDArray[np.float32], grid: Grid, scales: Scales, first: int
) -> NDArray[np.float32]:
    """Multiply or divide elements ``first`` and following of a tensor by their scales, in place."""
    width = grid.block[1]
    with np.errstate(over="ignore", invalid="ignore"):
        for tile, row, column in tiles(wide, grid.columns, first):
            if scales.shape[1] == 1:  # a row may be a band of its own, so all are done at once
                factors = scales[grid.scale_row(np.arange(row, row + len(tile)))]
                operation(tile, factors, out=tile)
                continue
            places = np.arange(column, column + tile.shape[1]) // width
            for band, scale_row in _bands(tile, grid, row):
                operation(band, scales[scale_row].take(places), out=band)
    return wide


def _bands(tile: NDArray[np.float32], grid: Grid, row: int) -> Iterator[tuple[NDArray[np.float32], int]]:
    """Cut a rectangle that begins in ``row`` into rows that share their scales: (rows, their row of scales)."""
    at = row
    while at < row + len(tile):
        end = min(grid.band_end(at), row + len(tile))
        yield tile[at - row : end - row], grid.scale_row(at)
        at = end
