"""Match the tensors of two models by name, and report every mismatch, not only the first."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from paramdelta_hub.checkpoints.matching.roles import Entry, is_derived, is_head
from paramdelta_hub.checkpoints.matching.ties import Ties
from paramdelta_hub.checkpoints.matching.training_saves import EMPTY, is_sharded_away
from paramdelta_hub.checkpoints.rules.tensor_rules import Rules, as_options, in_all_layers
from paramdelta_hub.errors import Mismatch
from paramdelta_hub.fileio.safetensors import DISCRETE
from paramdelta_hub.numerics.floats import FLOATS
from paramdelta_hub.package.records import SKIPPED

__all__ = [
    "DERIVED",
    "KNOWN",
    "Entry",
    "Match",
    "OmittedTensor",
    "lacking_heads",
    "match",
    "rename_entries",
    "suggest_skips",
]

_SKIPS = 6
"""``--skip`` options that are proposed together."""

DERIVED = "a buffer that models compute themselves"
"""Why a tensor was left out whose values never matter."""
KNOWN = "left out when the delta was made"
"""Why a target keeps a tensor for which its delta has nothing."""


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
    left_ties: dict[str, str] = field(default_factory=dict)
    """Names in ``pairs`` that the left side has no tensor for → the one that stands for it."""
    right_ties: dict[str, str] = field(default_factory=dict)
    """Names in ``pairs`` that the right side has no tensor for → the one that stands for it, by its right name."""
    copies: dict[str, str] = field(default_factory=dict)
    """Names under which both sides have the tensor of a pair once more → the name of the pair."""
    carried: set[str] = field(default_factory=set)
    """Names in ``pairs`` that the left side has not: the right one's tensors are carried whole."""
    omissions: list[OmittedTensor] = field(default_factory=list)
    mismatches: list[Mismatch] = field(default_factory=list)

    def take(self, name: str, left: str, right: str, right_has_it: bool) -> None:
        """Take a pair, and note on which side another tensor stands for it."""
        self.pairs[name] = right
        if left != name:
            self.left_ties[name] = left
        if not right_has_it:
            self.right_ties[name] = right


def rename_entries(right: Mapping[str, Entry], rules: Rules) -> tuple[dict[str, str], list[Mismatch]]:
    """Return new name → right name, after the rename rules, and a mismatch for every two that get the same."""
    renamed: dict[str, str] = {}
    mismatches = []
    for name in right:
        new = rules.rename(name)
        if new in renamed:
            what = f"the rename rules give it the name {new!r}, but {renamed[new]!r} has this name too"
            mismatches.append(Mismatch(name, "rename", what))
        renamed[new] = name
    return renamed, mismatches


def match(
    left: Mapping[str, Entry],
    right: Mapping[str, Entry],
    rules: Rules,
    sides: tuple[str, str],
    known: Sequence[str] = (),
    carried: Collection[str] = (),
    ties: tuple[Ties, Ties] = (Ties(), Ties()),
    folds: bool = False,
) -> Match:
    """Pair the tensors of two sides by name, after renaming the right side's.

    Args:
        left: the side whose names are kept.
        right: the side whose names the rename rules apply to.
        rules: the user's rules.
        sides: what to call the two, in messages.
        known: left names that may lack a partner, because that has been recorded before.
        carried: right names that need no partner, because their tensors are no differences.
        ties: which names of either side stand for one tensor, after renaming.
        folds: whether copies that both sides have are one pair; else each that the left side stores is one.

    Returns:
        Pairs, ties, omissions, and every mismatch: missing, extra, other shape, other dtype.
    """
    renamed, mismatches = rename_entries(right, rules)
    result = Match(mismatches=mismatches)
    tied = _TiedNames(left, renamed, *ties)
    for name in [*left, *(name for name in renamed if name not in left)]:
        in_left, in_right = name in left, name in renamed
        side = "both" if in_left and in_right else sides[0] if in_left else sides[1]
        entries = [left[name]] if in_left else []
        entries += [right[renamed[name]]] if in_right else []
        found = tied.find(name)
        # A copy is skipped or not as the tensor is that it is a copy of: else the two would differ afterwards.
        first = tied.first_name(name) if found else name
        of_right = renamed.get(first)
        if all(is_derived(name, entry) for entry in entries):
            result.omissions.append(OmittedTensor(name, side, DERIVED))
        elif rules.skips_name(first) or (of_right is not None and rules.skips_name(of_right)):
            result.omissions.append(OmittedTensor(name, side, SKIPPED))
        elif found:
            pair, is_known = tied.pair_of(name, first if folds else name)
            if name != pair and (folds or not in_left):
                result.copies[name] = pair
            if is_known and (folds or not in_left):
                continue
            name = pair if folds else name
            left_name, right_name = tied.find(name) or found
            result.take(name, left_name, renamed[right_name], name in renamed)
            result.mismatches += _compare_entries(name, left[left_name], right[renamed[right_name]], sides)
        elif in_right and renamed[name] in carried:
            result.pairs[name] = renamed[name]
            result.carried.add(name)
            result.mismatches += _check_carried(name, right[renamed[name]])
        elif name in known:
            result.omissions.append(OmittedTensor(name, side, KNOWN))
        else:
            result.mismatches.append(Mismatch(name, "missing", f"{side} has it, {sides[in_left]} does not"))
    return result


def suggest_skips(matched: Match, left: Mapping[str, Entry], right: Mapping[str, Entry]) -> str | None:
    """Return the few ``--skip`` options that leave out what one side lacks; None if more than that does not fit.

    A part that a side lacks is left out as a whole. It is the first component of the names: ``2_Dense/``,
    ``first_stage_model.``. Of others, the same tensor of all layers.

    Args:
        matched: what was found.
        left: the left side's tensors. Nothing is proposed for heads, which are another matter.
        right: the right side's.
    """
    names = [mismatch.location for mismatch in matched.mismatches if mismatch.kind == "missing"]
    if (
        not names
        or lacking_heads(matched, left, right)
        or len(names) < len(matched.mismatches)
        or len(names) > len(matched.pairs)
    ):
        return None
    common = {_part(name) for name in matched.pairs}
    patterns = dict.fromkeys(_skip_pattern(name if _part(name) in common else _part(name)) for name in names)
    if len(patterns) > _SKIPS:
        return None
    return as_options("skip", patterns)


def lacking_heads(matched: Match, left: Mapping[str, Entry], right: Mapping[str, Entry]) -> list[str]:
    """Return the names of output heads that one side lacks, or has in another shape.

    A UNet's ``proj_out`` scores no tokens, and is none.
    """
    names = [mismatch.location for mismatch in matched.mismatches if mismatch.kind in ("missing", "shape")]
    entries = {**right, **left}
    return [name for name in names if is_head(name) and (name not in entries or entries[name].vocabulary)]


def _skip_pattern(name: str) -> str:
    """Return the pattern of a part, or of a tensor's name with any number for its numbers."""
    return f"^{in_all_layers(name)}" if name[-1] in "./" else f"^{in_all_layers(name)}$"


def _part(name: str) -> str:
    """Return the first component of a name, with what ends it."""
    folder, slash, _ = name.partition("/")
    first, dot, _ = name.partition(".")
    return folder + slash if slash else first + dot


@dataclass(frozen=True)
class _TiedNames:
    """The stored names of two sides, the right ones renamed, and which further names stand for them."""

    left: Mapping[str, Entry]
    right: Mapping[str, str]
    left_ties: Ties
    right_ties: Ties
    pairs: dict[tuple[str, str], str] = field(default_factory=dict)
    """The first name that the pairs of tensors were taken under."""

    def pair_of(self, name: str, first: str) -> tuple[str, bool]:
        """Return the name of the pair that a name stands for, ``first`` if it is new, and whether it is known."""
        classes = self.classes(name)
        is_known = classes in self.pairs
        return self.pairs.setdefault(classes, first), is_known

    def find(self, name: str) -> tuple[str, str] | None:
        """Return the two tensors that a name stands for; None where a side has none."""
        left = name if name in self.left else self.left_ties.same.get(name)
        right = name if name in self.right else self.right_ties.same.get(name)
        return None if left is None or right is None or right not in self.right else (left, right)

    def classes(self, name: str) -> tuple[str, str]:
        """Return what is equal for names that stand for the same two tensors."""
        return self.left_ties.tensor_of(name), self.right_ties.tensor_of(name)

    def first_name(self, name: str) -> str:
        """Return the name to call the two tensors of a name by: that of the left one, if it stands for both of them."""
        first = self.left_ties.tensor_of(name)
        return first if self.find(first) and self.classes(first) == self.classes(name) else name


def _compare_entries(name: str, left: Entry, right: Entry, sides: tuple[str, str]) -> list[Mismatch]:
    mismatches = []
    axes = slice(1 if left.vocabulary and right.vocabulary else 0, None)
    if is_sharded_away(left.shape, right.shape):
        return [Mismatch(name, EMPTY, f"{sides[0]} has {list(left.shape)}, {sides[1]} has {list(right.shape)}")]
    if left.shape[axes] != right.shape[axes] or len(left.shape) != len(right.shape):
        mismatches.append(
            Mismatch(name, "shape", f"{sides[0]} has {list(left.shape)}, {sides[1]} has {list(right.shape)}")
        )
    if left.dtype != right.dtype and not {left.dtype, right.dtype} <= FLOATS.keys():
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
