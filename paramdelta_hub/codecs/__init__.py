"""Symbols ↔ streams: how one chunk of a delta becomes bytes.

A codec maps a chunk of unsigned symbols to a fixed number of byte streams and back. It knows neither files nor
shards nor floats. Codecs are registered by name; the name stands in the manifest, so a name never changes meaning.

    palette   one byte an element: its rank among the chunk's 255 most frequent symbols   16-bit weights
    planes    byte planes, each compressed on its own                                     every item size
    raw       the symbols as they are                                                     incompressible tensors

``zero`` (a tensor without a payload) is not here: there is nothing to code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from paramdelta_hub.codecs.frames import Buffer

from paramdelta_hub.codecs.planes import Planes
from paramdelta_hub.codecs.raw import Raw
from paramdelta_hub.errors import PackageError
from paramdelta_hub.numerics.floats import Bits, Float, Wide


__all__ = ["CODECS", "ZERO", "Buffer", "Codec", "candidates", "codec_named"]

ZERO = "zero"
"""The codec name of a tensor that base and post have in common."""


class Codec(Protocol):
    """What a codec is. Implementations are stateless and safe to share between threads."""

    @property
    def name(self) -> str:
        """The name in the manifest."""

    def streams(self, itemsize: int) -> int:
        """How many streams a chunk of symbols of ``itemsize`` bytes has; 0 where the codec does not take them."""

    def encode(self, symbols: Bits, kernel: object) -> list[bytes]:
        """Code a flat, contiguous, non-empty chunk; the same symbols always give the same streams."""

    def decode(self, streams: Sequence[Buffer], out: Bits | Wide, kernel: object, widen: Float | None = None) -> None:
        """Fill ``out`` with the chunk's symbols, or raise PackageError; never fills it with anything else.

        With ``widen`` the symbols are bits of that float, and ``out`` is of its wide type. A codec that knows the
        distinct symbols widens each once, and not every element.
        """


CODECS: dict[str, Codec] = {codec.name: codec for codec in (Planes(), Raw())}


def codec_named(name: str) -> Codec:
    """Return the codec of that name.

    Raises:
        PackageError: this version knows none.
    """
    try:
        return CODECS[name]
    except KeyError:
        raise PackageError(f"unknown codec {name!r}", remedy="a newer paramdelta-hub may know it") from None


def candidates(itemsize: int) -> list[Codec]:
    """Return the codecs to try on symbols of ``itemsize`` bytes, the usual winner first."""
    return [codec for codec in CODECS.values() if codec.streams(itemsize)]
