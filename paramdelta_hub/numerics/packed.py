"""Weights of 4 bits, two to a byte, and scales that are powers of two; pure, no files.

Elements lie one after another, the earlier of two in the low half of the byte. So do MXFP4's (OCP Microscaling Formats
1.0) and compressed-tensors', which packs eight into a little-endian int32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.numerics.float8 import DECODED, Codes

__all__ = ["TABLES", "power_scales", "unpack"]

_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)

TABLES = {
    **DECODED,
    "F4_E2M1": np.concatenate([_E2M1, -_E2M1]),
    "I4": np.arange(16, dtype=np.float32) - 8,
    "I8": np.arange(256, dtype=np.float32) - 128,
}
"""The value of each code, by kind: 8-bit floats; MXFP4's floats; integers that are stored with an offset."""

_POWERS = np.append(np.ldexp(1.0, np.arange(255) - 127), np.nan).astype(np.float32)


def unpack(packed: Codes, odd: bool, out: Codes) -> Codes:
    """Split bytes into codes of 4 bits.

    Args:
        packed: uint8, flat.
        odd: whether the first code is the high half of the first byte.
        out: uint8, flat, as many codes as are wanted; it is returned.
    """
    low, high = out[int(odd) :: 2], out[1 - int(odd) :: 2]
    np.bitwise_and(packed[int(odd) : int(odd) + low.size], 15, out=low)
    np.right_shift(packed[: high.size], 4, out=high)
    return out


def power_scales(exponents: Codes) -> NDArray[np.float32]:
    """Return 2 ** (E − 127) of each E8M0 code, exactly; 255 is NaN."""
    scales: NDArray[np.float32] = _POWERS[exponents]
    return scales
