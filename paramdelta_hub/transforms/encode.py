"""The difference of one tensor, encoded: digests of base and post, the payload, and the record for the manifest."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.checkpoints.tensor_sources import Files, TensorSource
from paramdelta_hub.codecs import ZERO
from paramdelta_hub.codecs.by_name import REPLACING, TANS
from paramdelta_hub.fileio.digests import begin_digest
from paramdelta_hub.fileio.safetensors import ITEM_SIZES
from paramdelta_hub.limits import CHUNK_ELEMENTS
from paramdelta_hub.numerics.differences import Difference, NotFiniteChunkError, Statistics, subtract
from paramdelta_hub.numerics.floats import FLOATS, Bits
from paramdelta_hub.numerics.scratch import scratch
from paramdelta_hub.package.chunks import encode_added
from paramdelta_hub.package.manifest import CodecRecord, Rows, TensorRecord
from paramdelta_hub.package.shard import PayloadWriter

__all__ = ["EncodedTensor", "TensorEncoder"]


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
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    base: TensorSource
    post: TensorSource
    base_dtype: str
    post_dtype: str
    base_name: str | None = None
    post_name: str | None = None
    rows: Rows | None = None

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of one side."""
        return self.elements * ITEM_SIZES[self.dtype]


class TensorEncoder:
    """Encodes one tensor, chunk by chunk.

    Chunks without change are held back until a changed one comes; if none does, the tensor is ``zero`` and has no
    payload.

    Args:
        tensor: what to encode.
        payload: takes the encoded chunks.
    """

    def __init__(self, tensor: EncodedTensor, payload: PayloadWriter) -> None:
        self._tensor, self._payload = tensor, payload
        self._dtype = np.dtype(f"u{ITEM_SIZES[tensor.dtype]}")
        self._added = tensor.dtype in FLOATS
        self._base_digest, self._post_digest = begin_digest(), begin_digest()
        self._stats = Statistics()
        self._codec = ZERO
        self._unchanged = 0

    def encode(self, files: Files, shard: str, advance: Callable[[int], None]) -> TensorRecord:
        """Read both sides once, write the payload, and return the record for the manifest.

        Args:
            files: read access to base and post.
            shard: the name of the file that holds the payload, for the record.
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
            base_values.read(start, base)
            post_values.read(start, post)
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
        self._base_digest.update(base.data)
        self._post_digest.update(post.data)
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

    def _finish(self, shard: str) -> TensorRecord:
        """Complete the payload, or drop it if nothing changed; return the record."""
        base, post = self._base_digest.hexdigest(), self._post_digest.hexdigest()
        codec, nbytes, payload_digest = self._codec, 0, None
        if codec == ZERO or (not self._added and base == post):
            codec = ZERO
            self._payload.drop()
        else:
            nbytes, payload_digest = self._payload.finish()
        tensor, found = self._tensor, self._stats
        return TensorRecord(
            name=tensor.name,
            base_name=tensor.base_name,
            post_name=tensor.post_name,
            dtype=tensor.dtype,
            base_dtype=tensor.base_dtype,
            post_dtype=tensor.post_dtype,
            shape=tensor.shape,
            rows=tensor.rows,
            effect="add" if self._added else "replace",
            codec=CodecRecord(name=codec, parameters={}),
            shard=shard if nbytes else None,
            nbytes=nbytes,
            payload_blake3=payload_digest,
            base_blake3=base,
            post_blake3=post,
            base_norm=_six_digits(math.sqrt(found.base_square)),
            delta_norm=_six_digits(math.sqrt(found.delta_square)),
            changed=found.changed,
            exceptions=found.exceptions,
        )


def _six_digits(value: float) -> float:
    """Round a figure for people, so that the last bits of a sum do not change a package's id between machines."""
    return float(f"{value:.6g}")
