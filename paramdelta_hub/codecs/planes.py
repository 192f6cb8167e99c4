"""Byte planes: the first bytes of all values, then the second, …, each a zstd frame of its own.

High bytes of integers are mostly equal, low ones are noise; apart, each is coded at its own entropy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paramdelta_hub.codecs import frames
from paramdelta_hub.codecs.frames import Buffer
from paramdelta_hub.numerics.floats import Bits
from paramdelta_hub.numerics.scratch import scratch

__all__ = ["Planes", "decode_planes", "encode_planes"]


def _plane(values: Bits, index: int) -> Bits:
    """Return a view of byte ``index`` (0: the least significant) of every value."""
    little = values.dtype.newbyteorder("<")
    plane: Bits = values.astype(little, copy=False).view(np.uint8)[index :: values.itemsize]
    return plane


def encode_planes(values: Bits) -> list[bytes]:
    """Code values as one frame a byte plane, least significant first; a plane of zeros is an empty stream."""
    coded = []
    for index in range(values.itemsize):
        plane = scratch("plane", values.size, np.uint8)
        np.copyto(plane, _plane(values, index))
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
    """As many streams as the values have bytes."""

    name: ClassVar[str] = "planes"

    def streams(self, itemsize: int) -> int:
        """One a byte of the value."""
        return itemsize

    def encode(self, values: Bits) -> list[bytes]:
        """See :func:`encode_planes`."""
        return encode_planes(values)

    def decode(self, streams: Sequence[Buffer], out: Bits) -> None:
        """See :func:`decode_planes`."""
        decode_planes(streams, out)
