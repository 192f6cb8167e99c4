"""Conflicts between deltas: their cosines, and how often they move a weight in opposite directions.

Deltas of unrelated tasks are nearly orthogonal (Param∆, arXiv 2504.21023, §5), and about half of their signs differ;
with many more opposite signs, a sum of the two cancels a part of each (TIES-Merging, arXiv 2306.01708).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paramdelta_hub.errors import OptionError, PackageError
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.limits import COMPARED_DELTAS
from paramdelta_hub.numerics.floats import Wide, blocks
from paramdelta_hub.numerics.kernels import Kernel, kernel_for
from paramdelta_hub.numerics.scratch import scratch
from paramdelta_hub.package.manifest import TensorRecord
from paramdelta_hub.package.package import Package
from paramdelta_hub.package.tensor_delta import decoded_nbytes, delta_chunks
from paramdelta_hub.registry.cards.changes import place_of
from paramdelta_hub.tasks.executors.threads import Stop, default_threads, run_tasks
from paramdelta_hub.tasks.progress import Progress

__all__ = ["Agreement", "Comparison", "compare_packages"]


@dataclass
class Agreement:
    """Sums over the elements of two deltas, for their cosine and their share of opposite signs."""

    dot: float = 0.0
    first: float = 0.0
    """Σ a²."""
    second: float = 0.0
    """Σ b²."""
    both: int = 0
    """The number of elements that both change."""
    opposed: int = 0
    """The number of elements that they change in opposite directions."""

    def add(self, other: Agreement) -> None:
        """Add another tensor's sums."""
        self.dot += other.dot
        self.first += other.first
        self.second += other.second
        self.both += other.both
        self.opposed += other.opposed

    @property
    def cosine(self) -> float | None:
        """The cosine; None if one of the two changes nothing, or the sums overflow."""
        norm = math.sqrt(self.first) * math.sqrt(self.second)
        return self.dot / norm if norm and math.isfinite(norm) and math.isfinite(self.dot) else None

    @property
    def conflict(self) -> float | None:
        """The share of opposite signs among the elements that both change; None if there are none."""
        return self.opposed / self.both if self.both else None

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable record."""
        return {"cosine": self.cosine, "moved_by_both": self.both, "opposite_signs": self.conflict}


@dataclass(frozen=True)
class Comparison:
    """The agreement of several deltas, over the tensors that all of them have."""

    packages: tuple[Package, ...]
    pairs: tuple[tuple[int, int], ...]
    """The two packages, by number, of each agreement below."""
    total: tuple[Agreement, ...]
    layers: tuple[tuple[str, tuple[Agreement, ...]], ...]
    """The agreements in every layer, in order; the tensors outside the layers come last."""
    tensors: int
    elements: int
    left_out: tuple[tuple[str, str], ...]
    """(tensor, reason) of the tensors that were not compared."""
    same_base: int
    """The number of tensors whose base is the same for all deltas."""

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable report."""

        def pairs(agreements: Sequence[Agreement]) -> list[dict[str, Any]]:
            return [{"deltas": list(pair), **a.to_json()} for pair, a in zip(self.pairs, agreements, strict=True)]

        return {
            "deltas": [
                {"name": package.manifest.name, "version": package.manifest.version, "id": package.digest}
                for package in self.packages
            ],
            "tensors": self.tensors,
            "elements": self.elements,
            "tensors_of_same_base": self.same_base,
            "pairs": pairs(self.total),
            "layers": [{"layer": label, "pairs": pairs(agreements)} for label, agreements in self.layers],
            "left_out": [{"tensor": name, "reason": reason} for name, reason in self.left_out],
        }


@dataclass
class _Layer:
    label: str
    agreements: list[Agreement] = field(default_factory=list)


def compare_packages(
    packages: Sequence[Package], *, threads: int | None = None, progress: Progress | None = None
) -> Comparison:
    """Compare two to six deltas tensor by tensor. Every thread holds one chunk of each in memory.

    Tensors are paired by name. Tensors that are not added, or whose shapes or rows differ, are left out and listed.

    Raises:
        OptionError: fewer than two packages, too many, or no tensor in common.
        PackageError: a package is incomplete or damaged.
    """
    if not 2 <= len(packages) <= COMPARED_DELTAS:
        raise OptionError(f"{len(packages)} deltas can't be compared", remedy=f"give two to {COMPARED_DELTAS}")
    pairs = tuple(itertools.combinations(range(len(packages)), 2))
    shared, left_out = _shared([package.records for package in packages])
    if not shared:
        labels = ", ".join(package.manifest.name for package in packages)
        raise OptionError("the deltas have no tensor in common", where=labels, remedy="compare deltas of one family")
    places = [package.payload_locations() for package in packages]
    sizes = [sum(record.nbytes for record in records) for records in shared]
    kernel = kernel_for(sum(map(decoded_nbytes, shared)))
    progress = progress or Progress()
    progress.start("comparing", sum(sizes))

    def run(number: int, stop: Stop) -> tuple[int, list[Agreement]]:
        found = _compare(shared[number], places, pairs, kernel, stop)
        progress.advance(sizes[number])
        return number, found

    try:
        outcomes = dict(run_tasks(range(len(shared)), run, threads or default_threads(), size=sizes.__getitem__))
    finally:
        progress.finish()
    total = [Agreement() for _ in pairs]
    layers: dict[tuple[str, int], _Layer] = {}
    stacks = {place_of(records[0].name).stack for records in shared} - {""}
    for number, records in enumerate(shared):  # in the tensors' order: sums of floats depend on it
        stack, layer, _ = place_of(records[0].name)
        label = ("" if len(stacks) < 2 else f"{stack} ") + str(layer) if stack else "outside the layers"
        of_layer = layers.setdefault((stack, layer), _Layer(label, [Agreement() for _ in pairs]))
        for index, agreement in enumerate(outcomes[number]):
            total[index].add(agreement)
            of_layer.agreements[index].add(agreement)
    ordered = sorted(layers, key=lambda key: (key[0] == "", key))
    return Comparison(
        packages=tuple(packages),
        pairs=pairs,
        total=tuple(total),
        layers=tuple((layers[key].label, tuple(layers[key].agreements)) for key in ordered),
        tensors=len(shared),
        elements=sum(records[0].elements for records in shared),
        left_out=tuple(left_out),
        same_base=sum(len({record.base_blake3 for record in records}) == 1 for records in shared),
    )


def _shared(
    sides: Sequence[dict[str, TensorRecord]],
) -> tuple[list[tuple[TensorRecord, ...]], list[tuple[str, str]]]:
    """Return the records of each tensor that can be compared, and the reasons why the others can't."""
    shared, left_out = [], []
    for name in dict.fromkeys(itertools.chain.from_iterable(sides)):
        records = tuple(side[name] for side in sides if name in side)
        if len(records) < len(sides):
            left_out.append((name, "not in all of them"))
        elif any(record.effect != "add" for record in records):
            left_out.append((name, "replaced, not added"))
        elif len({record.shape for record in records}) > 1:
            left_out.append((name, "of different shapes"))
        elif len({record.rows for record in records}) > 1:
            left_out.append((name, "rows of different tokens"))
        else:
            shared.append(records)
    return shared, left_out


def _compare(
    records: Sequence[TensorRecord],
    places: Sequence[dict[str, tuple[str, int]]],
    pairs: Sequence[tuple[int, int]],
    kernel: Kernel,
    stop: Stop,
) -> list[Agreement]:
    """Return the sums of every pair over one tensor. A delta without a payload is zero and is not read."""
    found = [Agreement() for _ in pairs]
    with OpenFiles(PackageError) as shards:
        streams = {
            side: delta_chunks(record, places[side], shards, f"compared {side}", kernel)
            for side, record in enumerate(records)
            if record.shard is not None
        }
        for chunks in zip(*streams.values(), strict=True):
            stop.check()
            _add_chunk(dict(zip(streams, chunks, strict=True)), found, pairs)
    return found


def _add_chunk(chunks: dict[int, Wide], found: Sequence[Agreement], pairs: Sequence[tuple[int, int]]) -> None:
    """Add one chunk to the sums, in blocks that stay in the cache, and in float64, where no product underflows.

    NumPy's own sums are used instead of BLAS: its threads wait for each other and for ours, and take 40 times as long.
    """
    size = next(iter(chunks.values())).size
    for block in blocks(size):
        length = block.stop - block.start
        values = {side: scratch(f"compared {side} wide", length, np.float64) for side in chunks}
        product = scratch("compared product", length, np.float64)
        squares = {}
        with np.errstate(over="ignore", invalid="ignore"):
            for side, chunk in chunks.items():
                np.copyto(values[side], chunk[block])
                squares[side] = float(np.square(values[side], out=product).sum())
            for agreement, (a, b) in zip(found, pairs, strict=True):
                agreement.first += squares.get(a, 0.0)
                agreement.second += squares.get(b, 0.0)
                if a in values and b in values:
                    agreement.dot += float(np.multiply(values[a], values[b], out=product).sum())
                    agreement.both += int(np.count_nonzero(product))
                    agreement.opposed += int(np.count_nonzero(product < 0.0))
