"""Match the tensors of base and post, including tied heads and vocabulary rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from paramdelta_hub.checkpoints.checkpoint import Checkpoint
from paramdelta_hub.checkpoints.logical import LogicalModel, LogicalTensor, logical_model, logical_post
from paramdelta_hub.checkpoints.matching import SKIPPED, Match, OmittedTensor, match
from paramdelta_hub.checkpoints.rename_proposals import suggest_renames
from paramdelta_hub.checkpoints.rules import RuleKind, Rules, RuleUse, refuse_unused, rule_uses
from paramdelta_hub.checkpoints.tensor_sources import Zeros
from paramdelta_hub.checkpoints.token_rows import dropped_tokens, match_rows
from paramdelta_hub.checkpoints.tokenizer import Vocabulary, has_tokenizer, read_vocabulary, same_tokenizer
from paramdelta_hub.errors import CheckpointError, Mismatch, MismatchError, OptionError
from paramdelta_hub.fileio.durable import expand
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.limits import CHUNK_ELEMENTS
from paramdelta_hub.numerics.row_runs import Run
from paramdelta_hub.numerics.scratch import scratch

__all__ = ["Differences", "Pair", "pair_up", "tokenizer_folder", "uses_with_trained"]


@dataclass(frozen=True)
class Pair:
    """A tensor of the delta: base's side and post's, of one dtype and shape."""

    name: str
    base: LogicalTensor
    """Its rows are arranged in post's order; zeros, where post's tensor is carried whole."""
    post: LogicalTensor
    base_name: str | None
    """Base's embedding, where it serves as this head."""
    post_name: str | None
    """Post's own name, or its embedding's, where it is not ``name``."""
    tied_to: str | None
    """Post's embedding, where it serves as this head."""
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
    uses: tuple[RuleUse, ...]
    """What each of the user's rules hit."""
    skipped: tuple[SkippedPair, ...]
    model_notes: tuple[str, ...] = ()
    """How base and post are read, where there is something to say."""
    post_is_model: bool = True
    """False where it is base with an adapter."""

    @property
    def notes(self) -> tuple[str, ...]:
        """How the models are read; what became of ties, of rows, and of tensors that only post has."""
        return self.model_notes + tuple(note for pair in self.pairs if (note := pair.note))


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
            if not _equal_values(base, post, files)
        }
    return tuple(use.with_trained(trained) for use in differences.uses)


def _equal_values(base: LogicalTensor, post: LogicalTensor, files: OpenFiles) -> bool:
    if (base.dtype, base.shape) != (post.dtype, post.shape):
        return False
    base_values, post_values = base.source.open(files), post.source.open(files)
    for start in range(0, base.elements, CHUNK_ELEMENTS):
        size = min(CHUNK_ELEMENTS, base.elements - start) * base.itemsize
        base_chunk, post_chunk = scratch("one side", size, np.uint8), scratch("the other side", size, np.uint8)
        base_values.read(start, base_chunk)
        post_values.read(start, post_chunk)
        if not np.array_equal(base_chunk, post_chunk):
            return False
    return True


def pair_up(
    base: Checkpoint, post: Checkpoint, rules: Rules, base_tokenizer: Path | None, post_tokenizer: Path | None
) -> Differences:
    """Pair the two models' tensors, or raise with everything that does not fit; only headers are read.

    Raises:
        OptionError: a rule that hits nothing.
        MismatchError: every misfit is listed.
        CheckpointError: scales or a tokenizer that can't be used.
    """
    base_model = logical_model(base)
    sides = _Sides(base_model, logical_post(post, base_model, rules))
    base_entries, post_entries = sides.base.entries, sides.post.entries
    post_names, user_rules = [*post_entries], rules
    if sides.post.adapter_names is not None:
        post_names, rules = [*sides.post.adapter_names], replace(rules, renames=())
        if post_tokenizer is None or not has_tokenizer(post_tokenizer):
            post_tokenizer = base_tokenizer
    carried = [name for name in post_entries if rules.carries_name(name)]
    matched = match(base_entries, post_entries, rules, ("base", "post"), carried=carried)
    uses = rule_uses(user_rules, base_entries, [post_names], matched.carried)
    candidates: dict[RuleKind, list[str]] = {
        "skip": [*base_entries, *post_names],
        "rename": post_names,
        "carry": [name for name in post_entries if rules.rename(name) not in base_entries],
    }
    refuse_unused(uses, candidates)
    vocabularies = _Vocabularies(base_tokenizer, post_tokenizer)
    return Differences(
        pairs=_make_pairs(matched, sides, rules, vocabularies),
        omissions=(
            *matched.omissions,
            *(OmittedTensor(name, "base", reason) for name, reason in sides.base.omissions),
            *(OmittedTensor(name, "post", reason) for name, reason in sides.post.omissions),
            *(OmittedTensor(name, "post", SKIPPED) for name in sides.post.homeless),  # the others were refused
        ),
        given_up=vocabularies.dropped_tokens,
        uses=tuple(uses),
        skipped=_skipped_pairs(matched, sides, rules) if rules.skips else (),
        model_notes=(*sides.base.notes, *sides.post.notes),
        post_is_model=sides.post.adapter_names is None,
    )


class _Sides(NamedTuple):
    base: LogicalModel
    post: LogicalModel


def _make_pairs(matched: Match, sides: _Sides, rules: Rules, vocabularies: _Vocabularies) -> tuple[Pair, ...]:
    """Return a pair for every match, or raise with everything that does not fit."""
    base, post = sides
    where = str(post.checkpoint.source.path)
    problems = [
        Mismatch(side, "quantized", f"{model.checkpoint.source.path}: {model.unsupported}")
        for side, model in (("base", base), ("post", post))
        if model.unsupported
    ]
    problems += matched.mismatches
    problems += [Mismatch(name, "missing", why) for name, why in post.homeless.items() if not rules.skips_name(name)]
    remedy = (
        "give models of one architecture and dtype, or rename post's tensors with --rename, leave some out "
        "with --skip, or store those that only post has with --carry"
    )
    if base.unsupported or post.unsupported:
        remedy = "see what is said of the quantized model; the rest may follow from it"
    elif post.homeless:
        remedy = (
            "give the base that the adapter was trained on, or rename the adapter's tensors with --rename, "
            "or leave some out with --skip"
        )
    elif problems and (options := suggest_renames(base.entries, post.entries, rules)):
        remedy = f"try {options}; for the remaining tensors use --skip, or --carry if only post has them"
    pairs = []
    mismatched = {mismatch.location for mismatch in matched.mismatches}
    for name in matched.pairs:
        if name in mismatched:
            continue
        try:
            pairs.append(_pair(name, matched, sides, vocabularies))
        except MismatchError as error:
            problems.append(Mismatch(name, "rows", error.what))
            remedy = error.remedy or remedy
    if problems:
        raise MismatchError(f"base and post differ in {len(problems)} way(s)", problems, where=where, remedy=remedy)
    if not pairs:
        what = "the skip rules leave no tensor" if rules.skips else "base and post have no tensor in common"
        raise MismatchError(what, where=where)
    return tuple(pairs)


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
    post, (side, embedding) = sides.post.tensors[post_name], matched.ties.get(name, ("", ""))
    if name in matched.carried:
        base = LogicalTensor(post.dtype, (0, *post.shape[1:]), Zeros(post.dtype))
        runs = (Run(0, None, post.shape[0]),) if post.shape[0] else ()
    else:
        base = sides.base.tensor(name, matched, "base")
        base_entry = sides.base.entries[embedding if side == "base" else name]
        if base_entry.vocabulary or sides.post.entries[post_name].vocabulary:
            runs = vocabularies.match_rows(base.shape[0], post.shape[0])
    return Pair(
        name=name,
        base=base.reorder_rows(runs),
        post=post,
        base_name=embedding if side == "base" else None,
        post_name=None if post_name == name else post_name,
        tied_to=embedding if side == "post" else None,
        base_rows=base.shape[0] if base.shape else 0,
        runs=runs,
    )


class _Vocabularies:
    """Base's and post's tokens, read once, and only if the files differ or an embedding has other rows."""

    def __init__(self, base: Path | None, post: Path | None) -> None:
        self._base, self._post = base, post
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
            self._runs[sizes] = match_rows(*sizes, *self._vocabularies())
        return self._runs[sizes]

    @property
    def dropped_tokens(self) -> dict[str, int]:
        """Tokens of base that post no longer has."""
        base, post = self._read or (None, None)
        return dropped_tokens(base, post) if base and post else {}

    def _vocabularies(self) -> tuple[Vocabulary | None, Vocabulary | None]:
        if self._read is None:
            base = read_vocabulary(self._base) if self._base else None
            post = base if self._same else read_vocabulary(self._post) if self._post else None
            self._read = (base, post)
        return self._read
