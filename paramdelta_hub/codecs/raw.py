"""The identity: values as little-endian bytes, for what does not compress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paramdelta_hub.codecs.frames import Buffer
from paramdelta_hub.errors import PackageError
from paramdelta_hub.numerics.floats import Bits

__all__ = ["Raw"]


@dataclass(frozen=True)
class Raw:
    """One stream: the values themselves. Damage is found by the tensor's digest alone."""

    name: ClassVar[str] = "raw"

    def streams(self, itemsize: int) -> int:
        """One, for every item size."""
        return 1

    def encode(self, values: Bits) -> list[bytes]:
        """Return the values' bytes, little-endian."""
        return [values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()]

    def decode(self, streams: Sequence[Buffer], out: Bits) -> None:
        """Copy the values to ``out``."""
        if len(streams[0]) != out.nbytes:
            raise PackageError(f"a raw chunk holds {len(streams[0])} bytes instead of {out.nbytes}")
        np.copyto(out, np.frombuffer(streams[0], out.dtype.newbyteorder("<")))
