"""Conflicts between deltas: their cosines, and how often they move a weight in opposite directions.

Deltas of unrelated tasks are nearly orthogonal (Param∆, arXiv 2504.21023, §5), and about half of their signs differ;
with many more opposite signs, a sum of the two cancels a part of each (TIES-Merging, arXiv 2306.01708).
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field

from paramdelta_hub.checkpoints.matching.by_name import OmittedTensor
from paramdelta_hub.errors import OptionError, PackageError
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.fileio.report import Report, derived
from paramdelta_hub.limits import COMPARED_DELTAS
from paramdelta_hub.numerics.floats import Wide, blocks
from paramdelta_hub.numerics.scratch import scratch
from paramdelta_hub.package.manifest import TensorRecord
from paramdelta_hub.package.package import Package
from paramdelta_hub.package.tensor_delta import Locations, delta_chunks
from paramdelta_hub.registry.cards.changes import place_of
from paramdelta_hub.tasks.executors.threads import Stop, default_threads, run_tasks
from paramdelta_hub.tasks.progress import Progress

__all__ = ["Agreement", "Comparison", "compare_packages"]


@dataclass
class _Sums:
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

    def add(self, other: _Sums) -> None:
        """Add another tensor's sums."""
        self.dot += other.dot
        self.first += other.first
        self.second += other.second
        self.both += other.both
        self.opposed += other.opposed

    def agreement(self, deltas: tuple[int, int]) -> Agreement:
        """Return what they say of the two deltas."""
        norm = math.sqrt(self.first) * math.sqrt(self.second)
        return Agreement(
            deltas=deltas,
            cosine=self.dot / norm if norm and math.isfinite(norm) and math.isfinite(self.dot) else None,
            moved_by_both=self.both,
            opposite_signs=self.opposed / self.both if self.both else None,
        )


class Agreement(Report):
    """How far two deltas move the same weights the same way."""

    deltas: tuple[int, int]
    """The numbers of the two, from 0."""
    cosine: float | None
    """None if one of the two changes nothing, or the sums overflow."""
    moved_by_both: int
    """The number of elements that both change."""
    opposite_signs: float | None
    """The share of opposite signs among the elements that both change; None if there are none."""


class LayerAgreement(Report):
    """The agreement of every pair in one layer."""

    layer: str
    pairs: tuple[Agreement, ...]


class ComparedDelta(Report):
    """One of the deltas that are compared."""

    name: str
    version: str
    id: str
    """sha256 of the manifest."""


class Comparison(Report):
    """The agreement of several deltas, over the tensors that all of them have."""

    packages: tuple[Package, ...] = Field(exclude=True)
    pairs: tuple[Agreement, ...]
    """The agreement of every pair over all tensors."""
    layers: tuple[LayerAgreement, ...]
    """The agreements in every layer, in order; the tensors outside the layers come last."""
    tensors: int
    elements: int
    omissions: tuple[OmittedTensor, ...]
    """The tensors that were not compared."""
    same_base_tensors: int
    """The number of tensors whose base is the same for all deltas."""
    html: Path | None = None
    """The page that was written, if one was."""

    @derived
    def deltas(self) -> tuple[ComparedDelta, ...]:
        """The deltas, in the order of their numbers."""
        return tuple(
            ComparedDelta(name=package.manifest.name, version=package.manifest.version, id=package.digest)
            for package in self.packages
        )


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
    progress = progress or Progress()
    progress.start("comparing", sum(sizes))

    def run(number: int, stop: Stop) -> tuple[int, list[_Sums]]:
        found = _compare(shared[number], places, pairs, stop)
        progress.advance(sizes[number])
        return number, found

    try:
        outcomes = dict(run_tasks(range(len(shared)), run, threads or default_threads(), size=sizes.__getitem__))
    finally:
        progress.finish()
    total = [_Sums() for _ in pairs]
    layers: dict[tuple[str, int], list[_Sums]] = defaultdict(lambda: [_Sums() for _ in pairs])
    for number, records in enumerate(shared):  # in the tensors' order: sums of floats depend on it
        stack, layer, _ = place_of(records[0].name)
        for index, sums in enumerate(outcomes[number]):
            total[index].add(sums)
            layers[stack, layer][index].add(sums)
    has_stacks = len({stack for stack, _ in layers if stack}) > 1

    def label(stack: str, layer: int) -> str:
        return (f"{stack} " * has_stacks + str(layer)) if stack else "outside the layers"

    def agreements(sums: Sequence[_Sums]) -> tuple[Agreement, ...]:
        return tuple(each.agreement(pair) for pair, each in zip(pairs, sums, strict=True))

    ordered = sorted(layers, key=lambda key: (key[0] == "", key))
    return Comparison(
        packages=tuple(packages),
        pairs=agreements(total),
        layers=tuple(LayerAgreement(layer=label(*key), pairs=agreements(layers[key])) for key in ordered),
        tensors=len(shared),
        elements=sum(records[0].elements for records in shared),
        omissions=tuple(left_out),
        same_base_tensors=sum(len({record.base_blake3 for record in records}) == 1 for records in shared),
    )


def _shared(sides: Sequence[dict[str, TensorRecord]]) -> tuple[list[tuple[TensorRecord, ...]], list[OmittedTensor]]:
    """Return the records of each tensor that can be compared, and the reasons why the others can't."""
    shared, left_out = [], []
    for name in dict.fromkeys(itertools.chain.from_iterable(sides)):
        records = tuple(side[name] for side in sides if name in side)
        if len(records) < len(sides):
            left_out.append(OmittedTensor(name, "the deltas", "not in all of them"))
        elif any(record.effect != "add" for record in records):
            left_out.append(OmittedTensor(name, "the deltas", "replaced, not added"))
        elif len({record.shape for record in records}) > 1:
            left_out.append(OmittedTensor(name, "the deltas", "of different shapes"))
        elif len({record.rows for record in records}) > 1:
            left_out.append(OmittedTensor(name, "the deltas", "rows of different tokens"))
        else:
            shared.append(records)
    return shared, left_out


def _compare(
    records: Sequence[TensorRecord],
    places: Sequence[Locations],
    pairs: Sequence[tuple[int, int]],
    stop: Stop,
) -> list[_Sums]:
    """Return the sums of every pair over one tensor. A delta without a payload is zero and is not read."""
    found = [_Sums() for _ in pairs]
    with OpenFiles(PackageError) as shards:
        streams = {
            side: delta_chunks(record, places[side], shards, f"compared {side}")
            for side, record in enumerate(records)
            if not record.is_zero
        }
        for chunks in zip(*streams.values(), strict=True):
            stop.check()
            _add_chunk(dict(zip(streams, chunks, strict=True)), found, pairs)
    return found


def _add_chunk(chunks: dict[int, Wide], found: Sequence[_Sums], pairs: Sequence[tuple[int, int]]) -> None:
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
            for sums, (a, b) in zip(found, pairs, strict=True):
                sums.first += squares.get(a, 0.0)
                sums.second += squares.get(b, 0.0)
                if a in values and b in values:
                    sums.dot += float(np.multiply(values[a], values[b], out=product).sum())
                    sums.both += int(np.count_nonzero(product))
                    sums.opposed += int(np.count_nonzero(product < 0.0))
