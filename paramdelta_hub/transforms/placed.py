"""A delta whose rows go to other places in the result, as the vocabularies differ.

A payload is decoded front to back, and a result is written front to back. If their orders differ, the decoded delta
waits in a temporary file: memory stays constant whatever the orders are.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.checkpoints.tensor_sources import Files
from paramdelta_hub.errors import PackageError
from paramdelta_hub.fileio.durable import read_exactly, write_exactly
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.limits import CHUNK_ELEMENTS
from paramdelta_hub.numerics.floats import FLOATS, Bits, Wide
from paramdelta_hub.numerics.kernels import Kernel
from paramdelta_hub.numerics.row_runs import ElementRuns
from paramdelta_hub.numerics.scratch import scratch
from paramdelta_hub.package.tensor_delta import DeltaReader
from paramdelta_hub.transforms.addend import Added, Addend, is_base

__all__ = ["PlacedAddition"]


class PlacedAddition:
    """One delta of a sum, decoded and checked at once; its rows are handed out in the order of the result.

    To be used in a ``with`` block, at whose end the temporary file is gone.

    Args:
        addend: the delta, with its placement.
        dtype: the dtype of the tensor.
        shards: open files of the package.
        sources: read access to the target.
        folder: where the temporary file is.
        kernel: does the arithmetic.
        is_post: whether this delta alone is added, with a weight of 1: on base's values the result is then post.

    Raises:
        PackageError: the payload is damaged.
    """

    weight = 1.0
    """The values that it hands out are weighted already, as whole rows of post take no weight."""

    def __init__(
        self,
        addend: Addend,
        dtype: str,
        shards: OpenFiles,
        sources: Files,
        folder: Path,
        kernel: Kernel,
        *,
        is_post: bool,
    ) -> None:
        assert addend.placement is not None
        self._kind = FLOATS[dtype]
        self._runs = ElementRuns(addend.placement.runs, addend.placement.width)
        self._weights = [1.0 if run.whole else addend.weight for run in addend.placement.runs]
        self._is_zero = addend.delta.is_zero
        self._exceptions = np.empty(0, np.intp)
        self._exact: Bits = np.empty(0, self._kind.bits)
        self._next = 0
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed at the end of the block
        try:
            if not self._is_zero:
                self._decode(addend, shards, sources if is_post else None, kernel)
        except BaseException:
            self._file.close()
            raise

    def _decode(self, addend: Addend, shards: OpenFiles, sources: Files | None, kernel: Kernel) -> None:
        """Decode the payload to the file, and find the exceptions that hold for this target."""
        assert addend.placement is not None
        kind, elements = self._kind, addend.delta.elements
        reader = DeltaReader(addend.delta, kind.name, shards, kernel)
        target = addend.placement.target.open(sources) if sources is not None else None
        exceptions, exact = [], []
        for start in range(0, elements, CHUNK_ELEMENTS):
            size = min(CHUNK_ELEMENTS, elements - start)
            chunk = reader.next_added(scratch("delta", size, kind.wide))
            assert chunk is not None
            write_exactly(self._file.fileno(), chunk.delta, start * kind.wide.itemsize)
            if target is not None and chunk.exceptions.size:
                values = scratch("target in the delta's order", size * kind.itemsize, np.uint8)
                target.read(start, values)
                if is_base(values, chunk):
                    exceptions.append(chunk.exceptions + start)
                    exact.append(chunk.exact)
        reader.finish()
        if exceptions:
            self._exceptions, self._exact = np.concatenate(exceptions), np.concatenate(exact)

    def next(self, target: NDArray[np.uint8], out: Wide) -> Added:
        """Return its part in the next chunk."""
        positions, exact = [], []
        for place, source, run in self._runs.pieces(self._next, out.size):
            part, weight = out[place], self._weights[run]
            if source is None:
                part.fill(-0.0)  # what changes no value at all: +0 would make +0 of −0
                continue
            if self._is_zero:
                part.fill(weight * 0.0)
                continue
            read_exactly(
                self._file.fileno(), part.view(np.uint8), source * part.itemsize, PackageError, "a temporary file"
            )
            if weight != 1.0:
                with np.errstate(over="ignore", invalid="ignore"):
                    np.multiply(part, part.dtype.type(weight), out=part)
            inside = slice(*np.searchsorted(self._exceptions, (source, source + part.size)).tolist())
            positions.append(self._exceptions[inside] - source + place.start)
            exact.append(self._exact[inside])
        self._next += out.size
        if not positions:
            return Added(out, self._exceptions[:0], self._exact[:0])
        return Added(out, np.concatenate(positions), np.concatenate(exact))

    def finish(self) -> None:
        """Do nothing: the payload was checked before the first chunk."""

    def __enter__(self) -> PlacedAddition:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
