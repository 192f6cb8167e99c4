"""Sums as 8-bit floats again: codes with fresh scales, which lie over the weights as the target's scales do.

The scale of a block is known when all of its sums are, and a block may be a whole tensor. So the sums wait in a
temporary file while the largest magnitudes are found, and are read back to be divided by the scales. Memory stays
constant. What is lost by rounding to 8 bits is measured.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.errors import CheckpointError
from paramdelta_hub.fileio.durable import read_exactly, write_exactly
from paramdelta_hub.limits import CHUNK_ELEMENTS
from paramdelta_hub.numerics.float8 import Deviation, Grid, deviation, fresh_scales, quantize, raise_peaks
from paramdelta_hub.numerics.floats import FLOATS
from paramdelta_hub.numerics.scratch import scratch
from paramdelta_hub.transforms.sum import little_endian

__all__ = ["Quantization", "Requantizer"]

_BF16 = FLOATS["BF16"]


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the sums of a tensor become 8-bit floats: where the scales go, and the dtype in which they are stored."""

    grid: Grid
    scale_dtype: str


class Requantizer:
    """Makes codes and scales of one tensor's sums: first :meth:`add`, then :meth:`codes`; used within ``with``."""

    def __init__(self, quantization: Quantization, folder: Path) -> None:
        self._grid, self._dtype = quantization.grid, quantization.scale_dtype
        self._peaks = np.zeros(self._grid.scale_shape, np.float32)
        self._elements = 0
        self._scales: NDArray[np.uint8] | None = None
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as the object
        self.deviation = Deviation()
        self.not_finite = 0
        """How many sums are NaN or infinite: each spoils its block's scale, so there are no codes of them."""

    def add(self, sums: NDArray[np.uint8]) -> None:
        """Take the next sums, as bytes of little-endian BF16."""
        write_exactly(self._file.fileno(), sums, self._elements * _BF16.itemsize)
        values = _widened(sums)
        raise_peaks(values, self._grid, self._elements, self._peaks)
        if not np.isfinite(self._peaks).all():
            self.not_finite += _BF16.count_not_finite(values)
        self._elements += sums.size // _BF16.itemsize

    def codes(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the codes of all sums, chunk by chunk, in this thread's buffer; adds up :attr:`deviation`."""
        scales, bits = fresh_scales(self._peaks, self._dtype)
        self._scales = little_endian(bits)
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
