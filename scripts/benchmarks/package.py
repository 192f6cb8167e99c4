"""Where a package's bytes are, stream by stream, and how few they could be."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.codecs.by_name import TANS
from paramdelta_hub.limits import CHUNK_ELEMENTS
from paramdelta_hub.package.chunks import Layout, decode_added, decode_replaced
from paramdelta_hub.package.manifest import LINEAGE_NAME, MANIFEST_NAME
from paramdelta_hub.package.package import open_package
from paramdelta_hub.package.tensor_delta import PayloadReader, StoredDelta

__all__ = ["anatomy"]

_LENGTHS = struct.Struct("<3I")
"""Bits of the two streams of states and of the raw fields: the first of a chunk's values (SPEC-v1, 5.1)."""


def anatomy(package: Path) -> dict[str, Any]:
    """Return where a package's bytes are, and the bound.

    The bound is the order-0 entropy of each chunk's own values, which no coder that has one table a chunk can go below,
    plus exceptions and their digests as they are stored.
    """
    opened = open_package(package)
    places = opened.payload_locations()
    stored: Counter[str] = Counter()
    entropy, elements, exceptions = 0.0, 0, 0
    for record in opened.manifest.tensors:
        elements += record.elements
        left = record.elements
        for part in StoredDelta.of(record, places).parts:
            if part.shard is None:
                left -= part.chunks * CHUNK_ELEMENTS
                continue
            layout = Layout(part.codec, record.dtype, part.chunks, record.effect == "add")
            with open(part.shard, "rb", buffering=0) as file:
                reader = PayloadReader(file.fileno(), part, layout, record.name)
                for index in range(part.chunks):
                    streams = reader.chunk(index)
                    for name, nbytes in _parts(layout, streams):
                        stored[name] += nbytes
                    if layout.added:
                        exceptions += sum(map(len, streams[TANS.streams :]))
                    entropy += _entropy(_values(layout, streams, min(CHUNK_ELEMENTS, left)))
                    left -= CHUNK_ELEMENTS
            stored["chunk tables"] += layout.table_bytes
    sizes = {path.relative_to(package): path.stat().st_size for path in package.rglob("*") if path.is_file()}
    shards = [Path(shard.path) for shard in opened.manifest.shards]
    stored["shard headers"] = sum(map(sizes.pop, shards)) - sum(stored.values())
    stored["lineage samples"] = sizes.pop(Path(LINEAGE_NAME))
    stored["manifest"] = sizes.pop(Path(MANIFEST_NAME))
    stored["companions"] = sum(sizes.values())
    return {
        "elements": elements,
        "bytes": dict(+stored),
        "bound_bytes": entropy / 8 + exceptions,
        "entropy_bytes": entropy / 8,
    }


def _parts(layout: Layout, streams: Sequence[memoryview]) -> Iterator[tuple[str, int]]:
    """Return the parts of a chunk, and their bytes."""
    if not layout.added:
        yield from ((f"{layout.codec} {index}", len(stream)) for index, stream in enumerate(streams))
        return
    gaps, values, exception_gaps, *numbers, digest = streams
    even, odd, raw = (-(-bits // 8) for bits in _LENGTHS.unpack_from(values))
    yield "positions of changes", len(gaps)
    yield "tables of symbols", len(values) - even - odd - raw
    yield "symbols", even + odd
    yield "raw fields", raw
    yield "exceptions, gaps", len(exception_gaps)
    yield "exceptions, numbers", sum(map(len, numbers))
    yield "exceptions, digests", len(digest)


def _values(layout: Layout, streams: Sequence[memoryview], count: int) -> NDArray[Any]:
    """Decode a chunk: the bits of the wide differences, or post's values."""
    if layout.added:
        delta = decode_added(layout, streams, count).delta
        return delta.values(np.empty(count, layout.float.wide)).view(layout.float.wide_bits)
    out = np.empty(count, f"u{layout.itemsize}")
    decode_replaced(layout, streams, out)
    return out


def _entropy(values: NDArray[Any]) -> float:
    """Return the order-0 entropy of values, in bits, all together."""
    counts = np.unique(values, return_counts=True)[1]
    return float(-(counts * np.log2(counts / values.size)).sum())
