"""What other codes for the same deltas would save: their entropies, on the pairs of the size benchmark.

A code is judged before it is built, by what no coder of its kind can go below: the entropy of each chunk's 16-bit
symbols, given what the decoder knows already (their *context*), and a price for telling the decoder how often which
symbol comes. That price is what makes fine contexts lose: each pays for its own table.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from paramdelta_hub.codecs.palette import FEW

from paramdelta_hub.checkpoints.checkpoint import open_checkpoint
from scripts.benchmarks.models import narrow, tensors, wide
from scripts.benchmarks.sizes import PAIRS

__all__ = ["IDEAS", "measure"]

CHUNK = 1 << 20
CLASSES = 8
PALETTE = 255
ENTRY = 16.0
"""Bits that a used symbol takes in a chunk's palette, as the format stores it."""
ADAPTED = 6.0
"""Bits to tell one count of a table, about what zstd's and other table coders spend."""

Symbols = NDArray[np.uint16]
Classes = NDArray[np.uint8]

IDEAS = {
    "order0": "entropy of each chunk, with its table",
    "palette": "a palette of 255, of the changed elements alone where they are few (the format)",
    "two_level": "a palette of 4,096 in two levels",
    "one_table": "one palette for the whole model",
    "rows": "8 classes of rows, by the delta's spread",
    "rows_columns": "8 × 8 classes of rows and columns",
    "previous": "8 classes of the element before",
    "sorted_rows": "rows ordered by spread, before they are cut into chunks",
}


def measure(work: Path) -> list[dict[str, Any]]:
    """Return, for every pair, what each idea would take, in bytes."""
    found = []
    for pair in PAIRS:
        home = pair.make(work)
        found.append({"key": pair.key, "title": pair.title, **_measure(home / "base", home / "post")})
    return found


def _measure(base: Path, post: Path) -> dict[str, Any]:
    before, after = tensors(base), tensors(post)
    shapes = {name: span.shape for name, (_, span) in open_checkpoint(base).tensors.items()}
    bits, elements = dict.fromkeys(IDEAS, 0.0), 0
    whole = np.zeros(1 << 16, np.int64)
    for name, values in before.items():
        if np.array_equal(values, after[name]):
            continue  # no payload, in any code
        delta = wide(after[name]) - wide(values)
        symbols = narrow(delta)
        elements += symbols.size
        rows, columns = _grid(delta, shapes[name])
        apart = np.argsort(np.abs(delta).reshape(*_matrix(shapes[name])).mean(axis=1), kind="stable")
        in_order = symbols.reshape(*_matrix(shapes[name]))[apart].reshape(-1)
        for chunk in _chunks(symbols.size):
            part = symbols[chunk]
            counts = np.bincount(part, minlength=1 << 16)
            whole += counts
            bits["order0"] += _entropy(counts) + _table(counts)
            bits["palette"] += _palette(counts, part)
            bits["two_level"] += _two_levels(counts)
            bits["rows"] += _given(part, rows[chunk])
            bits["rows_columns"] += _given(part, rows[chunk] * CLASSES + columns[chunk])
            bits["previous"] += _given(part, _before(part))
            bits["sorted_rows"] += _entropy(counts := np.bincount(in_order[chunk], minlength=1 << 16)) + _table(counts)
        bits["rows"] += 3 * apart.size
        bits["rows_columns"] += 3 * sum(_matrix(shapes[name]))
        bits["sorted_rows"] += 16 * apart.size
    bits["one_table"] = _entropy(whole) + _table(whole)
    return {"elements": elements, "bytes": {name: value / 8 for name, value in bits.items()}}


def _chunks(size: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, size, CHUNK))


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return a tensor's rows and columns: all but its last axis, and that."""
    columns = shape[-1] if len(shape) > 1 else 1
    return int(np.prod(shape, dtype=np.int64)) // max(1, columns), columns


def _grid(delta: NDArray[np.float32], shape: tuple[int, ...]) -> tuple[Classes, Classes]:
    """Return every element's class of row and of column: an eighth of them each, by mean size of the delta."""
    sizes = np.abs(delta).reshape(*_matrix(shape))
    rows, columns = _eighths(sizes.mean(axis=1)), _eighths(sizes.mean(axis=0))
    return np.repeat(rows, columns.size), np.tile(columns, rows.size)


def _eighths(sizes: NDArray[np.float32]) -> Classes:
    classes = np.empty(sizes.size, np.uint8)
    classes[np.argsort(sizes, kind="stable")] = np.arange(sizes.size) * CLASSES // sizes.size
    return classes


def _before(symbols: Symbols) -> Classes:
    """Return the class of each symbol's left neighbour, by size; the first has the smallest."""
    size = symbols & 0x7FFF
    bounds = np.quantile(size, np.arange(1, CLASSES) / CLASSES)
    classes = np.searchsorted(bounds, size, side="right").astype(np.uint8)
    return np.concatenate([np.zeros(1, np.uint8), classes[:-1]])


def _given(symbols: Symbols, classes: Classes) -> float:
    """Return the bits of symbols whose classes are known, each class with a table of its own."""
    bits = 0.0
    for one in np.unique(classes):
        counts = np.bincount(symbols[classes == one], minlength=1 << 16)
        bits += _entropy(counts) + _table(counts)
    return bits


def _entropy(counts: NDArray[np.int64]) -> float:
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / counts.sum())).sum()) if counts.size else 0.0


def _table(counts: NDArray[np.int64]) -> float:
    """Return the price of a table: which symbols come, and how often, and no more than writing rare ones out."""
    seen = counts[counts > 0]
    return float(np.minimum(ENTRY + ADAPTED, 16.0 * seen).sum())


def _palette(counts: NDArray[np.int64], symbols: Symbols) -> float:
    """Return the bits of the format's own streams, if each were coded at its entropy."""
    changed, size = int(counts[1:].sum()), int(counts.sum())
    if 0 < changed < FEW * size:
        return _entropy(np.array([changed, size - changed])) + _palette(counts * (np.arange(counts.size) > 0), symbols)
    kept, escaped = _split(counts, PALETTE)
    ranks = np.append(counts[kept], counts[escaped].sum())
    apart = symbols[np.isin(symbols, escaped)]
    planes = sum(_entropy(np.bincount(plane, minlength=256)) for plane in (apart & 0xFF, apart >> 8))
    return _entropy(ranks) + ENTRY * kept.size + ADAPTED * ranks.size + planes


def _two_levels(counts: NDArray[np.int64]) -> float:
    """Return the bits of a rank of 12 bits, as a byte and, where that is an escape, a second symbol of 4,096."""
    kept, escaped = _split(counts, PALETTE)
    second = escaped[np.argsort(-counts[escaped], kind="stable")]
    near, far = second[: 4096 - PALETTE], second[4096 - PALETTE :]
    ranks = np.append(counts[kept], counts[escaped].sum())
    inner = np.append(counts[near], counts[far].sum())
    tables = ENTRY * kept.size + ADAPTED * ranks.size + float(np.minimum(ENTRY + ADAPTED, 16.0 * counts[near]).sum())
    return _entropy(ranks) + _entropy(inner) + 16.0 * float(counts[far].sum()) + tables


def _split(counts: NDArray[np.int64], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    present = np.flatnonzero(counts)
    order = present[np.argsort(-counts[present], kind="stable")]
    return order[:size], order[size:]
