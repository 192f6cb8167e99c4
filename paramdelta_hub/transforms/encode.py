"""The difference of one tensor, encoded, as a whole or in parts: digests of base and post, payloads, the record."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.checkpoints.tensor_sources import Files, TensorSource
from paramdelta_hub.codecs import ZERO
from paramdelta_hub.codecs.by_name import REPLACING, TANS
from paramdelta_hub.fileio.digests import ChunkDigests, tensor_digest
from paramdelta_hub.fileio.safetensors import ITEM_SIZES
from paramdelta_hub.limits import CHUNK_ELEMENTS
from paramdelta_hub.numerics.differences import Difference, NotFiniteChunkError, Statistics, subtract
from paramdelta_hub.numerics.floats import FLOATS, Bits
from paramdelta_hub.numerics.scratch import scratch
from paramdelta_hub.package.chunks import chunk_ranges, encode_added
from paramdelta_hub.package.manifest import Part, Rows, TensorRecord
from paramdelta_hub.package.shard import PayloadWriter

__all__ = ["EncodedPart", "EncodedTensor", "TensorEncoder"]


@dataclass(frozen=True, slots=True)
class EncodedTensor:
    """A tensor of the delta: where the values of base and post are, and what the manifest says of their names and rows.

    Args:
        name: in the package.
        dtype: in which both sides are read.
        shape: of both sides.
        base: base's values, in the order of post's rows.
        post: post's values.
        base_dtype: what base has.
        post_dtype: what post has.
        base_name: base's embedding, if it serves as this output head.
        post_name: post's name, if it is another.
        rows: which of base's rows each row belongs to, if not its own.
        first: the first element that is encoded, the first of a chunk.
        elements: how many are encoded; all, if the tensor is not divided.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    base: TensorSource
    post: TensorSource
    base_dtype: str
    post_dtype: str
    first: int
    elements: int
    base_name: str | None = None
    post_name: str | None = None
    rows: Rows | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of one side, of what is encoded."""
        return self.elements * ITEM_SIZES[self.dtype]

    def divide(self, parts: int) -> list[EncodedTensor]:
        """Return up to so many parts of whole chunks, about equally large; one, if it is replaced as a whole."""
        parts = parts if self.dtype in FLOATS else 1
        return [replace(self, first=first, elements=count) for first, count in chunk_ranges(self.elements, parts)]

    def record(self, parts: Sequence[EncodedPart]) -> TensorRecord:
        """Return the tensor's record for the manifest, given what came of all its parts, in order."""
        joined: list[Part] = []
        for part in (each.part for each in parts if each.part is not None):
            if joined and joined[-1].is_zero and part.is_zero:
                part = part.model_copy(update={"chunks": joined.pop().chunks + part.chunks})
            joined.append(part)
        return TensorRecord(
            name=self.name,
            base_name=self.base_name,
            post_name=self.post_name,
            dtype=self.dtype,
            base_dtype=self.base_dtype,
            post_dtype=self.post_dtype,
            shape=self.shape,
            rows=self.rows,
            effect="add" if self.dtype in FLOATS else "replace",
            parts=tuple(joined),
            base_blake3=tensor_digest(bytes.fromhex("".join(part.base for part in parts))),
            post_blake3=tensor_digest(bytes.fromhex("".join(part.post for part in parts))),
            base_norm=_six_digits(math.sqrt(sum(part.base_square for part in parts))),
            delta_norm=_six_digits(math.sqrt(sum(part.delta_square for part in parts))),
            changed=sum(part.changed for part in parts),
            exceptions=sum(part.exceptions for part in parts),
        )


@dataclass(frozen=True, slots=True)
class EncodedPart:
    """What came of a tensor, or of some of its chunks.

    Args:
        name: the tensor's.
        part: for the manifest; None if there are no elements.
        base: the digests of base's chunks (hex), one after another.
        post: those of post's.
        base_square: the sum of the squares of base's values.
        delta_square: that of Δ.
        changed: how many elements differ in their bits.
        exceptions: how many no sum with base reaches.
    """

    name: str
    part: Part | None
    base: str
    post: str
    base_square: float
    delta_square: float
    changed: int
    exceptions: int


class TensorEncoder:
    """Encodes one tensor, or some chunks of it, chunk by chunk.

    Chunks without change are held back until a changed one comes; if none does, they are ``zero`` and have no payload.

    Args:
        tensor: what to encode.
        payload: takes the encoded chunks.
    """

    def __init__(self, tensor: EncodedTensor, payload: PayloadWriter) -> None:
        self._tensor, self._payload = tensor, payload
        self._dtype = np.dtype(f"u{ITEM_SIZES[tensor.dtype]}")
        self._added = tensor.dtype in FLOATS
        self._base_digests, self._post_digests = (ChunkDigests(self._dtype.itemsize) for _ in range(2))
        self._stats = Statistics()
        self._codec = ZERO
        self._unchanged = 0

    def encode(self, files: Files, shard: str, advance: Callable[[int], None]) -> EncodedPart:
        """Read both sides once, write the payload, and return what the manifest is to say of it.

        Args:
            files: read access to base and post.
            shard: the name of the file that holds the payload.
            advance: called with the number of bytes read; may raise to stop.

        Raises:
            NotFiniteChunkError: base and post differ where one is NaN or infinite; how many of each there are.
            CheckpointError: a file was truncated or can't be read.
        """
        base_values, post_values = self._tensor.base.open(files), self._tensor.post.open(files)
        refused = [0, 0]
        for start in range(0, self._tensor.elements, CHUNK_ELEMENTS):
            nbytes = min(CHUNK_ELEMENTS, self._tensor.elements - start) * self._dtype.itemsize
            base, post = scratch("base", nbytes, np.uint8), scratch("post", nbytes, np.uint8)
            base_values.read(self._tensor.first + start, base)
            post_values.read(self._tensor.first + start, post)
            try:
                self._add(base, post)
            except NotFiniteChunkError as error:  # the others are counted, too
                refused = [refused[0] + error.base, refused[1] + error.post]
            advance(2 * nbytes)
        if any(refused):
            raise NotFiniteChunkError(*refused)
        return self._finish(shard)

    def drop(self) -> None:
        """Forget the tensor: the next one takes its place in the shard."""
        self._payload.drop()

    def _add(self, base: NDArray[np.uint8], post: NDArray[np.uint8]) -> None:
        """Take the next chunk of both sides, as bytes."""
        self._base_digests.update(base)
        self._post_digests.update(post)
        little = self._dtype.newbyteorder("<")
        base_bits = base.view(little).astype(self._dtype, copy=False)
        post_bits = post.view(little).astype(self._dtype, copy=False)
        if self._added:
            self._add_float(base_bits, post_bits)
        else:
            self._stats.changed += int(np.count_nonzero(base_bits != post_bits))
            self._payload.append(self._encode_replaced(post_bits))

    def _add_float(self, base: Bits, post: Bits) -> None:
        kind = FLOATS[self._tensor.dtype]
        chunk = subtract(kind, base, post, scratch("delta", base.size, kind.wide))
        self._stats.add(chunk.statistics)
        if self._codec == ZERO and chunk.is_zero:
            self._unchanged += 1
            return
        self._codec = TANS.name
        streams = encode_added(chunk, base, post)
        self._catch_up()
        self._payload.append(streams)

    def _catch_up(self) -> None:
        """Write the chunks that were held back; they are full ones, since another chunk followed."""
        if self._unchanged:
            wide = np.zeros(CHUNK_ELEMENTS, FLOATS[self._tensor.dtype].wide)
            values = np.zeros(CHUNK_ELEMENTS, self._dtype)
            still = Difference(wide, np.empty(0, np.intp), Statistics())
            streams = encode_added(still, values, values)
            for _ in range(self._unchanged):
                self._payload.append(streams)
            self._unchanged = 0

    def _encode_replaced(self, values: Bits) -> list[bytes]:
        """Return the values' streams; the first chunk decides by its size which codec the tensor has."""
        if self._codec != ZERO:
            return REPLACING[self._codec].encode(values)
        tried = {name: codec.encode(values) for name, codec in REPLACING.items()}
        self._codec = min(tried, key=lambda name: sum(map(len, tried[name])))
        return tried[self._codec]

    def _finish(self, shard: str) -> EncodedPart:
        """Complete the payload, or drop it if nothing changed."""
        base, post = self._base_digests.finish(), self._post_digests.finish()
        chunks = -(-self._tensor.elements // CHUNK_ELEMENTS)
        if self._codec == ZERO or (not self._added and base == post):
            self._payload.drop()
            part = Part(chunks=chunks, codec=ZERO, shard=None, nbytes=0, blake3=None) if chunks else None
        else:
            nbytes, digest = self._payload.finish()
            part = Part(chunks=chunks, codec=self._codec, shard=shard, nbytes=nbytes, blake3=digest)
        found = self._stats
        return EncodedPart(
            self._tensor.name,
            part,
            base.hex(),
            post.hex(),
            found.base_square,
            found.delta_square,
            found.changed,
            found.exceptions,
        )


def _six_digits(value: float) -> float:
    """Round a figure for people, so that the last bits of a sum do not change a package's id between machines."""
    return float(f"{value:.6g}")
