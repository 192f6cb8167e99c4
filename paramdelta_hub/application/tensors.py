"""Deltas as torch tensors, for models that are in memory already."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from paramdelta_hub.errors import PackageError
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.limits import CHUNK_ELEMENTS
from paramdelta_hub.numerics.floats import FLOATS
from paramdelta_hub.package.manifest import TensorRecord
from paramdelta_hub.package.package import open_package
from paramdelta_hub.package.tensor_delta import DeltaReader, StoredDelta

if TYPE_CHECKING:
    import torch

__all__ = ["tensors"]


def tensors(delta: str | Path, pattern: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, Δ) for every float tensor of a package whose name matches, one in memory at a time.

    Δ is dense, of base's shape, and wide: float32 for bf16 and fp16 weights, float64 for fp32, so that
    ``(weight.to(Δ.dtype) + Δ).to(weight.dtype)`` is what :func:`~paramdelta_hub.apply` writes, but for the exceptions
    that apply to base alone. Integer tensors, which a delta replaces, are left out.

    Args:
        delta: the package's folder.
        pattern: a regular expression, searched for in the name.

    Raises:
        PackageError: not a package, or damaged; a damaged tensor is never yielded.
    """
    package = open_package(Path(delta))
    locations = package.payload_locations()
    records = [r for r in package.manifest.tensors if r.effect == "add" and re.search(pattern, r.name)]
    with OpenFiles(PackageError) as shards:
        for record in records:
            reader = DeltaReader(StoredDelta.of(record, locations), shards)
            yield record.name, _dense(record, reader)


def _dense(record: TensorRecord, payload: DeltaReader) -> torch.Tensor:
    import torch  # two seconds, which the commands do without

    kind = FLOATS[record.dtype]
    wide = np.zeros(record.elements, kind.wide)
    for start in range(0, record.elements, CHUNK_ELEMENTS):
        place = wide[start : start + CHUNK_ELEMENTS]
        chunk = payload.next_added()
        if chunk is not None:
            chunk.delta.values(place)
    return torch.from_numpy(wide).reshape(record.shape)
