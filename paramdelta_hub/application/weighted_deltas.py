"""What is added to a target, where the lineage is right: each tensor's deltas and their weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from paramdelta_hub.application.compatibility import Compatibility
from paramdelta_hub.application.weights import Weights
from paramdelta_hub.checkpoints.lineage import Kinship, compare, unpack_samples
from paramdelta_hub.checkpoints.prediction import Prediction, predict
from paramdelta_hub.checkpoints.tensor_sources import Files
from paramdelta_hub.errors import LineageError
from paramdelta_hub.limits import KIN_CORRELATION
from paramdelta_hub.package.package import Package
from paramdelta_hub.package.tensor_delta import StoredDelta
from paramdelta_hub.transforms.addend import Addend, RowPlacement

__all__ = ["AppliedDelta", "check_lineage", "sums_of"]


@dataclass(frozen=True)
class AppliedDelta:
    """What became of one delta."""

    package: Package
    weight: float
    kinship: Kinship
    forced: bool
    """Whether it was applied although the target is not kin."""

    @property
    def prediction(self) -> Prediction:
        """What to expect of it, were it applied alone and with weight 1."""
        return predict(self.kinship, self.package.manifest.tensors)

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable record, which also stands in the provenance file."""
        manifest = self.package.manifest
        return {
            "name": manifest.name,
            "version": manifest.version,
            "id": self.package.digest,
            "content": manifest.content_id,
            "weight": self.weight,
            "base": manifest.base.name,
            "post": manifest.post.name,
            "lineage": {
                "correlation": self.kinship.correlation,
                "tensors": self.kinship.tensors,
                "forced": self.forced,
            },
        }


def check_lineage(
    fit: Compatibility, number: int, package: Package, weight: float, force: bool, remote: Files | None = None
) -> AppliedDelta:
    """Compare base's samples with the target's values, which ``remote`` reads if given; refuse one that is not kin."""
    samples = unpack_samples(package.read_lineage(), str(package.path / package.manifest.lineage.path))
    tensors = {}
    for name, theirs in fit.matches[number].pairs.items():
        placed = fit.placed.get(name)
        if name in fit.carried or (placed and number not in placed.inverse):
            continue  # nothing of the delta is added to the target's values
        tensor = fit.tensor(name).reorder_rows(placed.inverse[number] if placed else None)
        if tensor.shape == package.records[theirs].shape:
            tensors[theirs] = tensor
    kinship = compare(samples, tensors, remote)
    if not kinship.is_kin and not force:
        raise LineageError(
            f"not kin to the delta's base {package.manifest.base.name!r}: {kinship};"
            f" the minimum is {KIN_CORRELATION:.2f}",
            float("nan") if kinship.correlation is None else kinship.correlation,
            where=str(fit.target.checkpoint.source.path),
            remedy="choose a target that was made from the delta's base; with --force the result may be useless",
        )
    return AppliedDelta(package, weight, kinship, forced=not kinship.is_kin)


def sums_of(fit: Compatibility, packages: Sequence[Package], weights: Weights) -> dict[str, list[Addend]]:
    """Return for every tensor that changes what is added to it."""
    sums: dict[str, list[Addend]] = {}
    for number, package in enumerate(packages):
        records, places = package.records, package.payload_places()
        for ours, theirs in fit.matches[number].pairs.items():
            record, carried = records[theirs], fit.carried.get(ours)
            placed, weight = fit.placed.get(ours), weights.of(number, ours)
            if carried and carried.number != number:
                continue
            # What can't be scaled is taken whole with any weight above 0: the delta is wanted, and half an integer or
            # half a classifier is not. A weight of 0 takes the tensor out of the sum, but for rows that it brings.
            if carried:
                weight = 1.0
            if record.effect == "replace" and weight <= 0.0:
                continue
            runs = placed.deltas.get(number, ()) if placed else ()
            if weight == 0.0:
                runs = tuple(run if run.whole else run._replace(source=None) for run in runs)
            if (placed or weight == 0.0) and all(run.source is None for run in runs):
                continue
            addends = sums.setdefault(ours, [])
            if record.effect == "replace" and (addends or record.shard is None):
                continue
            placement = None
            if placed:
                in_its_order = fit.tensor(ours).reorder_rows(placed.inverse[number])
                placement = RowPlacement(runs, math.prod(in_its_order.shape[1:]), in_its_order.source)
            addends.append(Addend(StoredDelta.of(record, places), weight, placement))
    # Weights that would become fp8 again only to gain nothing are left as they are, codes and scales.
    unchanged = {
        name
        for name, addends in sums.items()
        if fit.in_fp8(name) and name not in fit.placed and all(addend.delta.is_zero for addend in addends)
    }
    return {name: addends for name, addends in sums.items() if addends and name not in unchanged}
