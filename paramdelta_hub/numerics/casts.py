"""Float values in another float dtype: exact where it is wider, rounded once where it is narrower.

Base, post and target need not have one dtype. A delta is taken in the type that holds both sides exactly
(:func:`common_dtype`), and a sum of several dtypes is made in float64 if a float32 takes part, else in float32, and
rounded once to the dtype of the result.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.numerics.floats import FLOATS, Bits, Float, Wide
from paramdelta_hub.numerics.scratch import scratch

__all__ = [
    "FloatDtype",
    "StoredFloat",
    "as_bits",
    "cast",
    "cast_bytes",
    "common_dtype",
    "float_dtype",
    "round_once",
    "summing_type",
]


FloatDtype = Literal["bfloat16", "float16", "float32"]
"""A float dtype by torch's name."""
StoredFloat = Literal["BF16", "F16", "F32"]
"""A float dtype by safetensors' name."""
_NAMES: dict[FloatDtype, StoredFloat] = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def float_dtype(name: FloatDtype) -> StoredFloat:
    """Return safetensors' name of a dtype that people name as torch does."""
    return _NAMES[name]


def common_dtype(*dtypes: str) -> str:
    """Return the smallest float dtype that holds all values of each; F32 for BF16 and F16, of which neither does."""
    return dtypes[0] if len(set(dtypes)) == 1 else "F32"


def summing_type(dtypes: Iterable[str]) -> np.dtype[np.floating]:
    """Return the type in which values of these dtypes are summed: float64 if one of them is F32, else float32."""
    return np.dtype("f8" if "F32" in dtypes else "f4")


def cast(bits: Bits, source: Float, target: Float, out: Bits) -> Bits:
    """Convert values from one dtype to another, rounded once to the nearest, ties to even; NaN stays NaN.

    Args:
        bits: patterns of ``source``, flat.
        source: their dtype.
        target: the dtype wanted; the bits stay as they are, if it is the same.
        out: receives as many patterns of ``target``, and is returned.
    """
    if source is target:
        np.copyto(out, bits)
        return out
    wide = source.widen(bits, scratch("cast", bits.size, source.wide))
    return round_once(wide, target, out)


def round_once(values: Wide, target: Float, out: Bits) -> Bits:
    """Round float32 or float64 values to a dtype: to the nearest, ties to even, overflow to infinity, NaN to NaN.

    Args:
        values: flat; not changed.
        target: the dtype.
        out: receives as many of its patterns, and is returned.
    """
    if target.narrow is not None:
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(out.view(target.narrow), values, casting="same_kind")
        return out
    single = values if values.dtype == np.float32 else _to_odd(values)
    bits = single.view(np.uint32)
    rounded = bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))
    np.right_shift(rounded, 16, out=out, casting="unsafe")
    nan = np.isnan(single)
    if nan.any():  # the carry may have made infinity or zero of them
        out[nan] = (bits[nan] >> 16) | 0x40
    return out


def _to_odd(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return float64 values in float32, rounded to odd: rounding those again equals rounding once.

    An inexact value gets the neighbor whose last bit is 1, so that no later rounding takes it for a tie. This holds for
    every type of at most 22 significant bits (Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded sums").
    """
    with np.errstate(over="ignore", invalid="ignore"):
        single = values.astype(np.float32)
        inexact = single.astype(np.float64) != values
        inexact &= ~np.isnan(values)
        too_large = inexact & (np.abs(single) > np.abs(values))
    bits = single.view(np.uint32)
    bits[too_large] -= 1  # toward zero; infinity becomes the largest finite number
    bits[inexact] |= 1
    return single


def as_bits(values: NDArray[np.uint8], kind: Float) -> Bits:
    """Return little-endian bytes as patterns of a dtype; a view, except on big-endian machines."""
    bits: Bits = values.view(kind.bits.newbyteorder("<")).astype(kind.bits, copy=False)
    return bits


def cast_bytes(values: NDArray[np.uint8], source: str, target: str, out: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert little-endian bytes of one dtype to those of another, which ``out`` receives; see :func:`cast`."""
    kind = FLOATS[target]
    patterns = scratch("cast patterns", out.size // kind.itemsize, kind.bits)
    cast(as_bits(values, FLOATS[source]), FLOATS[source], kind, patterns)
    np.copyto(out, patterns.astype(kind.bits.newbyteorder("<"), copy=False).view(np.uint8))
    return out
