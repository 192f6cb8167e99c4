"""The kernel for BF16, the dtype of nearly all released models: loops compiled by Numba.

What NumPy needs a dozen passes over memory for is done in one or two. The loops are compiled on first use, which takes
seconds, and kept on disk beside this module (or in the user's cache), so that later processes load them. Measured on
one core, ns an element, against NumPy: sum and rounding 0.25 (1.6), look-up with escapes 0.6 (1.5), differences 1.0
(3.9), ranks 0.8 (1.6).

Loops run over slices of 4,096 elements with indices that count from 0: only those does LLVM vectorize, and the values
in between stay in the first-level cache. Integers are kept at 32 bits by hand, because Numba's grow to 64. No
fast-math: every sum is rounded where NumPy rounds it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from paramdelta_hub.numerics.floats import Bits, Difference, Float, Statistics, Wide
from paramdelta_hub.numerics.kernels.numpy import NumpyKernel
from paramdelta_hub.numerics.scratch import scratch

__all__ = ["NumbaKernel"]

SLICE = 4096
_SHIFT = np.uint32(16)
_HALF = np.uint32(0x7FFF)
_ONE = np.uint32(1)
_LOW = np.uint32(0xFFFF)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_OVERFLOW = np.uint32(0x7F7F8000)  # as float32, what rounds to infinity; infinity and NaN lie above it
_INFINITY = np.uint32(0x7F800000)
_LANES = 512  # sums side by side, added up in a fixed order: the digits are the same on every machine


def _compile(loop: Callable[..., Any]) -> Any:
    """Compile a loop when it is first called."""
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(loop)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return numba.njit(nogil=True, error_model="numpy")(loop)


class NumbaKernel(NumpyKernel):
    """Compiled loops; other dtypes, and sums of several deltas, go to NumPy."""

    name = "numba"

    def subtract(self, kind: Float, base: Bits, post: Bits, symbols: Bits) -> Difference:
        """Δ = post − base of one chunk, split and proven."""
        if kind.name != "BF16":
            return super().subtract(kind, base, post, symbols)
        positions, missed = (scratch(name, base.size, np.int32) for name in ("places of rests", "places missed"))
        rests = scratch("rests", base.size, np.uint32)
        words = scratch("flags", SLICE // 8, np.uint64)
        flags = words.view(np.uint8)
        wide = scratch("slices", 3 * SLICE, np.float32).reshape(3, SLICE)
        bits = wide.view(np.uint32)
        squares = np.zeros((2, _LANES))
        changed, rest_count, missed_count, finite = _subtract(
            base, post, symbols, positions, rests, missed, flags, words, wide, bits, squares
        )
        if not finite:  # NumPy finds out which: they are unchanged, or no more than a delta overflows, or it refuses
            return super().subtract(kind, base, post, symbols)
        base_square, delta_square = squares.sum(axis=1).tolist()
        counted = Statistics(changed, rest_count, missed_count, base_square, delta_square)
        return Difference(symbols, positions[:rest_count], rests[:rest_count], missed[:missed_count], counted)

    def add(self, kind: Float, target: Bits, delta: Wide | None, weight: float, out: Bits) -> int:
        """Target + w·Δ of one chunk, rounded once; how many are not finite."""
        if kind.name != "BF16" or delta is None:
            return super().add(kind, target, delta, weight, out)
        total = scratch("slice of sums", SLICE, np.float32)
        bad = int(_add(target, delta, np.float32(weight), total, total.view(np.uint32), out))
        if bad:  # what is not finite in the target, and gets nothing, keeps its bits
            kept = np.flatnonzero(kind.not_finite(target))
            kept = kept[np.float32(weight) * delta[kept] == 0]
            out[kept] = target[kept]
            bad -= kept.size
        return bad

    def look_up(self, palette: Bits | Wide, ranks: Bits, escaped: Bits | Wide, out: Bits | Wide) -> None:
        """``out = palette[ranks]``, the escaped ones from ``escaped``."""
        _look_up(palette, ranks, escaped, scratch("places of escapes", SLICE + 1, np.int32), out)

    def gather(self, symbols: Bits) -> tuple[Bits, Bits]:
        """Gaps between the symbols other than 0, and those symbols."""
        gaps = scratch("gaps", symbols.size + 1, np.uint8)  # a long gap takes a byte, and stands for 255 elements
        values = scratch("gathered", symbols.size + 1, np.uint16)
        written, taken = _gather(symbols, gaps, values, scratch("places of changes", SLICE + 1, np.int32))
        return gaps[:written], values[:taken]

    def spread(self, gaps: Bits, values: Bits | Wide, out: Bits | Wide) -> None:
        """``out[positions] = values``, and +0 elsewhere."""
        out.fill(0)
        _spread(gaps, values, out)

    def rank(self, symbols: Bits, rank_of: Bits) -> tuple[Bits, Bits, Bits]:
        """Every symbol's rank, and the low and high bytes of those that escape."""
        ranks = scratch("ranks", symbols.size, np.uint8)
        low, high = (scratch(name, symbols.size + 1, np.uint8) for name in ("low escapes", "high escapes"))
        escapes = _rank(symbols, rank_of, ranks, low, high)
        return ranks, low[:escapes], high[:escapes]


@_compile
def _look_up(palette: Any, ranks: Any, escaped: Any, positions: Any, out: Any) -> None:
    """See :meth:`NumpyKernel.look_up`. ``positions`` is scratch: int32, at least 4,097."""
    taken = 0
    for start in range(0, ranks.size, SLICE):
        rank_slice, out_slice = ranks[start : start + SLICE], out[start : start + SLICE]
        escapes = np.uint32(0)
        for i in range(rank_slice.size):
            rank = rank_slice[i]
            out_slice[i] = palette[rank]
            positions[escapes] = i  # overwritten by the next unless this is an escape: a branch would be mispredicted
            escapes = np.uint32(escapes + np.uint32(rank == 255))
        for i in range(escapes):
            out_slice[positions[i]] = escaped[taken + i]
        taken += escapes


@_compile
def _gather(symbols: Any, gaps: Any, values: Any, positions: Any) -> tuple[int, int]:
    """See :meth:`NumpyKernel.gather`. Return how many gaps and how many values were written.

    ``values`` has one element more than there are symbols; ``positions`` is scratch: int32, at least 4,097.
    """
    written, taken, after = 0, 0, 0
    for start in range(0, symbols.size, SLICE):
        symbol_slice = symbols[start : start + SLICE]
        changes = np.uint32(0)
        for i in range(symbol_slice.size):
            symbol = symbol_slice[i]
            values[taken + changes] = symbol  # overwritten by the next if it is 0: a branch would be mispredicted
            positions[changes] = i
            changes = np.uint32(changes + np.uint32(symbol != 0))
        for i in range(changes):
            gap = start + positions[i] - after
            after = start + positions[i] + 1
            while gap >= 255:
                gaps[written] = 255
                gap -= 255
                written += 1
            gaps[written] = gap
            written += 1
        taken += changes
    return written, taken


@_compile
def _spread(gaps: Any, values: Any, out: Any) -> None:
    """See :meth:`NumpyKernel.spread`. Elements between the positions are left alone. The caller checks all bounds."""
    at, taken = 0, 0
    for i in range(gaps.size):
        gap = gaps[i]
        at += gap
        if gap != 255:
            out[at] = values[taken]
            at += 1
            taken += 1


@_compile
def _rank(symbols: Any, rank_of: Any, ranks: Any, low: Any, high: Any) -> int:
    """See :meth:`NumpyKernel.rank`. Return how many symbols escape.

    ``low`` and ``high`` have one element more than there are symbols.
    """
    escapes = np.uint32(0)
    for start in range(0, symbols.size, SLICE):
        symbol_slice, rank_slice = symbols[start : start + SLICE], ranks[start : start + SLICE]
        for i in range(symbol_slice.size):
            symbol = symbol_slice[i]
            rank = rank_of[symbol]
            rank_slice[i] = rank
            low[escapes] = np.uint8(symbol)
            high[escapes] = np.uint8(symbol >> 8)
            escapes = np.uint32(escapes + np.uint32(rank == 255))
    return int(escapes)


@_compile
def _add_squares(base: Any, delta: Any, squares: Any) -> None:
    """Add the squares of a slice of base and of Δ to ``squares``, lane by lane."""
    for at in range(0, base.size, _LANES):
        some_base, some_delta = base[at : min(at + _LANES, base.size)], delta[at : min(at + _LANES, base.size)]
        for lane in range(some_base.size):
            squares[0, lane] += np.float64(some_base[lane]) * np.float64(some_base[lane])
            squares[1, lane] += np.float64(some_delta[lane]) * np.float64(some_delta[lane])


@_compile
def _subtract(
    base: Any,  # bits, uint16
    post: Any,  # bits, uint16
    symbols: Any,  # receives the upper half of each float32 delta
    positions: Any,  # int32; receives the positions of deltas whose lower half is not zero
    rests: Any,  # uint32; receives those lower halves
    missed: Any,  # int32; receives the positions where base + Δ, rounded, is not post
    flags: Any,  # scratch: uint8, 4,096
    words: Any,  # the same memory as uint64
    wide: Any,  # scratch: float32, 3 rows of 4,096
    bits: Any,  # the same memory as uint32
    squares: Any,  # receives the sums of squares of base and of Δ: two rows of 512 float64
) -> tuple[int, int, int, bool]:
    """Take Δ = post − base of BF16, split it, and find where no sum of base and Δ gives post.

    Return how many elements differ, how many rests there are, how many positions are missed, and whether all values
    and deltas are finite. If they are not, the rest is of no use.
    """
    changed, rest_count, missed_count = 0, 0, 0
    not_finite = np.uint32(0)
    squares[:] = 0.0
    for start in range(0, base.size, SLICE):
        old, new, symbol = base[start : start + SLICE], post[start : start + SLICE], symbols[start : start + SLICE]
        old_wide, new_wide, delta = wide[0], wide[1], wide[2]
        old_bits, new_bits, delta_bits = bits[0], bits[1], bits[2]
        differing = np.uint32(0)
        for i in range(old.size):
            old_bits[i] = np.uint32(np.uint32(old[i]) << _SHIFT)
            new_bits[i] = np.uint32(np.uint32(new[i]) << _SHIFT)
            differing = np.uint32(differing + np.uint32(old[i] != new[i]))
        changed += differing
        for i in range(old.size):
            delta[i] = new_wide[i] - old_wide[i]
        _add_squares(old_wide[: old.size], delta[: old.size], squares)
        for i in range(old.size):
            old_wide[i] = old_wide[i] + delta[i]
        bad = np.uint32(0)
        for i in range(old.size):
            one, total = delta_bits[i], old_bits[i]
            symbol[i] = np.uint16(one >> _SHIFT)
            up = np.uint32(_HALF + np.uint32(np.uint32(total >> _SHIFT) & _ONE))
            miss = np.uint32(np.uint32(np.uint32(total + up) >> _SHIFT) ^ np.uint32(new_bits[i] >> _SHIFT))
            flags[i] = np.uint32((one & _LOW) != 0) | np.uint32(np.uint32(miss != 0) << _ONE)
            bad = np.uint32(bad | np.uint32(np.uint32(one & _MAGNITUDE) >= _INFINITY))
            bad = np.uint32(bad | np.uint32(np.uint32(new_bits[i] & _MAGNITUDE) >= _INFINITY))
        not_finite |= bad
        for i in range(old.size, -(-old.size // 8) * 8):
            flags[i] = 0
        for word in range(-(-old.size // 8)):
            if words[word] != 0:  # seldom: a twelfth to a hundredth of the elements have a rest
                for i in range(word * 8, word * 8 + 8):
                    if flags[i] & 1:
                        positions[rest_count] = start + i
                        rests[rest_count] = delta_bits[i] & _LOW
                        rest_count += 1
                    if flags[i] & 2:
                        missed[missed_count] = start + i
                        missed_count += 1
    return changed, rest_count, missed_count, not_finite == 0


@_compile
def _add(target: Any, delta: Any, weight: Any, total: Any, total_bits: Any, out: Any) -> int:
    """Sum and round, and return how many sums are not finite. ``total`` is scratch: float32, at least 4,096.

    ``total_bits`` is the same memory.
    """
    not_finite = 0
    for start in range(0, target.size, SLICE):
        end = min(start + SLICE, target.size)
        old, change, new = target[start:end], delta[start:end], out[start:end]
        for i in range(old.size):
            total_bits[i] = np.uint32(np.uint32(old[i]) << _SHIFT)
        for i in range(old.size):
            total[i] = total[i] + weight * change[i]
        bad = np.uint32(0)
        for i in range(old.size):
            bits = total_bits[i]
            up = np.uint32(_HALF + np.uint32(np.uint32(bits >> _SHIFT) & _ONE))
            rounded = np.uint32(np.uint32(bits + up) >> _SHIFT)
            new[i] = np.uint16(rounded)
            bad = np.uint32(bad + np.uint32(np.uint32(bits & _MAGNITUDE) >= _OVERFLOW))
        not_finite += bad
    return not_finite
