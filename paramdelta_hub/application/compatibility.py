"""Check whether deltas fit a target: match their tensors, place vocabulary rows, and list the result's tensors."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain

from paramdelta_hub.application.arrangements import ArrangedPairs, take_arranged
from paramdelta_hub.application.output_files import OutTensor
from paramdelta_hub.application.row_placement import PlacedRows, RowPlanner
from paramdelta_hub.application.weights import Weights
from paramdelta_hub.checkpoints.layouts.proposals import propose
from paramdelta_hub.checkpoints.layouts.rearrange import MIXED, Layout, arrange
from paramdelta_hub.checkpoints.logical import LogicalModel, LogicalTensor, entries_of, same_values
from paramdelta_hub.checkpoints.matching.by_name import Match, OmittedTensor, lacking_heads, match, rename_entries
from paramdelta_hub.checkpoints.matching.roles import EMBEDDINGS, Entry, is_head
from paramdelta_hub.checkpoints.matching.ties import TieGroups, Ties, head_is_tied, shares_embeddings
from paramdelta_hub.checkpoints.matching.training_saves import refuse_ungathered
from paramdelta_hub.checkpoints.rules.tensor_rules import (
    RuleKind,
    Rules,
    RuleUse,
    as_options,
    exactly,
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
                why = f"the delta ties it to {at}, so the delta of {at} is added"
                if name in self.own_ties.same and name in self.target.tensors:
                    why = f"a copy of {self.own_ties.same[name]}, and gets the same delta"
                ties.append(f"{name}: {why}")
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
    deltas = [_Delta.of(number, package, rules, target) for number, package in enumerate(packages)]
    own_ties = _match(target, deltas, rules, values)
    uses = _rule_uses(target, deltas, rules, weights)
    problems = _Problems("use a target of base's architecture and dtype, or change the pairs with --rename and --skip")
    if target.unsupported:
        problems.found.append(Mismatch("target", "quantized", target.unsupported))
    problems.propose(target, deltas, rules)
    arranged = []
    for delta in deltas:
        pairs, misfits = take_arranged(delta.number, delta.matched, delta.layout, delta.package)
        arranged.append(pairs)
        problems.found += misfits
    carried, vocabularies = _take_carried(target, deltas, weights, problems)
    problems.found += _without_component(target, packages, carried)
    placed = _place_rows(target, vocabularies, deltas, row_planner, weights, problems)
    for pairs, delta in zip(arranged, deltas, strict=True):
        problems.found += _moved_rows(pairs, delta.package, row_planner, weights)
    if keeps_fp8 and (without_scales := list(_without_scales(target, placed, carried))):
        problems.found += without_scales
        problems.remedy = "remove --dtype; the result's weights are then bf16"
    problems.refuse(str(target.checkpoint.source.path))
    matches = tuple(delta.matched for delta in deltas)
    return Compatibility(target, matches, placed, carried, dtype, keeps_fp8, tuple(uses), own_ties, tuple(arranged))


@dataclass
class _Delta:
    """A delta while its tensors are matched with the target's."""

    number: int
    package: Package
    layout: Layout
    entries: Mapping[str, Entry]
    """Its tensors after the layout rules, as pairing sees them."""
    matched: Match = field(default_factory=Match)

    @classmethod
    def of(cls, number: int, package: Package, rules: Rules, target: LogicalModel) -> _Delta:
        stored = _entries(package)
        layout = arrange(stored, rules, target.entries)
        made = {name: (layout.dtypes[name], made.shape) for name, made in layout.arrangements.items()}
        kept = {name: stored[name] for name in layout.kept}
        vocabularies = entries_of({**{name: (entry.dtype, entry.shape) for name, entry in kept.items()}, **made})
        return cls(number, package, layout, kept | {name: vocabularies[name] for name in made})


_PROPOSALS = {
    "rules": "try {}; leave out the remaining tensors with --skip",
    "partial": "to add to the part that both have, give {}; else keep the target's with --skip",
    "skip": "to leave out what one side lacks, give {}",
}


@dataclass
class _Problems:
    """Everything that does not fit so far, and what helps against it."""

    remedy: str
    found: list[Mismatch] = field(default_factory=list)

    def propose(self, target: LogicalModel, deltas: Sequence[_Delta], rules: Rules) -> None:
        """Set the remedy to options that would help, if there are some."""
        config, where = target.checkpoint.config, str(target.checkpoint.source.path)
        heads = []
        for delta in deltas:
            matched, stored = delta.matched, _entries(delta.package)
            refuse_ungathered(target.entries, matched.mismatches, "the target", where)
            if proposal := propose(matched, target.entries, delta.entries, stored, rules, config, grow=False):
                self.remedy = _PROPOSALS[proposal.kind].format(proposal.options)
            heads += lacking_heads(matched, target.entries, delta.entries)
        if heads and not self.remedy.startswith("try "):  # which may pair them
            self.remedy += f"; {as_options('skip', map(exactly, heads))} leaves the head as the target has it"

    def refuse(self, where: str) -> None:
        """Raise if anything does not fit."""
        if any(problem.kind == MIXED for problem in self.found):
            self.remedy = "extract the delta again with --cast, which takes all of it in one dtype"
        if lacking := {problem.location.rpartition("/")[0] for problem in self.found if problem.kind == "component"}:
            skips = as_options("skip", (f"^{re.escape(folder)}/" for folder in sorted(lacking)))
            self.remedy = f"use a target that has this component, or leave it out: {skips}"
        if problems := list(dict.fromkeys(self.found)):  # several tensors may lack the same tokens
            what = f"target and delta differ in {len(problems)} way(s)"
            raise MismatchError(what, problems, where=where, remedy=self.remedy)


def _take_carried(
    target: LogicalModel, deltas: Sequence[_Delta], weights: Weights, problems: _Problems
) -> tuple[dict[str, CarriedTensor], dict[str, dict[int, TensorRecord]]]:
    """Return the tensors that deltas bring whole, and of the other pairs those of vocabularies, by delta."""
    carried: dict[str, CarriedTensor] = {}
    vocabularies: dict[str, dict[int, TensorRecord]] = {
        name: {} for name, entry in target.entries.items() if entry.vocabulary
    }
    replaced: dict[str, str] = {}
    for delta in deltas:
        matched, number = delta.matched, delta.number
        problems.found += matched.mismatches
        for name, delta_name in list(matched.pairs.items()):
            record = delta.package.records[delta_name]
            if _is_carried(record):
                if weights.of(number, name) <= 0:
                    del matched.pairs[name]
                    reason = "used only with a weight above 0"
                    matched.omissions.append(OmittedTensor(name, "the delta", reason))
                    continue
                zeros = LogicalTensor(record.dtype, record.shape, Zeros(record.dtype))
                carried.setdefault(name, CarriedTensor(number, zeros))
            elif delta.entries[delta_name].vocabulary or name in vocabularies:
                vocabularies.setdefault(name, {})[number] = record
            if not (_is_carried(record) or (record.effect == "replace" and not record.is_zero)):
                continue
            if replaced.setdefault(name, record.post_blake3) != record.post_blake3:
                what = f"two deltas replace it with different {record.dtype} values"
                problems.found.append(Mismatch(name, "conflict", what))
    return carried, {name: records for name, records in vocabularies.items() if name not in carried}


def _place_rows(
    target: LogicalModel,
    vocabularies: Mapping[str, Mapping[int, TensorRecord]],
    deltas: Sequence[_Delta],
    row_planner: RowPlanner,
    weights: Weights,
    problems: _Problems,
) -> dict[str, PlacedRows]:
    """Return where the rows of vocabulary tensors go, where they move at all; what does not fit is a problem."""
    placed = {}
    heads = {head: at for delta in deltas for head, at in delta.matched.left_ties.items()}
    mismatched = {problem.location for problem in problems.found}
    first_with: dict[int, tuple[str, int]] = {}
    for name, records in vocabularies.items():
        if name in mismatched:
            continue
        target_rows = target.tensors[heads.get(name, name)].shape[0]
        try:
            own_weights = {number: weights.of(number, name) for number in records}
            rows = row_planner.place_rows(target_rows, records, own_weights)
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


def _rule_uses(target: LogicalModel, deltas: Sequence[_Delta], rules: Rules, weights: Weights) -> list[RuleUse]:
    """Return what each rule hits, in all deltas together, or refuse those that hit nothing."""
    summed = {name for delta in deltas for name in delta.matched.pairs}
    uses = [
        replace(each[0], tensors=sum(use.tensors for use in each))
        for each in zip(*(delta.layout.uses for delta in deltas), strict=True)
    ]
    uses += rule_uses(rules, target.entries, [delta.entries for delta in deltas])
    uses += weight_map_uses([pattern for pattern, _ in weights.by_name.rules], summed)
    delta_names = _unique(name for delta in deltas for name in delta.entries)
    candidates: dict[RuleKind, Collection[str]] = {
        "skip": [*target.entries, *delta_names],
        "rename": delta_names,
        "layout": _unique(name for delta in deltas for name in delta.package.records),
        "partial": delta_names,
        "weight-map": summed,
    }
    if not any(delta.layout.problems for delta in deltas):  # what a rule could not make, later ones don't find
        refuse_unused(uses, candidates)
    if not summed and rules.skips:
        raise MismatchError("the skip rules leave no tensor of any delta", where=str(target.checkpoint.source.path))
    for delta in deltas:
        for name in delta.matched.pairs:
            weights.of(delta.number, name)  # a product that is too large is told before anything is written
    trained: dict[str, set[str]] = {}
    for delta in deltas if rules.skips else ():
        for name in delta.layout.names:
            renamed, made = rules.rename(name), delta.layout.arrangements.get(name)
            if not (rules.skips_name(name) or rules.skips_name(renamed)):
                continue
            if any(delta.package.records[source].changed for source in (made.sources if made else [name])):
                trained.setdefault(renamed, set()).update((name, renamed))
    return [use.with_trained(trained) for use in uses]


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


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


def _match(target: LogicalModel, deltas: Sequence[_Delta], rules: Rules, values: Files | None) -> Ties:
    """Pair with every delta, and return the target's ties.

    A head that one of the deltas makes the target untie is a tensor for all of them.
    """
    config = target.checkpoint.config
    renamed = [
        {new: delta.entries[name] for new, name in rename_entries(delta.entries, rules)[0].items()} for delta in deltas
    ]
    tied = [{rules.rename(n): rules.rename(at) for n, at in delta.package.manifest.ties.items()} for delta in deltas]
    groups = TieGroups.of(target.entries, *renamed, shares_embeddings=shares_embeddings(config))
    with OpenFiles(CheckpointError) as files:
        own = groups.ties(
            target.entries,
            head_is_tied(config),
            lambda one, other: same_values(
                target.tensors[one], target.tensors[other], values or files, _REMOTE_ELEMENTS if values else None
            ),
            [*chain(*renamed, *tied)],
        )

    def match_all(left: Mapping[str, Entry], untied: Collection[str]) -> None:
        for delta, ours, names in zip(deltas, renamed, tied, strict=True):
            records, manifest = delta.package.records, delta.package.manifest
            known = [omission.name for omission in manifest.omissions]
            carried = [name for name in delta.entries if name in records and _is_carried(records[name])]
            theirs = _delta_ties(groups, delta.package, ours, names, left, known, own)
            ties = Ties({name: at for name, at in own.same.items() if name not in untied}), theirs
            sides = ("the target", "the delta")
            delta.matched = match(left, delta.entries, rules, sides, known, carried, ties)

    match_all(target.entries, ())
    matches = [delta.matched for delta in deltas]
    heads = {head: at for matched in matches for head, at in matched.left_ties.items() if head in matched.pairs}
    if heads and len(deltas) > 1:
        match_all({**target.entries, **{head: target.entries[at] for head, at in heads.items()}}, heads)
        for delta in deltas:
            delta.matched.left_ties |= {head: at for head, at in heads.items() if head in delta.matched.pairs}
    return own


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
