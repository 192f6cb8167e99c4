"""The weights of generated and real models as arrays, for what the benchmarks compare."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.checkpoints.checkpoint import open_checkpoint

__all__ = ["narrow", "tensors", "unlike_the_formula", "wide"]

BLOCK = 1 << 20


def tensors(folder: Path) -> dict[str, NDArray[np.uint16]]:
    """Return the 16-bit tensors of a model, flat, mapped and not read."""
    return {
        name: np.memmap(file.path, np.uint16, "r", span.start, (span.nbytes // 2,))
        for name, (file, span) in open_checkpoint(folder).tensors.items()
    }


def unlike_the_formula(out: Path, models: Path) -> float:
    """Return the share of elements in which ``out`` is not ``((post - base) + target).bfloat16()``, made in float32.

    The formula is computed here by NumPy, from the folders ``base``, ``post`` and ``target`` of ``models``.
    """
    base, post, target = (tensors(models / role) for role in ("base", "post", "target"))
    found = tensors(out)
    unlike = elements = 0
    for name, values in target.items():
        for block in _blocks(values.size):
            total = wide(post[name][block])
            total -= wide(base[name][block])
            total += wide(values[block])
            unlike += int(np.count_nonzero(narrow(total) != found[name][block]))
        elements += values.size
    return unlike / elements


def _blocks(size: int) -> Iterator[slice]:
    return (slice(start, start + BLOCK) for start in range(0, size, BLOCK))


def wide(values: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return bfloat16 values, given by their bits, as they are."""
    return np.left_shift(values, 16, dtype=np.uint32).view(np.float32)


def narrow(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round finite values to bfloat16, to nearest, ties to even."""
    bits = values.view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16
    return rounded.astype(np.uint16)
