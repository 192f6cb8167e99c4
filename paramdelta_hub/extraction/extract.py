"""Extract Δ = post − base into a package. Every element is checked while the package is written."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from paramdelta_hub.checkpoints.checkpoint import Checkpoint, open_checkpoint
from paramdelta_hub.checkpoints.rules.tensor_rules import Rules, RuleUse, check_rules
from paramdelta_hub.errors import Mismatch, MismatchError, NotFiniteError, OptionError
from paramdelta_hub.extraction.companions import check_companions, layout_notes
from paramdelta_hub.extraction.descent import check_descent, descent_notes
from paramdelta_hub.extraction.finalize import build_manifest, final_names
from paramdelta_hub.extraction.pairs import Differences, pair_up, tokenizer_folder, uses_with_trained
from paramdelta_hub.extraction.request import ExtractRequest
from paramdelta_hub.fileio.durable import io_errors, write_file
from paramdelta_hub.fileio.safetensors import ITEM_SIZES
from paramdelta_hub.limits import DEFAULT_MEMORY, EXPECTED_RATIO
from paramdelta_hub.numerics.casts import FloatDtype, float_dtype
from paramdelta_hub.outputs.replacing import Replacement, check_new, model_places, registry_places
from paramdelta_hub.package.labels import check_labels
from paramdelta_hub.package.manifest import MANIFEST_NAME, Rows, TensorRecord, parse_manifest
from paramdelta_hub.package.provenance import Lineage
from paramdelta_hub.package.report import PackageReport
from paramdelta_hub.registry.protocol import Published
from paramdelta_hub.tasks.models import DigestTask, Encoded, EncodeTask, Outcome, Task, count_not_finite
from paramdelta_hub.tasks.plan import Plan, cut, planning
from paramdelta_hub.tasks.progress import Progress
from paramdelta_hub.tasks.runner import Executor, ExecutorConfig, Operation, Outcomes, complete
from paramdelta_hub.tasks.workspace import Workspace
from paramdelta_hub.transforms.encode import EncodedPart, EncodedTensor

__all__ = ["ExtractReport", "Extraction", "extract"]


class ExtractReport(PackageReport):
    """What an extraction made."""

    resumed_tasks: int
    """Tasks of an interrupted run that were kept."""
    lineage: Lineage
    """How post was found to descend from base, and which of its tensors do not."""
    notes: tuple[str, ...] = ()
    """Which files were read where there was a choice; what became of ties, of rows that have no like in base, and of
    tensors that are carried whole; and which tensors of post are unrelated to base's."""
    rules: tuple[RuleUse, ...] = ()
    """What each rule hit, and which trained tensors it left out."""
    published: Published | None = None
    """Where it was published at once, if it was."""


def extract(
    base: str | Path,
    post: str | Path,
    out: str | Path,
    *,
    name: str | None = None,
    version: str = "1.0.0",
    license: str | None = None,  # noqa: A002 - the field's own name
    rules: Rules | None = None,
    cast: FloatDtype | None = None,
    base_tokenizer: str | Path | None = None,
    post_tokenizer: str | Path | None = None,
    hash_files: bool = False,
    force: bool = False,
    overwrite: bool = False,
    executor: Executor = "threads",
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    progress: Progress | None = None,
) -> ExtractReport:
    """Write the delta package ``out`` such that base ⊕ Δ == post, bit for bit, for every element.

    Both models are read once, chunk by chunk, and every chunk's sum is checked against post as it is made. A killed run
    leaves no ``out``; run it again to resume.

    The arguments from ``base`` to ``force`` are described at :class:`ExtractRequest`; ``rules`` are its layouts,
    renames, skips, carries and partials. ``executor``, ``threads`` and ``memory`` are described at
    :class:`ExecutorConfig`, ``overwrite`` and ``progress`` at :mod:`paramdelta_hub`.

    Raises:
        OptionError: a name, version, license or rule that can't be used.
        CheckpointError: a model can't be read.
        MismatchError: the two don't fit; every mismatch is listed.
        LineageError: post does not descend from base, and that is not forced.
        NotFiniteError: base and post differ where one is NaN or infinite.
        DestinationError: ``out`` exists, or is being written to.
        StorageError: the disk is full or fails.
    """
    request = ExtractRequest(
        **check_rules(rules).fields,
        base=os.fspath(base),
        post=os.fspath(post),
        name=name,
        version=version,
        license=license,
        cast=cast,
        base_tokenizer=None if base_tokenizer is None else os.fspath(base_tokenizer),
        post_tokenizer=None if post_tokenizer is None else os.fspath(post_tokenizer),
        hash_files=hash_files,
        force=force,
    )
    config = ExecutorConfig(executor, threads, memory)
    check_new(out, overwrite=overwrite)
    return complete(Extraction(request), out, config, progress or Progress(), overwrite=overwrite)


class Extraction(Operation[ExtractReport]):
    """An extract whose models are opened and paired, and whose plan is made.

    Raises:
        OptionError: a name, version, license or rule that can't be used.
        CheckpointError: a model can't be read.
        MismatchError: the two don't fit; every misfit is listed.
        LineageError: post does not descend from base, and the request does not force it.
    """

    stage = "extracting"

    @planning()
    def __init__(self, request: ExtractRequest) -> None:
        self._rules, self._cast = request.rules, None if request.cast is None else float_dtype(request.cast)
        first = "delta" if request.name is None else request.name
        check_labels(first, request.version, request.license)  # before anything is read
        self._base, self._post = open_checkpoint(request.base), open_checkpoint(request.post)
        if os.path.realpath(self._base.source.path) == os.path.realpath(self._post.source.path):
            raise OptionError(
                "BASE and POST are the same model", where=request.base, remedy="give the trained model as POST"
            )
        tokenizers = (
            tokenizer_folder(request.base_tokenizer, self._base),
            tokenizer_folder(request.post_tokenizer, self._post),
        )
        self._tokenizer = tokenizers[1]
        self._inputs = [
            *model_places("the base model", self._base),
            *model_places("the post model", self._post),
            *(("a tokenizer", folder) for folder in tokenizers if folder),
            *registry_places(None),
        ]
        check_companions(self._base, self._post, self._tokenizer)
        name = request.name or f"{self._post.source.name.rpartition('/')[2]}-delta"
        self._labels = check_labels(name, request.version, request.license)
        self._differences = pair_up(self._base, self._post, self._rules, *tokenizers, cast=self._cast)
        self._kinship = check_descent(self._base, self._post, self._differences, force=request.force)
        self.plan = _plan(self._base, self._post, self._differences, request)

    @property
    def may_replace(self) -> Replacement:
        """Only a package is replaced by a package."""
        return Replacement("package", self._inputs)

    def prepare(self, workspace: Workspace, tasks_at_a_time: int) -> None:
        """Check the space that the pieces are expected to take."""
        expected = sum(
            int(tensor.nbytes * EXPECTED_RATIO[ITEM_SIZES[tensor.dtype]])
            for task in self.plan.tasks
            if isinstance(task, EncodeTask)
            for tensor in task.tensors
        )
        workspace.check_space(expected)

    def restore(self, workspace: Workspace, outcomes: Outcomes) -> None:
        """Give pieces back the names that receipts know them by."""
        if len(outcomes) == len(self.plan.tasks):  # else nothing has been renamed yet
            for piece, shard in final_names([outcome for _, outcome in sorted(outcomes.items())]).items():
                if (workspace.result / shard).exists() and not (workspace.pieces / piece).exists():
                    os.rename(workspace.result / shard, workspace.pieces / piece)

    def refuse(self, outcomes: Outcomes) -> None:
        """Raise if values changed that are not finite, or if there is no difference."""
        _refuse_not_finite(outcomes.values())
        encoded = [outcome for outcome in outcomes.values() if isinstance(outcome, Encoded)]
        changed = any(part.changed for outcome in encoded for part in outcome.tensors)
        changed = changed or any(pair.runs is not None for pair in self._differences.pairs)
        if len(outcomes) == len(self.plan.tasks) and not changed:
            remedy = "give the trained model as POST, and the model that it was trained from as BASE"
            count = len(self._differences.pairs)
            raise MismatchError(
                f"post has the same values as base in all {count} tensors: there is no delta to extract",
                where=str(self._post.source.path),
                remedy=f"{remedy}, or check what --skip leaves out" if self._rules.skips else remedy,
            )

    def finish(self, workspace: Workspace, outcomes: Outcomes, resumed: int) -> ExtractReport:
        """Write the manifest and commit."""
        ordered = [outcome for _, outcome in sorted(outcomes.items())]
        uses = uses_with_trained(self._differences)
        with io_errors("writing the package"):
            manifest = build_manifest(
                self._base,
                self._post,
                self._tokenizer,
                self._differences,
                self._rules,
                self._cast,
                self._records(ordered),
                ordered,
                workspace,
                self._labels,
            )
            text = manifest.to_json()
            manifest, digest = parse_manifest(text)  # what we write, we can read
            write_file(workspace.result / MANIFEST_NAME, text)
        workspace.commit()
        return ExtractReport(
            path=workspace.given,
            id=digest,
            manifest=manifest,
            model_nbytes=self._post.nbytes if self._differences.post_is_model else self._base.nbytes,
            resumed_tasks=resumed,
            lineage=self._kinship.record(forced=self._kinship.is_foreign),
            notes=(
                *self._base.notes_of("base"),
                *self._post.notes_of("post"),
                *layout_notes(self._base, self._post),
                *self._differences.notes,
                *descent_notes(self._kinship),
            ),
            rules=uses,
        )

    def _records(self, outcomes: Sequence[Outcome]) -> list[TensorRecord]:
        """Return what the manifest says of every tensor, with the shards' final names."""
        shard_of = final_names(outcomes)
        parts: defaultdict[str, list[EncodedPart]] = defaultdict(list)
        for outcome in outcomes:
            for each in outcome.tensors if isinstance(outcome, Encoded) else ():
                if each.part and each.part.shard:
                    each = replace(each, part=each.part.model_copy(update={"shard": shard_of[each.part.shard]}))
                parts[each.name].append(each)
        tensors = {each.name: each for task in self.plan.tasks if isinstance(task, EncodeTask) for each in task.tensors}
        return [tensors[name].record(found) for name, found in parts.items()]


def _plan(base: Checkpoint, post: Checkpoint, differences: Differences, request: ExtractRequest) -> Plan:
    tensors = [
        EncodedTensor(
            name=pair.name,
            dtype=pair.base.dtype,
            base_dtype=pair.base_dtype,
            post_dtype=pair.post_dtype,
            shape=pair.base.shape,
            first=0,
            elements=pair.base.elements,
            base=pair.base.source,
            post=pair.post.source,
            base_name=pair.base_name,
            post_name=pair.post_name,
            rows=None if pair.runs is None else Rows(base=pair.base_rows, runs=pair.runs),
        )
        for pair in differences.pairs
    ]
    groups = cut(tensors, base.nbytes)
    tasks: list[Task] = [
        EncodeTask.of(f"{number:06d}.safetensors", tuple(group)) for number, group in enumerate(groups, start=1)
    ]
    files = {file.path: file for model in (base, post) for file in model.files}
    if request.hash_files:
        tasks += [DigestTask(str(path), file.header.size) for path, file in files.items()]
    return Plan(
        kind="extract",
        inputs=tuple(file.identity() for file in files.values()),
        request=request.to_json(),
        tasks=tuple(tasks),
    )


def _refuse_not_finite(outcomes: Iterable[Outcome]) -> None:
    problems = [
        Mismatch(
            name,
            "not-finite",
            f"base and post differ in values that are NaN or infinite: {in_base} in base, {in_post} in post",
        )
        for name, (in_base, in_post) in count_not_finite(outcomes).items()
    ]
    if problems:
        raise NotFiniteError(
            f"{len(problems)} tensor(s) have changes to or from NaN or infinity",
            problems,
            remedy="give both models the same values there, or leave these tensors out with --skip REGEX",
        )
