"""What this machine could do at most: rates of the work that a command can't do without.

Rates are medians of a few rounds, on one core and on all; bytes are counted before compression. What a command must do
follows from its promises: read its inputs, write its output durably, decode or encode it, and hash what a later reader
will check. Arithmetic is not listed: at the speed of memory it costs nothing beside these.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.codecs.by_name import TANS
from paramdelta_hub.fileio.digests import chunk_digest
from paramdelta_hub.numerics.scratch import scratch

__all__ = ["WORK", "measure"]

ROUNDS = 5
CHUNK = 1 << 20
LARGE = 256 << 20
"""More than any cache holds."""

# Bytes of each kind of work, for models of M and a package of P bytes.
WORK: dict[str, dict[str, Callable[[float, float], float]]] = {
    "extract": {
        "read base and post": lambda m, p: 2 * m,
        "BLAKE3 of base, post and payloads": lambda m, p: 2 * m + p,
        "sha256 of the package": lambda m, p: p,
        "tANS, encode": lambda m, p: m,
        "write the package, with fsync": lambda m, p: p,
    },
    "apply": {
        "read target and package": lambda m, p: m + p,
        "BLAKE3 of payloads and result": lambda m, p: m + p,
        "tANS, decode": lambda m, p: m,
        "write the result, with fsync": lambda m, p: m,
    },
}


def measure(work: Path) -> dict[str, dict[str, float]]:
    """Return bytes a second of each kind of work, on one core (``one``) and on all of them (``all``)."""
    delta = _delta()
    streams = TANS.encode(delta)
    source = np.ones(LARGE, np.uint8)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        path = Path(folder) / "input"
        path.write_bytes(source.data)
        kinds: dict[str, Callable[[], int]] = {
            "memcpy": _copier(source),
            "read": lambda: _read(path),
            "BLAKE3": lambda: _times(256, lambda: chunk_digest(source[:CHUNK]), CHUNK),
            "sha256": lambda: _times(64, lambda: hashlib.sha256(source[:CHUNK].data), CHUNK),
            "tANS, encode": lambda: _times(32, lambda: TANS.encode(delta), 2 * CHUNK),
            "tANS, decode": lambda: _times(64, lambda: _decode(streams), 2 * CHUNK),
            "write": lambda: _write(Path(folder), source),
        }
        cores = len(os.sched_getaffinity(0))
        return {kind: {"one": _rate(step, 1), "all": _rate(step, cores)} for kind, step in kinds.items()}


def _rate(step: Callable[[], int], threads: int) -> float:
    """Return bytes a second of ``step`` in that many threads: the median of some rounds, a first one left out."""
    rates = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(ROUNDS + 1):
            begun = time.perf_counter()
            nbytes = sum(pool.map(lambda _: step(), range(threads)))
            rates.append(nbytes / (time.perf_counter() - begun))
    return statistics.median(rates[1:])


def _times(count: int, step: Callable[[], Any], nbytes: int) -> int:
    for _ in range(count):
        step()
    return count * nbytes


def _copier(source: NDArray[np.uint8]) -> Callable[[], int]:
    own = threading.local()

    def copy() -> int:
        if not hasattr(own, "target"):
            own.target = np.zeros_like(source)
        np.copyto(own.target, source)
        return source.size

    return copy


def _read(path: Path) -> int:
    """Read a file that lies in the page cache, through one small buffer."""
    buffer, total = bytearray(4 << 20), 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            total += count
    return total


def _write(folder: Path, source: NDArray[np.uint8]) -> int:
    """Write a new file, its space reserved first, and wait for the disk."""
    descriptor, name = tempfile.mkstemp(dir=folder)
    try:
        os.posix_fallocate(descriptor, 0, source.size)
        for start in range(0, source.size, 4 << 20):
            os.pwrite(descriptor, source[start : start + (4 << 20)].data, start)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
        os.unlink(name)
    return source.size


def _decode(streams: list[bytes]) -> None:
    wide = np.dtype(np.float32)
    TANS.open(streams, CHUNK, wide).values(scratch("decoded", CHUNK, wide))


def _delta() -> NDArray[np.float32]:
    """Return what the coder gets: the deltas of a generated pair (3 %) of 16-bit weights, two bytes each."""
    random = np.random.default_rng(0)
    base = random.standard_normal(CHUNK, np.float32)
    post = base + np.float32(0.03) * random.standard_normal(CHUNK, np.float32)
    cut = [(values.view(np.uint32) & 0xFFFF0000).view(np.float32) for values in (base, post)]
    return cut[1] - cut[0]
