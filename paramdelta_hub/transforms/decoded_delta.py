"""A delta in a temporary file: decoded front to back, once, and then read in any order. Memory stays constant."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.checkpoints.tensor_sources import Files, TensorSource
from paramdelta_hub.errors import PackageError
from paramdelta_hub.fileio.durable import read_exactly, write_exactly
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.limits import CHUNK_ELEMENTS
from paramdelta_hub.numerics.floats import FLOATS, Bits, Wide
from paramdelta_hub.numerics.scratch import scratch
from paramdelta_hub.package.tensor_delta import DeltaReader, StoredDelta

__all__ = ["DecodedDelta", "decode_delta"]


class DecodedDelta(NamedTuple):
    """A delta in its temporary file (None: all zeros), and the exceptions that hold for this target, in its order."""

    file: IO[bytes] | None
    exceptions: NDArray[np.intp]
    exact: Bits

    def read(self, start: int, out: Wide | NDArray[Any]) -> None:
        """Fill ``out`` with the elements from ``start`` on."""
        if self.file is None:
            out.fill(0)
        else:
            read_exactly(self.file.fileno(), out.view(np.uint8), start * out.itemsize, PackageError, "a temporary file")

    def close(self) -> None:
        """Delete the file."""
        if self.file is not None:
            self.file.close()


def decode_delta(
    delta: StoredDelta, target: TensorSource | None, shards: OpenFiles, sources: Files, folder: Path
) -> DecodedDelta:
    """Decode a payload to a temporary file, check it, and find the exceptions that hold for this target.

    Args:
        delta: where the package keeps it.
        target: the target's values in the order of the delta; None if no exception is to be used.
        shards: open files of the packages.
        sources: read access to the target.
        folder: where the temporary file is.

    Raises:
        PackageError: the payload is damaged.
        CheckpointError: the target can't be read.
    """
    kind, elements = FLOATS[delta.dtype], delta.elements
    none = DecodedDelta(None, np.empty(0, np.intp), np.empty(0, kind.bits))
    if delta.is_zero:
        return none
    reader = DeltaReader(delta, shards)
    opened = target.open(sources) if target is not None else None
    exceptions, exact = [], []
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close(), or at the block's end
    try:
        for start in range(0, elements, CHUNK_ELEMENTS):
            size = min(CHUNK_ELEMENTS, elements - start)
            values = scratch("delta", size, kind.wide)
            chunk = reader.next_added()
            if chunk is None:
                values.fill(0)
            else:
                values = chunk.delta.values(values)
            write_exactly(file.fileno(), values, start * kind.wide.itemsize)
            if chunk is not None and opened is not None and chunk.exceptions.size:
                there = scratch("target in the delta's order", size * kind.itemsize, np.uint8)
                opened.read(start, there)
                if chunk.is_of(there):
                    exceptions.append(chunk.exceptions + start)
                    exact.append(chunk.exact)
    except BaseException:
        file.close()
        raise
    if not exceptions:
        return none._replace(file=file)
    return DecodedDelta(file, np.concatenate(exceptions), np.concatenate(exact))
