"""The arithmetic of a chunk: by NumPy, or by loops that Numba compiles. Both give the same bits.

    numpy   a dozen passes over blocks in cache   always there; all dtypes
    numba   one or two passes, compiled           BF16, in runs long enough to be worth its start

A kernel is a value: who begins a run asks :func:`kernel_for` once, and hands it down. Nothing but speed depends on it,
so it stands in no plan.
"""

from __future__ import annotations

import threading
from typing import TypeAlias

import numpy as np

from paramdelta_hub.limits import NUMBA_FROM_BYTES
from paramdelta_hub.numerics.floats import FLOATS, Bits, Float, Wide
from paramdelta_hub.numerics.kernels.numpy import NumpyKernel

__all__ = ["Kernel", "LoadingKernel", "kernel_for"]

Kernel: TypeAlias = NumpyKernel
"""The arithmetic of one chunk. NumPy's is complete, and the others override what they do faster."""


def kernel_for(nbytes: int, *, wait: bool = True) -> Kernel:
    """Return the fastest kernel for a run that reads ``nbytes`` of weights: compiled loops where they pay.

    Numba takes 0.6 s to start, most of it on one processor; it saves 2 ns an element on each thread. It comes to a new
    Python months late, and some do without its 200 MB: then NumPy does the work. Without ``wait``, NumPy does it until
    the loops are loaded. Norms, which an extract records, are sums whose last digits may differ between the two: only
    an apply may begin with one and go on with the other.
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


class LoadingKernel(NumpyKernel):
    """NumPy's arithmetic until a thread of its own has loaded Numba's loops; from then on theirs for an apply."""

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
        self._kernel, self.name = kernel, kernel.name

    def wait(self) -> None:
        """Return when the loops are loaded, or can't be."""
        self._thread.join()

    def add(self, kind: Float, target: Bits, delta: Wide | None, weight: float, out: Bits) -> int:
        """Target + w·Δ of one chunk, rounded once; how many are not finite."""
        return self._kernel.add(kind, target, delta, weight, out)

    def look_up(self, palette: Bits | Wide, ranks: Bits, escaped: Bits | Wide, out: Bits | Wide) -> None:
        """``out = palette[ranks]``, the escaped ones from ``escaped``."""
        self._kernel.look_up(palette, ranks, escaped, out)

    def spread(self, gaps: Bits, values: Bits | Wide, out: Bits | Wide) -> None:
        """``out[positions] = values``, and +0 elsewhere."""
        self._kernel.spread(gaps, values, out)
