"""Byte planes: the first bytes of all symbols, then the second, …, each a zstd frame of its own.

Exponent and high mantissa bytes of a delta are predictable, low ones are noise; apart, each is coded at its own
entropy. This is what is left for 32-bit weights, whose deltas hardly ever repeat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paramdelta_hub.codecs import frames
from paramdelta_hub.codecs.frames import Buffer
from paramdelta_hub.numerics.floats import Bits, Float, Wide, blocks
from paramdelta_hub.numerics.scratch import scratch

__all__ = ["Planes", "compress_plane", "decode_planes", "encode_planes"]


def _plane(symbols: Bits, index: int) -> Bits:
    """Return a view of byte ``index`` (0: the least significant) of every symbol."""
    little = symbols.dtype.newbyteorder("<")
    plane: Bits = symbols.astype(little, copy=False).view(np.uint8)[index :: symbols.itemsize]
    return plane


def encode_planes(symbols: Bits) -> list[bytes]:
    """Code symbols as one frame a byte plane, least significant first; a plane of zeros is an empty stream."""
    coded = []
    for index in range(symbols.itemsize):
        plane = scratch("plane", symbols.size, np.uint8)
        np.copyto(plane, _plane(symbols, index))
        coded.append(compress_plane(plane))
    return coded


def compress_plane(plane: Bits) -> bytes:
    """Code the bytes of one plane; zeros are an empty stream."""
    return frames.compress(plane.data) if plane.any() else b""


def decode_planes(streams: Sequence[Buffer], out: Bits) -> None:
    """Fill ``out`` from its planes: the inverse of :func:`encode_planes`.

    Raises:
        PackageError: a plane is damaged or of another length.
    """
    bytes_of = out.view(np.uint8)
    for index, stream in enumerate(streams):
        place = index if out.dtype.newbyteorder("<") == out.dtype else out.itemsize - 1 - index
        if len(stream):
            plane = np.frombuffer(frames.decompress(stream, out.size), np.uint8)
            np.copyto(bytes_of[place :: out.itemsize], plane)
        else:
            bytes_of[place :: out.itemsize] = 0


@dataclass(frozen=True)
class Planes:
    """As many streams as the symbols have bytes."""

    name: ClassVar[str] = "planes"

    def streams(self, itemsize: int) -> int:
        """One a byte of the symbol."""
        return itemsize

    def encode(self, symbols: Bits) -> list[bytes]:
        """See :func:`encode_planes`."""
        return encode_planes(symbols)

    def decode(self, streams: Sequence[Buffer], out: Bits | Wide, widen: Float | None = None) -> None:
        """See :func:`decode_planes`."""
        if widen:
            symbols = scratch("symbols of planes", out.size, widen.bits)
            decode_planes(streams, symbols)
            for block in blocks(out.size):
                widen.widen(symbols[block], out[block])
        else:
            decode_planes(streams, out)
