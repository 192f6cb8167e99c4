"""Θ' + Σ wᵢΔᵢ for one tensor, chunk by chunk: payloads decoded, added to the target's values, rounded once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.codecs import ZERO
from paramdelta_hub.fileio.digests import values_digest
from paramdelta_hub.fileio.open_files import Descriptors
from paramdelta_hub.fileio.safetensors import ITEM_SIZES
from paramdelta_hub.numerics.floats import FLOATS, Bits, Float, Wide
from paramdelta_hub.numerics.kernels import Kernel
from paramdelta_hub.numerics.scratch import scratch
from paramdelta_hub.package.chunks import AddedChunk
from paramdelta_hub.package.tensor_delta import DeltaReader

__all__ = ["ChunkAdder", "is_base", "little"]


class ChunkAdder:
    """Θ' + Σ wᵢΔᵢ for one tensor, chunk after chunk: summed in the wide type, in the deltas' order, rounded once.

    One delta is decoded at a time, so that memory does not grow with their number. A lone delta of weight 1 whose chunk
    has exceptions looks at the digest of the target's chunk: on base's own the result is post, to the bit; on any other
    target the sum stands.
    """

    def __init__(self, tensor: dict[str, Any], shards: Descriptors, kernel: Kernel) -> None:
        self._kernel = kernel
        self._dtype: str = tensor["dtype"]
        deltas = [DeltaReader(delta, self._dtype, tensor["elements"], shards, kernel) for delta in tensor["deltas"]]
        effects = {delta["effect"] for delta in tensor["deltas"]}
        self._payloads = deltas
        self._replaces = effects == {"replace"} and tensor["deltas"][-1]["codec"] != ZERO
        self._adds = "add" in effects
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
        out = result.view(kind.bits)
        if len(self._payloads) == 1:
            [payload] = self._payloads
            chunk = self._next(kind, payload, bits.size)
            self.not_finite += self._kernel.add(kind, bits, chunk.delta if chunk else None, payload.weight, out)
            if payload.weight == 1.0 and chunk and is_base(target, chunk):
                replaced = kind.widen(out[chunk.exceptions], np.empty(chunk.exceptions.size, kind.wide))
                self.not_finite -= kind.count_not_finite(replaced)
                out[chunk.exceptions] = chunk.exact
        else:
            self.not_finite += self._kernel.add_all(kind, bits, self._deltas(kind, bits.size), out)
        return little(out)

    def _next(self, kind: Float, payload: DeltaReader, size: int) -> AddedChunk | None:
        """Decode a delta's next chunk to the one buffer that all of them share."""
        return payload.next_added(scratch("delta", size, kind.wide))

    def _deltas(self, kind: Float, size: int) -> Iterator[tuple[Wide | None, float]]:
        for payload in self._payloads:
            chunk = self._next(kind, payload, size)
            yield (chunk.delta if chunk else None), payload.weight

    def finish(self) -> None:
        """Check every payload's digest.

        Raises:
            IntegrityError: one is not what its manifest promises.
        """
        for payload in self._payloads:
            payload.finish()


def is_base(target: NDArray[np.uint8], chunk: AddedChunk | None) -> bool:
    """Whether a chunk has exceptions and the target's values are base's own, to which they apply."""
    return bool(chunk is not None and chunk.exceptions.size and values_digest(target) == chunk.base_digest)


def little(bits: Bits) -> NDArray[np.uint8]:
    """Return the little-endian bytes of symbols; a view, on all but big-endian machines."""
    return bits.astype(bits.dtype.newbyteorder("<"), copy=False).view(np.uint8)
