"""One tensor's delta: where a package keeps it, and its chunks, decoded and checked against all that is promised."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from paramdelta_hub.codecs import ZERO
from paramdelta_hub.errors import PackageError
from paramdelta_hub.fileio.digests import begin_digest, check_digest
from paramdelta_hub.fileio.durable import read_exactly
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.fileio.paths import PathText
from paramdelta_hub.limits import CHUNK_ELEMENTS
from paramdelta_hub.numerics.floats import FLOATS, Bits, Float, Wide
from paramdelta_hub.numerics.scratch import scratch
from paramdelta_hub.numerics.sums import Delta
from paramdelta_hub.package.chunks import AddedChunk, Layout, decode_added, decode_replaced
from paramdelta_hub.package.manifest import TensorRecord

__all__ = ["DeltaReader", "PayloadReader", "StoredDelta", "delta_chunks"]


@dataclass(frozen=True, slots=True)
class StoredDelta:
    """Where a package keeps one tensor's delta, and what its manifest promises of it.

    Args:
        name: the tensor's name in the package.
        dtype: of the delta: the one that holds both base and post.
        elements: how many it has.
        effect: ``add`` for the difference of floats, ``replace`` for other values, which are kept whole.
        codec: the name of the codec; ``zero`` if nothing changed.
        shard: the path of the file with the payload; None for ``zero``.
        start: where the payload begins in the shard.
        nbytes: the size of the payload.
        digest: the BLAKE3 digest of the payload.
        base_digest: the BLAKE3 digest of base's values, in the delta's dtype.
        exceptions: how many elements no sum with base reaches.
    """

    name: str
    dtype: str
    elements: int
    effect: Literal["add", "replace"]
    codec: str
    shard: PathText | None
    start: int
    nbytes: int
    digest: str | None
    base_digest: str
    exceptions: int

    @classmethod
    def of(cls, record: TensorRecord, locations: Mapping[str, tuple[str, int]]) -> StoredDelta:
        """Return where the delta of a manifest's tensor is; ``locations`` has each payload's shard and start."""
        shard, start = locations.get(record.name, (None, 0))
        return cls(
            name=record.name,
            dtype=record.dtype,
            elements=record.elements,
            effect=record.effect,
            codec=record.codec.name,
            shard=shard,
            start=start,
            nbytes=record.nbytes,
            digest=record.payload_blake3,
            base_digest=record.base_blake3,
            exceptions=record.exceptions,
        )

    @property
    def is_zero(self) -> bool:
        """Whether there is no payload, as nothing changed."""
        return self.codec == ZERO


class PayloadReader:
    """Reads one payload chunk by chunk from an open shard, and proves at the end that it was the promised one.

    Chunks are handed out before the digest is known: whatever is made of them must not become visible before
    :meth:`finish` has returned.
    """

    def __init__(self, descriptor: int, start: int, nbytes: int, layout: Layout, where: str) -> None:
        self._descriptor, self._position, self._layout, self._where = descriptor, start, layout, where
        if layout.table_bytes > nbytes:
            raise PackageError("the payload is smaller than its chunk table", where=where)
        self._table = np.empty(layout.table_bytes, np.uint8)
        read_exactly(descriptor, self._table, start + nbytes - layout.table_bytes, PackageError, where)
        self._lengths = layout.parse_table(self._table, nbytes, where)
        self._digest = begin_digest()
        self._next = 0

    def next_chunk(self) -> list[memoryview]:
        """Return the streams of the next chunk; they live in this thread's buffer until the next call of any reader."""
        lengths = self._lengths[self._next]
        chunk = scratch("payload", int(lengths.sum()), np.uint8)
        read_exactly(self._descriptor, chunk, self._position, PackageError, self._where)
        self._digest.update(chunk.data)
        self._position += chunk.size
        self._next += 1
        return self._layout.cut(chunk.data, lengths)

    def finish(self, promised: str, name: str) -> None:
        """Check that all chunks were read and that the payload is what the manifest promises.

        Raises:
            IntegrityError: it is not.
        """
        if self._next != self._layout.chunks:
            raise AssertionError("finish() before the last chunk")
        self._digest.update(self._table.data)
        check_digest(self._digest.hexdigest(), promised, f"the payload of tensor {name!r}", self._where)


class DeltaReader:
    """Reads one tensor's delta chunk by chunk.

    The chunks can be relied on only once :meth:`finish` has returned: it checks the digest of the payload.
    """

    def __init__(self, delta: StoredDelta, shards: OpenFiles) -> None:
        self._delta = delta
        self._exceptions = 0
        self._left = delta.elements
        self._reader: PayloadReader | None = None
        if not delta.is_zero:
            assert delta.shard is not None
            self._layout = Layout(delta.codec, delta.dtype, delta.elements, delta.effect == "add")
            self._reader = PayloadReader(shards[delta.shard], delta.start, delta.nbytes, self._layout, delta.shard)

    def next_added(self) -> AddedChunk | None:
        """Return the next chunk, ready to be decoded before the next of any reader; None if the delta is zero."""
        if self._reader is None:
            return None
        with _located(self._delta):
            elements = min(CHUNK_ELEMENTS, self._left)
            chunk = decode_added(self._layout, self._reader.next_chunk(), elements)
        self._left -= elements
        self._exceptions += chunk.exceptions.size
        return replace(chunk, delta=_LocatedDelta(chunk.delta, self._delta))

    def next_replaced(self, out: Bits) -> None:
        """Decode the next chunk of a replaced tensor to ``out``."""
        assert self._reader is not None
        with _located(self._delta):
            decode_replaced(self._layout, self._reader.next_chunk(), out)

    def finish(self) -> None:
        """Check the digest of the payload, and the number of exceptions.

        Raises:
            PackageError: they are not what the manifest promises.
        """
        if self._reader is None:
            return
        delta = self._delta
        assert delta.digest is not None
        self._reader.finish(delta.digest, delta.name)
        if self._exceptions != delta.exceptions:
            what = f"tensor {delta.name!r} has another number of exceptions than promised"
            raise PackageError(what, where=delta.shard)


@contextlib.contextmanager
def _located(delta: StoredDelta) -> Iterator[None]:
    """Add shard and tensor to the errors of codecs, which know neither."""
    try:
        yield
    except PackageError as error:
        if error.where is None:
            error.what = f"tensor {delta.name!r}: {error.what}"
            error.where = delta.shard
            error.remedy = error.remedy or "the file was damaged or changed; get the package again"
        raise


class _LocatedDelta:
    """A chunk's delta, whose errors tell shard and tensor."""

    def __init__(self, delta: Delta, stored: StoredDelta) -> None:
        self._delta, self._stored = delta, stored

    def add(self, kind: Float, target: Bits, weight: float, out: Bits) -> int:
        with _located(self._stored):
            return self._delta.add(kind, target, weight, out)

    def accumulate(self, total: Wide, weight: float) -> None:
        with _located(self._stored):
            self._delta.accumulate(total, weight)

    def values(self, out: Wide) -> Wide:
        with _located(self._stored):
            return self._delta.values(out)


def delta_chunks(
    record: TensorRecord, locations: Mapping[str, tuple[str, int]], shards: OpenFiles, buffer: str
) -> Iterator[Wide]:
    """Yield Δ of an added tensor that has a payload, flat and in the wide type, a chunk at a time.

    A chunk lives in this thread's ``buffer`` until the next one. What was made of them counts only once the iterator
    has ended: the payload's digest is checked after the last chunk.

    Args:
        record: the tensor.
        locations: each tensor's shard and its start there.
        shards: open files of the package.
        buffer: a name that no other tensor decoded at the same time uses.

    Raises:
        PackageError: damaged.
    """
    reader = DeltaReader(StoredDelta.of(record, locations), shards)
    wide = FLOATS[record.dtype].wide
    for start in range(0, record.elements, CHUNK_ELEMENTS):
        chunk = reader.next_added()
        assert chunk is not None
        yield chunk.delta.values(scratch(buffer, min(CHUNK_ELEMENTS, record.elements - start), wide))
    reader.finish()
