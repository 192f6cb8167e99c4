"""Apply: target ⊕ Δ, for one delta or a weighted sum of several, in one pass over the weights."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path

from paramdelta_hub.application.companions import CompanionReport, Mode, Prefer, write_companions
from paramdelta_hub.application.inputs import open_inputs
from paramdelta_hub.application.kinship import AppliedDelta, foreign_notes
from paramdelta_hub.application.output_files import new_indexes
from paramdelta_hub.application.planning import addends_by_tensor, plan_apply, temporary_bytes
from paramdelta_hub.application.provenance import PROVENANCE_NAME, is_post, provenance_of
from paramdelta_hub.application.requantize import Dtype, Requantization, requantization
from paramdelta_hub.application.request import ApplyRequest, rule_fields
from paramdelta_hub.application.streaming import FilePool
from paramdelta_hub.application.weights import Deltas, Factors, WeightedDelta, WeightMap, weighted_deltas
from paramdelta_hub.checkpoints.companions import read_companion
from paramdelta_hub.checkpoints.logical import LogicalTensor
from paramdelta_hub.checkpoints.matching.by_name import OmittedTensor
from paramdelta_hub.checkpoints.rules.tensor_rules import Rules, RuleUse, check_rules
from paramdelta_hub.checkpoints.stored import Stored
from paramdelta_hub.errors import CheckpointError, Mismatch, NotFiniteError, OptionError
from paramdelta_hub.fileio import strict_json
from paramdelta_hub.fileio.durable import io_errors, write_file
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.fileio.report import Report
from paramdelta_hub.limits import DEFAULT_MEMORY
from paramdelta_hub.outputs.replacing import check_new
from paramdelta_hub.package.manifest import Manifest
from paramdelta_hub.package.provenance import Model, parse_provenance, provenance_problems
from paramdelta_hub.registry.cards.card import result_card
from paramdelta_hub.tasks.models import Advance, Applied, Outcome, count_not_finite, result_digests
from paramdelta_hub.tasks.plan import planning
from paramdelta_hub.tasks.progress import Progress
from paramdelta_hub.tasks.runner import Executor, ExecutorConfig, Operation, Outcomes, complete
from paramdelta_hub.tasks.workspace import MayReplace, Workspace

__all__ = ["Application", "ApplyReport", "WeightMap", "WeightedDelta", "apply", "check_stream", "run_apply"]

CARD_NAME = "README.md"
NOTHING_ADDED = "nothing was added: all weights are 0, or the deltas change nothing here"


class ApplyReport(Report):
    """What an apply made."""

    path: Path
    target: Model
    deltas: tuple[AppliedDelta, ...]
    nbytes: int
    """Of the weight files."""
    is_post: bool
    """Whether the result is post, bit for bit, because the target was base."""
    changed_tensors: int
    kept_tensors: int
    """Tensors copied from the target as they are."""
    companions: CompanionReport
    """What lies beside the weights, and where it comes from."""
    omissions: tuple[OmittedTensor, ...]
    notes: tuple[str, ...]
    """What became of ties and of the rows of vocabularies."""
    rules: tuple[RuleUse, ...] = ()
    """What each rule hit, and which tensors it left out although a delta changes them."""
    requantization: Requantization | None = None
    """What 8-bit weights lost against the sums they were made of; None where there are none."""
    resumed_tasks: int = 0
    """Tasks of an interrupted run that were kept."""


def apply(
    target: str | Path,
    deltas: Deltas,
    out: str | Path,
    *,
    weight_map: Factors | None = None,
    rules: Rules | None = None,
    dtype: Dtype | None = None,
    companions: Mode = "post",
    prefer: Prefer = "target",
    keep_remote_code_of_target: bool = False,
    target_tokenizer: str | Path | None = None,
    stream: bool = False,
    registry: str | Path | None = None,
    force: bool = False,
    overwrite: bool = False,
    executor: Executor = "threads",
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    progress: Progress | None = None,
) -> ApplyReport:
    """Write ``out`` = target + Σ wᵢΔᵢ with the target's shard layout, tensor order and metadata.

    Sums are made in float32 (float64 for float32 models), in the order of ``deltas``, and rounded once. With one delta
    of weight 1 the result equals ``((post.float() - base.float()) + target.float()).to(target.dtype)`` bit for bit,
    and post itself if the target is base. Base, post and target may have different float dtypes: each tensor of the
    result has the target's, or ``dtype``. A killed run leaves no ``out``; run it again to resume.

    A delta has a weight of 1 unless you give one: ``(delta, 0.5)``, ``{delta: 0.5}``, :class:`WeightedDelta` or
    ``"delta=0.5"``. The arguments from ``target`` to ``stream``, and ``force``, are described at
    :class:`ApplyRequest`; ``rules`` are its layouts, renames, skips and partials. ``executor``, ``threads`` and
    ``memory`` are described at :class:`ExecutorConfig`, ``registry``, ``overwrite`` and ``progress`` at
    :mod:`paramdelta_hub`.

    Raises:
        ParamdeltaError: OptionError, CheckpointError, PackageError, MismatchError (every mismatch is listed),
            LineageError, NotFiniteError, DestinationError, StorageError or RegistryError.
    """
    request = ApplyRequest(
        **rule_fields(check_rules(rules)),
        target=os.fspath(target),
        deltas=tuple((os.fspath(each.delta), each.weight) for each in weighted_deltas(deltas)),
        weight_map=WeightMap.of(weight_map).rules,
        dtype=dtype,
        companions=companions,
        prefer=prefer,
        keep_remote_code_of_target=keep_remote_code_of_target,
        target_tokenizer=None if target_tokenizer is None else os.fspath(target_tokenizer),
        stream=stream,
        force=force,
    )
    config, progress = ExecutorConfig(executor, threads, memory), progress or Progress()
    return run_apply(request, out, config, progress, registry=registry, overwrite=overwrite)


def run_apply(
    request: ApplyRequest,
    out: str | Path,
    config: ExecutorConfig,
    progress: Progress,
    *,
    registry: str | Path | None,
    overwrite: bool,
) -> ApplyReport:
    """Do what :func:`apply` does, for a request.

    Raises:
        OptionError: a target is to be streamed to other than threads of this process.
    """
    check_stream(request, config)
    check_new(out, overwrite=overwrite, registry=registry)
    operation = Application(request, out, registry=registry, progress=progress)
    return complete(operation, out, config, progress, overwrite=overwrite)


def check_stream(request: ApplyRequest, config: ExecutorConfig) -> None:
    """Check that a target is streamed only by threads of this process, which share the files that are fetched.

    Raises:
        OptionError: it would be streamed by other executors.
    """
    if request.stream and config.executor != "threads":
        raise OptionError(
            f"--stream needs the executor threads, not {config.executor}",
            remedy="remove --stream or --executor",
        )


class Application(Operation[ApplyReport]):
    """An apply whose target and deltas are opened and found to fit, and whose plan is made.

    Raises:
        CheckpointError: the target can't be read.
        PackageError: a delta can't be read, or is damaged.
        MismatchError: target and delta don't fit; every misfit is listed.
        LineageError: the target is not kin to base.
        RegistryError: a delta can't be had from its registry.
    """

    stage = "applying"

    @planning()
    def __init__(
        self,
        request: ApplyRequest,
        out: str | Path,
        *,
        registry: str | Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        inputs = open_inputs(request, Workspace(Path(out)).pieces, registry=registry, progress=progress)
        self._inputs, self._rules, self.fetches = inputs, request.rules, request.stream
        self._applied = inputs.check_lineages()
        self._warnings = inputs.check_earlier()
        compatibility, packages = inputs.compatibility, inputs.packages
        self._sums = addends_by_tensor(compatibility, packages, inputs.weights)
        may_be_base = len(self._applied) == 1 and self._applied[0].kinship.same_values
        asked = inputs.request.to_json()
        self.plan = plan_apply(compatibility, inputs.files, packages, self._sums, asked, may_be_base=may_be_base)
        self._pool = FilePool(None, ())

    @property
    def may_replace(self) -> MayReplace:
        """Only a model that an apply made is replaced by another."""
        return self._inputs.may_replace

    def prepare(self, workspace: Workspace, tasks_at_a_time: int) -> None:
        """Check the space, and make the result's files at their final sizes."""
        needed = self._inputs.needed_bytes(tasks_at_a_time)
        workspace.check_space(needed + temporary_bytes(self.plan, tasks_at_a_time))
        for file in self._inputs.files.values():
            file.prepare(workspace.result)

    def begin(self, todo: Collection[int]) -> None:
        """Learn which files of a streamed target are still wanted."""
        self._pool = FilePool(self._inputs.remote, [self.plan.tasks[number] for number in todo])

    def run(self, number: int, workspace: Workspace, advance: Advance) -> Outcome:
        """Do a task while its files are there."""
        with self._pool.hold(self.plan.tasks[number]):
            return super().run(number, workspace, advance)

    def refuse(self, outcomes: Outcomes) -> None:
        """Raise if values of the result are not finite."""
        _refuse_not_finite(outcomes.values())

    def finish(self, workspace: Workspace, outcomes: Outcomes, resumed: int) -> ApplyReport:
        """Write what lies beside the weights, and commit."""
        inputs, result = self._inputs, workspace.result
        compatibility, request, model = inputs.compatibility, inputs.request, inputs.model
        ordered = [outcome for _, outcome in sorted(outcomes.items()) if isinstance(outcome, Applied)]
        digests = result_digests(ordered)
        nothing = () if self._sums else (NOTHING_ADDED,)
        notes = (*inputs.warnings, *self._warnings, *nothing, *foreign_notes(self._applied), *compatibility.notes)
        exactly_post = is_post(self._applied, compatibility, digests) and self._arranged_are_post(workspace)
        lost = requantization(deviation for outcome in ordered for deviation in outcome.deviations)
        with io_errors("writing the companion files"), provenance_problems(str(workspace.given)):
            companions = write_companions(
                inputs.companions,
                result,
                prefer=request.prefer,
                overrides=compatibility.config_overrides,
                is_post=exactly_post and _is_called_as_post(inputs.packages[0].manifest, self._rules),
            )
            for name, index in new_indexes(model, list(inputs.files.values()), compatibility.results).items():
                write_file(result / name, index or read_companion((model.folder / name).resolve()))
            provenance = provenance_of(
                compatibility,
                self._applied,
                inputs.weights.by_name,
                self._rules,
                digests,
                is_post=exactly_post,
                notes=notes,
                companions=companions,
                requantization=lost,
            )
            text = strict_json.pretty(provenance.model_dump(mode="json"))
            parse_provenance(text)  # what we write, we can read
            write_file(result / PROVENANCE_NAME, text)
            card = result_card(provenance, [delta.package.manifest for delta in self._applied], companions.lines())
            write_file(result / CARD_NAME, card.encode())
        workspace.commit()
        return ApplyReport(
            path=workspace.given,
            target=provenance.target,
            deltas=tuple(self._applied),
            nbytes=inputs.nbytes,
            is_post=exactly_post,
            changed_tensors=len(self._sums),
            kept_tensors=sum(name not in self._sums for name in compatibility.names),
            companions=companions,
            omissions=compatibility.omissions,
            notes=notes,
            rules=compatibility.uses,
            requantization=lost,
            resumed_tasks=resumed,
        )

    def _arranged_are_post(self, workspace: Workspace) -> bool:
        """Whether what the result has in other pieces than the delta is post's, too: it is read again to tell."""
        compatibility, [package, *_] = self._inputs.compatibility, self._inputs.packages
        files = {name: file for file in self._inputs.files.values() for name in file.starts}

        def written(name: str) -> LogicalTensor:
            made, file = compatibility.results[name], files[name]
            path = workspace.result / file.name
            return LogicalTensor(made.dtype, made.shape, Stored(str(path), file.starts[name], made.dtype))

        with OpenFiles(CheckpointError) as opened:
            return compatibility.arranged[0].have_values(package, written, opened)


def _is_called_as_post(manifest: Manifest, rules: Rules) -> bool:
    """Whether post's config fits the names and pieces of a result that has post's values.

    Where rules lead from one type of model to another, such as from Llama to InternLM2, it does not.
    """
    rearranged = manifest.renames or manifest.layouts or rules.renames or rules.layouts
    return not (rearranged and any("model_type" in change.patch for change in manifest.configs.values()))


def _refuse_not_finite(outcomes: Iterable[Outcome]) -> None:
    problems = [
        Mismatch(name, "not-finite", f"{count} value(s) of the result would be NaN or infinite")
        for name, [count] in count_not_finite(outcomes).items()
    ]
    if problems:
        raise NotFiniteError(
            f"{len(problems)} tensor(s) of the result are not finite",
            problems,
            remedy="the delta changes such values of the target, or a sum overflows the result's dtype; use a smaller "
            "weight or a wider --dtype, or leave the tensors out with --skip REGEX",
        )
