"""Chunks of symbols for the codecs' tests: every kind of distribution, at sizes around every boundary."""

from __future__ import annotations

import numpy as np

TYPES = {size: np.dtype(f"u{size}") for size in (1, 2, 4, 8)}
KINDS = (
    "zeros",
    "one value",
    "few",
    "skewed",
    "255 values",
    "256 values",
    "rare escapes",
    "uniform",
    "rising",
    "mostly zeros",
)


def chunk(kind: str, size: int, itemsize: int, seed: int = 0) -> np.ndarray:
    """Return ``size`` symbols of ``itemsize`` bytes."""
    random, dtype = np.random.default_rng(seed), TYPES[itemsize]
    top = int(np.iinfo(dtype).max)
    uniform = random.integers(0, top, size, dtype=np.uint64, endpoint=True).astype(dtype)
    if kind == "zeros":
        return np.zeros(size, dtype)
    if kind == "one value":
        return np.full(size, top - 1, dtype)
    if kind == "few":
        return random.choice(np.array([0, 1, top, top // 2], dtype), size)
    if kind == "skewed":
        return np.minimum(random.geometric(0.05, size), min(top, 400)).astype(dtype)
    if kind in ("255 values", "256 values"):
        return (np.arange(size) % int(kind[:3])).astype(dtype)
    if kind == "rare escapes":
        return np.where(random.random(size) < 0.01, uniform, uniform % dtype.type(min(top, 200)))
    if kind == "mostly zeros":
        return np.where(random.random(size) < 0.2, uniform % dtype.type(min(top, 300)), dtype.type(0))
    if kind == "rising":
        return np.arange(size).astype(dtype)
    assert kind == "uniform"
    return uniform
