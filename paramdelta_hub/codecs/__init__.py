"""Values ↔ streams: how one chunk of a tensor becomes bytes.

A codec knows neither files nor shards. It is registered by its name, which stands in the manifest, so a name never
changes meaning.

    tans      the exact difference of floats, in the wide type       added tensors
    planes    byte planes, each compressed on its own                replaced tensors
    raw       the values as they are                                 replaced tensors that do not compress

``zero`` (a tensor without a payload) is not here: there is nothing to code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from paramdelta_hub.codecs.frames import Buffer
from paramdelta_hub.codecs.planes import Planes
from paramdelta_hub.codecs.raw import Raw
from paramdelta_hub.codecs.tans.delta import Tans
from paramdelta_hub.numerics.floats import Bits

__all__ = ["REPLACING", "TANS", "ZERO", "Buffer", "Codec", "codec_names"]

ZERO = "zero"
"""The codec name of a tensor that base and post have in common."""
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


def codec_names(effect: str) -> set[str]:
    """Return the names of the codecs that a tensor with a payload may have, by its effect."""
    return {TANS.name} if effect == "add" else set(REPLACING)
