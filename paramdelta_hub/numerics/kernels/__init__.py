"""The arithmetic of a chunk: by NumPy, or by loops that Numba compiles. Both give the same bits.

    numpy   a dozen passes over blocks in cache   always there; all dtypes
    numba   one or two passes, compiled           BF16, in runs long enough to be worth its start

A kernel is a value: who begins a run asks :func:`kernel_for` once, and hands it down. Nothing but speed depends on it,
so it stands in no plan.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Protocol

import numpy as np

from paramdelta_hub.limits import NUMBA_FROM_BYTES
from paramdelta_hub.numerics.floats import FLOATS, Bits, Difference, Float, Wide
from paramdelta_hub.numerics.kernels.numpy import NumpyKernel

__all__ = ["Kernel", "LoadingKernel", "kernel_for"]


class Kernel(Protocol):
    """The arithmetic of one chunk. A kernel is safe to share between threads."""

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
            NotFiniteChunkError: base and post differ where one is NaN or infinite. Where their bits are equal, Δ is +0.
        """

    def add(self, kind: Float, target: Bits, delta: Wide | None, weight: float, out: Bits) -> int:
        """Write ``target + wΔ``, summed in the wide type and rounded once.

        Args:
            kind: the weights' type.
            target: its bits, flat.
            delta: wide values, which may be overwritten, or None for zeros.
            weight: what they are multiplied by.
            out: receives bits.

        Returns:
            How many results are not finite, without those that the target has and to which zeros alone are added:
            they keep the target's bits.
        """

    def add_all(self, kind: Float, target: Bits, deltas: Iterable[tuple[Wide | None, float]], out: Bits) -> int:
        """Write ``target + Σ wᵢΔᵢ``, summed in the wide type in the order given and rounded once.

        Args:
            kind: the weights' type.
            target: its bits, flat.
            deltas: wide values, which may be overwritten, or None for zeros; and their weights. Each is done with
                before the next is asked for, so all of them may lie in one buffer.
            out: receives bits.

        Returns:
            How many results are not finite, without those that the target has and to which zeros alone are added:
            they keep the target's bits.
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


def kernel_for(nbytes: int, *, wait: bool = True) -> Kernel:
    """Return the fastest kernel for a run that reads ``nbytes`` of weights: compiled loops where they pay.

    Numba takes 0.6 s to start, most of it on one processor; it saves 2 ns an element on each thread. It comes to a new
    Python months late, and some do without its 200 MB: then NumPy does the work.

    Args:
        nbytes: what the run reads.
        wait: for the loops to be loaded; else the kernel is a :class:`LoadingKernel`. Norms, which an extract records,
            are sums whose last digits may differ between the two: only an apply may begin with one and go on with the
            other.
    """
    if nbytes < NUMBA_FROM_BYTES:
        return NumpyKernel()
    return _numba_kernel() if wait else LoadingKernel()


def _numba_kernel() -> Kernel:
    try:
        from paramdelta_hub.numerics.kernels.numba import NumbaKernel
    except ImportError:
        return NumpyKernel()
    return NumbaKernel()


class LoadingKernel:
    """NumPy's arithmetic until a thread of its own has loaded Numba's loops, and theirs from then on."""

    def __init__(self) -> None:
        self._kernel: Kernel = NumpyKernel()
        # No daemon: a process that ends while Numba is being loaded would take its memory from under it.
        self._thread = threading.Thread(target=self._load, name="loading of the kernel")
        self._thread.start()

    def _load(self) -> None:
        """Load the loops that an apply needs."""
        kernel = _numba_kernel()
        kind, few = FLOATS["BF16"], 8
        delta, bits = np.zeros(few, kind.wide), np.zeros(few, kind.bits)
        ranks = np.frombuffer(bytes(few), np.uint8)  # read-only, as a decoder has them: to Numba that is another type
        kernel.look_up(np.zeros(256, kind.wide), ranks, np.empty(0, kind.wide), delta)
        kernel.add(kind, bits, delta, 1.0, np.empty_like(bits))
        self._kernel = kernel

    def wait(self) -> None:
        """Return when the loops are loaded, or can't be."""
        self._thread.join()

    @property
    def name(self) -> str:
        """Of the kernel that is at work."""
        return self._kernel.name

    def subtract(self, kind: Float, base: Bits, post: Bits, symbols: Bits) -> Difference:
        """See :meth:`Kernel.subtract`."""
        return self._kernel.subtract(kind, base, post, symbols)

    def add(self, kind: Float, target: Bits, delta: Wide | None, weight: float, out: Bits) -> int:
        """See :meth:`Kernel.add`."""
        return self._kernel.add(kind, target, delta, weight, out)

    def add_all(self, kind: Float, target: Bits, deltas: Iterable[tuple[Wide | None, float]], out: Bits) -> int:
        """See :meth:`Kernel.add_all`."""
        return self._kernel.add_all(kind, target, deltas, out)

    def look_up(self, palette: Bits | Wide, ranks: Bits, escaped: Bits | Wide, out: Bits | Wide) -> None:
        """See :meth:`Kernel.look_up`."""
        self._kernel.look_up(palette, ranks, escaped, out)

    def gather(self, symbols: Bits) -> tuple[Bits, Bits]:
        """See :meth:`Kernel.gather`."""
        return self._kernel.gather(symbols)

    def spread(self, gaps: Bits, values: Bits | Wide, out: Bits | Wide) -> None:
        """See :meth:`Kernel.spread`."""
        self._kernel.spread(gaps, values, out)

    def rank(self, symbols: Bits, rank_of: Bits) -> tuple[Bits, Bits, Bits]:
        """See :meth:`Kernel.rank`."""
        return self._kernel.rank(symbols, rank_of)
