"""Match the tensors of base and post, including tied heads and vocabulary rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.checkpoints.checkpoint import Checkpoint
from paramdelta_hub.checkpoints.layouts.proposals import propose
from paramdelta_hub.checkpoints.layouts.rearrange import MIXED, Layout, arrange, arranged_model, partial_note
from paramdelta_hub.checkpoints.logical import LogicalModel, LogicalTensor, logical_model, logical_post, same_values
from paramdelta_hub.checkpoints.matching.by_name import Match, OmittedTensor, lacking_heads, match, rename_entries
from paramdelta_hub.checkpoints.matching.roles import EMBEDDINGS
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
)
from paramdelta_hub.checkpoints.stored import Zeros
from paramdelta_hub.checkpoints.tokens.token_rows import dropped_tokens, match_rows, newly_named
from paramdelta_hub.checkpoints.tokens.tokenizer import Vocabulary, has_tokenizer, read_vocabulary, same_tokenizer
from paramdelta_hub.errors import CheckpointError, Mismatch, MismatchError, OptionError
from paramdelta_hub.fileio.durable import expand
from paramdelta_hub.fileio.names import counted
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.numerics.casts import as_bits, common_dtype
from paramdelta_hub.numerics.floats import FLOATS
from paramdelta_hub.numerics.row_runs import Run
from paramdelta_hub.package.records import PARTIAL, SKIPPED

__all__ = ["Differences", "Pair", "pair_up", "tokenizer_folder", "uses_with_trained"]


@dataclass(frozen=True)
class Pair:
    """A tensor of the delta: base's side and post's, of one shape, and read in the dtype that holds both."""

    name: str
    base: LogicalTensor
    """Its rows are arranged in post's order; zeros, where post's tensor is carried whole."""
    post: LogicalTensor
    base_name: str | None
    """Base's tensor that stands for this one, where base has none of this name."""
    post_name: str | None
    """Post's own name, where it is not ``name``."""
    tied_to: str | None
    """Post's tensor that stands for this one, where post has none of this name."""
    base_dtype: str
    post_dtype: str
    """What each side has; their tensors here are read in the dtype that holds both."""
    base_rows: int
    runs: tuple[Run, ...] | None
    """Where base's rows went, if they were arranged."""

    @property
    def note(self) -> str | None:
        """What there is to say about it, in words."""
        if self.runs is not None and not self.base_rows:
            return f"{self.name}: only post has it; stored whole"
        words = [f"base ties it to {self.base_name}"] if self.base_name else []
        words += [f"post ties it to {self.tied_to}"] if self.tied_to else []
        if self.runs is not None:
            new = sum(run.number for run in self.runs if run.source is None)
            words.append(
                f"rows matched by token: {self.base_rows:,} in base, {self.post.shape[0]:,} in post, {new:,} new"
            )
        return f"{self.name}: {'; '.join(words)}" if words else None


@dataclass(frozen=True)
class SideTies:
    """The ties of base and of post, and the copies that are one tensor of the delta."""

    base: Ties
    post: Ties
    """Of names after renaming."""
    copies: Mapping[str, str] = field(default_factory=dict)
    """Names under which base or post has a tensor of the delta once more → the delta's name for it."""

    def notes(self, rules: Rules) -> Iterator[str]:
        """Yield what there is to say of copies, and of tensors that a config ties although they differ."""
        for side, ties in (("base", self.base), ("post", self.post)):
            for name, other in ties.apart.items():
                yield f"{name}: {side}'s config ties it to {other}, but their values differ; taken as two tensors"
        for name, first in self.copies.items():
            skipped = ", and is not skipped without it" if rules.skips_name(name) else ""
            yield f"{name}: the same tensor as {first}{skipped}"


class SkippedPair(NamedTuple):
    """A tensor that both models have and a rule skips."""

    name: str
    post_name: str
    base: LogicalTensor
    post: LogicalTensor


@dataclass(frozen=True)
class Differences:
    """All pairs, what was left out, and which tokens of base post no longer has."""

    pairs: tuple[Pair, ...]
    omissions: tuple[OmittedTensor, ...]
    given_up: Mapping[str, int]
    taken_up: Mapping[str, int]
    """Tokens of post whose rows base has without a name."""
    uses: tuple[RuleUse, ...]
    """What each of the user's rules hit."""
    skipped: tuple[SkippedPair, ...]
    ties: SideTies
    rules: Rules
    """Those that renamed post's tensors to base's names: none do, where post is an adapter."""
    model_notes: tuple[str, ...]
    """How base and post are read, where there is something to say."""
    post_is_model: bool
    """False where it is base with an adapter."""

    @property
    def notes(self) -> tuple[str, ...]:
        """How the models are read; what became of ties, of rows, and of tensors that only post has."""
        dtypes = Counter((pair.base_dtype, pair.post_dtype) for pair in self.pairs)
        across = [
            f"{counted(count, 'tensor')}: {base} in base, {post} in post; the delta is exact in"
            f" {common_dtype(base, post)}, and a result has its target's dtype unless --dtype says otherwise"
            for (base, post), count in dtypes.items()
            if base != post
        ]
        pairs = (note for pair in self.pairs if (note := pair.note))
        return (*self.model_notes, *across, *self.ties.notes(self.rules), *pairs)


def uses_with_trained(differences: Differences) -> tuple[RuleUse, ...]:
    """Return what each rule hit, with the names of the tensors that it left out although training had changed them.

    Both sides are read, until the first difference: a pattern is easily wider than it was meant to be.

    Raises:
        CheckpointError: a file was truncated or can't be read.
    """
    with OpenFiles(CheckpointError) as files:
        trained = {
            name: (name, post_name)
            for name, post_name, base, post in differences.skipped
            if not same_values(base, post, files)
        }
    return tuple(use.with_trained(trained) for use in differences.uses)


def pair_up(
    base: Checkpoint,
    post: Checkpoint,
    rules: Rules,
    base_tokenizer: Path | None,
    post_tokenizer: Path | None,
    cast: str | None = None,
) -> Differences:
    """Pair the two models' tensors, or raise with everything that does not fit; only headers are read.

    Both sides are read in the float dtype ``cast``, if given.

    Raises:
        OptionError: a rule that hits nothing.
        MismatchError: every misfit is listed.
        CheckpointError: scales or a tokenizer that can't be used.
    """
    base_model = logical_model(base)
    base_side = base_model.cast(cast)
    post_as_stored = logical_post(post, base_model, rules).cast(cast)
    user_rules = rules
    if post_as_stored.adapter_names is not None:
        rules = replace(rules, renames=())
        if post_tokenizer is None or not has_tokenizer(post_tokenizer):
            post_tokenizer = base_tokenizer
    layout = arrange(post_as_stored.entries, rules, base_side.entries)
    sides = _Sides(base_side, arranged_model(post_as_stored, layout))
    base_entries, post_entries = sides.base.entries, sides.post.entries
    post_names = [*post_entries] if sides.post.adapter_names is None else [*sides.post.adapter_names]
    carried = [name for name in post_entries if rules.carries_name(name)]
    ties = _find_ties(sides, rules)
    matched = match(
        base_entries, post_entries, rules, ("base", "post"), carried=carried, ties=(ties.base, ties.post), folds=True
    )
    matched.mismatches += [*layout.problems, *_too_small(layout)]
    uses = [*layout.uses, *rule_uses(user_rules, base_entries, [post_names], matched.carried)]
    candidates: dict[RuleKind, list[str]] = {
        "skip": [*base_entries, *post_names],
        "rename": post_names,
        "carry": [name for name in post_entries if rules.rename(name) not in base_entries],
        "layout": [*post_as_stored.entries],
        "partial": [*post_entries],
    }
    if not layout.problems:  # what a rule could not make, later ones don't find
        refuse_unused(uses, candidates)
    vocabularies = _Vocabularies(base_tokenizer, post_tokenizer, partial(_continued_rows, matched, sides))
    return Differences(
        pairs=_make_pairs(matched, sides, post_as_stored, rules, vocabularies),
        omissions=tuple(_omissions(matched, layout, sides)),
        given_up=vocabularies.dropped_tokens,
        taken_up=vocabularies.taken_up,
        uses=tuple(uses),
        skipped=_skipped_pairs(matched, sides, rules) if rules.skips else (),
        ties=replace(ties, copies=matched.copies),
        rules=rules,
        model_notes=(*sides.base.notes, *sides.post.notes),
        post_is_model=sides.post.adapter_names is None,
    )


def _omissions(matched: Match, layout: Layout, sides: _Sides) -> Iterator[OmittedTensor]:
    """Yield everything that is left out, all or part of it."""
    yield from matched.omissions
    for name, (shape, other) in layout.partials.items():
        yield OmittedTensor(name, "post", PARTIAL + partial_note("post", shape, "base", other))
    for side, model in zip(("base", "post"), sides, strict=True):
        yield from (OmittedTensor(name, side, reason) for name, reason in model.omissions)
    for name in sides.post.homeless:  # the others were refused
        yield OmittedTensor(name, "post", SKIPPED)


def _find_ties(sides: _Sides, rules: Rules) -> SideTies:
    """Return which names of either model stand for one tensor; of values, only stored copies are read.

    Raises:
        CheckpointError: a file was truncated or can't be read.
    """
    base, post = sides
    renamed, _ = rename_entries(post.entries, rules)
    post_entries = {name: post.entries[own] for name, own in renamed.items()}
    # Base's config serves for an adapter too: one beside that is a trainer's copy.
    holders = base.checkpoint, base.checkpoint if post.adapter_names is not None else post.checkpoint
    configs = [checkpoint.config for checkpoint in holders]
    groups = TieGroups.of(base.entries, post_entries, shares_embeddings=all(map(shares_embeddings, configs)))
    with OpenFiles(CheckpointError) as files:
        base_ties = groups.ties(
            base.entries,
            head_is_tied(configs[0]),
            lambda one, other: same_values(base.tensors[one], base.tensors[other], files),
            post_entries,
        )
        post_ties = groups.ties(
            post_entries,
            head_is_tied(configs[1]),
            lambda one, other: same_values(post.tensors[renamed[one]], post.tensors[renamed[other]], files),
            base.entries,
        )
    # A head that base has for itself and post lacks was dropped, whatever post's config says: embedding models and
    # reward models keep the config of their base.
    return SideTies(
        base=base_ties.supported_by(post_ties, post_entries),
        post=post_ties.supported_by(base_ties, base.entries).without(base_ties.own_heads),
    )


def _too_small(layout: Layout) -> list[Mismatch]:
    """Return the tensors of which base has elements that post has not: no part of post's could make those."""
    return [
        Mismatch(name, "partial", f"post has {list(shape)}, which does not hold base's {list(other)}")
        for name, (shape, other) in layout.partials.items()
        if any(mine < theirs for mine, theirs in zip(shape, other, strict=True))
    ]


class _Sides(NamedTuple):
    base: LogicalModel
    post: LogicalModel


def _make_pairs(
    matched: Match, sides: _Sides, post_as_stored: LogicalModel, rules: Rules, vocabularies: _Vocabularies
) -> tuple[Pair, ...]:
    """Return a pair for every match, or raise with everything that does not fit."""
    base, post = sides
    where = str(post.checkpoint.source.path)
    _refuse_ungathered(matched, sides)
    problems = [
        Mismatch(side, "quantized", f"{model.checkpoint.source.path}: {model.unsupported}")
        for side, model in (("base", base), ("post", post))
        if model.unsupported
    ]
    problems += matched.mismatches
    problems += [Mismatch(name, "missing", why) for name, why in post.homeless.items() if not rules.skips_name(name)]
    remedy = _remedy(matched, sides, post_as_stored, rules, problems)
    pairs = []
    mismatched = {mismatch.location for mismatch in matched.mismatches}
    for name in (name for name in matched.pairs if name not in mismatched):
        try:
            pairs.append(_pair(name, matched, sides, vocabularies))
        except MismatchError as error:
            problems.append(Mismatch(name, "rows", error.what))
            remedy = error.remedy or remedy
    if uneven := _uneven_rows(pairs, sides):
        problems += uneven
        grown = as_options("skip", (exactly(mismatch.location) for mismatch in uneven))
        remedy = (
            f"make them equally long in post, or leave out what has other rows: {grown}, and apply with "
            "--companions target"
        )
    if problems:
        raise MismatchError(f"base and post differ in {len(problems)} way(s)", problems, where=where, remedy=remedy)
    if not pairs:
        what = "the skip rules leave no tensor" if rules.skips else "base and post have no tensor in common"
        raise MismatchError(what, where=where)
    return tuple(pairs)


_PROPOSALS = {
    "rules": "try {}; for the remaining tensors use --skip, or --carry if only post has them",
    "partial": "to use the part of post's tensors that base has too, give {}; else leave them out with --skip",
    "skip": "to leave out what one side lacks, give {}; --carry REGEX stores what only post has",
}


def _remedy(
    matched: Match, sides: _Sides, post_as_stored: LogicalModel, rules: Rules, problems: Sequence[Mismatch]
) -> str:
    """Return what helps if base and post don't fit."""
    base, post = sides
    remedy = (
        "give models of one architecture and dtype, or rename post's tensors with --rename, leave some out "
        "with --skip, or store those that only post has with --carry"
    )
    if base.unsupported or post.unsupported:
        remedy = "see what is said of the quantized model; the rest may follow from it"
    elif post.homeless:
        remedy = (
            "give the base that the adapter was trained on, or rename the adapter's tensors with --rename, "
            "leave some out with --skip, or store whole tensors with --carry"
        )
    elif any(problem.kind == MIXED for problem in problems):
        remedy = "read both sides in one dtype with --cast"
    elif proposal := propose(
        matched, base.entries, post.entries, post_as_stored.entries, rules, base.checkpoint.config, grow=True
    ):
        remedy = _PROPOSALS[proposal.kind].format(proposal.options)
    heads = lacking_heads(matched, base.entries, post.entries)
    if heads and not remedy.startswith("try "):  # which may pair them
        keeps = f"{as_options('skip', map(exactly, heads))} leaves the head out, and targets keep their own"
        remedy = keeps if len(heads) == len(problems) else f"{remedy}; {keeps}"
    return remedy


def _uneven_rows(pairs: Sequence[Pair], sides: _Sides) -> list[Mismatch]:
    """Return the vocabulary tensors that are as long as others in base, but not in post.

    Such a delta could not even be applied to its own base: an embedding and its head must stay as long as each other.
    """
    groups: dict[int, list[Pair]] = {}
    for pair in pairs:
        base_name = pair.base_name or pair.name
        if base_name in sides.base.entries and sides.base.entries[base_name].vocabulary:
            groups.setdefault(pair.base_rows, []).append(pair)
    return [
        Mismatch(pair.name, "rows", f"{pair.post.shape[0]} in post, where {kept.name} has {kept.post.shape[0]}")
        for group in groups.values()
        for kept in [min(group, key=lambda pair: abs(pair.post.shape[0] - pair.base_rows))]
        for pair in group
        if pair.post.shape[0] != kept.post.shape[0]
    ]


_CONTINUED = 0.5
"""The largest change of a row, as a share of its norm, with which it still is the row that it was. Training changes
rows by far less; a new token's row has nothing in common with the padding that was at its place."""


def _continued_rows(matched: Match, sides: _Sides, rows: Collection[int]) -> list[int]:
    """Return which rows of base's token embedding post trained on, by their values; none, if there is no embedding.

    Raises:
        CheckpointError: a file was truncated or can't be read.
    """
    for name, post_name in matched.pairs.items():
        base, post = sides.base.tensors.get(matched.left_ties.get(name, name)), sides.post.tensors[post_name]
        if EMBEDDINGS.search(name) and base and base.shape[1:] == post.shape[1:] and len(base.shape) == 2:
            break
    else:
        return []
    with OpenFiles(CheckpointError) as files:
        found = []
        for row in sorted(row for row in rows if row < min(base.shape[0], post.shape[0])):
            old, new = (_row_of(tensor, row, files) for tensor in (base, post))
            norm = float(np.linalg.norm(old))
            if norm and float(np.linalg.norm(new - old)) <= _CONTINUED * norm:
                found.append(row)
        return found


def _row_of(tensor: LogicalTensor, row: int, files: OpenFiles) -> NDArray[np.floating[Any]]:
    kind, width = FLOATS[tensor.dtype], tensor.shape[1]
    raw = np.empty(width * kind.itemsize, np.uint8)
    tensor.source.open(files).read(row * width, raw)
    return kind.widen(as_bits(raw, kind), np.empty(width, kind.wide))


def _refuse_ungathered(matched: Match, sides: _Sides) -> None:
    paired = {name: sides.post.entries[new] for name, new in matched.pairs.items() if new in sides.post.entries}
    for side, model, entries in (
        ("post", sides.post, {**sides.post.entries, **paired}),
        ("base", sides.base, sides.base.entries),
    ):
        refuse_ungathered(entries, matched.mismatches, side, str(model.checkpoint.source.path))


def _skipped_pairs(matched: Match, sides: _Sides, rules: Rules) -> tuple[SkippedPair, ...]:
    """Return the tensors that both models have and a rule skips."""
    post_names = {rules.rename(name): name for name in sides.post.tensors}
    return tuple(
        SkippedPair(name, post_names[name], sides.base.tensors[name], sides.post.tensors[post_names[name]])
        for name in (item.name for item in matched.omissions if item.reason == SKIPPED and item.side == "both")
        if name in sides.base.tensors and name in post_names
    )


def tokenizer_folder(chosen: str | Path | None, model: Checkpoint) -> Path | None:
    """Return where a model's tokenizer lies: in the folder chosen, else beside its weights, if they have a folder.

    Raises:
        OptionError: there is no such folder.
    """
    if chosen is None:
        return None if model.is_lone_file else model.folder
    folder = expand(chosen)
    if not folder.is_dir():
        raise OptionError("not a folder", where=str(chosen), remedy="give the folder of the tokenizer's files")
    return folder


def _pair(name: str, matched: Match, sides: _Sides, vocabularies: _Vocabularies) -> Pair:
    runs: tuple[Run, ...] | None = None
    post_name = matched.pairs[name]
    post, base_name = sides.post.tensors[post_name], matched.left_ties.get(name, name)
    if name in matched.carried:
        base = LogicalTensor(post.dtype, (0, *post.shape[1:]), Zeros(post.dtype))
        runs = (Run(0, None, post.shape[0]),) if post.shape[0] else ()
    else:
        base = sides.base.tensors[base_name]
        if sides.base.entries[base_name].vocabulary or sides.post.entries[post_name].vocabulary:
            runs = vocabularies.match_rows(base.shape[0], post.shape[0])
    dtype = common_dtype(base.dtype, post.dtype)
    return Pair(
        name=name,
        base=base.cast(dtype).reorder_rows(runs),
        post=post.cast(dtype),
        base_name=None if base_name == name else base_name,
        post_name=None if post_name == name else post_name,
        tied_to=matched.right_ties.get(name),
        base_dtype=base.dtype,
        post_dtype=post.dtype,
        base_rows=base.shape[0] if base.shape else 0,
        runs=runs,
    )


class _Vocabularies:
    """Base's and post's tokens, read once, and only if the files differ or an embedding has other rows."""

    def __init__(
        self, base: Path | None, post: Path | None, continued: Callable[[Collection[int]], Collection[int]]
    ) -> None:
        """Take the tokenizers' folders, and what tells of rows whether post trained them on from base's."""
        self._base, self._post, self._continued = base, post, continued
        self._same = base is not None and post is not None and same_tokenizer(base, post)
        self._read: tuple[Vocabulary | None, Vocabulary | None] | None = None
        self._runs: dict[tuple[int, int], tuple[Run, ...] | None] = {}

    def match_rows(self, base_rows: int, post_rows: int) -> tuple[Run, ...] | None:
        """Return which of base's rows each of post's belongs to; None where that is its own.

        Raises:
            MismatchError: other sizes, and no tokenizers to tell the rows by.
        """
        if base_rows == post_rows and (self._same or self._base is None or self._post is None):
            return None
        sizes = (base_rows, post_rows)
        if sizes not in self._runs:
            self._runs[sizes] = match_rows(*sizes, *self._vocabularies(), self.taken_up)
        return self._runs[sizes]

    @property
    def dropped_tokens(self) -> dict[str, int]:
        """Tokens of base that post no longer has."""
        base, post = self._read or (None, None)
        return dropped_tokens(base, post) if base and post else {}

    @cached_property
    def taken_up(self) -> dict[str, int]:
        """Tokens of post whose rows base has without a name, if the tokenizers were needed."""
        base, post = self._read or (None, None)
        named = newly_named(base, post) if base and post else {}
        continued = set(self._continued(named.values())) if named else set()
        return {token: row for token, row in named.items() if row in continued}

    def _vocabularies(self) -> tuple[Vocabulary | None, Vocabulary | None]:
        if self._read is None:
            base = read_vocabulary(self._base) if self._base else None
            post = base if self._same else read_vocabulary(self._post) if self._post else None
            self._read = (base, post)
        return self._read
