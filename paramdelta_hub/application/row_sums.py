"""Sums of vocabulary tensors whose rows lie in another order, or another number, in target, deltas and result.

Rows are placed at planning (:mod:`paramdelta_hub.checkpoints.token_rows`). A payload is decoded front to back, and a
result is written front to back; where their orders differ, the decoded delta waits in a temporary file in between:
memory stays constant whatever the orders are. Beside the fields of :mod:`.applying` a tensor has "rows", the elements
of a row, and each of its deltas::

    "rows": [[first, source, number, whole], …]      the result's rows, the delta's (or null), and whether they are
                                                      post's whole rows, which take no weight
    "target": view                                    the target's values in the delta's order
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.application.sums import is_base, little
from paramdelta_hub.checkpoints.tensor_sources import open_view
from paramdelta_hub.errors import PackageError
from paramdelta_hub.fileio.durable import read_exactly, write_exactly
from paramdelta_hub.fileio.open_files import Descriptors
from paramdelta_hub.limits import CHUNK_ELEMENTS
from paramdelta_hub.numerics.floats import FLOATS, Bits, Float, Wide, Workspace, accumulate, blocks
from paramdelta_hub.numerics.kernels import Kernel
from paramdelta_hub.numerics.row_runs import ElementRuns
from paramdelta_hub.numerics.scratch import scratch
from paramdelta_hub.package.tensor_delta import DeltaReader

__all__ = ["RowAdder"]


class RowAdder:
    """Adds deltas by rows; to be used like a :class:`~.adding.ChunkAdder`, within ``with``."""

    def __init__(
        self, tensor: dict[str, Any], shards: Descriptors, sources: Descriptors, folder: Path, kernel: Kernel
    ) -> None:
        self._kind = FLOATS[tensor["dtype"]]
        self._deltas: list[_Spilled] = []
        self._position = 0
        self.not_finite = 0
        is_plain = len(tensor["deltas"]) == 1 and tensor["deltas"][0]["weight"] == 1.0
        try:
            for delta in tensor["deltas"]:
                spilled = _Spilled(delta, tensor["rows"], self._kind, is_plain, shards, sources, folder, kernel)
                self._deltas.append(spilled)
        except BaseException:
            self.close()
            raise

    def add(self, target: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the result's bytes for the next chunk; they live in this thread's buffer until its next use."""
        kind = self._kind
        bits = target.view(kind.bits.newbyteorder("<")).astype(kind.bits, copy=False)
        out = scratch("result", target.size, np.uint8).view(kind.bits)
        work = Workspace(kind)
        for block in blocks(bits.size):
            length = block.stop - block.start
            total = kind.widen(bits[block], work.base[:length])
            for delta in self._deltas:
                delta.add_to(total, self._position + block.start, work.delta)
            if not kind.finite(total):
                self.not_finite += kind.count_not_finite(total)
            kind.round(total, out[block], work.scratch)
        self._position += bits.size
        return little(out)

    def finish(self) -> None:
        """Do nothing: payloads were checked before the first sum."""

    def close(self) -> None:
        """Drop the temporary files."""
        for delta in self._deltas:
            delta.close()

    def __enter__(self) -> RowAdder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Spilled:
    """One delta of one tensor, decoded and checked: its wide values in a file without a name."""

    def __init__(
        self,
        delta: dict[str, Any],
        width: int,
        kind: Float,
        is_plain: bool,
        shards: Descriptors,
        sources: Descriptors,
        folder: Path,
        kernel: Kernel,
    ) -> None:
        self._kind = kind
        self._runs = ElementRuns(delta["rows"], width)
        self._weights = [1.0 if whole else delta["weight"] for *_, whole in delta["rows"]]
        self._positions = np.empty(0, np.int64)
        self._exact: Bits = np.empty(0, kind.bits)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as the object
        self._is_zero = delta["shard"] is None
        try:
            if not self._is_zero:
                self._decode(delta, is_plain, shards, sources, kernel)
        except BaseException:
            self.close()
            raise

    def _decode(
        self, delta: dict[str, Any], is_plain: bool, shards: Descriptors, sources: Descriptors, kernel: Kernel
    ) -> None:
        kind, elements = self._kind, delta["elements"]
        payload = DeltaReader(delta, kind.name, elements, shards, kernel)
        target = open_view(delta["target"], sources) if is_plain else None
        positions, exact = [], []
        for start in range(0, elements, CHUNK_ELEMENTS):
            size = min(CHUNK_ELEMENTS, elements - start)
            chunk = payload.next_added(scratch("delta", size, kind.wide))
            assert chunk is not None
            write_exactly(self._file.fileno(), chunk.delta, start * kind.wide.itemsize)
            if target is not None and chunk.exceptions.size:
                values = scratch("target in the delta's order", size * kind.itemsize, np.uint8)
                target.read(start, values)
                if is_base(values, chunk):
                    positions.append(chunk.exceptions + start)
                    exact.append(chunk.exact)
        payload.finish()
        if positions:
            self._positions, self._exact = np.concatenate(positions), np.concatenate(exact)

    def add_to(self, total: Wide, start: int, work: Wide) -> None:
        """Add to the result's wide values from element ``start`` what belongs there."""
        for place, source, run in self._runs.pieces(start, total.size):
            if source is None:
                continue
            part, weight = total[place], self._weights[run]
            if self._is_zero:
                np.add(part, self._kind.wide.type(weight * 0.0), out=part)
                continue
            delta = work[: part.size]
            read_exactly(
                self._file.fileno(), delta.view(np.uint8), source * delta.itemsize, PackageError, "a temporary file"
            )
            accumulate(part, delta, weight)
            inside = slice(*np.searchsorted(self._positions, (source, source + part.size)).tolist())
            exact = self._exact[inside]
            part[self._positions[inside] - source] = self._kind.widen(exact, np.empty(exact.size, self._kind.wide))

    def close(self) -> None:
        """Drop the file."""
        self._file.close()
