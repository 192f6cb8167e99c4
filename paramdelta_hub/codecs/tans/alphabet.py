"""The alphabet of a chunk: which symbols stand for the values of Δ, and what is left to raw bits.

A wide value (binary32 or binary64) has a sign, e exponent bits and m fraction bits. Of these, n are *significant*: up
to the last 1 of the fraction. Its *string* is the exponent and the first n − 1 fraction bits; the n-th is 1, the rest
is 0. So sign, n and string tell a value, in 1 + e + max(n − 1, 0) bits.

    exact symbol   (sign, n, string)   one value, whose lower bits (16 of 32, 48 of 64) are 0
    bin            (n, L, prefix)      all values of n whose strings begin with the L bits of the prefix
    other          —                   every value; its bits are raw, all of them

Near-equal floats differ by a few units in the last place, so that few bits of a delta are significant, and n tells as
much as the exponent does. An element of a bin has the rest of its string and its sign in a *raw field*, sign first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.numerics.compiled import compiled

__all__ = ["BINARY32", "BINARY64", "Alphabet", "Binary"]


@dataclass(frozen=True)
class Binary:
    """An IEEE 754 format: its fields, and the limits of an alphabet for it."""

    exponent_bits: int
    fraction_bits: int
    most_bins: int
    """How many bins an alphabet may have. "Other" is not counted."""

    @property
    def width(self) -> int:
        """Bits of a value."""
        return 1 + self.exponent_bits + self.fraction_bits

    @property
    def bits(self) -> np.dtype[Any]:
        """The unsigned type that holds a value's bits."""
        return np.dtype(f"u{self.width // 8}")

    @property
    def exact_bits(self) -> int:
        """How many significant bits an exact symbol may have: its value fits the upper 16 bits."""
        return 15 - self.exponent_bits


BINARY32 = Binary(8, 23, 255)
BINARY64 = Binary(11, 52, 4095)


@dataclass(frozen=True)
class Alphabet:
    """The symbols of a chunk, in their order: exact ones, bins, and "other", which is always there.

    Args:
        exact: ``int64``, a row (n, string, 1 if negative) a symbol, ascending.
        bins: ``int64``, a row (n, L, prefix) a bin, ascending in n and in the strings; no two have a string in common.
    """

    exact: NDArray[np.int64]
    bins: NDArray[np.int64]

    @property
    def size(self) -> int:
        """How many symbols there are."""
        return len(self.exact) + len(self.bins) + 1

    def values(self, binary: Binary) -> NDArray[np.uint64]:
        """Return what an element of each symbol is made of: rows of fixed bits, raw field's width, and its place.

        With raw field r, an element's bits are ``fixed | (r & 1) << (width − 1) | (r >> 1) << place``; of "other" they
        are r itself, which is told by a raw field of the whole width.
        """
        values = np.empty((3, self.size), np.uint64)
        _fill_values(self.exact, self.bins, binary.exponent_bits, binary.fraction_bits, values)
        return values


@compiled
def _fill_values(exact: Any, bins: Any, exponent_bits: int, fraction_bits: int, values: Any) -> None:
    """See :meth:`Alphabet.values`."""
    width = 1 + exponent_bits + fraction_bits
    values[:] = 0
    for i in range(len(exact)):
        n, string, negative = exact[i, 0], exact[i, 1], exact[i, 2]
        values[0, i] = _string_bits(n, string << (fraction_bits - max(n - 1, 0)), fraction_bits)
        values[0, i] |= np.uint64(negative) << np.uint64(width - 1)
    for j in range(len(bins)):
        n, length, prefix = bins[j, 0], bins[j, 1], bins[j, 2]
        i = len(exact) + j
        values[0, i] = _string_bits(n, prefix << (width - 1 - length), fraction_bits)
        values[1, i] = 1 + exponent_bits + max(n - 1, 0) - length
        values[2, i] = fraction_bits - max(n - 1, 0)
    values[1, len(exact) + len(bins)] = width


@compiled
def _string_bits(n: int, string: int, fraction_bits: int) -> Any:
    """Return a string in its place, with the last significant bit, if there is one."""
    return np.uint64(string | (1 << (fraction_bits - n) if n else 0))
