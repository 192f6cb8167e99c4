"""Check the lineage of each delta, and list what is added to each tensor of the target."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pydantic import ConfigDict, Field

from paramdelta_hub.application.compatibility import Compatibility
from paramdelta_hub.application.weights import Weights
from paramdelta_hub.checkpoints.kinship.lineage import LineageMatch, compare_samples, unpack_samples
from paramdelta_hub.checkpoints.kinship.prediction import Prediction, predict
from paramdelta_hub.checkpoints.stored import Files
from paramdelta_hub.errors import LineageError
from paramdelta_hub.fileio.report import derived
from paramdelta_hub.limits import KIN_CORRELATION
from paramdelta_hub.package.package import Package
from paramdelta_hub.package.provenance import Delta, Lineage, Model
from paramdelta_hub.package.tensor_delta import StoredDelta
from paramdelta_hub.transforms.arranged import ArrangedAddend, SpilledDelta
from paramdelta_hub.transforms.sum import Addend, RowPlacement

__all__ = ["AppliedDelta", "addends_by_tensor", "check_lineage", "foreign_notes", "spilled_deltas"]


class AppliedDelta(Delta):
    """A delta that is added, as the provenance has it, and what is known of it here."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    package: Package = Field(exclude=True)
    kinship: LineageMatch = Field(exclude=True)

    @classmethod
    def of(cls, package: Package, weight: float, kinship: LineageMatch) -> AppliedDelta:
        """Return the record of a package; it is forced where the target is not kin."""
        manifest = package.manifest
        return cls(
            name=manifest.name,
            version=manifest.version,
            id=package.digest,
            content=manifest.content_id,
            weight=weight,
            base=Model(name=manifest.base.name, commit=manifest.base.commit),
            post=Model(name=manifest.post.name, commit=manifest.post.commit),
            lineage=Lineage(
                correlation=kinship.correlation,
                tensors=kinship.tensors,
                foreign=kinship.foreign,
                forced=not kinship.is_related,
            ),
            package=package,
            kinship=kinship,
        )

    @derived
    def prediction(self) -> Prediction:
        """What to expect of it, were it applied alone and with weight 1."""
        return predict(self.kinship, self.package.manifest.tensors)


def check_lineage(
    compatibility: Compatibility, number: int, package: Package, weight: float, force: bool, remote: Files | None = None
) -> AppliedDelta:
    """Compare base's samples with the target's values, which ``remote`` reads if given; refuse one that is not kin."""
    samples = unpack_samples(package.read_lineage(), str(package.path / package.manifest.lineage.path))
    tensors = {}
    for name, delta_name in compatibility.matches[number].pairs.items():
        placed = compatibility.placed.get(name)
        if name in compatibility.carried or (placed and number not in placed.inverse):
            continue  # nothing of the delta is added to the target's values
        tensor = compatibility.tensor(name).reorder_rows(placed.inverse[number] if placed else None)
        if tensor.shape == package.records[delta_name].shape and (name == delta_name or delta_name not in tensors):
            tensors[delta_name] = tensor
    tensors |= compatibility.in_delta_order(number, package)
    lineage = compare_samples(samples, tensors, remote)
    if lineage.correlation is not None and not compatibility.arranged[number].is_whole:
        lineage = replace(lineage, same_values=False)  # the target has more than base, or less
    if not lineage.is_related and not force:
        raise LineageError(
            _refusal(lineage, package.manifest.base.name),
            float("nan") if lineage.correlation is None else lineage.correlation,
            lineage.mismatches,
            where=str(compatibility.target.checkpoint.source.path),
            remedy=f"choose a target that was made from the delta's base{_or_keep(lineage)}; "
            "with --force the result may be useless",
        )
    return AppliedDelta.of(package, weight, lineage)


def _refusal(lineage: LineageMatch, base: str) -> str:
    if not lineage.is_foreign:
        return f"not kin to the delta's base {base!r}: {lineage}; the minimum is {KIN_CORRELATION:.2f}"
    kin = "kin only in part" if lineage.has_kin else "not kin"
    return f"{kin} to the delta's base {base!r}: {lineage.foreign_words()}"


def _or_keep(lineage: LineageMatch) -> str:
    proposed = lineage.options_to_try
    if proposed:
        return f", or try {proposed}"
    partly = lineage.foreign and lineage.has_kin
    return ", or keep the unrelated tensors as they are with --skip REGEX" if partly else ""


def foreign_notes(deltas: Sequence[AppliedDelta]) -> tuple[str, ...]:
    """Name the tensors of the target that have nothing in common with a delta's base."""
    notes = (delta.kinship.foreign_note(f"{delta.base.name}, the base of {delta.name}") for delta in deltas)
    return tuple(note for note in notes if note)


def addends_by_tensor(
    compatibility: Compatibility, packages: Sequence[Package], weights: Weights
) -> dict[str, list[Addend | ArrangedAddend]]:
    """Return for every tensor that changes what is added to it."""
    sums: dict[str, list[Addend | ArrangedAddend]] = {}
    for number, package in enumerate(packages):
        records, locations = package.records, package.payload_locations()
        for name, delta_name in compatibility.matches[number].pairs.items():
            record, carried = records[delta_name], compatibility.carried.get(name)
            placed, weight = compatibility.placed.get(name), weights.of(number, name)
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
            addends = sums.setdefault(name, [])
            if record.effect == "replace" and (addends or record.shard is None):
                continue
            placement = None
            if placed:
                in_its_order = compatibility.tensor(name).reorder_rows(placed.inverse[number])
                placement = RowPlacement(runs, math.prod(in_its_order.shape[1:]), in_its_order.source)
            addends.append(Addend(StoredDelta.of(record, locations), weight, placement))
        arranged = compatibility.arranged[number]
        for name, arrangement in arranged.pairs.items():
            # Integers did not change, or they were refused; a tensor without elements has no sources.
            is_sum = any(records[source].effect == "add" for source in arrangement.sources)
            if is_sum and (weight := weights.of(number, name)):
                sums.setdefault(name, []).append(arranged.addend(name, package, weight))
    # Weights that would become fp8 again only to gain nothing are left as they are, codes and scales.
    unchanged = {
        name
        for name, addends in sums.items()
        if compatibility.in_fp8(name) and name not in compatibility.placed and all(addend.is_zero for addend in addends)
    }
    return {name: addends for name, addends in sums.items() if addends and name not in unchanged}


def spilled_deltas(
    compatibility: Compatibility, packages: Sequence[Package], sums: Mapping[str, Sequence[Addend | ArrangedAddend]]
) -> dict[str, SpilledDelta]:
    """Return the deltas of which tensors get blocks, by the keys that their addends have."""
    used = {
        key
        for addends in sums.values()
        for addend in addends
        if isinstance(addend, ArrangedAddend)
        for key in addend.keys
    }
    return {
        spilled.key: spilled
        for package, arranged in zip(packages, compatibility.arranged, strict=True)
        if arranged.pairs
        for spilled in arranged.spilled(package, package.payload_locations(), compatibility.tensor)
        if spilled.key in used
    }
