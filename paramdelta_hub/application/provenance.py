"""What a result is made of, as it says itself: ``paramdelta_provenance.json``, of :mod:`.format.provenance`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paramdelta_hub import __about__
from paramdelta_hub.application.compatibility import Compatibility
from paramdelta_hub.application.earlier import earlier_deltas
from paramdelta_hub.application.weighted_deltas import AppliedDelta
from paramdelta_hub.application.weights import WeightMap
from paramdelta_hub.checkpoints.matching import SKIPPED
from paramdelta_hub.checkpoints.rules import Rules
from paramdelta_hub.package.manifest import Source
from paramdelta_hub.package.provenance import PROVENANCE_NAME

__all__ = ["PROVENANCE_NAME", "is_post", "provenance_of"]


def is_post(applied: Sequence[AppliedDelta], compatibility: Compatibility, digests: dict[str, str]) -> bool:
    """Whether every tensor of the delta came out as post's own, by its digest, and post has no others."""
    if len(applied) != 1:
        return False
    records, pairs = applied[0].package.records, compatibility.matches[0].pairs
    if any(omission.reason == SKIPPED for omission in applied[0].package.manifest.omissions):
        return False
    return len(pairs) == len(records) and all(
        digests[name] == records[delta_name].post_blake3 for name, delta_name in pairs.items()
    )


def provenance_of(
    compatibility: Compatibility,
    applied: Sequence[AppliedDelta],
    weight_map: WeightMap,
    rules: Rules,
    digests: dict[str, str],
    exactly_post: bool,
) -> dict[str, Any]:
    """Return what the result is made of. No time and no path: equal inputs give an equal file."""
    source = compatibility.target.checkpoint.source
    return {
        "format": "paramdelta-provenance",
        "format_version": 1,
        "created_by": __about__.CREATED_BY,
        "target": {"name": source.name, "commit": source.commit},
        "deltas": [_delta(delta) for delta in applied],
        "earlier": [delta.model_dump(mode="json") for delta in earlier_deltas(compatibility.target.checkpoint)],
        "weight_map": [{"pattern": pattern, "factor": factor} for pattern, factor in weight_map.rules],
        "renames": [{"pattern": pattern, "replacement": new} for pattern, new in rules.renames],
        "skips": list(rules.skips),
        "omissions": [omission._asdict() for omission in compatibility.omissions],
        "notes": list(compatibility.notes),
        "is_post": exactly_post,
        "tensors": {
            name: {"dtype": tensor.dtype, "shape": list(tensor.shape), "blake3": digests[name]}
            for name, tensor in compatibility.results.items()
        },
    }


def _delta(delta: AppliedDelta) -> dict[str, Any]:
    manifest = delta.package.manifest
    return {**delta.to_json(), "base": _model(manifest.base), "post": _model(manifest.post)}


def _model(source: Source) -> dict[str, Any]:
    return {"name": source.name, "commit": source.commit}
