"""What every codec of replaced tensors promises, checked on one chunk."""

from __future__ import annotations

import numpy as np

from paramdelta_hub.codecs.by_name import REPLACING
from tests.support.spec_reader import replacing


def roundtrip(name: str, values: np.ndarray) -> list[bytes]:
    """Encode and decode a chunk, by the package and by the specification's reader; return its streams."""
    codec = REPLACING[name]
    before = values.copy()
    streams = codec.encode(values)
    assert np.array_equal(values, before), "encoding leaves its input alone"
    assert len(streams) == codec.streams(values.itemsize)
    assert streams == codec.encode(values.copy()), "equal chunks give equal streams"
    out = np.full(values.size, 0x5A, values.dtype)
    codec.decode([memoryview(stream) for stream in streams], out)
    assert np.array_equal(out, values)
    assert np.array_equal(replacing(name, streams, values.size, values.itemsize), values)
    return streams
