"""Where a package's bytes are, stream by stream, and how few they could be."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from paramdelta_hub.numerics.kernels import kernel_for

from paramdelta_hub.codecs import codec_named
from paramdelta_hub.codecs.sparse import sparse_streams
from paramdelta_hub.package.chunks import Layout
from paramdelta_hub.package.manifest import LINEAGE_NAME, MANIFEST_NAME
from paramdelta_hub.package.package import open_package
from paramdelta_hub.package.tensor_delta import PayloadReader

__all__ = ["anatomy"]

STREAMS = {"palette": ("positions of changes", "palettes", "ranks", "escapes, low bytes", "escapes, high bytes")}
"""What the streams of a codec hold; those of the others go by number."""


def anatomy(package: Path) -> dict[str, Any]:
    """Return where a package's bytes are, and the bound.

    The bound is the order-0 entropy of each chunk's own symbols, which no coder without context can go below, plus
    remainders, exceptions and their digests as they are stored: they make sums faithful on any target.
    """
    opened = open_package(package)
    places = opened.payload_locations()
    stored: Counter[str] = Counter()
    entropy, elements, faithful = 0.0, 0, 0
    kernel = kernel_for(opened.manifest.model_nbytes)
    for record in opened.manifest.tensors:
        elements += record.elements
        if record.shard is None:
            continue
        codec = codec_named(record.codec.name)
        layout = Layout(codec, record.dtype, record.elements, record.effect == "add")
        path, start = places[record.name]
        with open(path, "rb", buffering=0) as file:
            reader = PayloadReader(file.fileno(), start, record.nbytes, layout, record.shard)
            names = _stream_names(layout)
            count = codec.streams(record.itemsize)
            for index in range(layout.chunks):
                place = layout.chunk(index)
                streams = reader.next_chunk()
                for name, stream in zip(names, streams, strict=True):
                    stored[name] += len(stream)
                faithful += sum(len(stream) for stream in streams[count:])
                symbols = np.empty(place.stop - place.start, layout.symbol)
                codec.decode(streams[:count], symbols, kernel)
                entropy += _entropy(symbols)
        stored["chunk tables"] += layout.table_bytes
    sizes = {path.relative_to(package): path.stat().st_size for path in package.rglob("*") if path.is_file()}
    shards = {record.shard for record in opened.manifest.tensors if record.shard}
    stored["shard headers"] = sum(sizes.pop(Path(shard)) for shard in shards) - sum(stored.values())
    stored["lineage samples"] = sizes.pop(Path(LINEAGE_NAME))
    stored["manifest"] = sizes.pop(Path(MANIFEST_NAME))
    stored["companions"] = sum(sizes.values())
    return {
        "elements": elements,
        "bytes": dict(+stored),
        "bound_bytes": entropy / 8 + faithful,
        "entropy_bytes": entropy / 8,
    }


def _stream_names(layout: Layout) -> list[str]:
    """Return a name for each column of a layout's table."""
    count = layout.codec.streams(layout.symbol.itemsize)
    known = STREAMS.get(layout.codec.name, ())
    names = list(known) if len(known) == count else [f"{layout.codec.name} {index}" for index in range(count)]
    if layout.added:
        for part, itemsize in (("remainders", layout.float.wide.itemsize), ("exceptions", layout.float.itemsize)):
            names += [f"{part}, {what}" for what in ("gaps", *["numbers"] * (sparse_streams(itemsize) - 1))]
        names.append("exceptions, digests")
    return names


def _entropy(symbols: NDArray[Any]) -> float:
    """Return the order-0 entropy of 16-bit symbols, in bits, all together."""
    counts = np.bincount(symbols, minlength=1 << 16)
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / symbols.size)).sum())
