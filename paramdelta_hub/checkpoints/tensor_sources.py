"""Views: a tensor's values as arithmetic wants them, wherever and however they lie in a model's files.

A view is plain JSON, so that a task can carry it to any process::

    {"file": …, "start": …, "dtype": …}              values that lie one after another
    {"dtype": …}                                      nothing but zeros
    {…, "rows": [[first, source, count], …],          rows taken from other places, or (source null) zero: a
        "width": elements of a row}                   vocabulary arranged in another one's order
    {…, "grid": […], "scale": {"file", "start",       8-bit floats with their scales, dequantized to BF16
        "dtype", "name"}}                             (the grid as :class:`~paramdelta_hub.numerics.float8.Grid` takes it)

Readers hand out any range of elements, little-endian, by pread into the caller's buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.checkpoints.checkpoint import WeightFile
from paramdelta_hub.errors import CheckpointError
from paramdelta_hub.fileio.safetensors import ITEM_SIZES, TensorSpan
from paramdelta_hub.numerics.float8 import DECODED, Grid, dequantize
from paramdelta_hub.numerics.floats import FLOATS
from paramdelta_hub.numerics.row_runs import ElementRuns, Run
from paramdelta_hub.numerics.scratch import scratch

__all__ = ["Files", "Values", "View", "arranged", "open_view", "read_scales", "scaled", "view_of", "zeros"]

View: TypeAlias = "dict[str, Any]"


def view_of(file: WeightFile, span: TensorSpan) -> View:
    """Return the view of a tensor as it lies in its file."""
    return {"file": str(file.path), "start": span.start, "dtype": span.dtype}


def zeros(dtype: str) -> View:
    """Return a view of a tensor that no file holds: all +0."""
    return {"dtype": dtype}


def arranged(view: View, runs: Sequence[Run], width: int) -> View:
    """Return a view of the same tensor with its rows (of ``width`` elements) in another order.

    Args:
        view: any view without an arrangement of its own.
        runs: ascending in ``first``, covering all rows; ``source`` may be None.
        width: elements of a row.
    """
    assert "rows" not in view
    return {**view, "rows": [list(run) for run in runs], "width": width}


def scaled(view: View, scale: View, scale_name: str, grid: Grid) -> View:
    """Return a view of 8-bit floats that yields what they stand for, as BF16.

    Args:
        view: of the codes.
        scale: of the scales.
        scale_name: what to call the scales in an error.
        grid: how the scales lie over the weight.
    """
    shape = [grid.rows, grid.columns, list(grid.block), grid.matrices]
    return {**view, "scale": {**scale, "name": scale_name}, "grid": shape}


class Files(Protocol):
    """Read access to files by their paths; on this machine :class:`~paramdelta_hub.fileio.open_files.Descriptors`."""

    def read(self, path: str, position: int, out: NDArray[Any]) -> None:
        """Fill ``out`` (uint8) with a file's bytes from ``position``.

        Raises:
            CheckpointError: truncated, or can't be read.
        """


class Values(Protocol):
    """Read access to a tensor's values."""

    def read(self, start: int, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` with the values from element ``start``, as little-endian bytes of the view's dtype.

        Raises:
            CheckpointError: the file was truncated or can't be read.
        """


def open_view(view: View, files: Files) -> Values:
    """Return a reader of the view; ``files`` stays open as long as it is used."""
    if "rows" in view:
        inner = {key: value for key, value in view.items() if key not in {"rows", "width"}}
        return _Arranged(open_view(inner, files), ElementRuns(view["rows"], view["width"]), _itemsize(inner))
    if "file" not in view:
        return _Zeros()
    return _Scaled(view, files) if "scale" in view else _Plain(view, files)


def _itemsize(view: View) -> int:
    return 2 if "scale" in view else ITEM_SIZES[view["dtype"]]


class _Zeros:
    def read(self, start: int, out: NDArray[np.uint8]) -> None:
        out[:] = 0


class _Plain:
    def __init__(self, view: View, files: Files) -> None:
        self._files, self._file = files, view["file"]
        self._start, self._itemsize = view["start"], ITEM_SIZES[view["dtype"]]

    def read(self, start: int, out: NDArray[np.uint8]) -> None:
        self._files.read(self._file, self._start + start * self._itemsize, out)


class _Arranged:
    """Rows in another order: each piece of a range is read at once."""

    def __init__(self, inner: Values, runs: ElementRuns, itemsize: int) -> None:
        self._inner, self._runs, self._itemsize = inner, runs, itemsize

    def read(self, start: int, out: NDArray[np.uint8]) -> None:
        for place, source, _ in self._runs.pieces(start, out.size // self._itemsize):
            piece = out[place.start * self._itemsize : place.stop * self._itemsize]
            if source is None:
                piece[:] = 0
            else:
                self._inner.read(source, piece)


class _Scaled:
    """8-bit floats times their scales, rounded to BF16."""

    def __init__(self, view: View, files: Files) -> None:
        rows, columns, block, matrices = view["grid"]
        self._grid = Grid(rows, columns, tuple(block), matrices)
        self._codes, self._table = _Plain(view, files), DECODED[view["dtype"]]
        self._scales = read_scales(view, files)

    def read(self, start: int, out: NDArray[np.uint8]) -> None:
        codes = scratch("8-bit codes", out.size // 2, np.uint8)
        self._codes.read(start, codes)
        values = scratch("dequantized", codes.size, np.uint16)
        dequantize(codes, self._table, self._grid, self._scales, start, values)
        np.copyto(out, values.astype("<u2", copy=False).view(np.uint8))


def read_scales(view: View, files: Files) -> NDArray[np.float32]:
    """Return the scales of a scaled view as float32, of its grid's ``scale_shape``.

    Raises:
        CheckpointError: a scale that is zero, negative, NaN or infinite, or a file that can't be read.
    """
    scale = view["scale"]
    rows, columns, block, matrices = view["grid"]
    shape = Grid(rows, columns, tuple(block), matrices).scale_shape
    kind = FLOATS[scale["dtype"]]
    raw = np.empty(shape[0] * shape[1] * kind.itemsize, np.uint8)
    _Plain(scale, files).read(0, raw)
    bits = raw.view(kind.bits.newbyteorder("<")).astype(kind.bits, copy=False)
    scales = kind.widen(bits, np.empty(bits.size, kind.wide)).astype(np.float32)
    usable = np.isfinite(scales) & (scales > 0)
    if not usable.all():
        raise CheckpointError(
            f"the scales {scale['name']!r} hold {scales[~usable][0]}, where only finite numbers above 0 make sense",
            where=scale["file"],
            remedy="get the file again",
        )
    return scales.reshape(shape)
