"""Binary logarithms of counts in integers, so that an encoder makes the same choices on every machine.

Those of a C library differ in their last bit from processor to processor, which can change a choice, and so the bytes
of a package.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from paramdelta_hub.numerics.compiled import compiled
from paramdelta_hub.numerics.words import leading_zeros

__all__ = ["UNIT", "log2"]

UNIT = 1 << 16
"""Units of one bit. The error is up to 12 of them."""
_BITS = 12  # of a number that are looked at below its highest
_TABLE = np.array([round(math.log2(1 + (part + 0.5) / (1 << _BITS)) * UNIT) for part in range(1 << _BITS)], np.int64)


@compiled
def log2(number: int) -> Any:
    """Return the binary logarithm of a positive integer below 2⁵⁰, in units."""
    exponent = 63 - np.int64(leading_zeros(np.uint64(number)))
    if exponent > _BITS:
        part = (number >> (exponent - _BITS)) & ((1 << _BITS) - 1)
    else:
        part = (number << (_BITS - exponent)) & ((1 << _BITS) - 1)
        if part == 0:  # a power of 2
            return exponent * UNIT
    return exponent * UNIT + _TABLE[part]
