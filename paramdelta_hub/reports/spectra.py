"""The effective rank of a few matrices of a delta, estimated from a part of each.

The effective rank is the exponential of the entropy of the singular values, taken as shares of their sum (Roy and
Vetterli, 2007): 1 if one direction has all, the number of rows if all directions have the same.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.errors import PackageError
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.limits import SPECTRUM_SIDE
from paramdelta_hub.package.manifest import TensorRecord
from paramdelta_hub.package.package import Package
from paramdelta_hub.package.tensor_delta import Locations, delta_chunks
from paramdelta_hub.registry.cards.changes import place_of

__all__ = ["Spectrum", "choose", "effective_rank", "has_weights", "measure_spectra"]

_MIN_SIDE = 8
"""The minimum number of rows and columns. The rank of a smaller matrix says nothing."""


@dataclass(frozen=True)
class Spectrum:
    """A summary of the singular values of a part of one tensor's Δ."""

    name: str
    shape: tuple[int, int]
    rows: int
    """The number of sampled rows, and below of columns. The ranks can't exceed the smaller number."""
    columns: int
    effective_rank: float
    noise_rank: float
    """The effective rank of independent Gaussian numbers in a matrix of that size."""
    most: int
    """The number of directions that hold nine tenths of the squared norm."""

    @property
    def share(self) -> float:
        """The effective rank as a share of that of noise."""
        return self.effective_rank / self.noise_rank


def choose(tensors: Sequence[TensorRecord], count: int) -> list[TensorRecord]:
    """Return up to ``count`` changed matrices, equally many of every kind of module, spread over the layers."""
    kinds: dict[tuple[str, str], list[TensorRecord]] = defaultdict(list)
    for tensor in tensors:
        is_matrix = len(tensor.shape) == 2 and min(tensor.shape) >= _MIN_SIDE
        if tensor.effect == "add" and tensor.changed and not tensor.is_zero and is_matrix:
            place = place_of(tensor.name, fine=True)
            kinds[place.stack, place.module].append(tensor)
    most = max(map(len, kinds.values()), default=0)
    each = next((n for n in range(1, most + 1) if sum(min(n, len(kind)) for kind in kinds.values()) >= count), most)
    chosen = [
        tensor
        for kind in kinds.values()
        for tensor in _spread(sorted(kind, key=lambda tensor: place_of(tensor.name).layer), each)
    ]
    return _spread(chosen, count)


def has_weights(package: Package) -> bool:
    """Whether the weights of a package are on this machine, and not its manifest alone."""
    return all(os.path.lexists(package.path / file.path) for file in package.manifest.shards)


def measure_spectra(package: Package, count: int) -> list[Spectrum]:
    """Decode up to ``count`` matrices of a package, one chunk in memory at a time, and return their spectra.

    Up to 256 rows and 256 columns of each are kept, selected by a digest of its name. The whole payload is decoded,
    and its digest checked.

    Raises:
        PackageError: not a whole package, or damaged.
    """
    records = choose(package.manifest.tensors, count)
    places = package.payload_locations() if records else {}
    found = []
    with OpenFiles(PackageError) as shards:
        for record in records:
            values = _sample(record, places, shards)
            if not np.isfinite(values).all():
                continue  # a delta can overflow although base and post are finite; it has no singular values
            singular = np.linalg.svd(values, compute_uv=False)
            if singular[0] == 0.0:
                continue  # all changes are outside the sample
            energy = np.cumsum(np.square(singular / singular[0]))
            most = int(np.searchsorted(energy, 0.9 * energy[-1])) + 1
            rows, columns = values.shape
            shape = (record.shape[0], record.shape[1])
            rank = effective_rank(singular)
            found.append(Spectrum(record.name, shape, rows, columns, rank, _noise_rank(rows, columns), most))
    return found


def effective_rank(singular: NDArray[np.floating[Any]]) -> float:
    """Return exp(−Σ p ln p), where p are the singular values (not all zero) as shares of their sum."""
    shares = singular / singular[0]
    shares = shares[shares > 0.0] / shares.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


@functools.cache
def _noise_rank(rows: int, columns: int) -> float:
    noise = np.random.Generator(np.random.PCG64(0)).standard_normal((rows, columns))
    return effective_rank(np.linalg.svd(noise, compute_uv=False))


def _spread(items: Sequence[TensorRecord], count: int) -> list[TensorRecord]:
    """Return ``count`` of the items, as far apart as possible."""
    if len(items) <= count:
        return list(items)
    if count == 1:
        return [items[len(items) // 2]]
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]


def _sample(record: TensorRecord, places: Locations, shards: OpenFiles) -> NDArray[np.float64]:
    """Return the selected rows and columns of a matrix's Δ."""
    rows, columns = (
        _draw(f"{axis} {record.name}", size) for axis, size in zip(("rows", "columns"), record.shape, strict=True)
    )
    wanted = (rows[:, np.newaxis] * record.shape[1] + columns).ravel()  # ascending
    values = np.empty(wanted.size)
    start = taken = 0
    for chunk in delta_chunks(record, places, shards, "spectrum"):
        stop = int(np.searchsorted(wanted, start + chunk.size))
        values[taken:stop] = chunk[wanted[taken:stop] - start]
        start, taken = start + chunk.size, stop
    return values.reshape(rows.size, columns.size)


def _draw(seed: str, size: int) -> NDArray[np.int64]:
    """Return up to 256 of the numbers below ``size``, ascending, equal on every machine and with every NumPy.

    One is selected from each of 256 equal stretches, so that no part of the matrix is missed.
    """
    if size <= SPECTRUM_SIDE:
        return np.arange(size)
    ends = np.arange(SPECTRUM_SIDE + 1) * size // SPECTRUM_SIDE
    draws = np.frombuffer(hashlib.shake_128(seed.encode()).digest(4 * SPECTRUM_SIDE), "<u4").astype(np.int64)
    return ends[:-1] + draws % np.diff(ends)
