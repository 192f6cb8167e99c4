"""The codecs: one for added tensors, and several for replaced ones, by their names in the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from paramdelta_hub.codecs.frames import Buffer
from paramdelta_hub.codecs.planes import Planes
from paramdelta_hub.codecs.raw import Raw
from paramdelta_hub.codecs.tans.delta import Tans
from paramdelta_hub.numerics.floats import Bits

__all__ = ["REPLACING", "TANS", "Buffer", "Codec"]

TANS = Tans()
"""The codec of added tensors."""


class Codec(Protocol):
    """What a codec of replaced tensors is. Implementations are stateless and safe to share between threads."""

    @property
    def name(self) -> str:
        """The name in the manifest."""

    def streams(self, itemsize: int) -> int:
        """How many streams a chunk of values of ``itemsize`` bytes has."""

    def encode(self, values: Bits) -> list[bytes]:
        """Code a flat, contiguous, non-empty chunk; the same values always give the same streams."""

    def decode(self, streams: Sequence[Buffer], out: Bits) -> None:
        """Fill ``out`` with the chunk's values, or raise PackageError; never fills it with anything else."""


REPLACING: dict[str, Codec] = {codec.name: codec for codec in (Planes(), Raw())}
"""The codecs of replaced tensors by name, the usual winner first."""
