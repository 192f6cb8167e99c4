"""Few positions among many, with a number at each: the exceptions of a chunk; and where Δ is not 0, if that is seldom.

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
from paramdelta_hub.numerics.compiled import compiled
from paramdelta_hub.numerics.floats import Bits
from paramdelta_hub.numerics.scratch import scratch

__all__ = ["decode_gaps", "decode_sparse", "encode_sparse", "gather", "sparse_streams", "spread"]

LONG_GAP = 255
"""The byte of a gap that says: so many elements, and the gap goes on."""


def sparse_streams(itemsize: int) -> int:
    """How many streams hold positions and numbers of ``itemsize`` bytes: the gaps, then the planes."""
    return 1 + itemsize


def encode_sparse(positions: NDArray[Any], numbers: Bits) -> list[bytes]:
    """Code ascending positions and as many unsigned numbers; nothing is coded as empty streams."""
    if positions.size == 0:
        return [b""] * sparse_streams(numbers.itemsize)
    return [frames.compress(_gaps_of(positions).data), *encode_planes(numbers)]


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
    positions = _positions_of(gaps)
    numbers = np.zeros(positions.size, dtype)
    if positions.size:
        decode_planes(planes, numbers)
    elif any(len(plane) for plane in planes):
        raise PackageError("numbers without positions")
    return positions, numbers


def _gaps_of(positions: NDArray[Any]) -> Bits:
    """Return ascending positions as the gaps between them."""
    gaps = np.diff(positions, prepend=-1) - 1
    long, short = np.divmod(gaps, LONG_GAP)
    ends = np.cumsum(long + 1) - 1
    coded = np.full(int(ends[-1]) + 1, LONG_GAP, np.uint8)
    coded[ends] = short
    return coded


def _positions_of(gaps: Bits) -> NDArray[np.int64]:
    """Return the positions that gaps tell of."""
    is_end = gaps != LONG_GAP
    positions: NDArray[np.int64] = np.cumsum(gaps.astype(np.int64) + is_end)[is_end] - 1
    return positions


def gather(values: Bits) -> tuple[Bits, Bits]:
    """Return where values other than 0 are, as gaps, and those values; both in this thread's buffers."""
    gaps = scratch("gaps", values.size + 1, np.uint8)
    found = scratch("gathered", values.size + 1, values.dtype)
    written, taken = _gather(values, gaps, found)
    return gaps[:written], found[:taken]


@compiled
def _gather(values: Any, gaps: Any, found: Any) -> Any:
    """Return how many gaps and how many values were written."""
    written, taken, gap = 0, 0, 0
    for value in values:
        if value == 0:
            gap += 1
        else:
            while gap >= 255:
                gaps[written] = 255
                gap -= 255
                written += 1
            gaps[written] = gap
            found[taken] = value
            written, taken, gap = written + 1, taken + 1, 0
    return written, taken


@compiled
def spread(gaps: Any, values: Any, first: Any, out: Any) -> None:
    """Fill the next elements: a value where a position is, 0 elsewhere. All positions lie below the chunk's end.

    Args:
        gaps: as :func:`decode_gaps` returns them.
        values: one for each position.
        first: ``int64``: how many gaps and values are used, and how many elements come before the next; moved on.
        out: receives the elements.
    """
    out[:] = 0
    gap, value, place = first
    while True:
        while gap < gaps.size and gaps[gap] == 255:
            place += 255
            gap += 1
        if gap == gaps.size or place + gaps[gap] >= out.size:
            break
        place += np.int64(gaps[gap])
        out[place] = values[value]
        place, gap, value = place + 1, gap + 1, value + 1
    first[0], first[1], first[2] = gap, value, place - out.size
