"""Chunks of a tensor ↔ streams, and the table that tells where each stream lies.

A payload is the streams of some chunks, one after another, followed by a table with a row for each of them: the
lengths of its streams (``u32``, little-endian) and the digest of its bytes. So any chunk can be read and checked by
itself, once the table is known to be right. The streams are, for an added (float) tensor::

    gaps, values | exceptions: gaps, planes | digest of base's chunk

and for a replaced tensor the codec's streams alone. A stream with nothing to say is empty. The last one is there
only where there are exceptions: they are used only if the target's chunk *is* base's.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.codecs.by_name import REPLACING, TANS, Buffer
from paramdelta_hub.codecs.sparse import decode_sparse, encode_sparse, sparse_streams
from paramdelta_hub.errors import PackageError
from paramdelta_hub.fileio.digests import chunk_digest
from paramdelta_hub.fileio.safetensors import ITEM_SIZES
from paramdelta_hub.limits import CHUNK_ELEMENTS
from paramdelta_hub.numerics.differences import Difference
from paramdelta_hub.numerics.floats import FLOATS, Bits, Float
from paramdelta_hub.numerics.sums import Delta
from paramdelta_hub.package.chunk_table import DIGEST_BYTES, table_row

__all__ = [
    "AddedChunk",
    "Layout",
    "chunk_ranges",
    "decode_added",
    "decode_replaced",
    "encode_added",
]


@dataclass(frozen=True)
class Layout:
    """How a payload is cut: follows from its tensor's dtype and effect, its codec, and its number of chunks."""

    codec: str
    dtype: str
    chunks: int
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
    def columns(self) -> int:
        """How many streams a chunk has."""
        if self.added:
            return TANS.streams + sparse_streams(self.itemsize) + 1
        return REPLACING[self.codec].streams(self.itemsize)

    @property
    def table_bytes(self) -> int:
        """Bytes of the table at the payload's end."""
        return self.chunks * (self.columns * 4 + DIGEST_BYTES)

    @property
    def max_chunk_bytes(self) -> int:
        """No chunk needs more than this: every element raw and with a position and an exception, and the tables."""
        wide = self.float.wide.itemsize if self.added else 0
        return CHUNK_ELEMENTS * (self.itemsize + wide + 4) + (1 << 17)

    def parse_table(self, table: NDArray[np.uint8], nbytes: int, where: str) -> tuple[NDArray[np.int64], list[bytes]]:
        """Return the streams' lengths, a row a chunk, and the chunks' digests, if all of it fills ``nbytes``.

        Raises:
            PackageError: it does not, or a chunk is impossibly large.
        """
        rows = table.view(table_row(self.columns))
        lengths = rows["lengths"].astype(np.int64)
        if int(lengths.sum()) + table.nbytes != nbytes:
            raise PackageError("the chunk table does not add up to the payload's size", where=where)
        if lengths.size and int(lengths.sum(axis=1).max()) > self.max_chunk_bytes:
            raise PackageError("the chunk table holds an impossibly large chunk", where=where)
        return lengths, [digest.tobytes() for digest in rows["digest"]]

    def cut(self, chunk: Buffer, lengths: NDArray[np.int64]) -> list[memoryview]:
        """Cut one chunk's bytes into its streams."""
        ends = np.cumsum(lengths).tolist()
        view = memoryview(chunk)
        return [view[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def chunk_ranges(elements: int, parts: int) -> list[tuple[int, int]]:
    """Return the first element and the number of elements of up to so many parts, about equally large.

    Parts are of whole chunks. A tensor without elements is one part.
    """
    chunks = -(-elements // CHUNK_ELEMENTS)
    parts = max(1, min(parts, chunks))
    starts = [min(part * chunks // parts * CHUNK_ELEMENTS, elements) for part in range(parts + 1)]
    starts[-1] = elements
    return [(start, end - start) for start, end in itertools.pairwise(starts)]


def encode_added(chunk: Difference, base: Bits, post: Bits) -> list[bytes]:
    """Return a float chunk's streams in the order of the table's columns."""
    streams = TANS.encode(chunk.delta)
    streams += encode_sparse(chunk.exceptions, post[chunk.exceptions])
    values = base.astype(base.dtype.newbyteorder("<"), copy=False)
    streams.append(chunk_digest(values.view(np.uint8)) if chunk.exceptions.size else b"")
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
        return bool(self.exceptions.size and chunk_digest(values) == self.base_digest)


def decode_added(layout: Layout, streams: Sequence[Buffer], elements: int) -> AddedChunk:
    """Return a float chunk of so many elements; its Δ may be in this thread's buffers, until the next is decoded.

    Raises:
        PackageError: damaged, or not what a chunk of this layout can hold.
    """
    kind = layout.float
    exceptions, exact = decode_sparse(streams[TANS.streams : -1], elements, kind.bits)
    if len(streams[-1]) != (DIGEST_BYTES if exceptions.size else 0):
        raise PackageError("a chunk's exceptions and the digest of its base do not go together")
    delta = TANS.open(streams[: TANS.streams], elements, kind.wide)
    return AddedChunk(delta, exceptions, exact, bytes(streams[-1]))


def decode_replaced(layout: Layout, streams: Sequence[Buffer], out: Bits) -> None:
    """Decode a chunk of a replaced tensor to ``out``: post's own values.

    Raises:
        PackageError: damaged.
    """
    REPLACING[layout.codec].decode(streams, out)
