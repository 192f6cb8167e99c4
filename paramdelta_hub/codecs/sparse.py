"""Few positions among many, with a number at each: the remainder, the exceptions, the changed elements of a chunk.

Positions are coded as the gaps between them, a byte each, 255 standing for "255 further on, and go on reading";
numbers as byte planes. At the share of elements that real bf16 pairs have (0.1–8 %) this costs 9–15 bits a position and
its number together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.codecs import frames
from paramdelta_hub.codecs.frames import Buffer
from paramdelta_hub.codecs.planes import decode_planes, encode_planes
from paramdelta_hub.errors import PackageError
from paramdelta_hub.numerics.floats import Bits
from paramdelta_hub.numerics.kernels.numpy import LONG_GAP, gaps_of, positions_of

__all__ = ["decode_gaps", "decode_sparse", "encode_sparse", "sparse_streams"]


def sparse_streams(itemsize: int) -> int:
    """How many streams hold positions and numbers of ``itemsize`` bytes: the gaps, then the planes."""
    return 1 + itemsize


def encode_sparse(positions: NDArray[Any], numbers: Bits) -> list[bytes]:
    """Code ascending positions and as many unsigned numbers; nothing is coded as empty streams."""
    if positions.size == 0:
        return [b""] * sparse_streams(numbers.itemsize)
    return [frames.compress(gaps_of(positions).data), *encode_planes(numbers)]


def decode_gaps(coded: Buffer, elements: int) -> tuple[Bits, int]:
    """Return gaps as they were coded, a byte or more a position, and how many positions they are.

    All of them lie below ``elements``.

    Raises:
        PackageError: damaged, or a position past the end.
    """
    # At worst every element is listed, or one gap spans them all: never more bytes than that.
    gaps = np.frombuffer(frames.decompress(coded, frames.content_size(coded, elements)), np.uint8)
    count = int(np.count_nonzero(gaps != LONG_GAP))
    if gaps.size and gaps[-1] == LONG_GAP:
        raise PackageError("a list of positions breaks off in the middle of a gap")
    last = int(gaps.sum(dtype=np.int64)) + count - 1
    if last >= elements:
        raise PackageError(f"position {last} lies past the end of a chunk of {elements} elements")
    return gaps, count


def decode_sparse(streams: Sequence[Buffer], elements: int, dtype: np.dtype[Any]) -> tuple[NDArray[Any], Bits]:
    """Return positions (ascending, each below ``elements``) and their numbers: the inverse of :func:`encode_sparse`.

    Raises:
        PackageError: damaged, or a position past the end.
    """
    coded_gaps, *planes = streams
    gaps, _ = decode_gaps(coded_gaps, elements)
    positions = positions_of(gaps)
    numbers = np.zeros(positions.size, dtype)
    if positions.size:
        decode_planes(planes, numbers)
    elif any(len(plane) for plane in planes):
        raise PackageError("numbers without positions")
    return positions, numbers
