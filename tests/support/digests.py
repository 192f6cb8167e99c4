"""The digest of a tensor's values, as the format says (SPEC-v1 §9)."""

from __future__ import annotations

from blake3 import blake3

CHUNK = 1 << 20


def tensor_digest(values: bytes | memoryview, itemsize: int) -> str:
    """Return the digest (hex) of values that lie in memory."""
    view = memoryview(values).cast("B")
    starts = range(0, len(view), CHUNK * itemsize)
    return blake3(b"".join(blake3(view[start : start + CHUNK * itemsize]).digest() for start in starts)).hexdigest()
