"""Words of 64 bits: zeros at either end, and stores at any place."""

from __future__ import annotations

import numpy as np
import pytest

from paramdelta_hub.numerics.compiled import compiled
from paramdelta_hub.numerics.words import leading_zeros, store_word, trailing_zeros


@compiled
def _zeros(words: np.ndarray, leading: np.ndarray, trailing: np.ndarray) -> None:
    for i in range(words.size):
        leading[i], trailing[i] = leading_zeros(words[i]), trailing_zeros(words[i])


@compiled
def _store(buffer: np.ndarray, place: int, word: np.uint64) -> None:
    store_word(buffer, np.uint64(place), word)


def test_zeros() -> None:
    random = np.random.default_rng(0)
    words = [0, (1 << 64) - 1, *(1 << place for place in range(64))]
    words += [int(random.integers(1 << 63)) >> shift << other for shift in range(0, 63, 7) for other in range(0, 64, 9)]
    words = [word & ((1 << 64) - 1) for word in words]
    leading, trailing = np.empty(len(words), np.uint64), np.empty(len(words), np.uint64)
    _zeros(np.array(words, np.uint64), leading, trailing)
    assert leading.tolist() == [64 - word.bit_length() for word in words]
    assert trailing.tolist() == [(word & -word).bit_length() - 1 if word else 64 for word in words]


@pytest.mark.parametrize("place", range(9))
def test_stores(place: int) -> None:
    buffer = np.arange(17, dtype=np.uint8)
    _store(buffer, place, np.uint64(0xF7F6F5F4F3F2F1F0))
    assert buffer.tolist() == [*range(place), *range(0xF0, 0xF8), *range(place + 8, 17)]
