"""The arithmetic of the specification's §6 in plain NumPy: widen, Δ, sum in order, round once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BITS = {"BF16": np.dtype(np.uint16), "F16": np.dtype(np.uint16), "F32": np.dtype(np.uint32)}
WIDE = {"BF16": np.dtype(np.float32), "F16": np.dtype(np.float32), "F32": np.dtype(np.float64)}
EXPONENT = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000}


def not_finite(name: str, bits: np.ndarray) -> np.ndarray:
    """Return where weights are NaN or infinite."""
    return (bits & EXPONENT[name]) == EXPONENT[name]


def widen(name: str, bits: np.ndarray) -> np.ndarray:
    """Return weights in the wide type."""
    if name == "BF16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(invalid="ignore"):  # a signaling NaN
        return bits.view(np.float16 if name == "F16" else np.float32).astype(WIDE[name])


def narrow(name: str, wide: np.ndarray) -> np.ndarray:
    """Round to nearest, ties to even, overflow to infinity; NaN becomes some NaN."""
    if name != "BF16":
        with np.errstate(over="ignore", invalid="ignore"):
            return wide.astype(np.float16 if name == "F16" else np.float32).view(BITS[name])
    bits = wide.view(np.uint32).astype(np.int64)
    kept, dropped = bits >> 16, bits & 0xFFFF
    rounded = kept + ((dropped > 0x8000) | ((dropped == 0x8000) & (kept % 2 == 1)))
    return np.where(np.isnan(wide), 0x7FC0, rounded).astype(np.uint16)


def delta_of(name: str, base: np.ndarray, post: np.ndarray) -> np.ndarray:
    """Return Δ; +0 where both have the same NaN or infinity."""
    with np.errstate(over="ignore", invalid="ignore"):
        delta = widen(name, post) - widen(name, base)
    return np.where(not_finite(name, base) & (base == post), WIDE[name].type(0), delta)


def add(
    name: str, target: np.ndarray, deltas: Sequence[tuple[np.ndarray | None, float]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return target ⊕ Σ wᵢΔᵢ and where it is not finite, though the target did not keep its bits there.

    None stands for zeros.
    """
    kind = WIDE[name].type
    total, kept = widen(name, target), not_finite(name, target)
    for delta, weight in deltas:
        with np.errstate(all="ignore"):
            addend = kind(weight) * (np.zeros(target.size, kind) if delta is None else delta)
            total = total + addend
        kept = kept & (addend == 0)
    result = np.where(kept, target, narrow(name, total))
    return result, not_finite(name, result) & ~kept
