"""Match the tensors of two models by name, and report every mismatch, not only the first."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from paramdelta_hub.checkpoints.roles import HEADS, TYING_EMBEDDINGS, Entry
from paramdelta_hub.checkpoints.rules import Rules
from paramdelta_hub.checkpoints.training_saves import EMPTY, is_sharded_away
from paramdelta_hub.errors import Mismatch
from paramdelta_hub.fileio.safetensors import DISCRETE
from paramdelta_hub.numerics.floats import FLOATS

__all__ = ["SKIPPED", "Entry", "Match", "OmittedTensor", "match"]

DERIVED = re.compile(r"(^|\.)(position_ids|inv_freq)$")
"""Buffers that models compute anew when they are built. transformers kept them in checkpoints for a while (until
4.31), so old and new checkpoints of one model differ by them."""


SKIPPED = "skipped by rule"
"""Why a tensor was left out that could have been summed."""


@dataclass(frozen=True)
class OmittedTensor:
    """A tensor that is not summed although one side has it, and why."""

    name: str
    side: str
    reason: str


@dataclass
class Match:
    """Pairs, ties, omitted tensors with the reason, and every mismatch."""

    pairs: dict[str, str] = field(default_factory=dict)
    """Name → right name; the name is the left side's too, but for ties."""
    ties: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Output heads that one side has no tensor for, because its embedding serves: head → (side, embedding)."""
    carried: set[str] = field(default_factory=set)
    """Names in ``pairs`` that the left side has not: the right one's tensors are carried whole."""
    omissions: list[OmittedTensor] = field(default_factory=list)
    mismatches: list[Mismatch] = field(default_factory=list)


def match(
    left: Mapping[str, Entry],
    right: Mapping[str, Entry],
    rules: Rules,
    sides: tuple[str, str],
    known: Sequence[str] = (),
    carried: Collection[str] = (),
) -> Match:
    """Pair the tensors of two sides by name, after renaming the right side's.

    Args:
        left: the side whose names are kept.
        right: the side whose names the rename rules apply to.
        rules: the user's rules.
        sides: what to call the two, in messages.
        known: left names that may lack a partner, because that has been recorded before.
        carried: right names that need no partner, because their tensors are no differences.

    Returns:
        Pairs, ties, omissions, and every mismatch: missing, extra, other shape, other dtype.
    """
    result = Match()
    renamed: dict[str, str] = {}
    for name in right:
        new = rules.rename(name)
        if new in renamed:
            what = f"the rename rules give it the name {new!r}, but {renamed[new]!r} has this name too"
            result.mismatches.append(Mismatch(name, "rename", what))
        renamed[new] = name
    entries = {new: right[name] for new, name in renamed.items()}
    extended = dict(left)
    for head, embedding in _find_ties(left, entries).items():
        result.ties[head] = (sides[0], embedding)
        extended[head] = left[embedding]
    for head, embedding in _find_ties(entries, left).items():
        if head not in known:
            result.ties[head] = (sides[1], renamed[embedding])
            renamed[head] = renamed[embedding]
    left = extended
    for name in [*left, *(name for name in renamed if name not in left)]:
        in_left, in_right = name in left, name in renamed
        side = "both" if in_left and in_right else sides[0] if in_left else sides[1]
        if rules.skips_name(name) or (in_right and rules.skips_name(renamed[name])):
            result.omissions.append(OmittedTensor(name, side, SKIPPED))
        elif in_left and in_right:
            result.pairs[name] = renamed[name]
            result.mismatches += _compare_entries(name, left[name], right[renamed[name]], sides)
        elif in_right and renamed[name] in carried:
            result.pairs[name] = renamed[name]
            result.carried.add(name)
            result.mismatches += _check_carried(name, right[renamed[name]])
        elif DERIVED.search(name):
            result.omissions.append(OmittedTensor(name, side, "a buffer that models compute themselves"))
        elif name in known:
            result.omissions.append(OmittedTensor(name, side, "left out when the delta was made"))
        else:
            other = sides[1] if in_left else sides[0]
            result.mismatches.append(Mismatch(name, "missing", f"{side} has it, {other} does not"))
    return result


def _find_ties(names: Mapping[str, Entry], others: Mapping[str, Entry]) -> dict[str, str]:
    """Return the heads that others have and for which the one embedding of ``names`` serves: head → embedding.

    As the tensors say, not the config, which other tools leave wrong (mergekit#350): no head at all, one embedding.
    """
    embeddings = [name for name in names if TYING_EMBEDDINGS.search(name)]
    if len(embeddings) != 1 or any(HEADS.search(name) for name in names):
        return {}
    width = names[embeddings[0]].shape[1:]
    return {head: embeddings[0] for head, entry in others.items() if HEADS.search(head) and entry.shape[1:] == width}


def _compare_entries(name: str, left: Entry, right: Entry, sides: tuple[str, str]) -> list[Mismatch]:
    mismatches = []
    axes = slice(1 if left.vocabulary and right.vocabulary else 0, None)
    if is_sharded_away(left.shape, right.shape):
        return [Mismatch(name, EMPTY, f"{sides[0]} has {list(left.shape)}, {sides[1]} has {list(right.shape)}")]
    if left.shape[axes] != right.shape[axes] or len(left.shape) != len(right.shape):
        mismatches.append(
            Mismatch(name, "shape", f"{sides[0]} has {list(left.shape)}, {sides[1]} has {list(right.shape)}")
        )
    if left.dtype != right.dtype:
        mismatches.append(Mismatch(name, "dtype", f"{sides[0]} has {left.dtype}, {sides[1]} has {right.dtype}"))
    else:
        mismatches += _check_dtype(name, left)
    return mismatches


def _check_carried(name: str, entry: Entry) -> list[Mismatch]:
    if entry.vocabulary:
        return [
            Mismatch(
                name,
                "carry",
                "its rows belong to a vocabulary, and can't be matched without base's tensor; leave it out with --skip",
            )
        ]
    if not entry.shape:
        return [Mismatch(name, "carry", "a single number can't be carried; leave it out with --skip")]
    return _check_dtype(name, entry)


def _check_dtype(name: str, entry: Entry) -> list[Mismatch]:
    if entry.dtype in FLOATS or entry.dtype in DISCRETE:
        return []
    return [Mismatch(name, "dtype", f"{entry.dtype} can't have a delta; cast it, or leave it out with --skip")]
