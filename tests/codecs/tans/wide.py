"""Chunks of wide values for the tests: deltas as models have them, and everything that no model has."""

from __future__ import annotations

import numpy as np

from paramdelta_hub.codecs.tans.chunk import encode_values, parse_values
from tests.support.reference import delta_of

TYPES = {32: np.dtype(np.uint32), 64: np.dtype(np.uint64)}
KINDS = (
    "zeros",
    "minus zeros",
    "one value",
    "two values",
    "gaussian",
    "scales",
    "few changes",
    "specials",
    "outliers",
    "subnormals",
    "uniform",
    "rising",
)


def gaussian(count: int, width: int, scale: float | np.ndarray = 0.02, seed: int = 0) -> np.ndarray:
    """Return the bits of Δ of weights that all moved a little: of BF16 (32 bits), or of F32 rounded to 12 bits."""
    random = np.random.default_rng(seed)
    base = random.standard_normal(count)
    post = base + scale * random.standard_normal(count)
    if width == 32:
        sides = [(side.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16) for side in (base, post)]
        return delta_of("BF16", *sides).view(np.uint32)
    sides = [side.astype(np.float32).view(np.uint32) & np.uint32(0xFFFFF800) for side in (base, post)]
    return delta_of("F32", *sides).view(np.uint64)


def specials(width: int) -> np.ndarray:
    """Return ±0, the borders of subnormals and normals, infinities, NaN with various payloads, and one's neighbors."""
    fraction, top = (23, 0xFF) if width == 32 else (52, 0x7FF)
    one = (top >> 1) << fraction
    infinity, full = top << fraction, (1 << fraction) - 1
    found = [0, 1, 2, full, full + 1, full + 2, one - 1, one, one + 1, one | 1 << (fraction - 1), infinity - 1]
    found += [infinity, infinity | 1, infinity | 1 << (fraction - 1), infinity | full]
    return np.array([value | sign << (width - 1) for sign in (0, 1) for value in found], TYPES[width])


def chunk(kind: str, count: int, width: int, seed: int = 0) -> np.ndarray:
    """Return the bits of ``count`` wide values."""
    random, dtype = np.random.default_rng([seed, count]), TYPES[width]
    wide = np.dtype(f"f{width // 8}")
    uniform = random.integers(0, 1 << width, count, dtype=np.uint64, endpoint=False) if width < 64 else None
    if uniform is None:
        uniform = random.integers(0, (1 << 64) - 1, count, dtype=np.uint64, endpoint=True)
    if kind == "zeros":
        return np.zeros(count, dtype)
    if kind == "minus zeros":
        return np.full(count, -0.0, wide).view(dtype)
    if kind == "one value":
        return np.full(count, 2.0**-9, wide).view(dtype)
    if kind == "two values":
        return random.choice(np.array([0.0, -3.14159], wide), count).view(dtype)
    if kind == "gaussian":
        return gaussian(count, width, seed=seed)
    if kind == "scales":
        return gaussian(count, width, np.repeat(10.0 ** -random.uniform(1, 4, -(-count // 512)), 512)[:count], seed)
    if kind == "few changes":
        return np.where(random.random(count) < 0.02, gaussian(count, width, seed=seed), dtype.type(0))
    if kind == "specials":
        return random.choice(specials(width), count)
    if kind == "outliers":
        return np.where(random.random(count) < 0.01, uniform.astype(dtype), gaussian(count, width, seed=seed))
    if kind == "subnormals":
        return (uniform.astype(dtype) & dtype.type((1 << (width // 4)) - 1)) | (
            (uniform.astype(dtype) >> dtype.type(width - 1)) << dtype.type(width - 1)
        )
    if kind == "rising":
        return np.arange(count).astype(wide).view(dtype)
    assert kind == "uniform"
    return uniform.astype(dtype)


def entropy(values: np.ndarray) -> float:
    """Return the order-0 entropy of values, in bits each."""
    shares = np.unique(values, return_counts=True)[1] / values.size
    return float(-(shares * np.log2(shares)).sum())


def decode(coded: bytes, count: int, width: int) -> np.ndarray:
    """Decode a stream by the package's loops."""
    out = np.full(count, 0x5A, TYPES[width])
    parse_values(coded, count, width // 8).decode(out)
    return out


def roundtrip(values: np.ndarray) -> bytes:
    """Encode and decode bits of wide values; return the stream."""
    before = values.copy()
    coded = encode_values(values)
    assert np.array_equal(values, before), "encoding leaves its input alone"
    assert encode_values(values.copy()) == coded, "equal values give equal bytes"
    assert np.array_equal(decode(coded, values.size, 8 * values.itemsize), values)
    return coded
