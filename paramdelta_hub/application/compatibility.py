"""Check whether deltas fit a target: match their tensors, place vocabulary rows, and list the result's tensors."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from paramdelta_hub.application.arrangements import ArrangedPairs, take_arranged
from paramdelta_hub.application.output_files import OutTensor
from paramdelta_hub.application.row_placement import PlacedRows, RowPlanner
from paramdelta_hub.application.weights import Weights
from paramdelta_hub.checkpoints.layouts.proposals import suggest_partials, suggest_rules
from paramdelta_hub.checkpoints.layouts.rearrange import MIXED, Layout, arrange
from paramdelta_hub.checkpoints.logical import LogicalModel, LogicalTensor, entries_of, same_values
from paramdelta_hub.checkpoints.matching.by_name import (
    Match,
    OmittedTensor,
    lacking_heads,
    match,
    rename_entries,
    suggest_skips,
)
from paramdelta_hub.checkpoints.matching.roles import EMBEDDINGS, Entry, is_head
from paramdelta_hub.checkpoints.matching.ties import TieGroups, Ties, head_is_tied, shares_embeddings
from paramdelta_hub.checkpoints.matching.training_saves import refuse_ungathered
from paramdelta_hub.checkpoints.rules.tensor_rules import (
    RuleKind,
    Rules,
    RuleUse,
    refuse_unused,
    rule_uses,
    weight_map_uses,
)
from paramdelta_hub.checkpoints.stored import Files, Stored, Zeros
from paramdelta_hub.errors import CheckpointError, Mismatch, MismatchError
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.fileio.strict_json import JsonObject
from paramdelta_hub.limits import KIB
from paramdelta_hub.numerics.casts import FloatDtype, float_dtype
from paramdelta_hub.numerics.floats import FLOATS
from paramdelta_hub.package.manifest import TensorRecord
from paramdelta_hub.package.package import Package

_REMOTE_ELEMENTS = 64 * KIB
"""Elements of two copies that are compared where each piece of them is a request."""

__all__ = ["CarriedTensor", "Compatibility", "check_compatibility"]


@dataclass(frozen=True)
class CarriedTensor:
    """A tensor that a delta brings whole: which delta, and the zeros that it is added to."""

    number: int
    zeros: LogicalTensor

    @classmethod
    def of(cls, number: int, record: TensorRecord) -> CarriedTensor:
        """Return the tensor that delta ``number`` carries."""
        return cls(number, LogicalTensor(record.dtype, record.shape, Zeros(record.dtype)))


@dataclass(frozen=True)
class Compatibility:
    """How deltas fit a target: the matched tensors, and where rows go that are not in the same order everywhere."""

    target: LogicalModel
    matches: tuple[Match, ...]
    placed: Mapping[str, PlacedRows]
    carried: Mapping[str, CarriedTensor] = field(default_factory=dict)
    dtype: FloatDtype | None = None
    """The dtype that all float tensors of the result get; None: each the target's."""
    keeps_fp8: bool = False
    """Whether weights that are 8-bit floats in the target are so in the result."""
    uses: tuple[RuleUse, ...] = ()
    """What each rule hit, and which tensors it left out although a delta changes them."""
    own_ties: Ties = field(default_factory=Ties)
    """Which of the target's names stand for one tensor."""
    arranged: tuple[ArrangedPairs, ...] = ()
    """For every delta, the target's tensors that it has in other pieces."""

    @property
    def paired(self) -> set[str]:
        """The target's tensors that a delta has, too."""
        matched = {name for match in self.matches for name in match.pairs}
        return matched.union(*(arranged.pairs for arranged in self.arranged))

    def in_delta_order(self, number: int, package: Package) -> dict[str, LogicalTensor]:
        """Return the target's values in the order of a delta's tensors, of those that it has in other pieces."""
        arranged = self.arranged[number]
        found = {
            name: arranged.in_delta_order(name, package.records[name], self.tensor) for name in arranged.delta_names
        }
        return {name: tensor for name, tensor in found.items() if tensor is not None}

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
        return {head: at for matched in self.matches for head, at in matched.left_ties.items() if head in matched.pairs}

    @cached_property
    def parted(self) -> tuple[str, ...]:
        """Copies of the target's that get another delta than the tensor whose copies they are."""
        return tuple(
            name
            for name, first in self.own_ties.same.items()
            if name in self.target.tensors
            and any(matched.pairs.get(name) != matched.pairs.get(first) for matched in self.matches)
        )

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
            tensors[name] = OutTensor("F8_E4M3" if self.in_fp8(name) else self.result_dtype(tensor), shape)
        for name, _ in self.target.omissions if self.keeps_fp8 else ():
            span = self.target.checkpoint.tensors[name][1]
            tensors[name] = OutTensor(span.dtype, span.shape)
        return tensors

    def result_dtype(self, tensor: LogicalTensor) -> str:
        """Return the dtype that a tensor has in the result, unless it stays 8-bit floats."""
        return float_dtype(self.dtype) if self.dtype and tensor.dtype in FLOATS else tensor.dtype

    @property
    def config_overrides(self) -> JsonObject:
        """Keys of ``config.json`` that the result's tensors decide; None: to be left out."""
        untied = self.ties or any(is_head(name) for name in (*self.parted, *self.own_ties.apart))
        overrides: JsonObject = {"tie_word_embeddings": False} if untied else {}
        for name, placed in self.placed.items():
            if EMBEDDINGS.search(name) and placed.rows != self.tensor(name).shape[0]:
                overrides["vocab_size_per_layer_input" if "per_layer" in name else "vocab_size"] = placed.rows
        if self.dtype:
            config = self.target.checkpoint.config or {}
            overrides["dtype" if "dtype" in config else "torch_dtype"] = self.dtype
        if self.target.omissions and not self.keeps_fp8:
            overrides |= {"quantization_config": None, "compression_config": None}
        return overrides

    @property
    def colocate_with(self) -> dict[str, str]:
        """For each tensor of the result that the target has not, one that it has, whose file it shares."""
        new = [name for name in self.carried if name not in self.target.tensors]
        neighbors = {name: self.target.checkpoint.neighbor(name) for name in new}
        return {**self.target.packed, **self.ties} | {name: at for name, at in neighbors.items() if at}

    @property
    def omissions(self) -> tuple[OmittedTensor, ...]:
        """Every tensor that is not summed although one side has it."""
        omitted = [omission for matched in self.matches for omission in matched.omissions]
        folded = () if self.keeps_fp8 else self.target.omissions
        return tuple(dict.fromkeys([*omitted, *(OmittedTensor(name, "the target", why) for name, why in folded)]))

    @property
    def notes(self) -> tuple[str, ...]:
        """What became of quantized weights, of ties, and of rows, in words."""
        ties = [
            f"{head}: the target has no such tensor; its {at} is used instead, and the result has both"
            for head, at in self.ties.items()
        ]
        for matched in self.matches:
            for name, at in matched.right_ties.items():
                copy = f"a copy of {self.own_ties.same[name]}, and gets the same delta" if self._is_copy(name) else ""
                ties.append(f"{name}: {copy or f'the delta ties it to {at}, so the delta of {at} is added'}")
        ties += [
            f"{name}: the target's config ties it to {other}, but their values differ; taken as two tensors"
            for name, other in self.own_ties.apart.items()
        ]
        rows = [f"{name}: rows {placed.row_counts}" for name, placed in self.placed.items()]
        whole = [
            f"{name}: taken whole from the delta, "
            + ("instead of the target's" if name in self.target.tensors else "because the target has none")
            for name in self.carried
        ]
        pieces = [note for arranged in self.arranged for note in arranged.notes]
        result = [f"{note}; the result is not quantized" for note in (() if self.keeps_fp8 else self.target.notes)]
        return (*result, *dict.fromkeys(ties), *rows, *whole, *dict.fromkeys(pieces))

    def _is_copy(self, name: str) -> bool:
        return name in self.own_ties.same and name in self.target.tensors


def check_compatibility(
    target: LogicalModel,
    packages: Sequence[Package],
    rules: Rules,
    row_planner: RowPlanner,
    weights: Weights,
    dtype: FloatDtype | None = None,
    keeps_fp8: bool = False,
    values: Files | None = None,
) -> Compatibility:
    """Pair the target's tensors with every package's, or raise with everything that does not fit any of them.

    Of values, only copies that the target stores of one tensor are read, by ``values`` if that is given.

    Raises:
        OptionError: a rule that hits nothing.
        MismatchError: every mismatch is listed.
    """
    problems = _Problems("use a target of base's architecture and dtype, or change the pairs with --rename and --skip")
    if target.unsupported:
        problems.found.append(Mismatch("target", "quantized", target.unsupported))
    layouts = [arrange(_entries(package), rules, target.entries) for package in packages]
    sides = [_arranged_entries(_entries(package), layout) for package, layout in zip(packages, layouts, strict=True)]
    own_ties, matches = _matches(target, packages, sides, rules, values)
    uses = _rule_uses(target, packages, sides, layouts, matches, rules, weights)
    for package, entries, matched in zip(packages, sides, matches, strict=True):
        refuse_ungathered(target.entries, matched.mismatches, "the target", str(target.checkpoint.source.path))
        config = target.checkpoint.config
        if matched.mismatches and (options := suggest_rules(target.entries, _entries(package), rules, config)):
            problems.remedy = f"try {options}; leave out the remaining tensors with --skip"
        elif matched.mismatches and (option := suggest_partials(target.entries, entries, rules)):
            problems.remedy = f"to add to the part that both have, give {option}; else keep the target's with --skip"
        elif skips := suggest_skips(matched, target.entries, entries):
            problems.remedy = f"to leave out what one side lacks, give {skips}"
    heads = [
        head
        for matched, entries in zip(matches, sides, strict=True)
        for head in lacking_heads(matched, target.entries, entries)
    ]
    if heads and not problems.remedy.startswith("try "):  # which may pair them
        patterns = " ".join(f"--skip {shlex.quote(f'^{re.escape(head)}$')}" for head in dict.fromkeys(heads))
        problems.remedy += f"; {patterns} leaves the head as the target has it"
    arranged = []
    for number, (package, layout, matched) in enumerate(zip(packages, layouts, matches, strict=True)):
        pairs, misfits = take_arranged(number, matched, layout, package)
        arranged.append(pairs)
        problems.found += misfits
    carried: dict[str, CarriedTensor] = {}
    vocabularies: dict[str, dict[int, TensorRecord]] = {
        name: {} for name, entry in target.entries.items() if entry.vocabulary
    }
    replaced: dict[str, str] = {}
    for number, (package, entries, matched) in enumerate(zip(packages, sides, matches, strict=True)):
        problems.found += matched.mismatches
        for name, delta_name in list(matched.pairs.items()):
            record = package.records[delta_name]
            if _is_carried(record):
                if weights.of(number, name) <= 0:
                    del matched.pairs[name]
                    reason = "used only with a weight above 0"
                    matched.omissions.append(OmittedTensor(name, "the delta", reason))
                    continue
                carried.setdefault(name, CarriedTensor.of(number, record))
            elif entries[delta_name].vocabulary or name in vocabularies:
                vocabularies.setdefault(name, {})[number] = record
            if not (_is_carried(record) or (record.effect == "replace" and record.shard)):
                continue
            if replaced.setdefault(name, record.post_blake3) != record.post_blake3:
                what = f"two deltas replace it with different {record.dtype} values"
                problems.found.append(Mismatch(name, "conflict", what))
    problems.found += _without_component(target, packages, carried)
    for name in carried:
        vocabularies.pop(name, None)
    placed = _place_rows(target, vocabularies, matches, row_planner, weights, problems)
    for pairs, package in zip(arranged, packages, strict=True):
        problems.found += _moved_rows(pairs, package, row_planner, weights)
    if keeps_fp8 and (without_scales := list(_without_scales(target, placed, carried))):
        problems.found += without_scales
        problems.remedy = "remove --dtype; the result's weights are then bf16"
    if any(problem.kind == MIXED for problem in problems.found):
        problems.remedy = "extract the delta again with --cast, which takes all of it in one dtype"
    lacking = {problem.location.rpartition("/")[0] for problem in problems.found if problem.kind == "component"}
    if lacking:
        skips = " ".join(f"--skip {shlex.quote(f'^{re.escape(folder)}/')}" for folder in sorted(lacking))
        problems.remedy = f"use a target that has this component, or leave it out: {skips}"
    problems.refuse(str(target.checkpoint.source.path))
    return Compatibility(
        target, tuple(matches), placed, carried, dtype, keeps_fp8, tuple(uses), own_ties, tuple(arranged)
    )


@dataclass
class _Problems:
    """Everything that does not fit so far, and what helps against it."""

    remedy: str
    found: list[Mismatch] = field(default_factory=list)

    def refuse(self, where: str) -> None:
        if problems := list(dict.fromkeys(self.found)):  # several tensors may lack the same tokens
            what = f"target and delta differ in {len(problems)} way(s)"
            raise MismatchError(what, problems, where=where, remedy=self.remedy)


def _place_rows(
    target: LogicalModel,
    vocabularies: Mapping[str, Mapping[int, TensorRecord]],
    matches: Sequence[Match],
    row_planner: RowPlanner,
    weights: Weights,
    problems: _Problems,
) -> dict[str, PlacedRows]:
    """Return where the rows of vocabulary tensors go, where they move at all; what does not fit is a problem."""
    placed = {}
    heads = {head: at for matched in matches for head, at in matched.left_ties.items()}
    mismatched = {problem.location for problem in problems.found}
    first_with: dict[int, tuple[str, int]] = {}
    for name, records in vocabularies.items():
        if name in mismatched:
            continue
        target_rows = target.tensors[heads.get(name, name)].shape[0]
        try:
            rows = row_planner.place_rows(
                target_rows, records, {number: weights.of(number, name) for number in records}
            )
        except MismatchError as error:
            problems.found += [Mismatch(name, "rows", error.what), *error.mismatches]
            problems.remedy = error.remedy or problems.remedy
            continue
        if rows is not None:
            placed[name] = rows
        new_rows = rows.rows if rows else target_rows
        # Tensors as long as each other in the target, such as an embedding and its head, must stay so.
        other, other_rows = first_with.setdefault(target_rows, (name, new_rows))
        if new_rows != other_rows:
            what = f"would be {new_rows} in the result, but {other} has {other_rows}"
            problems.found.append(Mismatch(name, "rows", what))
            problems.remedy = "use --skip for both or neither"
    return placed


def _moved_rows(
    arranged: ArrangedPairs, package: Package, row_planner: RowPlanner, weights: Weights
) -> Iterator[Mismatch]:
    """Yield the tensors in other pieces whose rows are a vocabulary's, and would have to move."""
    entries = _entries(package)
    for name, arrangement in arranged.pairs.items():
        for record in (package.records[source] for source in arrangement.sources if entries[source].vocabulary):
            number = arranged.number
            try:
                rows = row_planner.place_rows(record.shape[0], {number: record}, {number: weights.of(number, name)})
            except MismatchError as error:
                yield Mismatch(name, "rows", error.what)
                continue
            if rows is not None:
                what = "its rows would have to be matched by token, which is not done where a layout rule makes it"
                yield Mismatch(name, "rows", f"{what}; leave it out with --skip")


def _rule_uses(
    target: LogicalModel,
    packages: Sequence[Package],
    sides: Sequence[Mapping[str, Entry]],
    layouts: Sequence[Layout],
    matches: Sequence[Match],
    rules: Rules,
    weights: Weights,
) -> list[RuleUse]:
    """Return what each rule hits, or refuse those that hit nothing."""
    summed = {name for matched in matches for name in matched.pairs}
    uses = _layout_uses(layouts)
    uses += rule_uses(rules, target.entries, sides)
    uses += weight_map_uses([pattern for pattern, _ in weights.by_name.rules], summed)
    delta_names = list(dict.fromkeys(name for side in sides for name in side))
    candidates: dict[RuleKind, Collection[str]] = {
        "skip": [*target.entries, *delta_names],
        "rename": delta_names,
        "layout": list(dict.fromkeys(name for package in packages for name in package.records)),
        "partial": delta_names,
        "weight-map": summed,
    }
    if not any(layout.problems for layout in layouts):  # what a rule could not make, later ones don't find
        refuse_unused(uses, candidates)
    if not summed and rules.skips:
        raise MismatchError("the skip rules leave no tensor of any delta", where=str(target.checkpoint.source.path))
    for number in range(len(packages)):
        for name in matches[number].pairs:
            weights.of(number, name)  # a product that is too large is told before anything is written
    trained: dict[str, set[str]] = {}
    for package, layout in zip(packages, layouts, strict=True) if rules.skips else ():
        for name in layout.names:
            renamed, made = rules.rename(name), layout.arrangements.get(name)
            if not (rules.skips_name(name) or rules.skips_name(renamed)):
                continue
            if any(package.records[source].changed for source in (made.sources if made else [name])):
                trained.setdefault(renamed, set()).update((name, renamed))
    return [use.with_trained(trained) for use in uses]


def _layout_uses(layouts: Sequence[Layout]) -> list[RuleUse]:
    """Return what every layout rule and every partial rule hits, in all deltas together."""
    return [
        replace(uses[0], tensors=sum(use.tensors for use in uses))
        for uses in zip(*(layout.uses for layout in layouts), strict=True)
    ]


def _without_scales(
    target: LogicalModel, placed: Mapping[str, PlacedRows], carried: Mapping[str, CarriedTensor]
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


def _without_component(
    target: LogicalModel, packages: Sequence[Package], carried: Mapping[str, CarriedTensor]
) -> Iterator[Mismatch]:
    """Yield the tensors brought whole that belong to a component that the target does not have."""
    for name, tensor in carried.items():
        files = packages[tensor.number].manifest.post.files
        folders = {file.path.rpartition("/")[0] for file in files} - {"", *target.checkpoint.folders}
        if name not in target.tensors and any(name.startswith(f"{folder}/") for folder in folders):
            yield Mismatch(name, "component", "taken whole from the delta, but the target has no such component")
        elif name not in target.tensors and target.checkpoint.neighbor(name) is None:
            yield Mismatch(name, "component", "taken whole from the delta, but the target has no file for it")


def _is_carried(record: TensorRecord) -> bool:
    """Whether base has no such tensor, so that this is post's own and no difference."""
    return record.rows is not None and record.rows.base == 0


def _entries(package: Package) -> dict[str, Entry]:
    """Return a package's tensors as pairing sees them; rows that moved are a vocabulary's, whatever the name."""
    records = package.records
    entries = entries_of({name: (record.dtype, record.shape) for name, record in records.items()})
    for name, record in records.items():
        if record.rows is not None:
            entries[name] = replace(entries[name], vocabulary=not _is_carried(record))
    return entries


def _arranged_entries(entries: Mapping[str, Entry], layout: Layout) -> dict[str, Entry]:
    """Return a package's tensors after the layout rules, as pairing sees them."""
    made = {name: (layout.dtypes[name], made.shape) for name, made in layout.arrangements.items()}
    kept = {name: entries[name] for name in layout.kept}
    vocabularies = entries_of({**{name: (entry.dtype, entry.shape) for name, entry in kept.items()}, **made})
    return kept | {name: vocabularies[name] for name in made}


def _matches(
    target: LogicalModel,
    packages: Sequence[Package],
    sides: Sequence[Mapping[str, Entry]],
    rules: Rules,
    values: Files | None,
) -> tuple[Ties, list[Match]]:
    """Pair with every package. A head that one of them makes the target untie is a tensor for all of them."""
    config = target.checkpoint.config
    renamed = [{new: side[name] for new, name in rename_entries(side, rules)[0].items()} for side in sides]
    tied = [{rules.rename(n): rules.rename(at) for n, at in package.manifest.ties.items()} for package in packages]
    groups = TieGroups.of(target.entries, *renamed, shares_embeddings=shares_embeddings(config))
    with OpenFiles(CheckpointError) as files:
        own = groups.ties(
            target.entries,
            head_is_tied(config),
            lambda one, other: same_values(
                target.tensors[one], target.tensors[other], values or files, _REMOTE_ELEMENTS if values else None
            ),
            [*(name for side in renamed for name in side), *(name for side in tied for name in side)],
        )

    def match_all(left: Mapping[str, Entry], untied: Collection[str]) -> list[Match]:
        matches = []
        for package, entries, ours, names in zip(packages, sides, renamed, tied, strict=True):
            known = [omission.name for omission in package.manifest.omissions]
            carried = [name for name in entries if name in package.records and _is_carried(package.records[name])]
            theirs = _delta_ties(groups, package, ours, names, left, known, own)
            ties = Ties({name: at for name, at in own.same.items() if name not in untied}), theirs
            matches.append(match(left, entries, rules, ("the target", "the delta"), known, carried, ties))
        return matches

    matches = match_all(target.entries, ())
    heads = {head: at for matched in matches for head, at in matched.left_ties.items() if head in matched.pairs}
    if heads and len(matches) > 1:
        matches = match_all({**target.entries, **{head: target.entries[at] for head, at in heads.items()}}, heads)
        for matched in matches:
            matched.left_ties |= {head: at for head, at in heads.items() if head in matched.pairs}
    return own, matches


def _delta_ties(
    groups: TieGroups,
    package: Package,
    records: Mapping[str, Entry],
    recorded: Mapping[str, str],
    target: Mapping[str, Entry],
    known: Collection[str],
    own: Ties,
) -> Ties:
    """Return which record stands for a tensor of the target that the delta has none for.

    That of the tensor that it was a copy of in base or post; where both are known to tie their head, that of their
    embedding; and what is added to a tensor of the target is added to the target's copies of it.
    """
    manifest = package.manifest
    both_tie = manifest.base.tied_embeddings is True and manifest.post.tied_embeddings is True
    found = groups.ties(records, both_tie, lambda one, other: False)
    same = {name: at for name, at in found.same.items() if name not in known} | dict(recorded)
    for name, first in own.same.items():
        if name in target and name not in records and (at := first if first in records else same.get(first)):
            same[name] = at
    return Ties(same)
