"""Values as a file stores them, and how a source of values is read.

Readers return any range of elements, little-endian, in the caller's buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.checkpoints.files.weight_files import WeightFile
from paramdelta_hub.fileio.digests import ChunkDigests, tensor_digest
from paramdelta_hub.fileio.paths import PathText
from paramdelta_hub.fileio.safetensors import ITEM_SIZES, TensorSpan
from paramdelta_hub.limits import CHUNK_ELEMENTS
from paramdelta_hub.numerics.casts import as_bits, cast
from paramdelta_hub.numerics.floats import FLOATS
from paramdelta_hub.numerics.scratch import scratch

__all__ = [
    "Files",
    "Source",
    "Stored",
    "Values",
    "Zeros",
    "chunk_digests",
    "read_chunks",
    "read_floats",
    "source_digest",
    "to_float32",
]


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


class Source(Protocol):
    """What all kinds of sources have in common."""

    @property
    def dtype(self) -> str:
        """The dtype of the values."""

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it reads."""

    def open(self, files: Files) -> Values:
        """Return a reader; ``files`` must stay open while it is used.

        Raises:
            CheckpointError: what it reads at once can't be used, or can't be read.
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


class _ZeroValues:
    def read(self, start: int, out: NDArray[np.uint8]) -> None:
        out[:] = 0


class _StoredValues:
    def __init__(self, source: Stored, files: Files) -> None:
        self._files, self._file = files, source.file
        self._start, self._itemsize = source.start, ITEM_SIZES[source.dtype]

    def read(self, start: int, out: NDArray[np.uint8]) -> None:
        self._files.read(self._file, self._start + start * self._itemsize, out)


def read_chunks(source: Source, elements: int, files: Files, *, first: int = 0) -> Iterator[NDArray[np.uint8]]:
    """Yield values of a source, a chunk at a time, as little-endian bytes in this thread's buffer.

    Args:
        source: what is read.
        elements: how many of its elements.
        files: read access to it.
        first: the first of them.

    Raises:
        CheckpointError: a file is truncated or can't be read.
    """
    values, itemsize = source.open(files), ITEM_SIZES[source.dtype]
    for start in range(0, elements, CHUNK_ELEMENTS):
        chunk = scratch("target", min(CHUNK_ELEMENTS, elements - start) * itemsize, np.uint8)
        values.read(first + start, chunk)
        yield chunk


def read_floats(source: Stored, elements: int, files: Files) -> NDArray[np.float32]:
    """Return the values of a float tensor as float32, which holds them exactly, flat.

    Raises:
        CheckpointError: the file is truncated or can't be read.
    """
    kind = FLOATS[source.dtype]
    raw = np.empty(elements * kind.itemsize, np.uint8)
    source.open(files).read(0, raw)
    return to_float32(raw, source.dtype, np.empty(elements, np.float32))


def to_float32(raw: NDArray[np.uint8], dtype: str, out: NDArray[np.float32]) -> NDArray[np.float32]:
    """Fill ``out`` with the values of little-endian floats of at most 32 bits, exactly."""
    kind = FLOATS[dtype]
    cast(as_bits(raw, kind), kind, FLOATS["F32"], out.view(np.uint32))
    return out


def source_digest(source: Source, elements: int, files: Files) -> str:
    """Return the digest (hex) of all values of a source.

    Raises:
        CheckpointError: a file is truncated or can't be read.
    """
    return tensor_digest(chunk_digests(source, elements, files))


def chunk_digests(
    source: Source, elements: int, files: Files, *, first: int = 0, advance: Callable[[int], None] = lambda _: None
) -> bytes:
    """Return the digests of a source's chunks, one after another; the arguments are those of :func:`read_chunks`.

    Raises:
        CheckpointError: a file is truncated or can't be read.
    """
    digests = ChunkDigests(ITEM_SIZES[source.dtype])
    for values in read_chunks(source, elements, files, first=first):
        digests.update(values)
        advance(values.size)
    return digests.finish()
