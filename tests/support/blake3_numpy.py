"""BLAKE3 in NumPy, written from its paper (O'Connor, Aumasson, Neves, Wilcox-O'Hearn: BLAKE3, section 2).

For the reader that is made from SPEC-v1 alone: it shares nothing with the library that the package uses. All chunks of
the input are compressed side by side.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["blake3"]

_IV = np.array(
    [0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19], np.uint32
)
_PERMUTED = [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8]
_COLUMNS_AND_DIAGONALS = [
    (0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
    (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14),
]  # fmt: skip
_CHUNK_START, _CHUNK_END, _PARENT, _ROOT = 1, 2, 4, 8
_CHUNK, _BLOCK = 1024, 64

Words = NDArray[np.uint32]


@lru_cache(maxsize=4096)
def blake3(data: bytes) -> bytes:
    """Return the 32 bytes of the digest. They are remembered: damaged packages share most of their payloads."""
    whole = max(0, -(-len(data) // _CHUNK) - 1)  # the last chunk is for itself: it may be short, and may be the root
    blocks = np.frombuffer(data, "<u4", whole * _CHUNK // 4).reshape(whole, 16, 16).astype(np.uint32)
    values = np.broadcast_to(_IV, (whole, 8))
    for number in range(16 if whole else 0):
        flags = (_CHUNK_START if number == 0 else 0) | (_CHUNK_END if number == 15 else 0)
        values = _compress(values, blocks[:, number], np.arange(whole, dtype=np.uint64), _BLOCK, flags)
    nodes = np.concatenate([values, _last_chunk(data[whole * _CHUNK :], whole)])
    while len(nodes) > 1:
        pairs = nodes[: len(nodes) // 2 * 2].reshape(-1, 16)
        root = _ROOT if len(nodes) == 2 else 0
        start = np.broadcast_to(_IV, (len(pairs), 8))
        parents = _compress(start, pairs, np.zeros(len(pairs), np.uint64), _BLOCK, _PARENT | root)
        nodes = np.concatenate([parents, nodes[len(pairs) * 2 :]])
    return nodes[0].astype("<u4").tobytes()


def _last_chunk(data: bytes, number: int) -> Words:
    values = _IV[None]
    starts = range(0, max(len(data), 1), _BLOCK)
    for start in starts:
        block = data[start : start + _BLOCK]
        words = np.frombuffer(block.ljust(_BLOCK, b"\0"), "<u4").astype(np.uint32)[None]
        flags = _CHUNK_START if start == 0 else 0
        if start == starts[-1]:
            flags |= _CHUNK_END | (_ROOT if number == 0 else 0)
        values = _compress(values, words, np.array([number], np.uint64), len(block), flags)
    return values


def _compress(values: Words, block: Words, counters: NDArray[np.uint64], length: int, flags: int) -> Words:
    """Compress one block of each of several chunks, or several parents; a row each."""
    words = [block[:, i] for i in range(16)]
    v = [values[:, i].copy() for i in range(8)] + [np.full(len(block), word, np.uint32) for word in _IV[:4]]
    v += [counters.astype(np.uint32), (counters >> np.uint64(32)).astype(np.uint32)]
    v += [np.full(len(block), number, np.uint32) for number in (length, flags)]
    for _ in range(7):
        for number, (a, b, c, d) in enumerate(_COLUMNS_AND_DIAGONALS):
            for word, first, second in ((words[2 * number], 16, 12), (words[2 * number + 1], 8, 7)):
                v[a] = v[a] + v[b] + word
                v[d] = _rotated(v[d] ^ v[a], first)
                v[c] = v[c] + v[d]
                v[b] = _rotated(v[b] ^ v[c], second)
        words = [words[i] for i in _PERMUTED]
    return np.stack([v[i] ^ v[i + 8] for i in range(8)], axis=1)


def _rotated(words: Words, by: int) -> Words:
    return (words >> np.uint32(by)) | (words << np.uint32(32 - by))
