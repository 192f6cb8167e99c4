"""What names bytes: sha256 for files, as the Hub and everybody's tools have it; BLAKE3 for values and payloads.

Values are hashed wherever weights pass, so that digest is a part of the speed: here sha256 takes 1.8 GB/s of a core,
BLAKE3 6.4, and on a processor without instructions for sha256 the distance is larger. Both are cryptographic, of 256
bits: nobody finds other values that have a given digest.
"""

from __future__ import annotations

from typing import Protocol

import blake3
import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.errors import IntegrityError

__all__ = ["ValuesDigest", "begin_digest", "check_digest", "values_digest"]


class ValuesDigest(Protocol):
    """A BLAKE3 digest that is being made of values, front to back."""

    def update(self, values: memoryview | bytes, /) -> object:
        """Take the next bytes."""

    def hexdigest(self) -> str:
        """Return the digest of what was taken so far, 64 hexadecimal digits."""


def begin_digest() -> ValuesDigest:
    """Begin the digest of values, or of a payload, that come piece by piece."""
    return blake3.blake3()


def values_digest(values: NDArray[np.uint8]) -> bytes:
    """Return the 32 bytes of the digest of values that are here as a whole, little-endian and in C order."""
    return blake3.blake3(values.data).digest()


def check_digest(found: str, promised: str, what: str, where: str | None = None) -> None:
    """Compare two digests.

    Raises:
        IntegrityError: they differ.
    """
    if found != promised:
        raise IntegrityError(
            f"{what} has the digest {found[:16]}…, the manifest promises {promised[:16]}…",
            where=where,
            remedy="the file was damaged or changed; get the package again",
        )
