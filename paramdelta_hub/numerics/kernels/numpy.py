"""The default kernel: NumPy, in several passes over blocks that stay in cache."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.numerics import floats
from paramdelta_hub.numerics.floats import (
    Bits,
    Difference,
    Float,
    NotFiniteChunkError,
    Statistics,
    Wide,
    WorkArrays,
    accumulate,
    blocks,
)
from paramdelta_hub.numerics.scratch import scratch

__all__ = ["LONG_GAP", "NumpyKernel", "gaps_of", "positions_of"]

_INDEX = 1 << 16  # elements looked up at a time: their eight-byte indices stay in cache
_ESCAPE = 255
LONG_GAP = 255
"""The byte of a gap that says: so many elements, and the gap goes on."""


class NumpyKernel:
    """The arithmetic of one chunk. A kernel is safe to share between threads.

    Arrays are flat, and ``out`` and ``symbols`` receive an element for each of the input. Arrays that are returned are
    in this thread's buffers: its next call may overwrite them.
    """

    name: str = "numpy"
    """What reports call it."""

    def subtract(self, kind: Float, base: Bits, post: Bits, symbols: Bits) -> Difference:
        """Take Δ = post − base and prove it: every element is reached by a sum, or listed as an exception.

        Raises:
            NotFiniteChunkError: a value of base or post is NaN or infinite.
        """
        work = WorkArrays(kind)
        counted = Statistics()
        positions, rests, exceptions = [], [], []
        for block in blocks(base.size):
            length = block.stop - block.start
            wide_base = kind.widen(base[block], work.base[:length])
            wide_post = kind.widen(post[block], work.post[:length])
            delta = floats.difference(wide_base, wide_post, work.delta[:length])
            counted.changed += int(np.count_nonzero(base[block] != post[block]))
            square = _square(delta)
            if not math.isfinite(square):  # a delta may overflow although both its sides are finite
                unchanged = _unchanged_not_finite(kind, base, post, block)
                wide_base[unchanged] = wide_post[unchanged] = delta[unchanged] = 0.0
                largest = np.finfo(kind.wide).max
                square = _square(np.clip(delta, -largest, largest))
            counted.delta_square += square
            counted.base_square += _square(wide_base)
            where, rest = floats.split(kind, delta, symbols[block], work.scratch)
            if where.size:
                positions.append(where + block.start)
                rests.append(rest)
            missed = floats.unreachable(kind, wide_base, delta, wide_post, post[block], work)
            if missed.size:
                exceptions.append(missed + block.start)
        chunk = Difference(
            symbols,
            np.concatenate(positions) if positions else np.empty(0, np.intp),
            np.concatenate(rests) if rests else np.empty(0, kind.wide_bits),
            np.concatenate(exceptions) if exceptions else np.empty(0, np.intp),
            counted,
        )
        counted.remainders, counted.exceptions = chunk.positions.size, chunk.exceptions.size
        return chunk

    def add(self, kind: Float, target: Bits, delta: Wide | None, weight: float, out: Bits) -> int:
        """Write ``target + wΔ``, summed in the wide type and rounded once; return how many results are not finite.

        ``delta`` may be overwritten; None stands for zeros.
        """
        work = WorkArrays(kind)
        not_finite = 0
        for block in blocks(target.size):
            total = kind.widen(target[block], work.base[: block.stop - block.start])
            _accumulate(kind, total, delta, block, weight)
            bad = _round(kind, total, out[block], work)
            if bad:
                kept = np.flatnonzero(kind.not_finite(target[block]))
                bad -= _keep(_without_change(kept, delta, block), target[block], out[block])
            not_finite += bad
        return not_finite

    def add_all(self, kind: Float, target: Bits, deltas: Iterable[tuple[Wide | None, float]], out: Bits) -> int:
        """Write ``target + Σ wᵢΔᵢ``, summed in the order given, in the same way; return how many are not finite.

        Each delta is done with before the next is asked for, so all of them may lie in one buffer.
        """
        total = scratch("total", target.size, kind.wide)
        kept: dict[int, NDArray[np.intp]] = {}
        for block in blocks(target.size):
            kind.widen(target[block], total[block])
            kept[block.start] = _where_not_finite(kind, target[block])
        for delta, weight in deltas:
            for block in blocks(target.size):
                _accumulate(kind, total[block], delta, block, weight)
                kept[block.start] = _without_change(kept[block.start], delta, block)
        work = WorkArrays(kind)
        return sum(
            _round(kind, total[block], out[block], work) - _keep(kept[block.start], target[block], out[block])
            for block in blocks(target.size)
        )

    def look_up(self, palette: Bits | Wide, ranks: Bits, escaped: Bits | Wide, out: Bits | Wide) -> None:
        """``out = palette[ranks]``, and for each rank of 255 the next of ``escaped``."""
        _take(palette, ranks, out)
        taken = 0
        for block in blocks(ranks.size):
            where = np.flatnonzero(ranks[block] == _ESCAPE)
            out[block][where] = escaped[taken : taken + where.size]
            taken += where.size

    def gather(self, symbols: Bits) -> tuple[Bits, Bits]:
        """Return where the symbols (uint16) other than 0 are, as gaps, and those symbols: what :meth:`spread` takes."""
        positions = np.flatnonzero(symbols)
        return gaps_of(positions), symbols[positions]

    def spread(self, gaps: Bits, values: Bits | Wide, out: Bits | Wide) -> None:
        """``out[positions] = values``, and +0 elsewhere.

        ``gaps`` (uint8) tell, of each position, how many elements lie before it and after the one before; a byte of
        255 stands for 255 and goes on. All positions lie inside ``out``.
        """
        out.fill(0)
        out[positions_of(gaps)] = values

    def rank(self, symbols: Bits, rank_of: Bits) -> tuple[Bits, Bits, Bits]:
        """Return ``rank_of[symbols]`` (uint16 → uint8), and the low and high bytes of the symbols whose rank is 255."""
        ranks = scratch("ranks", symbols.size, np.uint8)
        _take(rank_of, symbols, ranks)
        # By blocks: what is made on the way stays small, in memory that need not be touched anew. And by positions: a
        # boolean index costs half as much again.
        escaped = np.concatenate([symbols[b].take(np.flatnonzero(ranks[b] == _ESCAPE)) for b in blocks(ranks.size)])
        return ranks, (escaped & 0xFF).astype(np.uint8), (escaped >> 8).astype(np.uint8)


def _accumulate(kind: Float, total: Wide, delta: Wide | None, block: slice, weight: float) -> None:
    """Add a block of a weighted delta, or of zeros, whose sign counts where the total is −0."""
    if delta is None:
        with np.errstate(invalid="ignore"):  # a signalling NaN of the target's
            np.add(total, kind.wide.type(weight * 0.0), out=total)
    else:
        accumulate(total, delta[block], weight)


def _unchanged_not_finite(kind: Float, base: Bits, post: Bits, block: slice) -> NDArray[np.intp]:
    """Return where a block holds NaN or infinity with equal bits on both sides.

    Raises:
        NotFiniteChunkError: base and post differ where one is not finite; those of the whole chunk are counted.
    """
    not_finite = kind.not_finite(base[block]) | kind.not_finite(post[block])
    if (base[block][not_finite] != post[block][not_finite]).any():
        differ = base != post
        sides = (int(np.count_nonzero(differ & kind.not_finite(side))) for side in (base, post))
        raise NotFiniteChunkError(*sides)
    return np.flatnonzero(not_finite)


def _where_not_finite(kind: Float, bits: Bits) -> NDArray[np.intp]:
    """Return where a block is NaN or infinite.

    Among the positive and among the negative values, these have the largest patterns: two fast passes find none.
    """
    if not bits.size or (
        bits.view(f"i{kind.itemsize}").max() < kind.infinity and bits.max() < kind.infinity | 1 << 8 * kind.itemsize - 1
    ):
        return np.empty(0, np.intp)
    return np.flatnonzero(kind.not_finite(bits))


def _without_change(positions: NDArray[np.intp], delta: Wide | None, block: slice) -> NDArray[np.intp]:
    """Return those positions of a block at which a delta, weighted already, is zero."""
    return positions if delta is None or not positions.size else positions[delta[block][positions] == 0]


def _keep(positions: NDArray[np.intp], target: Bits, out: Bits) -> int:
    """Give a block of the result the target's bits at these positions, and return how many they are."""
    out[positions] = target[positions]
    return positions.size


def _round(kind: Float, total: Wide, out: Bits, work: WorkArrays) -> int:
    """Round a block of sums to ``out``, and return how many are not finite."""
    not_finite = 0 if kind.finite(total) else kind.count_not_finite(total)
    kind.round(total, out, work.scratch)
    return not_finite


def gaps_of(positions: NDArray[Any]) -> Bits:
    """Return ascending positions as the gaps between them, see :meth:`NumpyKernel.spread`."""
    gaps = np.diff(positions, prepend=-1) - 1
    if positions.size == 0 or int(gaps.max()) < LONG_GAP:
        return gaps.astype(np.uint8)
    long, short = np.divmod(gaps, LONG_GAP)
    ends = np.cumsum(long + 1) - 1
    coded = np.full(int(ends[-1]) + 1, LONG_GAP, np.uint8)
    coded[ends] = short
    return coded


def positions_of(gaps: Bits) -> NDArray[np.int64]:
    """Return the positions that gaps tell of, see :meth:`NumpyKernel.spread`."""
    is_end = gaps != LONG_GAP
    positions: NDArray[np.int64] = np.cumsum(gaps.astype(np.int64) + is_end)[is_end] - 1
    return positions


def _square(values: Wide) -> float:
    """Return the sum of squares in float64, where none of a finite value overflows, infinity or NaN.

    So exact, and in NumPy's fixed pairwise order, the digits recorded are the same everywhere.
    """
    squares = scratch("block squares", values.size, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.add.reduce(np.square(values, out=squares, dtype=np.float64)))


def _take(table: Bits | Wide, source: Bits, out: Bits | Wide) -> None:
    """``out = table[source]`` through a small reused index: plain fancy indexing is two to four times slower."""
    index = scratch("index", min(source.size, _INDEX), np.intp)
    for start in range(0, source.size, _INDEX):
        part = slice(start, min(start + _INDEX, source.size))
        where = index[: part.stop - start]
        np.copyto(where, source[part])
        table.take(where, out=out[part], mode="clip")  # always in range; "raise" would buffer the output
