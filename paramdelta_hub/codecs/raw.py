"""The identity: symbols as little-endian bytes, for what does not compress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paramdelta_hub.codecs.frames import Buffer
from paramdelta_hub.errors import PackageError
from paramdelta_hub.numerics.floats import Bits, Float, Wide

__all__ = ["Raw"]


@dataclass(frozen=True)
class Raw:
    """One stream: the symbols themselves. Damage is found by the tensor's digest alone."""

    name: ClassVar[str] = "raw"

    def streams(self, itemsize: int) -> int:
        """One, for every item size."""
        return 1

    def encode(self, symbols: Bits) -> list[bytes]:
        """Return the symbols' bytes, little-endian."""
        return [symbols.astype(symbols.dtype.newbyteorder("<"), copy=False).tobytes()]

    def decode(self, streams: Sequence[Buffer], out: Bits | Wide, widen: Float | None = None) -> None:
        """Copy, or widen, the symbols to ``out``."""
        itemsize = widen.itemsize if widen else out.itemsize
        if len(streams[0]) != out.size * itemsize:
            raise PackageError(f"a raw chunk holds {len(streams[0])} bytes instead of {out.size * itemsize}")
        symbols = np.frombuffer(streams[0], f"<u{itemsize}").astype(f"u{itemsize}", copy=False)
        if widen:
            widen.widen(symbols, out)
        else:
            np.copyto(out, symbols)
