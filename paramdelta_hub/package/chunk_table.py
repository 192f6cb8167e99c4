"""The table at the end of a payload: for each of its chunks, how long the streams are, and the digest of its bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["DIGEST_BYTES", "make_table", "table_row"]

DIGEST_BYTES = 32


def table_row(columns: int) -> np.dtype[Any]:
    """Return the type of a row: the lengths of that many streams, and the digest of the chunk's bytes."""
    return np.dtype([("lengths", "<u4", (columns,)), ("digest", np.uint8, (DIGEST_BYTES,))])


def make_table(lengths: Sequence[Sequence[int]], digests: Sequence[bytes]) -> bytes:
    """Return the table of at least one chunk, given the lengths of each one's streams, and its digest."""
    rows = np.empty(len(lengths), table_row(len(lengths[0])))
    rows["lengths"] = lengths
    rows["digest"] = np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), DIGEST_BYTES)
    return rows.tobytes()
