"""Θ' + Σ wᵢΔᵢ for one tensor, chunk by chunk: payloads decoded, added to the target's values, rounded once."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub import engines
from paramdelta_hub.arithmetic import FLOATS, Bits, Wide
from paramdelta_hub.buffers import scratch
from paramdelta_hub.codecs import ZERO, codec_named
from paramdelta_hub.errors import PackageError
from paramdelta_hub.format.chunks import AddedChunk, Layout, decode_added, decode_replaced
from paramdelta_hub.format.descriptors import Descriptors
from paramdelta_hub.format.headers import ITEM_SIZES
from paramdelta_hub.format.payload import PayloadReader

__all__ = ["ChunkAdder", "Payload", "is_base", "little"]


class Payload:
    """One delta's payload for one tensor, chunk by chunk; ``zero`` ones have nothing to read."""

    def __init__(self, delta: dict[str, Any], dtype: str, elements: int, shards: Descriptors) -> None:
        self.weight: float = delta["weight"]
        self._delta = delta
        self._remainders = self._exceptions = 0
        self._reader: PayloadReader | None = None
        if delta["codec"] != ZERO:
            codec, added = codec_named(delta["codec"]), delta["effect"] == "add"
            self._layout = Layout(codec, dtype, elements, added)
            self._reader = PayloadReader(
                shards[delta["shard"]], delta["start"], delta["nbytes"], self._layout, delta["shard"]
            )

    def next_added(self, out: Wide) -> AddedChunk | None:
        """Decode the next chunk to ``out`` (wide); None where nothing but +0 is added."""
        if self._reader is None:
            return None
        with _located(self._delta):
            chunk = decode_added(self._layout, self._reader.next_chunk(), out)
        self._remainders += chunk.remainders
        self._exceptions += chunk.exceptions.size
        return chunk

    def next_replaced(self, out: Bits) -> None:
        """Decode the next chunk of a replaced tensor to ``out``."""
        assert self._reader is not None
        with _located(self._delta):
            decode_replaced(self._layout, self._reader.next_chunk(), out)

    def finish(self) -> None:
        """Check the payload's digest and what was counted in it.

        Raises:
            PackageError: not what the manifest promises.
        """
        if self._reader is None:
            return
        self._reader.finish(self._delta["sha256"], self._delta["name"])
        if [self._remainders, self._exceptions] != self._delta["counts"]:
            what = f"tensor {self._delta['name']!r} has other numbers of remainders and exceptions than promised"
            raise PackageError(what, where=self._delta["shard"])


@contextlib.contextmanager
def _located(delta: dict[str, Any]) -> Iterator[None]:
    """Add shard and tensor to the errors of codecs, which know neither."""
    try:
        yield
    except PackageError as error:
        if error.where is None:
            error.what = f"tensor {delta['name']!r}: {error.what}"
            error.where = delta["shard"]
            error.remedy = error.remedy or "the file was damaged or changed; get the package again"
        raise


class ChunkAdder:
    """Θ' + Σ wᵢΔᵢ for one tensor, chunk after chunk: summed in the wide type, in the deltas' order, rounded once.

    A lone delta of weight 1 whose chunk has exceptions looks at the digest of the target's chunk: on base's own the
    result is post, to the bit; on any other target the sum stands.
    """

    def __init__(self, tensor: dict[str, Any], shards: Descriptors) -> None:
        self._dtype: str = tensor["dtype"]
        deltas = [Payload(delta, self._dtype, tensor["elements"], shards) for delta in tensor["deltas"]]
        effects = {delta["effect"] for delta in tensor["deltas"]}
        self._payloads = deltas
        self._replaces = effects == {"replace"} and tensor["deltas"][-1]["codec"] != ZERO
        self._adds = "add" in effects
        self._is_plain = len(deltas) == 1 and deltas[0].weight == 1.0
        self.not_finite = 0

    def add(self, target: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the result's bytes for the next chunk; they live in this thread's buffer until its next use."""
        if not (self._adds or self._replaces):
            return target
        result = scratch("result", target.size, np.uint8)
        if self._replaces:
            bits = result.view(f"u{ITEM_SIZES[self._dtype]}")
            for payload in self._payloads:
                payload.next_replaced(bits)
            return little(bits)
        kind = FLOATS[self._dtype]
        bits = target.view(kind.bits.newbyteorder("<")).astype(kind.bits, copy=False)
        chunks = []
        for index, payload in enumerate(self._payloads):
            chunks.append(payload.next_added(scratch(f"delta {index}", bits.size, kind.wide)))
        out = result.view(kind.bits)
        deltas = [
            (chunk.delta if chunk else None, payload.weight)
            for chunk, payload in zip(chunks, self._payloads, strict=True)
        ]
        self.not_finite += engines.current().add(kind, bits, deltas, out)
        if self._is_plain and is_base(target, chunks[0]):
            [exact] = chunks
            assert exact is not None
            replaced = kind.widen(out[exact.exceptions], np.empty(exact.exceptions.size, kind.wide))
            self.not_finite -= kind.count_not_finite(replaced)
            out[exact.exceptions] = exact.exact
        return little(out)

    def finish(self) -> None:
        """Check every payload's digest.

        Raises:
            IntegrityError: one is not what its manifest promises.
        """
        for payload in self._payloads:
            payload.finish()


def is_base(target: NDArray[np.uint8], chunk: AddedChunk | None) -> bool:
    """Whether a chunk has exceptions and the target's values are base's own, to which they apply."""
    return bool(
        chunk is not None and chunk.exceptions.size and hashlib.sha256(target.data).digest() == chunk.base_digest
    )


def little(bits: Bits) -> NDArray[np.uint8]:
    """Return the little-endian bytes of symbols; a view, on all but big-endian machines."""
    return bits.astype(bits.dtype.newbyteorder("<"), copy=False).view(np.uint8)
