"""Whether deltas fit a target, and how: which tensors go together, where rows go, and what the result will hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from paramdelta_hub.application.output_files import OutTensor
from paramdelta_hub.application.row_placement import PlacedRows, RowPlanner
from paramdelta_hub.application.weights import Weights
from paramdelta_hub.checkpoints.logical import LogicalModel, LogicalTensor, entries_of
from paramdelta_hub.checkpoints.matching import LeftOut, Match, match
from paramdelta_hub.checkpoints.rename_proposals import propose
from paramdelta_hub.checkpoints.roles import EMBEDDINGS, Entry
from paramdelta_hub.checkpoints.rules import Rules, RuleUse, refuse_idle, rule_uses, uses_of_patterns
from paramdelta_hub.checkpoints.tensor_sources import Stored, Zeros
from paramdelta_hub.errors import Mismatch, MismatchError
from paramdelta_hub.package.manifest import TensorRecord
from paramdelta_hub.package.package import Package

__all__ = ["Carried", "Compatibility", "check_compatibility"]


@dataclass(frozen=True)
class Carried:
    """A tensor that a delta brings whole: which delta, and the zeros that it is added to."""

    number: int
    zeros: LogicalTensor


@dataclass(frozen=True)
class Compatibility:
    """How deltas fit a target: the tensors, paired, and the rows of those whose rows are not all in one order."""

    target: LogicalModel
    matches: tuple[Match, ...]
    placed: Mapping[str, PlacedRows]
    carried: Mapping[str, Carried] = field(default_factory=dict)
    keeps_fp8: bool = False
    """Whether weights that are 8-bit floats in the target are so in the result."""
    uses: tuple[RuleUse, ...] = ()
    """What each rule hit, and which tensors it left out although a delta changes them."""

    def in_fp8(self, name: str) -> bool:
        """Whether the result's tensor is 8-bit floats."""
        return self.keeps_fp8 and name in self.target.tensors and self.target.tensors[name].is_quantized

    def tensor(self, name: str) -> LogicalTensor:
        """Return the target's tensor; for a head that it ties, its embedding; zeros for one that is brought whole."""
        if name in self.carried:
            return self.carried[name].zeros
        return self.target.tensors[self.ties.get(name, name)]

    def source(self, name: str, *, summed: bool) -> LogicalTensor:
        """Return what a tensor of the result is made of; what an fp8 result takes over is read as it is stored."""
        stored = self.target.checkpoint.tensors
        if summed or not self.keeps_fp8 or name not in stored or name in self.carried or name in self.placed:
            return self.tensor(name)
        file, span = stored[name]
        return LogicalTensor(span.dtype, span.shape, Stored.of(file, span))

    @cached_property
    def ties(self) -> dict[str, str]:
        """Heads that the result gets of the target's embedding: head → embedding."""
        return {
            head: embedding
            for found in self.matches
            for head, (side, embedding) in found.ties.items()
            if side == "the target" and head in found.pairs
        }

    @property
    def names(self) -> list[str]:
        """Every tensor of the result but scales of 8-bit ones: the target's in their order, heads, what it lacked."""
        return list(dict.fromkeys([*self.target.tensors, *self.ties, *self.carried]))

    @cached_property
    def results(self) -> dict[str, OutTensor]:
        """Every tensor of the result: its :attr:`names`, and what belongs to fp8."""
        tensors = {}
        for name in self.names:
            tensor, placed = self.tensor(name), self.placed.get(name)
            shape = (placed.rows, *tensor.shape[1:]) if placed else tensor.shape
            tensors[name] = OutTensor("F8_E4M3" if self.in_fp8(name) else tensor.dtype, shape)
        for name, _ in self.target.omissions if self.keeps_fp8 else ():
            span = self.target.checkpoint.tensors[name][1]
            tensors[name] = OutTensor(span.dtype, span.shape)
        return tensors

    @property
    def config_overrides(self) -> dict[str, Any]:
        """Keys of ``config.json`` that the result's tensors decide; None: to be left out."""
        overrides: dict[str, Any] = {"tie_word_embeddings": False} if self.ties else {}
        for name, placed in self.placed.items():
            if EMBEDDINGS.search(name) and placed.rows != self.tensor(name).shape[0]:
                overrides["vocab_size_per_layer_input" if "per_layer" in name else "vocab_size"] = placed.rows
        if self.target.omissions and not self.keeps_fp8:
            overrides |= {"quantization_config": None, "compression_config": None}
        return overrides

    @property
    def colocate_with(self) -> dict[str, str]:
        """For each tensor of the result that the target has not, one that it has, whose file it shares."""
        last = list(self.target.checkpoint.tensors)[-1:]
        return self.ties | {name: at for name in self.carried if name not in self.target.tensors for at in last}

    @property
    def omissions(self) -> tuple[LeftOut, ...]:
        """Every tensor that is not summed although one side has it."""
        found = [omission for match in self.matches for omission in match.omissions]
        folded = () if self.keeps_fp8 else self.target.omissions
        return tuple(dict.fromkeys([*found, *(LeftOut(name, "the target", why) for name, why in folded)]))

    @property
    def notes(self) -> tuple[str, ...]:
        """What became of ties, and of rows, in words."""
        ties = [
            f"{head}: {side} has no such tensor; its {embedding} is used instead, and the result has both"
            if side == "the target"
            else f"{head}: {side} ties it to {embedding}, so the delta of {embedding} is added"
            for found in self.matches
            for head, (side, embedding) in found.ties.items()
            if head in found.pairs
        ]
        rows = [f"{name}: rows {placed.row_counts}" for name, placed in self.placed.items()]
        whole = [
            f"{name}: taken whole from the delta, "
            + ("instead of the target's" if name in self.target.tensors else "because the target has none")
            for name in self.carried
        ]
        return (*dict.fromkeys(ties), *rows, *whole)


def check_compatibility(
    target: LogicalModel,
    packages: Sequence[Package],
    rules: Rules,
    placer: RowPlanner,
    weights: Weights,
    keeps_fp8: bool = False,
) -> Compatibility:
    """Pair the target's tensors with every package's, or raise with everything that does not fit any of them.

    Raises:
        OptionError: a rule that hits nothing.
        MismatchError: every misfit is listed.
    """
    where = str(target.checkpoint.source.path)
    remedy = "use a target of base's architecture and dtype, or change the pairs with --rename and --skip"
    problems = [Mismatch("target", "quantized", target.refused)] if target.refused else []
    sides = [_entries(package) for package in packages]
    matches = _matches(target.entries, packages, sides, rules)
    uses = _rule_uses(target, packages, sides, matches, rules, weights)
    replaced: dict[str, str] = {}
    carried: dict[str, Carried] = {}
    vocabularies: dict[str, dict[int, TensorRecord]] = {
        name: {} for name, entry in target.entries.items() if entry.vocabulary
    }
    for number, (package, entries, found) in enumerate(zip(packages, sides, matches, strict=True)):
        if found.mismatches and (options := propose(target.entries, entries, rules)):
            remedy = f"try {options}; leave out the remaining tensors with --skip"
        problems += found.mismatches
        for name, theirs in list(found.pairs.items()):
            record = package.records[theirs]
            if is_whole := _is_whole(record):
                if weights.of(number, name) <= 0:
                    del found.pairs[name]
                    found.omissions.append(LeftOut(name, "the delta", "used only with a weight above 0"))
                    continue
                carried.setdefault(
                    name, Carried(number, LogicalTensor(record.dtype, record.shape, Zeros(record.dtype)))
                )
            elif entries[theirs].vocabulary or name in vocabularies:
                vocabularies.setdefault(name, {})[number] = record
            if not (is_whole or (record.effect == "replace" and record.shard)):
                continue
            if replaced.setdefault(name, record.post_blake3) != record.post_blake3:
                problems.append(
                    Mismatch(name, "conflict", f"two deltas replace it with different {record.dtype} values")
                )
    placed = {}
    heads = {head: tie[1] for found in matches for head, tie in found.ties.items() if tie[0] == "the target"}
    misfits = {problem.location for problem in problems}
    rows_of: dict[int, tuple[str, int]] = {}
    for name, by_number in vocabularies.items():
        if name in misfits or name in carried:
            continue
        rows = target.tensors[heads.get(name, name)].shape[0]
        try:
            its = placer.place(rows, by_number, {number: weights.of(number, name) for number in by_number})
        except MismatchError as error:
            problems += [Mismatch(name, "rows", error.what), *error.mismatches]
            remedy = error.remedy or remedy
            continue
        if its is not None:
            placed[name] = its
        new = its.rows if its else rows
        other, others = rows_of.setdefault(rows, (name, new))
        if new != others:
            problems.append(Mismatch(name, "rows", f"would be {new} in the result, but {other} has {others}"))
            remedy = "use --skip for both or neither"
    if keeps_fp8 and (without_scales := list(_without_scales(target, placed, carried))):
        problems += without_scales
        remedy = "remove --dtype; the result's weights are then bf16"
    if problems := list(dict.fromkeys(problems)):  # several tensors may lack the same tokens
        raise MismatchError(f"target and delta differ in {len(problems)} way(s)", problems, where=where, remedy=remedy)
    return Compatibility(target, tuple(matches), placed, carried, keeps_fp8, tuple(uses))


def _rule_uses(
    target: LogicalModel,
    packages: Sequence[Package],
    sides: Sequence[Mapping[str, Entry]],
    matches: Sequence[Match],
    rules: Rules,
    weights: Weights,
) -> list[RuleUse]:
    """Return what each rule hits, or refuse those that hit nothing."""
    summed = {name for found in matches for name in found.pairs}
    uses = rule_uses(rules, target.entries, sides)
    uses += uses_of_patterns([pattern for pattern, _ in weights.by_name.rules], summed)
    theirs = list(dict.fromkeys(name for side in sides for name in side))
    refuse_idle(uses, {"skip": [*target.entries, *theirs], "rename": theirs, "weight-map": summed})
    if not summed and rules.skips:
        raise MismatchError("the skip rules leave no tensor of any delta", where=str(target.checkpoint.source.path))
    for number in range(len(packages)):
        for name in matches[number].pairs:
            weights.of(number, name)  # a product that is too large is told before anything is written
    trained: dict[str, set[str]] = {}
    for package in packages if rules.skips else ():
        for name, record in package.records.items():
            renamed = rules.rename(name)
            if record.changed and (rules.skips_name(name) or rules.skips_name(renamed)):
                trained.setdefault(renamed, set()).update((name, renamed))
    return [use.with_trained(trained) for use in uses]


def _without_scales(
    target: LogicalModel, placed: Mapping[str, PlacedRows], carried: Mapping[str, Carried]
) -> Iterator[Mismatch]:
    """Yield the 8-bit tensors of the target for which its scales are too few, or too many, in the result."""
    for name, tensor in target.tensors.items():
        if tensor.is_quantized and name in carried:
            yield Mismatch(
                name, "fp8", "taken whole from the delta, but the target's scales are for the target's values"
            )
        elif tensor.is_quantized and name in placed and placed[name].rows != tensor.shape[0]:
            what = f"{placed[name].rows} rows in the result, but the target has scales for {tensor.shape[0]}"
            yield Mismatch(name, "fp8", what)


def _is_whole(record: TensorRecord) -> bool:
    """Whether base has no such tensor, so that this is post's own and no difference."""
    return record.rows is not None and record.rows.base == 0


def _entries(package: Package) -> dict[str, Entry]:
    """Return a package's tensors as pairing sees them; rows that moved are a vocabulary's, whatever the name."""
    records = package.records
    entries = entries_of({name: (record.dtype, record.shape) for name, record in records.items()})
    for name, record in records.items():
        if record.rows is not None:
            entries[name] = replace(entries[name], vocabulary=not _is_whole(record))
    return entries


def _matches(
    left: Mapping[str, Entry], packages: Sequence[Package], sides: Sequence[Mapping[str, Entry]], rules: Rules
) -> list[Match]:
    """Pair with every package. A head that one of them makes the target untie is a tensor for all of them."""

    def paired(left: Mapping[str, Entry]) -> list[Match]:
        matches = []
        for package, entries in zip(packages, sides, strict=True):
            known = [omission.name for omission in package.manifest.omissions]
            whole = [name for name, record in package.records.items() if _is_whole(record)]
            matches.append(match(left, entries, rules, ("the target", "the delta"), known, whole))
        return matches

    found = paired(left)
    heads = {
        head: tie for its in found for head, tie in its.ties.items() if tie[0] == "the target" and head in its.pairs
    }
    if heads and len(found) > 1:
        found = paired({**left, **{head: left[embedding] for head, (_, embedding) in heads.items()}})
        for its in found:
            its.ties = {**{head: tie for head, tie in heads.items() if head in its.pairs}, **its.ties}
    return found
