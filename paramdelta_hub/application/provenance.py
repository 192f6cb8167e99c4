"""What a result is made of, as it says itself: ``paramdelta_provenance.json``, of :mod:`.format.provenance`."""

from __future__ import annotations

from collections.abc import Sequence

from paramdelta_hub import __about__
from paramdelta_hub.application.compatibility import Compatibility
from paramdelta_hub.application.kinship import AppliedDelta, earlier_deltas
from paramdelta_hub.application.weights import WeightMap
from paramdelta_hub.checkpoints.rules.tensor_rules import Rules
from paramdelta_hub.package.provenance import (
    PROVENANCE_NAME,
    Companions,
    Factor,
    LeftOut,
    Model,
    Provenance,
    Renaming,
    Requantized,
    Tensor,
)

__all__ = ["PROVENANCE_NAME", "is_post", "provenance_of"]


def is_post(applied: Sequence[AppliedDelta], compatibility: Compatibility, digests: dict[str, str]) -> bool:
    """Whether every tensor of the delta came out as post's own, by its digest, and post has no others.

    The values of tensors that the result has in other pieces than the delta are not looked at.
    """
    if len(applied) != 1:
        return False
    records, pairs = applied[0].package.records, compatibility.matches[0].pairs
    if any(omission.lacks_values for omission in applied[0].package.manifest.omissions):
        return False
    used = {*pairs.values(), *compatibility.arranged[0].delta_names}
    return used == records.keys() and all(
        digests[name] == records[delta_name].post_blake3 for name, delta_name in pairs.items()
    )


def provenance_of(
    compatibility: Compatibility,
    applied: Sequence[AppliedDelta],
    weight_map: WeightMap,
    rules: Rules,
    digests: dict[str, str],
    *,
    is_post: bool,
    notes: Sequence[str],
    companions: Companions,
    requantization: Requantized | None,
) -> Provenance:
    """Return what the result is made of. No time and no path: equal inputs give an equal file."""
    source = compatibility.target.checkpoint.source
    return Provenance(
        format="paramdelta-provenance",
        format_version=1,
        created_by=__about__.CREATED_BY,
        target=Model(name=source.name, commit=source.commit),
        deltas=tuple(applied),
        earlier=earlier_deltas(compatibility.target.checkpoint),
        weight_map=tuple(Factor(pattern=pattern, factor=factor) for pattern, factor in weight_map.rules),
        layouts=rules.layout_texts,
        renames=tuple(Renaming(pattern=pattern, replacement=new) for pattern, new in rules.renames),
        skips=rules.skips,
        omissions=tuple(LeftOut(**vars(omission)) for omission in compatibility.omissions),
        notes=tuple(notes),
        is_post=is_post,
        tensors={
            name: Tensor(dtype=tensor.dtype, shape=tensor.shape, blake3=digests[name])
            for name, tensor in compatibility.results.items()
        },
        companions=companions,
        requantization=requantization,
    )
