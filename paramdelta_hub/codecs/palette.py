"""The palette: one byte an element for 16-bit symbols that take few distinct values.

Near-equal floats differ by a few units in the last place, so a delta repeats itself. Per chunk, the (at most) 255
most frequent symbols become the palette; each element is coded as its rank; rank 255 escapes to the symbol itself,
kept in two byte planes. A byte an element is what zstd's Huffman coder is best at: it lands within 1–3 % of the
order-0 entropy of the 16-bit symbols, which byte planes never reach.

But Huffman spends a bit at least on every element, and small updates (reinforcement learning, low rates) leave most
weights of a 16-bit model as they were: with 90 % unchanged that is 63 % over the entropy. So where few elements of a
chunk changed, their positions are coded, and the palette is of them alone: 1.5 % over.

Five streams: the gaps between the positions (nothing where all elements follow), the palette (2 bytes an entry,
little-endian, most frequent first), the ranks, the escaped symbols' low bytes and their high bytes, in order of
appearance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paramdelta_hub.codecs import frames
from paramdelta_hub.codecs.frames import Buffer
from paramdelta_hub.codecs.planes import compress_plane, decode_planes
from paramdelta_hub.codecs.sparse import decode_gaps
from paramdelta_hub.errors import PackageError
from paramdelta_hub.numerics.floats import Bits, Float, Wide
from paramdelta_hub.numerics.kernels import Kernel
from paramdelta_hub.numerics.scratch import scratch

__all__ = ["Palette"]

ESCAPE = 255
FEW = 0.45
"""The share of changed elements below which positions are coded: measured, where both take as much."""
_SAMPLE_STRIDE = 8  # a strided sample of a large chunk finds the same palette as a full count, at 1/7 of the time
_SAMPLE_FROM = 1 << 18


@dataclass(frozen=True)
class Palette:
    """Positions, ranks, escapes and the palette itself; only for two-byte symbols."""

    name: ClassVar[str] = "palette"

    def streams(self, itemsize: int) -> int:
        """Five for two-byte symbols."""
        return 5 if itemsize == 2 else 0

    def encode(self, symbols: Bits, kernel: Kernel) -> list[bytes]:
        """Code a chunk of ``uint16`` symbols."""
        changed = int(np.count_nonzero(symbols))
        if not 0 < changed < FEW * symbols.size:
            return [b"", *_encode_all(symbols, kernel)]
        gaps, values = kernel.gather(symbols)
        return [frames.compress(gaps.data), *_encode_all(values, kernel)]

    def decode(self, streams: Sequence[Buffer], out: Bits | Wide, kernel: Kernel, widen: Float | None = None) -> None:
        """Fill ``out`` with the chunk's symbols, or with what they widen to.

        Raises:
            PackageError: a damaged frame, a palette of another size, a rank the palette does not have, or a position
                past the end.
        """
        coded_gaps, *rest = streams
        if not len(coded_gaps):
            _decode_all(rest, out, kernel, widen)
            return
        gaps, count = decode_gaps(coded_gaps, out.size)
        changed = scratch("changed", count, out.dtype)
        _decode_all(rest, changed, kernel, widen)
        kernel.spread(gaps, changed, out)


def _encode_all(symbols: Bits, kernel: Kernel) -> list[bytes]:
    palette = _most_frequent(symbols)
    rank_of = np.full(1 << 16, ESCAPE, np.uint8)
    rank_of[palette] = np.arange(palette.size, dtype=np.uint8)
    ranks, low, high = kernel.rank(symbols, rank_of)
    return [palette.astype("<u2").tobytes(), frames.compress(ranks.data), compress_plane(low), compress_plane(high)]


def _decode_all(streams: Sequence[Buffer], out: Bits | Wide, kernel: Kernel, widen: Float | None) -> None:
    coded_palette, coded_ranks, *coded_escapes = streams
    entries, rest = divmod(len(coded_palette), 2)
    if rest or entries > ESCAPE:
        raise PackageError(f"a palette takes {len(coded_palette)} bytes; it has up to 255 two-byte entries")
    palette = np.zeros(256, np.uint16)
    palette[:entries] = np.frombuffer(coded_palette, "<u2")
    ranks = np.frombuffer(frames.decompress(coded_ranks, out.size), np.uint8)
    if entries < ESCAPE and ((ranks >= entries) & (ranks != ESCAPE)).any():
        raise PackageError("a rank points past the end of its palette")
    is_escape = np.equal(ranks, ESCAPE, out=scratch("is escape", ranks.size, np.bool_))
    escaped = scratch("escaped", int(np.count_nonzero(is_escape)), np.uint16)
    if escaped.size:
        decode_planes(coded_escapes, escaped)
    elif any(len(stream) for stream in coded_escapes):
        raise PackageError("a chunk holds escaped values that no element refers to")
    if widen:
        palette = widen.widen(palette, np.empty(palette.size, out.dtype))
        escaped = widen.widen(escaped, scratch("widened escapes", escaped.size, out.dtype))
    kernel.look_up(palette, ranks, escaped, out)


def _most_frequent(symbols: Bits) -> Bits:
    """Return up to 255 symbols, the most frequent first, ties to the smaller symbol."""
    sample = symbols[::_SAMPLE_STRIDE] if symbols.size >= _SAMPLE_FROM else symbols
    counts = np.bincount(sample, minlength=1 << 16)
    present = np.flatnonzero(counts)
    order = np.argsort(-counts[present], kind="stable")[:ESCAPE]
    return present[order].astype(np.uint16)
