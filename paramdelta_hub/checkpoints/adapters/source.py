"""Base with an adapter, as a source of values: base's plus a product of low rank, or with rows replaced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from paramdelta_hub.checkpoints.dequantized import Dequantized, Mxfp4
from paramdelta_hub.checkpoints.stored import Files, Stored, Values, read_floats, to_float32
from paramdelta_hub.fileio.safetensors import ITEM_SIZES
from paramdelta_hub.numerics.casts import round_once
from paramdelta_hub.numerics.floats import FLOATS
from paramdelta_hub.numerics.low_rank import add_low_rank
from paramdelta_hub.numerics.scratch import scratch

__all__ = ["Adapted", "LowRank", "NewRows"]


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
    """Another source's values plus a product of low rank, in float32, rounded once; see :mod:`.numerics.low_rank`.

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
        wide = to_float32(raw, self._from, scratch("adapted wide", elements, np.float32))
        if self._factors is not None:
            add_low_rank(wide, *self._factors, self._scale, start)
        for place, row in self._rows:
            first, last = max(place, start), min(place + row.size, start + elements)
            if first < last:
                wide[first - start : last - start] = row[first - place : last - place]
        kind = FLOATS[self._to]
        bits = round_once(wide, kind, scratch("adapted bits", elements, kind.bits))
        np.copyto(out, bits.astype(kind.bits.newbyteorder("<"), copy=False).view(np.uint8))
