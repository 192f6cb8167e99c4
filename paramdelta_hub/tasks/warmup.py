"""Compile all loops beforehand, so that no run has to wait for it."""

from __future__ import annotations

import time

import numpy as np

from paramdelta_hub.codecs.by_name import TANS
from paramdelta_hub.fileio.report import Report
from paramdelta_hub.numerics.compiled import when_compiling
from paramdelta_hub.numerics.differences import subtract
from paramdelta_hub.numerics.floats import FLOATS
from paramdelta_hub.numerics.sums import PlainDelta, add_all

__all__ = ["WarmupReport", "warm_up"]

_FEW, _MANY = 3000, 1 << 18  # elements: with one class and without a sample; with several, and with one


class WarmupReport(Report):
    """What was done to have all loops ready."""

    compiled: bool
    """Whether any was not ready."""
    seconds: float


def warm_up() -> WarmupReport:
    """Compile what is not compiled yet, for all dtypes, and keep it on disk."""
    compiled, begun = False, time.monotonic()

    def tell() -> None:
        nonlocal compiled
        compiled = True

    with when_compiling(tell):
        for kind in FLOATS.values():
            for elements in (_FEW, _MANY):
                _use(kind.name, elements)
    return WarmupReport(compiled=compiled, seconds=round(time.monotonic() - begun, 3))


def _use(dtype: str, elements: int) -> None:
    """Take a difference, code it, and add it in all ways."""
    kind = FLOATS[dtype]
    ramp = np.linspace(-1, 1, elements, dtype=np.float32)
    scales = np.repeat(2.0 ** -np.arange(-(-elements // 4096), dtype=np.float32).clip(0, 20), 4096)[:elements]
    base, post = (
        (side.view(np.uint32) >> 16).astype(np.uint16) if dtype == "BF16" else side.astype(kind.narrow).view(kind.bits)
        for side in (ramp, ramp + scales * np.float32(0.1))
    )
    delta, out = np.empty(elements, kind.wide), np.empty(elements, kind.bits)
    subtract(kind, base, post, delta)
    few = np.where(np.arange(elements) % 100 == 0, delta, kind.wide.type(0))
    for values in (delta, few):
        streams = TANS.encode(values)
        TANS.open(streams, elements, kind.wide).add(kind, base, 0.5, out)
        add_all(kind, base, [(TANS.open(streams, elements, kind.wide), 0.5), (PlainDelta(values), 0.5)], out)
        TANS.open(streams, elements, kind.wide).values(np.empty(elements, kind.wide))
    PlainDelta(delta).add(kind, base, 0.5, out)
