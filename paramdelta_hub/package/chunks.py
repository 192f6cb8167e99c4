"""Chunks of a tensor ↔ streams, and the table that tells where each stream lies.

A tensor's payload is the streams of its chunks, one after another, followed by a table of their lengths (``u32``,
little-endian, one row a chunk). A row's columns are, for an added (float) tensor::

    gaps, values | exceptions: gaps, planes | digest of base's chunk

and for a replaced tensor the codec's streams alone. A stream with nothing to say is empty. The last column is filled
only where there are exceptions: they are used only if the target's chunk *is* base's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.codecs.by_name import REPLACING, TANS, Buffer
from paramdelta_hub.codecs.sparse import decode_sparse, encode_sparse, sparse_streams
from paramdelta_hub.errors import PackageError
from paramdelta_hub.fileio.digests import values_digest
from paramdelta_hub.fileio.safetensors import ITEM_SIZES
from paramdelta_hub.limits import CHUNK_ELEMENTS
from paramdelta_hub.numerics.differences import Difference
from paramdelta_hub.numerics.floats import FLOATS, Bits, Float
from paramdelta_hub.numerics.sums import Delta

__all__ = [
    "AddedChunk",
    "Layout",
    "decode_added",
    "decode_replaced",
    "encode_added",
]

_DIGEST_BYTES = 32


@dataclass(frozen=True)
class Layout:
    """How the payload of one tensor is cut: follows from its dtype, size, effect and codec alone."""

    codec: str
    dtype: str
    elements: int
    added: bool

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return ITEM_SIZES[self.dtype]

    @property
    def float(self) -> Float:
        """The arithmetic of an added tensor."""
        return FLOATS[self.dtype]

    @property
    def chunks(self) -> int:
        """How many chunks the tensor has."""
        return -(-self.elements // CHUNK_ELEMENTS)

    @property
    def columns(self) -> int:
        """How many streams a chunk has."""
        if self.added:
            return TANS.streams + sparse_streams(self.itemsize) + 1
        return REPLACING[self.codec].streams(self.itemsize)

    @property
    def table_bytes(self) -> int:
        """Bytes of the table at the payload's end."""
        return self.chunks * self.columns * 4

    @property
    def max_chunk_bytes(self) -> int:
        """No chunk needs more than this: every element raw and with a position and an exception, and the tables."""
        wide = self.float.wide.itemsize if self.added else 0
        return CHUNK_ELEMENTS * (self.itemsize + wide + 4) + (1 << 17)

    def chunk(self, index: int) -> slice:
        """The elements of chunk ``index``."""
        return slice(index * CHUNK_ELEMENTS, min((index + 1) * CHUNK_ELEMENTS, self.elements))

    def parse_table(self, table: NDArray[np.uint8], nbytes: int, where: str) -> NDArray[np.int64]:
        """Return the streams' lengths, a row a chunk, if together with the table they fill ``nbytes``.

        Raises:
            PackageError: they do not, or a chunk is impossibly large.
        """
        lengths = table.view("<u4").reshape(self.chunks, self.columns).astype(np.int64)
        if int(lengths.sum()) + table.nbytes != nbytes:
            raise PackageError("the chunk table does not add up to the payload's size", where=where)
        if lengths.size and int(lengths.sum(axis=1).max()) > self.max_chunk_bytes:
            raise PackageError("the chunk table holds an impossibly large chunk", where=where)
        return lengths

    def cut(self, chunk: Buffer, lengths: NDArray[np.int64]) -> list[memoryview]:
        """Cut one chunk's bytes into its streams."""
        ends = np.cumsum(lengths).tolist()
        view = memoryview(chunk)
        return [view[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def encode_added(chunk: Difference, base: Bits, post: Bits) -> list[bytes]:
    """Return a float chunk's streams in the order of the table's columns."""
    streams = TANS.encode(chunk.delta)
    streams += encode_sparse(chunk.exceptions, post[chunk.exceptions])
    values = base.astype(base.dtype.newbyteorder("<"), copy=False)
    streams.append(values_digest(values.view(np.uint8)) if chunk.exceptions.size else b"")
    return streams


@dataclass(frozen=True)
class AddedChunk:
    """A float chunk: Δ, ready to be decoded, and the exceptions of base's own chunk."""

    delta: Delta
    exceptions: NDArray[Any]
    exact: Bits
    base_digest: bytes

    def is_of(self, values: NDArray[np.uint8]) -> bool:
        """Whether there are exceptions, and a target has the values of base, for which they are."""
        return bool(self.exceptions.size and values_digest(values) == self.base_digest)


def decode_added(layout: Layout, streams: Sequence[Buffer], elements: int) -> AddedChunk:
    """Return a float chunk of so many elements; its Δ may be in this thread's buffers, until the next is decoded.

    Raises:
        PackageError: damaged, or not what a chunk of this layout can hold.
    """
    kind = layout.float
    exceptions, exact = decode_sparse(streams[TANS.streams : -1], elements, kind.bits)
    if len(streams[-1]) != (_DIGEST_BYTES if exceptions.size else 0):
        raise PackageError("a chunk's exceptions and the digest of its base do not go together")
    delta = TANS.open(streams[: TANS.streams], elements, kind.wide)
    return AddedChunk(delta, exceptions, exact, bytes(streams[-1]))


def decode_replaced(layout: Layout, streams: Sequence[Buffer], out: Bits) -> None:
    """Decode a chunk of a replaced tensor to ``out``: post's own values.

    Raises:
        PackageError: damaged.
    """
    REPLACING[layout.codec].decode(streams, out)
