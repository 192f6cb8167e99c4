"""Who does the arithmetic of a chunk: NumPy, or compiled loops. Both give the same bits.

    passes   NumPy, a dozen passes over blocks in cache     always there; all dtypes
    loops    one or two passes, compiled by Numba           BF16, in runs long enough to be worth its start

The engine is chosen once a process, before the first task; nothing but speed depends on it, so it stands in no plan.
An apply does not wait for Numba: its first tasks are NumPy's, and the loops take over when they are loaded.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from paramdelta_hub.arithmetic import FLOATS, Bits, Difference, Float, Wide
from paramdelta_hub.engines.passes import Passes
from paramdelta_hub.limits import LOOPS_FROM_BYTES

__all__ = ["Engine", "choose", "current", "use"]


class Engine(Protocol):
    """The arithmetic of one chunk. Implementations keep no state, and are safe to share between threads."""

    @property
    def name(self) -> str:
        """What reports call it."""

    def subtract(self, kind: Float, base: Bits, post: Bits, symbols: Bits) -> Difference:
        """Take Δ = post − base and prove it: every element is reached by a sum, or listed as an exception.

        Args:
            kind: the weights' type.
            base: base's bits, flat.
            post: post's bits, as many.
            symbols: receives a symbol an element.

        Raises:
            NotFiniteChunkError: a value of base or post is NaN or infinite.
        """

    def add(self, kind: Float, target: Bits, deltas: Sequence[tuple[Wide | None, float]], out: Bits) -> int:
        """Write ``target + Σ wᵢΔᵢ``, summed in the wide type in the order given and rounded once.

        Args:
            kind: the weights' type.
            target: its bits, flat.
            deltas: wide values, which may be overwritten, or None for zeros; and their weights.
            out: receives bits.

        Returns:
            How many results are not finite.
        """

    def look_up(self, palette: Bits | Wide, ranks: Bits, escaped: Bits | Wide, out: Bits | Wide) -> None:
        """``out = palette[ranks]``, and for each rank of 255 the next of ``escaped``.

        Args:
            palette: 256 values of ``out``'s type.
            ranks: uint8, flat.
            escaped: as many values as there are ranks of 255.
            out: as many elements as ranks.
        """

    def gather(self, symbols: Bits) -> tuple[Bits, Bits]:
        """Return where the symbols other than 0 are, as gaps, and those symbols: what :meth:`spread` takes.

        They live in this thread's buffers until its next use.

        Args:
            symbols: uint16, flat.
        """

    def spread(self, gaps: Bits, values: Bits | Wide, out: Bits | Wide) -> None:
        """``out[positions] = values``, and +0 elsewhere.

        Args:
            gaps: uint8: of each position, how many elements lie before it and after the one before; a byte of 255
                stands for 255 and goes on. All positions lie inside.
            values: as many, of ``out``'s type.
            out: flat.
        """

    def rank(self, symbols: Bits, rank_of: Bits) -> tuple[Bits, Bits, Bits]:
        """Return ``rank_of[symbols]``, and the low and the high bytes of the symbols whose rank is 255.

        They live in this thread's buffers until its next use.

        Args:
            symbols: uint16, flat.
            rank_of: 65,536 ranks, uint8.
        """


_current: Engine = Passes()


def current() -> Engine:
    """Return the engine of this process."""
    return _current


def use(engine: Engine) -> None:
    """Make an engine the one of this process; tasks that run keep the one they began a chunk with."""
    global _current
    _current = engine


def choose(nbytes: int, *, wait: bool = True) -> Engine:
    """Choose this process's engine for weights of ``nbytes``, and return it: compiled loops where they pay.

    Numba takes 0.6 s to start, most of it on one processor; it saves 2 ns an element on each thread. It comes to a new
    Python months late, and some do without its 200 MB: then NumPy does the work.

    Args:
        nbytes: what the run reads.
        wait: for the loops; else NumPy works until a thread has loaded them. Norms, which an extract records, are sums
            whose last digits may differ between the two: only an apply may begin with one and go on with the other.
    """
    engine: Engine = Passes()
    if nbytes >= LOOPS_FROM_BYTES:
        if wait:
            engine = _loops() or engine
        else:
            # No daemon: a process that ends while Numba is being loaded would take its memory from under it.
            threading.Thread(target=_take_over, args=(engine,), name="loading of the loops").start()
    use(engine)
    return engine


def _loops() -> Engine | None:
    try:
        from paramdelta_hub.engines.loops import Loops
    except ImportError:
        return None
    return Loops()


def _take_over(from_this: Engine) -> None:
    """Load the loops that an apply needs, then use them; unless another engine was chosen meanwhile."""
    loops = _loops()
    if loops is None:
        return
    kind, few = FLOATS["BF16"], 8
    delta, bits = np.zeros(few, kind.wide), np.zeros(few, kind.bits)
    ranks = np.frombuffer(bytes(few), np.uint8)  # read-only, as a decoder has them: to Numba that is another type
    loops.look_up(np.zeros(256, kind.wide), ranks, np.empty(0, kind.wide), delta)
    loops.add(kind, bits, [(delta, 1.0)], np.empty_like(bits))
    if _current is from_this:
        use(loops)
