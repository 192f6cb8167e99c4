"""Deltas of a target that has their tensors in other pieces: what is added where, and the way back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from paramdelta_hub.checkpoints.layouts.rearrange import Layout, partial_note
from paramdelta_hub.checkpoints.logical import LogicalTensor
from paramdelta_hub.checkpoints.matching.by_name import Match
from paramdelta_hub.checkpoints.stored import Files, source_digest
from paramdelta_hub.checkpoints.tensor_sources import Arranged, Reordered
from paramdelta_hub.errors import Mismatch
from paramdelta_hub.numerics.arrangements import Arrangement, Box, invert
from paramdelta_hub.package.manifest import TensorRecord
from paramdelta_hub.package.package import Package
from paramdelta_hub.package.tensor_delta import Locations, StoredDelta
from paramdelta_hub.transforms.arranged import ArrangedAddend, SpilledDelta

__all__ = ["ArrangedPairs", "take_arranged"]


@dataclass(frozen=True)
class ArrangedPairs:
    """The tensors of a target that get blocks of one delta's tensors."""

    number: int
    """Of the delta."""
    pairs: Mapping[str, Arrangement] = field(default_factory=dict)
    """The target's name → the blocks, by the delta's names."""
    notes: tuple[str, ...] = ()

    @cached_property
    def delta_names(self) -> tuple[str, ...]:
        """The delta's tensors that are used."""
        return tuple(dict.fromkeys(name for arrangement in self.pairs.values() for name in arrangement.sources))

    @property
    def is_whole(self) -> bool:
        """Whether the tensors get something for each of their elements."""
        return all(arrangement.is_whole for arrangement in self.pairs.values())

    def in_delta_order(
        self, delta_name: str, record: TensorRecord, tensor_of: Callable[[str], LogicalTensor]
    ) -> LogicalTensor | None:
        """Return a tensor of the delta's shape, put together from the target's.

        None if the target has not all of its elements, or not in one dtype.

        Args:
            delta_name: the delta's tensor.
            record: what the manifest says of it.
            tensor_of: gives the target's tensors.
        """
        names, boxes = self._inverse[delta_name]
        tensors = [tensor_of(name) for name in names]
        if sum(box.elements for box in boxes) != record.elements or len({t.dtype for t in tensors}) > 1:
            return None
        parts = []
        for tensor in tensors:
            assert not isinstance(tensor.source, (Arranged, Reordered))
            parts.append(tensor.source)
        source = Arranged(tuple(parts), boxes, record.elements, tensors[0].dtype)
        return LogicalTensor(tensors[0].dtype, record.shape, source)

    def have_values(self, package: Package, tensor_of: Callable[[str], LogicalTensor], files: Files) -> bool:
        """Whether tensors, put together in the order of the delta's, have just the values of post."""
        if not self.is_whole:
            return False
        for delta_name in self.delta_names:
            record = package.records[delta_name]
            tensor = self.in_delta_order(delta_name, record, tensor_of)
            if tensor is None or tensor.dtype != record.dtype:
                return False
            if source_digest(tensor.source, tensor.elements, files) != record.post_blake3:
                return False
        return True

    @cached_property
    def _inverse(self) -> dict[str, tuple[list[str], tuple[Box, ...]]]:
        """For each of the delta's tensors, the target's that get something of it, and which elements go where."""
        users: dict[str, list[str]] = {}
        blocks: dict[str, list[tuple[int, Box]]] = {}
        for name, arrangement in self.pairs.items():
            sources = arrangement.sources
            for delta_name in sources:
                users.setdefault(delta_name, []).append(name)
            for box in arrangement.boxes(sources):
                delta_name = sources[box.source]
                blocks.setdefault(delta_name, []).append((len(users[delta_name]) - 1, box))
        return {delta_name: (names, invert(blocks.get(delta_name, []))) for delta_name, names in users.items()}

    def addend(self, name: str, package: Package, weight: float) -> ArrangedAddend:
        """Return what is added to a tensor of the target."""
        arrangement = self.pairs[name]
        return ArrangedAddend(
            keys=tuple(self._key(delta_name) for delta_name in arrangement.sources),
            boxes=arrangement.boxes(arrangement.sources),
            elements=math.prod(arrangement.shape),
            dtype=package.records[arrangement.sources[0]].dtype,
            weight=weight,
            is_zero=all(package.records[delta_name].is_zero for delta_name in arrangement.sources),
        )

    def spilled(
        self, package: Package, locations: Locations, tensor_of: Callable[[str], LogicalTensor]
    ) -> Iterator[SpilledDelta]:
        """Yield the deltas of which there are blocks."""
        for delta_name in self.delta_names:
            record = package.records[delta_name]
            target = self.in_delta_order(delta_name, record, tensor_of) if record.exceptions else None
            is_comparable = target is not None and target.dtype == record.dtype
            yield SpilledDelta(
                self._key(delta_name),
                StoredDelta.of(record, locations),
                target.source if target is not None and is_comparable else None,
            )

    def _key(self, delta_name: str) -> str:
        return f"{self.number}:{delta_name}"


def take_arranged(
    number: int, matched: Match, layout: Layout, package: Package
) -> tuple[ArrangedPairs, list[Mismatch]]:
    """Take the pairs that rules made out of a match; return them, and what can't be done.

    Args:
        number: of the delta.
        matched: the target's tensors and the delta's; arranged ones are removed.
        layout: the delta's tensors after the rules.
        package: the delta.
    """
    pairs: dict[str, Arrangement] = {}
    problems = list(layout.problems)
    notes = []
    mismatched = {mismatch.location for mismatch in matched.mismatches}
    for name, right in list(matched.pairs.items()):
        arrangement = layout.arrangements.get(right)
        if arrangement is None:
            continue
        del matched.pairs[name]
        if name in mismatched:
            continue
        pairs[name] = arrangement
        if name in matched.left_ties or name in matched.right_ties:
            problems.append(
                Mismatch(name, "layout", "one side has it as a copy of another tensor; leave it out with --skip")
            )
        for record in (package.records[delta_name] for delta_name in arrangement.sources):
            if record.rows is not None:
                what = "it has rows of a vocabulary, or is carried whole" if record.rows.base else "it is carried whole"
                problems.append(
                    Mismatch(record.name, "layout", f"{what}, and can't be rearranged; leave it out with --skip")
                )
            elif record.effect == "replace" and not record.is_zero:
                what = f"{record.dtype} values are replaced whole, and can't be rearranged; leave it out with --skip"
                problems.append(Mismatch(record.name, "layout", what))
        if right in layout.partials:
            shape, other = layout.partials[right]
            notes.append(f"{name}: {partial_note('the delta', shape, 'the target', other)}, the rest stays")
    if pairs and len(pairs) > len(notes):
        notes.append(f"layout: {len(pairs) - len(notes)} tensors of the target get blocks of the delta's tensors")
    return ArrangedPairs(number, pairs, tuple(notes)), problems
