"""What is added to a target: deltas and their weights, whether they fit, and what each tensor gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paramdelta_hub.checkpoints.architecture import quantization
from paramdelta_hub.checkpoints.checkpoint import Checkpoint
from paramdelta_hub.checkpoints.lineage import Kinship, compare, unpack_samples
from paramdelta_hub.checkpoints.pairing import Entry, Match, Rules, compiled, match
from paramdelta_hub.errors import LineageError, Mismatch, MismatchError, OptionError
from paramdelta_hub.format.links import settle
from paramdelta_hub.format.manifest import TensorRecord
from paramdelta_hub.format.package import Package
from paramdelta_hub.limits import KIN_CORRELATION

__all__ = ["AppliedDelta", "Summand", "WeightMap", "check_lineage", "preflight", "summand_of", "sums_of"]


def finite_weight(weight: float) -> float:
    """Return a weight that stays finite in float32, in which sums of 16-bit weights are made.

    Raises:
        OptionError: NaN, infinite, or beyond float32.
    """
    if not abs(weight) <= float(np.finfo(np.float32).max):
        raise OptionError(f"the weight {weight} is not a finite number of moderate size")
    return weight


@dataclass(frozen=True)
class Summand:
    """One delta of the sum and its weight."""

    delta: str | Path
    weight: float = 1.0

    def __post_init__(self) -> None:
        finite_weight(self.weight)


@dataclass(frozen=True)
class WeightMap:
    """Factors for chosen tensors: (pattern, factor) in order; the last pattern found in a name decides, else 1."""

    rules: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        for pattern, factor in self.rules:
            compiled(pattern)
            finite_weight(factor)

    def factor(self, name: str) -> float:
        """Return the factor of a tensor."""
        return next((factor for pattern, factor in reversed(self.rules) if compiled(pattern).search(name)), 1.0)


@dataclass(frozen=True)
class AppliedDelta:
    """What became of one delta."""

    package: Package
    weight: float
    kinship: Kinship
    forced: bool
    """Whether it was applied although the target is not kin."""

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable record, which also stands in the provenance file."""
        manifest = self.package.manifest
        return {
            "name": manifest.name,
            "version": manifest.version,
            "id": self.package.digest,
            "weight": self.weight,
            "base": manifest.base.name,
            "post": manifest.post.name,
            "lineage": {
                "correlation": self.kinship.correlation,
                "tensors": self.kinship.tensors,
                "forced": self.forced,
            },
        }


def preflight(target: Checkpoint, packages: Sequence[Package], rules: Rules) -> list[Match]:
    """Pair the target's tensors with every package's, or raise with everything that does not fit any of them."""
    problems: list[Mismatch] = []
    if how := quantization(target):
        problems.append(Mismatch("target", "quantized", f"{target.source.path}: {how}"))
    matches = []
    carried: dict[str, str] = {}
    for package in packages:
        records = package.records
        entries = {name: Entry(record.dtype, record.shape) for name, record in records.items()}
        known = [omission.name for omission in package.manifest.omissions]
        found = match(target.entries, entries, rules, ("the target", "the delta"), known)
        problems += found.mismatches
        matches.append(found)
        for name, theirs in found.pairs.items():
            record = records[theirs]
            if not (record.effect == "replace" and record.shard):
                continue
            if carried.setdefault(name, record.post_sha256) != record.post_sha256:
                problems.append(Mismatch(name, "conflict", f"two deltas replace it by different {record.dtype} values"))
    if problems:
        raise MismatchError(
            f"target and delta differ in {len(problems)} way(s)",
            problems,
            where=str(target.source.path),
            remedy="use a target of base's architecture and dtype, or --rename the delta's names, or --skip tensors",
        )
    return matches


def check_lineage(target: Checkpoint, package: Package, weight: float, found: Match, force: bool) -> AppliedDelta:
    """Compare base's samples with the target's values, and refuse a target that is not kin."""
    samples = unpack_samples(package.read_lineage(), str(package.path / package.manifest.lineage.path))
    kinship = compare(samples, {theirs: target.tensors[ours] for ours, theirs in found.pairs.items()})
    if not kinship.is_kin and not force:
        raise LineageError(
            f"not kin to the delta's base {package.manifest.base.name!r}: {kinship}; kin have {KIN_CORRELATION}",
            float("nan") if kinship.correlation is None else kinship.correlation,
            where=str(target.source.path),
            remedy="on other weights the delta means nothing: choose a target made from its base, or use --force",
        )
    return AppliedDelta(package, weight, kinship, forced=not kinship.is_kin)


def sums_of(
    applied: Sequence[AppliedDelta], matches: Sequence[Match], weight_map: WeightMap
) -> dict[str, list[dict[str, Any]]]:
    """Return for every target tensor that changes what is added to it, as tasks want it."""
    sums: dict[str, list[dict[str, Any]]] = {}
    for delta, found in zip(applied, matches, strict=True):
        records = delta.package.records
        starts = delta.package.payload_starts()
        for ours, theirs in found.pairs.items():
            record = records[theirs]
            weight = finite_weight(delta.weight * weight_map.factor(ours))
            # A weight of 0 takes the tensor out of the sum. Values that can't be scaled are carried by any weight
            # above 0: the delta is wanted, and half an integer is not.
            if weight == 0.0 or (record.effect == "replace" and weight < 0.0):
                continue
            entries = sums.setdefault(ours, [])
            if record.effect == "replace" and (entries or record.shard is None):
                continue
            entries.append(summand_of(record, weight, delta.package.path, starts))
    return {name: entries for name, entries in sums.items() if entries}


def summand_of(record: TensorRecord, weight: float, folder: Path, starts: dict[str, int]) -> dict[str, Any]:
    """Return one addend of one tensor as tasks want it: plain JSON."""
    return {
        "name": record.name,
        "weight": weight,
        "effect": record.effect,
        "codec": record.codec.name,
        "shard": str(settle(folder, record.shard)) if record.shard else None,
        "start": starts.get(record.name, 0),
        "nbytes": record.nbytes,
        "sha256": record.payload_sha256,
        "counts": [record.remainders, record.exceptions],
    }
