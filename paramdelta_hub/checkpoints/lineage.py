"""Lineage: evidence that a target descends from base or shares an ancestor with it, without having base.

Models of equal shapes that were trained separately are uncorrelated; fine-tunes of one ancestor agree almost perfectly.
A few values of base per tensor, at positions derived from the tensor's name, are enough to tell the two cases apart.
Measured: MiniLM fine-tunes 0.9999, two CHGNet releases of equal shapes −0.001.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.checkpoints.logical import LogicalTensor
from paramdelta_hub.checkpoints.tensor_sources import Files
from paramdelta_hub.errors import CheckpointError, PackageError
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.fileio.safetensors import build_header, check_header
from paramdelta_hub.limits import (
    KIN_CORRELATION,
    LINEAGE_RUN_LENGTH,
    LINEAGE_RUNS,
    LINEAGE_TENSORS,
    REMOTE_LINEAGE_RUNS,
    REMOTE_LINEAGE_TENSORS,
)
from paramdelta_hub.numerics.floats import FLOATS

__all__ = ["LineageMatch", "compare_samples", "pack_samples", "sample", "sample_runs", "unpack_samples"]

_LEAST_VALUES = 32
_REQUESTS_AT_ONCE = 16


def sample_runs(name: str, elements: int) -> list[slice]:
    """Return the places of a tensor's samples: all of it, or 16 runs of 16 elements drawn by SHAKE-128 of its name.

    Runs are ascending and may overlap. The draw is public: it guards against mistakes, not against malice.
    """
    if elements <= LINEAGE_RUNS * LINEAGE_RUN_LENGTH:
        return [slice(0, elements)]
    draws = np.frombuffer(hashlib.shake_128(name.encode()).digest(8 * LINEAGE_RUNS), "<u8")
    starts = np.sort(draws % np.uint64(elements - LINEAGE_RUN_LENGTH + 1)).tolist()
    return [slice(start, start + LINEAGE_RUN_LENGTH) for start in starts]


def sample(name: str, tensor: LogicalTensor, files: Files, step: int = 1) -> NDArray[np.uint8]:
    """Read a tensor's samples, or those of every ``step``-th run: raw bytes in its dtype.

    ``name`` is the name in the *package*.
    """
    values, itemsize = tensor.source.open(files), tensor.itemsize
    runs = []
    for run in sample_runs(name, tensor.elements)[::step]:
        runs.append(np.empty((run.stop - run.start) * itemsize, np.uint8))
        values.read(run.start, runs[-1])
    return np.concatenate(runs)


def pack_samples(samples: Mapping[str, tuple[str, NDArray[np.uint8]]]) -> bytes:
    """Return the lineage file: a safetensors file of one flat tensor of samples (dtype, bytes) a name."""
    entries = [
        (name, dtype, (values.size // FLOATS[dtype].itemsize,), values.size)
        for name, (dtype, values) in samples.items()
    ]
    header = build_header(entries, {"format": "paramdelta-lineage"})
    return header + b"".join(values.tobytes() for _, values in samples.values())


def unpack_samples(content: bytes, where: str) -> dict[str, tuple[str, NDArray[np.uint8]]]:
    """Return what :func:`pack_samples` was given, or raise a PackageError."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > len(content) - 8:
        raise PackageError("the lineage file is truncated", where=where)
    header = check_header(content[8 : 8 + length], len(content), PackageError, where)
    data = np.frombuffer(content, np.uint8)
    if unknown := [span for span in header.tensors if span.dtype not in FLOATS]:
        raise PackageError(f"the lineage file holds {unknown[0].dtype}", where=where)
    return {span.name: (span.dtype, data[span.start : span.start + span.nbytes]) for span in header.tensors}


@dataclass(frozen=True)
class LineageMatch:
    """How similar a target is to base: the mean correlation of sampled tensors, and whether all values are equal."""

    correlation: float | None
    """None where nothing could be compared: constant or tiny tensors only."""
    tensors: int
    same_values: bool
    distances: Mapping[str, float]
    """‖target − base‖ over ‖base‖ of each compared tensor's samples; what base has as zeros is left out."""

    @property
    def is_related(self) -> bool:
        """Whether the target may take the delta."""
        return self.same_values or (self.correlation is not None and self.correlation >= KIN_CORRELATION)

    def __str__(self) -> str:
        if self.correlation is None:
            return "nothing to compare"
        return f"mean correlation {self.correlation:.4f} over {self.tensors} tensors"


def compare_samples(
    base: Mapping[str, tuple[str, NDArray[np.uint8]]], target: Mapping[str, LogicalTensor], remote: Files | None = None
) -> LineageMatch:
    """Correlate base's samples with the target's values at the same places.

    Only matrices count where there are any: norms and biases of unrelated models resemble one another. Each tensor
    counts once, whatever its size. The target's tensors have the package's names, and their rows its order. Where their
    files are not on this machine, ``remote`` reads them, on several threads. Every run is a request then, and a few of
    them must do.

    Raises:
        CheckpointError: the target's values can't be read.
    """
    names = [name for name in base if name in target and base[name][1].size]
    matrices = [name for name in names if len(target[name].shape) >= 2] or names
    limit = REMOTE_LINEAGE_TENSORS if remote else LINEAGE_TENSORS
    if len(matrices) > limit:
        matrices = [matrices[i * len(matrices) // limit] for i in range(limit)]
    correlations, equal, distances = [], bool(matrices), {}
    with OpenFiles(CheckpointError) as files:
        if remote:
            step = LINEAGE_RUNS // REMOTE_LINEAGE_RUNS
            with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
                read = list(pool.map(lambda name: sample(name, target[name], remote, step), matrices))
        else:
            step, read = 1, [sample(name, target[name], files) for name in matrices]
        for name, target_values in zip(matrices, read, strict=True):
            dtype, base_values = base[name]
            base_values = _every_nth_run(step, base_values, target[name].elements)
            base_floats, target_floats = _values(dtype, base_values), _values(target[name].dtype, target_values)
            equal = equal and np.array_equal(base_floats, target_floats)
            correlation = _correlation(base_floats, target_floats)
            if correlation is not None:
                correlations.append(correlation)
                distances[name] = float(np.linalg.norm(target_floats - base_floats) / np.linalg.norm(base_floats))
    mean = float(np.mean(correlations)) if correlations else None
    return LineageMatch(mean, len(correlations), equal, distances)


def _every_nth_run(step: int, samples: NDArray[np.uint8], elements: int) -> NDArray[np.uint8]:
    """Return the samples of every ``step``-th run, of a tensor of so many elements."""
    if step == 1 or elements <= LINEAGE_RUNS * LINEAGE_RUN_LENGTH or samples.size % LINEAGE_RUNS:
        return samples
    return samples.reshape(LINEAGE_RUNS, -1)[::step].reshape(-1)


def _values(dtype: str, raw: NDArray[np.uint8]) -> NDArray[Any]:
    kind = FLOATS[dtype]
    bits = raw.view(kind.bits.newbyteorder("<")).astype(kind.bits, copy=False)
    return kind.widen(bits, np.empty(bits.size, kind.wide)).astype(np.float64)


def _correlation(a: NDArray[Any], b: NDArray[Any]) -> float | None:
    """Pearson's r, or None where it means nothing: few values, no spread, not finite."""
    if a.size < _LEAST_VALUES or a.size != b.size or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return None
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / scale) if scale > 0 else None
