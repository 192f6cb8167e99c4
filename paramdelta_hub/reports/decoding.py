"""Deltas chunk by chunk as they are decoded, for measures that keep sums and forget the weights."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from paramdelta_hub.arithmetic import Wide
from paramdelta_hub.buffers import scratch
from paramdelta_hub.codecs import codec_named
from paramdelta_hub.errors import PackageError
from paramdelta_hub.format.chunks import Layout, decode_added
from paramdelta_hub.format.descriptors import Descriptors
from paramdelta_hub.format.manifest import TensorRecord
from paramdelta_hub.format.payload import PayloadReader

__all__ = ["delta_chunks"]


def delta_chunks(record: TensorRecord, place: tuple[str, int], shards: Descriptors, buffer: str) -> Iterator[Wide]:
    """Yield Δ of an added tensor that has a payload, flat and in the wide type, a chunk at a time.

    A chunk lives in this thread's ``buffer`` until the next one. What was made of them counts only once the iterator
    has ended: the payload's digest is checked after the last chunk.

    Args:
        record: the tensor.
        place: its shard and its start there.
        shards: open files of the package.
        buffer: a name that no other tensor decoded at the same time uses.

    Raises:
        PackageError: damaged.
    """
    layout = Layout(codec_named(record.codec.name), record.dtype, record.elements, added=True)
    shard, start = place
    reader = PayloadReader(shards[shard], start, record.nbytes, layout, shard)
    counts = np.zeros(2, np.int64)
    for index in range(layout.chunks):
        part = layout.chunk(index)
        out = scratch(buffer, part.stop - part.start, layout.float.wide)
        try:
            chunk = decode_added(layout, reader.next_chunk(), out)
        except PackageError as error:
            raise PackageError(
                f"tensor {record.name!r}: {error.what}", where=error.where or shard, remedy=error.remedy
            ) from None
        counts += (chunk.remainders, chunk.exceptions.size)
        yield chunk.delta
    assert record.payload_sha256 is not None
    reader.finish(record.payload_sha256, record.name)
    if counts.tolist() != [record.remainders, record.exceptions]:
        what = f"tensor {record.name!r} has other numbers of remainders and exceptions than promised"
        raise PackageError(what, where=shard)
