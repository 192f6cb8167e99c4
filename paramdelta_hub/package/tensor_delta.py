"""One tensor's delta: where a package keeps it, and its chunks, decoded and checked against all that is promised."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from paramdelta_hub.codecs import ZERO
from paramdelta_hub.errors import PackageError
from paramdelta_hub.fileio.digests import check_digest, chunk_digest
from paramdelta_hub.fileio.durable import read_exactly
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.fileio.paths import PathText
from paramdelta_hub.limits import CHUNK_ELEMENTS
from paramdelta_hub.numerics.floats import FLOATS, Bits, Float, Wide
from paramdelta_hub.numerics.scratch import scratch
from paramdelta_hub.numerics.sums import Delta
from paramdelta_hub.package.chunks import AddedChunk, Layout, decode_added, decode_replaced
from paramdelta_hub.package.manifest import TensorRecord

__all__ = ["DeltaReader", "Locations", "PayloadReader", "StoredDelta", "StoredPart", "delta_chunks"]

Locations: TypeAlias = Mapping[tuple[str, str], tuple[str, int]]
"""Where each payload is: its shard's path and its start there, by the names of the tensor and the shard."""


@dataclass(frozen=True, slots=True)
class StoredPart:
    """Where a package keeps some chunks of a tensor, and what its manifest promises of them.

    Args:
        chunks: how many.
        codec: the name of the codec; ``zero`` if nothing changed in them.
        shard: the path of the file with the payload; None for ``zero``.
        start: where the payload begins in the shard.
        nbytes: the size of the payload.
        digest: the digest of the payload's chunk table.
    """

    chunks: int
    codec: str
    shard: PathText | None
    start: int
    nbytes: int
    digest: str | None


@dataclass(frozen=True, slots=True)
class StoredDelta:
    """Where a package keeps one tensor's delta, and what its manifest promises of it.

    Args:
        name: the tensor's name in the package.
        dtype: of the delta: the one that holds both base and post.
        elements: how many it has.
        effect: ``add`` for the difference of floats, ``replace`` for other values, which are kept whole.
        parts: its chunks, in order.
        base_digest: the digest of base's values, in the delta's dtype.
    """

    name: str
    dtype: str
    elements: int
    effect: Literal["add", "replace"]
    parts: tuple[StoredPart, ...]
    base_digest: str

    @classmethod
    def of(cls, record: TensorRecord, locations: Locations) -> StoredDelta:
        """Return where the delta of a manifest's tensor is."""
        parts = []
        for part in record.parts:
            shard, start = (None, 0) if part.shard is None else locations[record.name, part.shard]
            parts.append(StoredPart(part.chunks, part.codec, shard, start, part.nbytes, part.blake3))
        return cls(
            name=record.name,
            dtype=record.dtype,
            elements=record.elements,
            effect=record.effect,
            parts=tuple(parts),
            base_digest=record.base_blake3,
        )

    @property
    def is_zero(self) -> bool:
        """Whether there is no payload, as nothing changed."""
        return all(part.codec == ZERO for part in self.parts)


class PayloadReader:
    """Reads chunks of one payload from an open shard, each proven to be the promised one before it is handed out.

    Args:
        descriptor: the open shard.
        part: where the payload lies in it.
        layout: how it is cut.
        what: what messages call it.

    Raises:
        IntegrityError: the table is not the promised one.
        PackageError: the table can't be one of this payload.
    """

    def __init__(self, descriptor: int, part: StoredPart, layout: Layout, what: str) -> None:
        assert part.shard is not None
        assert part.digest is not None
        self._descriptor, self._layout, self._what, self._where = descriptor, layout, what, part.shard
        if layout.table_bytes > part.nbytes:
            raise PackageError("the payload is smaller than its chunk table", where=part.shard)
        table = np.empty(layout.table_bytes, np.uint8)
        read_exactly(descriptor, table, part.start + part.nbytes - table.nbytes, PackageError, part.shard)
        check_digest(chunk_digest(table).hex(), part.digest, f"the chunk table of {what}", part.shard)
        self._lengths, self._digests = layout.parse_table(table, part.nbytes, part.shard)
        self._starts = part.start + np.cumsum([0, *self._lengths.sum(axis=1).tolist()])

    def chunk(self, index: int) -> list[memoryview]:
        """Return the streams of a chunk; they live in this thread's buffer until the next call of any reader.

        Raises:
            IntegrityError: its bytes are not the promised ones.
        """
        start, end = self._starts[index : index + 2].tolist()
        chunk = scratch("payload", end - start, np.uint8)
        read_exactly(self._descriptor, chunk, start, PackageError, self._where)
        check_digest(chunk_digest(chunk).hex(), self._digests[index].hex(), f"a chunk of {self._what}", self._where)
        return self._layout.cut(chunk.data, self._lengths[index])


class DeltaReader:
    """Reads one tensor's delta chunk by chunk, from any chunk on.

    Args:
        delta: where it is.
        shards: open files of the package.
        first: the element to begin with, the first of a chunk.
    """

    def __init__(self, delta: StoredDelta, shards: OpenFiles, *, first: int = 0) -> None:
        self._delta, self._shards = delta, shards
        self._next = first
        self.exceptions = 0
        """How many exceptions the chunks had that were read."""
        self._opened: tuple[StoredPart, Layout, PayloadReader] | None = None

    def next_added(self) -> AddedChunk | None:
        """Return the next chunk, ready to be decoded before the next of any reader; None if nothing changed in it."""
        found = self._next_chunk()
        if found is None:
            return None
        layout, streams, elements, shard = found
        with _located(self._delta.name, shard):
            chunk = decode_added(layout, streams, elements)
        self.exceptions += chunk.exceptions.size
        return replace(chunk, delta=_LocatedDelta(chunk.delta, self._delta.name, shard))

    def next_replaced(self, out: Bits) -> None:
        """Decode the next chunk of a replaced tensor that is not zero to ``out``."""
        found = self._next_chunk()
        assert found is not None
        layout, streams, _, shard = found
        with _located(self._delta.name, shard):
            decode_replaced(layout, streams, out)

    def _next_chunk(self) -> tuple[Layout, list[memoryview], int, str] | None:
        """Return the next chunk's layout, streams, number of elements and shard, or None if nothing changed in it."""
        delta, index = self._delta, self._next // CHUNK_ELEMENTS
        elements = min(CHUNK_ELEMENTS, delta.elements - self._next)
        self._next += elements
        for part in delta.parts:
            if index < part.chunks:
                break
            index -= part.chunks
        if part.shard is None:
            return None
        if self._opened is None or self._opened[0] is not part:
            layout = Layout(part.codec, delta.dtype, part.chunks, delta.effect == "add")
            reader = PayloadReader(self._shards[part.shard], part, layout, f"tensor {delta.name!r}")
            self._opened = part, layout, reader
        _, layout, reader = self._opened
        return layout, reader.chunk(index), elements, part.shard


@contextlib.contextmanager
def _located(tensor: str, shard: str) -> Iterator[None]:
    """Add shard and tensor to the errors of codecs, which know neither."""
    try:
        yield
    except PackageError as error:
        if error.where is None:
            error.what = f"tensor {tensor!r}: {error.what}"
            error.where = shard
            error.remedy = error.remedy or "the file was damaged or changed; get the package again"
        raise


class _LocatedDelta:
    """A chunk's delta, whose errors tell shard and tensor."""

    def __init__(self, delta: Delta, tensor: str, shard: str) -> None:
        self._delta, self._place = delta, (tensor, shard)

    def add(self, kind: Float, target: Bits, weight: float, out: Bits) -> int:
        with _located(*self._place):
            return self._delta.add(kind, target, weight, out)

    def accumulate(self, total: Wide, weight: float) -> None:
        with _located(*self._place):
            self._delta.accumulate(total, weight)

    def values(self, out: Wide) -> Wide:
        with _located(*self._place):
            return self._delta.values(out)


def delta_chunks(record: TensorRecord, locations: Locations, shards: OpenFiles, buffer: str) -> Iterator[Wide]:
    """Yield Δ of an added tensor, flat and in the wide type, a chunk at a time.

    A chunk lives in this thread's ``buffer`` until the next one.

    Args:
        record: the tensor.
        locations: where each payload is.
        shards: open files of the package.
        buffer: a name that no other tensor decoded at the same time uses.

    Raises:
        PackageError: damaged.
    """
    reader = DeltaReader(StoredDelta.of(record, locations), shards)
    wide = FLOATS[record.dtype].wide
    for start in range(0, record.elements, CHUNK_ELEMENTS):
        values = scratch(buffer, min(CHUNK_ELEMENTS, record.elements - start), wide)
        chunk = reader.next_added()
        if chunk is None:
            values.fill(0)
        yield values if chunk is None else chunk.delta.values(values)
