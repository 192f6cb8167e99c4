"""Sums as 8-bit floats again: codes with fresh scales, which lie over the weights as the target's scales do.

A block's scale is known when all of its sums are, and a block may be a whole tensor: so the sums wait in a temporary
file while the largest magnitudes are found, and are read back to be divided by the scales. Memory stays constant.
Beside the fields of :mod:`.applying` such a tensor has, with "out" naming the codes' place first, then the scales'::

    "quantized": {"grid": [rows, columns, [height, width], matrices], "scale": dtype of the stored scales}

What is lost by rounding to 8 bits is measured and told: a :class:`Requantization`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.application.sums import little
from paramdelta_hub.checkpoints.logical import LogicalModel
from paramdelta_hub.errors import CheckpointError, OptionError
from paramdelta_hub.fileio.durable import read_exactly, write_exactly
from paramdelta_hub.limits import CHUNK_ELEMENTS
from paramdelta_hub.numerics.float8 import Deviation, Grid, deviation, fresh_scales, quantize, raise_peaks
from paramdelta_hub.numerics.floats import FLOATS
from paramdelta_hub.numerics.scratch import scratch

__all__ = ["Dtype", "Requantization", "Requantizer", "keeps_fp8", "requantization"]

Dtype = Literal["bfloat16", "float8_e4m3fn"]
"""What the weights of an fp8 target can become."""

_BF16 = FLOATS["BF16"]


@dataclass(frozen=True)
class Requantization:
    """How far requantized weights are from the bf16 sums that they were made of."""

    dtype: Dtype
    tensors: int
    rms_error: float
    """Root-mean-square error over the sums' root mean square, of all requantized tensors together."""
    largest_error: float
    """The largest error over the largest magnitude."""

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable record, which also stands in the provenance file."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"fp8: root-mean-square error {self.rms_error:.2%} of the weights' root mean square "
            f"({self.tensors} tensors requantized)"
        )


def keeps_fp8(target: LogicalModel, dtype: Dtype | None) -> bool:
    """Return whether the result's weights are to be 8-bit floats; None and ``bfloat16`` make bf16 of fp8 weights.

    Raises:
        OptionError: no such dtype, or one that this target's weights can't become.
    """
    if dtype is None:
        return False
    where = str(target.checkpoint.source.path)
    if dtype not in get_args(Dtype):
        raise OptionError(f"weights can become {' or '.join(get_args(Dtype))}, not {dtype!r}")
    if dtype == "bfloat16":
        its = sorted({tensor.dtype for tensor in target.tensors.values()} & FLOATS.keys())
        if its and "BF16" not in its:
            raise OptionError(
                f"its weights are {' and '.join(its)}, and so are the result's: only fp8 weights become bf16",
                where=where,
                remedy="leave out --dtype, and cast the result",
            )
        return False
    codes = {name: tensor.view["dtype"] for name, tensor in target.tensors.items() if "scale" in tensor.view}
    if not codes:
        raise OptionError(
            "its weights are not fp8, so nothing says which tensors to quantize, and in what blocks",
            where=where,
            remedy="give an fp8 target, or leave out --dtype and quantize the result",
        )
    if other := next((name for name, its in codes.items() if its != "F8_E4M3"), None):
        raise OptionError(
            f"tensor {other!r} is {codes[other]}, and sums become F8_E4M3 only",
            where=where,
            remedy="leave out --dtype: the result's weights are bf16 then",
        )
    return True


class Requantizer:
    """Makes codes and scales of one tensor's sums: first :meth:`add`, then :meth:`codes`; used within ``with``."""

    def __init__(self, quantized: dict[str, Any], folder: Path) -> None:
        rows, columns, block, matrices = quantized["grid"]
        self._grid = Grid(rows, columns, tuple(block), matrices)
        self._dtype: str = quantized["scale"]
        self._peaks = np.zeros(self._grid.scale_shape, np.float32)
        self._elements = 0
        self._scales: NDArray[np.uint8] | None = None
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as the object
        self.deviation = Deviation()

    def add(self, sums: NDArray[np.uint8]) -> None:
        """Take the next sums, as bytes of little-endian BF16."""
        write_exactly(self._file.fileno(), sums, self._elements * _BF16.itemsize)
        raise_peaks(_widened(sums), self._grid, self._elements, self._peaks)
        self._elements += sums.size // _BF16.itemsize

    def codes(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the codes of all sums, chunk by chunk, in this thread's buffer; adds up :attr:`deviation`."""
        scales, bits = fresh_scales(self._peaks, self._dtype)
        self._scales = little(bits)
        for start in range(0, self._elements, CHUNK_ELEMENTS):
            size = min(CHUNK_ELEMENTS, self._elements - start)
            raw = scratch("sums to requantize", size * _BF16.itemsize, np.uint8)
            read_exactly(self._file.fileno(), raw, start * _BF16.itemsize, CheckpointError, "a temporary file")
            values = _widened(raw)
            codes = quantize(values, self._grid, scales, start, scratch("requantized", size, np.uint8))
            self.deviation += deviation(values, codes, self._grid, scales, start)
            yield codes

    @property
    def scales(self) -> NDArray[np.uint8]:
        """The bytes of the scales, after :meth:`codes`."""
        assert self._scales is not None
        return self._scales

    def __enter__(self) -> Requantizer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _widened(sums: NDArray[np.uint8]) -> NDArray[np.float32]:
    bits = sums.view("<u2").astype(np.uint16, copy=False)
    return _BF16.widen(bits, scratch("sums, wide", bits.size, np.float32))


def requantization(outcomes: Iterable[dict[str, Any]]) -> Requantization | None:
    """Return what tasks lost together, whose outcomes list under "requantized" the fields of each Deviation."""
    deviations = [Deviation(*fields) for outcome in outcomes for fields in outcome.get("requantized", [])]
    total = sum(deviations, Deviation())
    if not deviations:
        return None
    return Requantization("float8_e4m3fn", len(deviations), total.relative, total.largest_relative)
