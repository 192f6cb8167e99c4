"""Classes of blocks: there are some where they save bits, and none where they don't."""

from __future__ import annotations

import numpy as np
import pytest

from paramdelta_hub.codecs.tans import classes
from paramdelta_hub.codecs.tans.classes import CLASSES, FROM_ELEMENTS, choose_classes
from paramdelta_hub.codecs.tans.coder import BLOCK
from tests.codecs.tans.wide import chunk, gaussian, roundtrip
from tests.support.spec_reader import tans


def rows_of_scales(count: int, width: int, seed: int = 0) -> np.ndarray:
    """Return deltas of rows of 1,024, some of which moved a hundred times as far as others."""
    scales = np.repeat(np.random.default_rng(seed).choice([0.1, 0.01, 0.001], -(-count // 1024)), 1024)[:count]
    return gaussian(count, width, scales, seed)


def numbered(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return symbols as if each value had one by its exponent and sign, their counts, and their exponents."""
    mantissa, mask = (23, 0xFF) if values.itemsize == 4 else (52, 0x7FF)
    fields, indices, counts = np.unique(values >> values.dtype.type(mantissa), return_inverse=True, return_counts=True)
    return indices.astype(np.uint16), counts, fields.astype(np.int64) & mask


def assert_counts(indices: np.ndarray, size: int, of_blocks: np.ndarray, counts: np.ndarray) -> None:
    of_elements = np.repeat(of_blocks, BLOCK)[: indices.size]
    assert of_blocks.size == -(-indices.size // BLOCK)
    for number, row in enumerate(counts):
        own = np.bincount(indices[of_elements == number], minlength=size)
        own[-1] += not own.any()  # a class without blocks has a table, too
        assert np.array_equal(row, own)


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("count", [FROM_ELEMENTS, FROM_ELEMENTS + 1, 70_000, 1 << 17])
def test_several_scales_have_several_classes(width: int, count: int) -> None:
    values = rows_of_scales(count, width)
    indices, whole, exponents = numbered(values)
    of_blocks, counts = choose_classes(indices, whole, exponents)
    assert counts.shape == (CLASSES, whole.size)
    assert_counts(indices, whole.size, of_blocks, counts)


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize(("kind", "count"), [("scales", FROM_ELEMENTS - 1), ("gaussian", 1 << 17), ("zeros", 1 << 16)])
def test_small_chunks_and_even_ones_have_one_class(width: int, kind: str, count: int) -> None:
    values = chunk(kind, count, width)
    indices, whole, exponents = numbered(values)
    of_blocks, counts = choose_classes(indices, whole, exponents)
    assert counts.shape == (1, whole.size)
    assert not of_blocks.any()
    assert_counts(indices, whole.size, of_blocks, counts)


@pytest.mark.parametrize("width", [32, 64])
def test_scales_of_which_one_table_tells_nothing_have_classes(width: int) -> None:
    """Every block takes as many bits by one table, because all of its symbols are as frequent; its exponents differ."""
    scales = 2.0 ** -np.repeat(np.arange(1 << 9) % 8, BLOCK)
    steps = np.random.default_rng(0).integers(1, 2, scales.size, endpoint=True)
    values = (steps * scales**2).astype(f"f{width // 8}").view(f"u{width // 8}")
    indices, whole, exponents = numbered(values)
    of_blocks, counts = choose_classes(indices, whole, exponents)
    assert counts.shape == (CLASSES, whole.size)
    assert_counts(indices, whole.size, of_blocks, counts)


@pytest.mark.parametrize("width", [32, 64])
def test_classes_save_bits(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = rows_of_scales(1 << 17, width)
    coded = roundtrip(values)
    assert coded[24] & 3 == 2, "four classes"
    monkeypatch.setattr(classes, "FROM_ELEMENTS", values.size + 1)
    as_one = roundtrip(values)
    assert as_one[24] & 3 == 0
    assert len(coded) < 0.97 * len(as_one)


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("scales", [2, 3])
def test_fewer_scales_than_classes_have_classes(width: int, scales: int) -> None:
    """A class may stay without blocks; the others save bits all the same."""
    scale = np.repeat(np.random.default_rng(scales).choice([0.1, 0.01, 0.001][:scales], 64), 1024)
    values = gaussian(scale.size, width, scale)
    coded = roundtrip(values)
    assert coded[24] & 3 == 2
    assert len(coded) < len(b"".join(map(roundtrip, np.split(values, 4)))), "than in parts too small for classes"
    assert np.array_equal(tans(coded, values.size, width), values)


@pytest.mark.parametrize("width", [32, 64])
def test_the_specifications_reader_reads_them(width: int) -> None:
    values = rows_of_scales(FROM_ELEMENTS + 100, width, 5)
    coded = roundtrip(values)
    assert coded[24] & 3
    assert np.array_equal(tans(coded, values.size, width), values)
