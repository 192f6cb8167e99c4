"""The tasks of an extraction: encode a group of tensors to one delta shard, or digest one source file.

A task is JSON (see :mod:`paramdelta_hub.tasks.plan`), with views as in :mod:`paramdelta_hub.checkpoints.tensor_sources`; what
``record`` holds goes to the manifest as it is::

    {"kind": "encode", "bytes": …, "piece": "000001.safetensors",
     "tensors": [{"name", "dtype", "shape", "nbytes", "base": view, "post": view, "record": {…}}, …]}
    {"kind": "digest", "bytes": …, "file": …}
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.checkpoints.tensor_sources import open_view
from paramdelta_hub.codecs import ZERO, Codec, candidates
from paramdelta_hub.errors import CheckpointError
from paramdelta_hub.fileio.digests import begin_digest
from paramdelta_hub.fileio.durable import file_digest
from paramdelta_hub.fileio.open_files import Descriptors
from paramdelta_hub.fileio.safetensors import ITEM_SIZES
from paramdelta_hub.limits import CHUNK_ELEMENTS
from paramdelta_hub.numerics.floats import FLOATS, Bits, Difference, NotFiniteChunkError, Statistics
from paramdelta_hub.numerics.kernels import Kernel
from paramdelta_hub.numerics.scratch import scratch
from paramdelta_hub.package.chunks import encode_added
from paramdelta_hub.package.payload import PayloadWriter, ShardWriter

__all__ = ["run_extract_task"]

GOOD_ENOUGH = 5 / 8
"""A codec that brings a chunk below this share of its size is taken without trying the others: on no measured pair did
byte planes beat a palette that reached 10 of 16 bits."""


def run_extract_task(
    task: dict[str, Any], pieces: Path, kernel: Kernel, advance: Callable[[int], None]
) -> dict[str, Any]:
    """Do one task and return its outcome, plain JSON.

    Args:
        task: as planned.
        pieces: the folder that encoded shards are written to.
        kernel: does the arithmetic.
        advance: called with the number of source bytes handled; may raise to stop the task.

    Raises:
        CheckpointError: a source file was truncated or can't be read.
    """
    if task["kind"] == "digest":
        digest, _ = file_digest(Path(task["file"]), CheckpointError, follow=True, advance=advance)
        return {"file": task["file"], "sha256": digest}
    path = pieces / task["piece"]
    shard = ShardWriter(path, [tensor["name"] for tensor in task["tensors"]])
    records: list[dict[str, Any]] = []
    not_finite: list[list[Any]] = []
    try:
        with Descriptors(CheckpointError) as files:
            for tensor in task["tensors"]:
                encoder = _Encoder(tensor, shard.payload(tensor["name"]), kernel)
                try:
                    _feed(encoder, tensor, files, advance)
                    records.append(encoder.finish())
                except NotFiniteChunkError as error:
                    encoder.drop()
                    not_finite.append([tensor["name"], error.base, error.post])
    except BaseException:
        shard.abort()
        raise
    if not_finite:
        shard.abort()
        return {"not_finite": not_finite}
    if not shard.close():
        return {"piece": None, "tensors": records}
    digest, size = file_digest(path)
    return {"piece": task["piece"], "size": size, "sha256": digest, "tensors": records}


def _feed(encoder: _Encoder, tensor: dict[str, Any], files: Descriptors, advance: Callable[[int], None]) -> None:
    """Read base and post chunk by chunk into this thread's buffers and hand them on."""
    base_values, post_values = open_view(tensor["base"], files), open_view(tensor["post"], files)
    itemsize = encoder.dtype.itemsize
    step = CHUNK_ELEMENTS * itemsize
    for start in range(0, tensor["nbytes"], step):
        length = min(step, tensor["nbytes"] - start)
        base, post = scratch("base", length, np.uint8), scratch("post", length, np.uint8)
        base_values.read(start // itemsize, base)
        post_values.read(start // itemsize, post)
        encoder.add(base, post)
        advance(2 * length)


class _Encoder:
    """One tensor, chunk by chunk: digests of base and post, the payload, and the record for the manifest.

    Chunks without change are held back until a changed one shows which codec is best; if none comes, the tensor is
    ``zero`` and has no payload.
    """

    def __init__(self, tensor: dict[str, Any], payload: PayloadWriter, kernel: Kernel) -> None:
        self._tensor, self._payload, self._kernel = tensor, payload, kernel
        self.dtype = np.dtype(f"u{ITEM_SIZES[tensor['dtype']]}")
        self._added = tensor["dtype"] in FLOATS
        self._base_digest, self._post_digest = begin_digest(), begin_digest()
        self._stats = Statistics()
        self._codec: Codec | None = None
        self._unchanged = 0

    def add(self, base: NDArray[np.uint8], post: NDArray[np.uint8]) -> None:
        """Take the next chunk of both sides, as bytes."""
        self._base_digest.update(base.data)
        self._post_digest.update(post.data)
        little = self.dtype.newbyteorder("<")
        base_bits = base.view(little).astype(self.dtype, copy=False)
        post_bits = post.view(little).astype(self.dtype, copy=False)
        if self._added:
            self._add_float(base_bits, post_bits)
        else:
            self._stats.changed += int(np.count_nonzero(base_bits != post_bits))
            self._payload.append(self._encode(post_bits))

    def _add_float(self, base: Bits, post: Bits) -> None:
        kind = FLOATS[self._tensor["dtype"]]
        symbols = scratch("symbols", base.size, self.dtype)
        chunk = self._kernel.subtract(kind, base, post, symbols)
        self._stats.add(chunk.statistics)
        if self._codec is None and chunk.is_zero:
            self._unchanged += 1
            return
        coded = self._encode(chunk.symbols)
        self._catch_up()
        self._payload.append(encode_added(coded, chunk, base, post))

    def _catch_up(self) -> None:
        """Write the chunks that were held back; they are full ones, since another chunk followed."""
        if self._unchanged:
            nothing = np.empty(0, np.intp)
            zeros = np.zeros(CHUNK_ELEMENTS, self.dtype)
            rest = np.empty(0, FLOATS[self._tensor["dtype"]].wide_bits)
            still = Difference(zeros, nothing, rest, nothing, Statistics())
            streams = encode_added(self._encode(zeros), still, zeros, zeros)
            for _ in range(self._unchanged):
                self._payload.append(streams)
            self._unchanged = 0

    def _encode(self, symbols: Bits) -> list[bytes]:
        """Return the symbols' streams; the first chunk to come here decides by its size which codec the tensor has."""
        if self._codec is not None:
            return self._codec.encode(symbols, self._kernel)
        tried: list[tuple[int, int, Codec, list[bytes]]] = []
        for order, codec in enumerate(candidates(self.dtype.itemsize)):
            streams = codec.encode(symbols, self._kernel)
            size = sum(len(stream) for stream in streams)
            tried.append((size, order, codec, streams))
            if size <= GOOD_ENOUGH * symbols.nbytes:
                break
        *_, self._codec, streams = min(tried, key=lambda trial: trial[:2])
        return streams

    def finish(self) -> dict[str, Any]:
        """Return the tensor's record; the payload is complete, or dropped where nothing changed."""
        base, post = self._base_digest.hexdigest(), self._post_digest.hexdigest()
        if self._codec is None or (not self._added and base == post):
            self._payload.drop()
            codec, nbytes, payload_digest = ZERO, 0, None
        else:
            codec = self._codec.name
            nbytes, payload_digest = self._payload.finish()
        return {
            **self._tensor["record"],
            "name": self._tensor["name"],
            "dtype": self._tensor["dtype"],
            "shape": self._tensor["shape"],
            "effect": "add" if self._added else "replace",
            "codec": codec,
            "nbytes": nbytes,
            "payload_blake3": payload_digest,
            "base_blake3": base,
            "post_blake3": post,
            "base_norm": _six_digits(math.sqrt(self._stats.base_square)),
            "delta_norm": _six_digits(math.sqrt(self._stats.delta_square)),
            "changed": self._stats.changed,
            "remainders": self._stats.remainders,
            "exceptions": self._stats.exceptions,
        }

    def drop(self) -> None:
        """Forget the tensor."""
        self._payload.drop()


def _six_digits(value: float) -> float:
    """Round a figure for people, so that the last bits of a sum do not change a package's id between machines."""
    return float(f"{value:.6g}")
