"""Apply: target ⊕ Δ, for one delta or a weighted sum of several, in one pass over the weights."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paramdelta_hub.application.companions import CompanionReport, Mode, Prefer, write_companions
from paramdelta_hub.application.inputs import open_inputs
from paramdelta_hub.application.output_files import index_text, lay_out
from paramdelta_hub.application.planning import plan_apply, temporary_bytes
from paramdelta_hub.application.provenance import PROVENANCE_NAME, is_post, provenance_of
from paramdelta_hub.application.requantize import Dtype, Requantization, requantization
from paramdelta_hub.application.request import ApplyRequest
from paramdelta_hub.application.streaming import FilePool
from paramdelta_hub.application.weighted_deltas import AppliedDelta, sums_of
from paramdelta_hub.application.weights import Deltas, Factors, WeightedDelta, WeightMap, weighted_deltas
from paramdelta_hub.checkpoints.checkpoint import INDEX
from paramdelta_hub.checkpoints.companions import read_companion
from paramdelta_hub.checkpoints.matching import LeftOut
from paramdelta_hub.checkpoints.rules import Rules, RuleUse, checked_rules
from paramdelta_hub.errors import Mismatch, NotFiniteError, OptionError
from paramdelta_hub.fileio import strict_json
from paramdelta_hub.fileio.durable import io_errors, write_file
from paramdelta_hub.limits import DEFAULT_MEMORY
from paramdelta_hub.numerics.kernels import Kernel
from paramdelta_hub.outputs.replacing import check_new
from paramdelta_hub.package.provenance import parse_provenance
from paramdelta_hub.registry.cards.card import result_card
from paramdelta_hub.tasks.models import Advance, Applied, Outcome
from paramdelta_hub.tasks.plan import planning
from paramdelta_hub.tasks.progress import Progress
from paramdelta_hub.tasks.runner import Executor, ExecutorConfig, Operation, Outcomes, complete
from paramdelta_hub.tasks.workspace import MayReplace, Workspace

__all__ = ["PROVENANCE_NAME", "Application", "ApplyReport", "WeightMap", "WeightedDelta", "apply", "carry_out"]

CARD_NAME = "README.md"
NOTHING_ADDED = "nothing was added: all weights are 0, or the deltas change nothing here"


@dataclass(frozen=True)
class ApplyReport:
    """What an apply made."""

    out: Path
    target: str
    deltas: tuple[AppliedDelta, ...]
    nbytes: int
    is_post: bool
    """Whether the result is post, bit for bit, because the target was base."""
    changed_tensors: int
    kept_tensors: int
    """Tensors copied from the target as they are."""
    readiness: CompanionReport
    """What lies beside the weights, and where it comes from."""
    omissions: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    """What became of ties and of the rows of vocabularies."""
    rules: tuple[RuleUse, ...] = ()
    """What each rule hit, and which tensors it left out although a delta changes them."""
    requantization: Requantization | None = None
    """What 8-bit weights lost against the sums they were made of; None where there are none."""
    resumed_tasks: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable report."""
        return {
            "out": str(self.out),
            "target": self.target,
            "deltas": [delta.to_json() for delta in self.deltas],
            "bytes": self.nbytes,
            "is_post": self.is_post,
            "changed_tensors": self.changed_tensors,
            "kept_tensors": self.kept_tensors,
            "omissions": [omission._asdict() for omission in self.omissions],
            "notes": list(self.notes),
            "rules": [use.to_json() for use in self.rules],
            "companions": self.readiness.to_json(),
            "requantization": self.requantization and self.requantization.to_json(),
            "resumed_tasks": self.resumed_tasks,
        }


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

    Sums are made in float32 (float64 for float32 models), in the order of ``deltas``, and rounded once: for one delta
    of weight 1 the result equals ``((post.float() - base.float()) + target.float()).to(target.dtype)`` bit for bit,
    and post itself where the target is base. A killed run leaves no ``out``; running it again goes on.

    Args:
        target: the new base: a folder, a ``.safetensors`` file, or ``org/name[@revision]``.
        deltas: a package's folder or ``org/name[@version]`` in a registry, or several. Each has a weight of 1 unless
            it is given one: as a pair ``(delta, 0.5)``, in a mapping ``{delta: 0.5}``, as a :class:`WeightedDelta`, or
            in a text ``"delta=0.5"``.
        out: the result's folder.
        weight_map: factors for tensors whose names match a pattern, as a mapping or as pairs; the last match decides;
            0 leaves a tensor as the target has it.
        rules: renames (of the deltas' tensors) and skips.
        dtype: what the weights of an fp8 target become: ``bfloat16`` (by default), or ``float8_e4m3fn`` with fresh
            scales in the target's own layout; what that costs is measured and reported.
        companions: whose tokenizer, templates, processors and generation settings lie beside the weights: those of
            ``post`` (of the first delta that has some), of the ``target``, or ``none`` but ``config.json``.
        prefer: whose value a config gets where post and the target both changed it.
        keep_remote_code_of_target: let the target's configs name code, and copy its own Python files.
        target_tokenizer: the folder of the target's tokenizer, if it does not lie beside the weights: rows of
            embeddings are matched by token.
        stream: fetch the files of a target on the Hub one by one, and drop each when it is done with: the disk then
            holds the result and a few files. Lineage is judged by the first file alone.
        registry: where a bare ``org/name`` lies: a folder or a bucket; by default what PARAMDELTA_REGISTRY names, else
            the Hub.
        force: apply although the target is not kin; recorded in the provenance.
        overwrite: replace an older result at ``out``; never anything else (:mod:`.replacing`).
        executor: what does the tasks: ``threads``, or ``ray``: a cluster that sees the same files.
        threads: tasks at a time; by default as many as there are processors, or as a cluster takes.
        memory: bytes that all buffers together may take.
        progress: told how far the work is.

    Raises:
        OptionError: a weight, a rule or a choice that can't be used.
        CheckpointError: the target can't be read.
        PackageError: a delta can't be read, or is damaged.
        MismatchError: target and delta don't fit; every misfit is listed.
        LineageError: the target is not kin to base.
        NotFiniteError: a value of the target or of the result is NaN or infinite.
        DestinationError: ``out`` exists, or is being written to.
        StorageError: the disk is full or fails.
        RegistryError: a delta can't be had from its registry.
    """
    rules = checked_rules(rules)
    if rules.carries:
        raise OptionError("carry rules are for pd-extract only")
    wanted = ApplyRequest(
        target=os.fspath(target),
        deltas=tuple((os.fspath(summand.delta), summand.weight) for summand in weighted_deltas(deltas)),
        weight_map=WeightMap.of(weight_map).rules,
        renames=rules.renames,
        skips=rules.skips,
        dtype=dtype,
        companions=companions,
        prefer=prefer,
        keep_remote_code_of_target=keep_remote_code_of_target,
        target_tokenizer=None if target_tokenizer is None else os.fspath(target_tokenizer),
        stream=stream,
        force=force,
    )
    config, progress = ExecutorConfig(executor, threads, memory), progress or Progress()
    return carry_out(wanted, out, config, progress, registry=registry, overwrite=overwrite)


def carry_out(
    wanted: ApplyRequest,
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
    if wanted.stream and config.executor != "threads":
        raise OptionError(
            f"--stream needs the executor threads, not {config.executor}",
            remedy="remove --stream or --executor",
        )
    check_new(out, overwrite=overwrite, registry=registry)
    operation = Application(wanted, out, registry=registry, progress=progress)
    return complete(operation, out, config, progress, overwrite=overwrite)


class Application(Operation[ApplyReport]):
    """An apply whose target and deltas are opened and found to fit, and whose plan is made.

    Args:
        wanted: what is wanted.
        out: the result's folder, beside which the files of a streamed target lie for a while.
        registry: where a bare ``org/name`` lies.
        progress: told of deltas that are fetched.

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
        wanted: ApplyRequest,
        out: str | Path,
        *,
        registry: str | Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        inputs = open_inputs(wanted, Workspace(Path(out)).pieces, registry=registry, progress=progress)
        self._inputs, self._rules, self.fetches = inputs, wanted.rules, wanted.stream
        self._applied = inputs.kin()
        self._doubts = inputs.there_already()
        fit, packages = inputs.fit, inputs.packages
        self._sums = sums_of(fit, packages, inputs.weights)
        self._files = lay_out(inputs.model, fit.results, fit.colocate_with)
        self.plan = plan_apply(fit, self._files, packages, self._sums, inputs.request.to_json())
        self._pool = FilePool(None, ())

    @property
    def may_replace(self) -> MayReplace:
        """Only a model that an apply made is replaced by another."""
        return self._inputs.may_replace

    def prepare(self, workspace: Workspace, tasks_at_a_time: int) -> None:
        """Check the space, and make the result's files at their final sizes."""
        needed = self._inputs.needed_bytes(self._files.values(), tasks_at_a_time)
        workspace.check_space(needed + temporary_bytes(self.plan, tasks_at_a_time))
        for file in self._files.values():
            file.prepare(workspace.result)

    def begin(self, todo: Collection[int]) -> None:
        """Learn which files of a streamed target are still wanted."""
        self._pool = FilePool(self._inputs.remote, [self.plan.tasks[number] for number in todo])

    def run(self, number: int, workspace: Workspace, kernel: Kernel, advance: Advance) -> Outcome:
        """Do a task while its files are there."""
        with self._pool.hold(self.plan.tasks[number]):
            return super().run(number, workspace, kernel, advance)

    def refuse(self, outcomes: Outcomes) -> None:
        """Raise if values of the result are not finite."""
        _refuse_not_finite(outcomes.values())

    def finish(self, workspace: Workspace, outcomes: Outcomes, resumed: int) -> ApplyReport:
        """Write what lies beside the weights, and commit."""
        inputs, result = self._inputs, workspace.result
        fit, wanted, model = inputs.fit, inputs.request, inputs.model
        ordered = [outcome for _, outcome in sorted(outcomes.items()) if isinstance(outcome, Applied)]
        digests = {name: digest for outcome in ordered for name, digest in outcome.digests.items()}
        notes = (*inputs.doubts, *self._doubts, *([] if self._sums else [NOTHING_ADDED]), *fit.notes)
        exactly_post = is_post(self._applied, fit, digests)
        lost = requantization(deviation for outcome in ordered for deviation in outcome.deviations)
        with io_errors("writing the companion files"):
            readiness = write_companions(
                inputs.choice, result, prefer=wanted.prefer, overrides=fit.config_overrides, is_post=exactly_post
            )
            if model.index is not None:
                index = index_text(model, list(self._files.values()), fit.results) or read_companion(
                    (model.folder / INDEX).resolve()
                )
                write_file(result / INDEX, index)
            provenance = provenance_of(fit, self._applied, inputs.weights.by_name, self._rules, digests, exactly_post)
            provenance["notes"] = list(notes)
            provenance["companions"] = readiness.to_json()
            provenance["requantization"] = lost and lost.to_json()
            text = strict_json.pretty(provenance)
            parse_provenance(text)  # what we write, we can read
            write_file(result / PROVENANCE_NAME, text)
            card = result_card(provenance, [delta.package.manifest for delta in self._applied], readiness.lines())
            write_file(result / CARD_NAME, card.encode())
        workspace.commit()
        return ApplyReport(
            out=workspace.given,
            target=model.source.name,
            deltas=tuple(self._applied),
            nbytes=sum(file.size for file in self._files.values()),
            is_post=exactly_post,
            changed_tensors=len(self._sums),
            kept_tensors=sum(name not in self._sums for name in fit.names),
            readiness=readiness,
            omissions=fit.omissions,
            notes=notes,
            rules=fit.uses,
            requantization=lost,
            resumed_tasks=resumed,
        )


def _refuse_not_finite(outcomes: Iterable[Outcome]) -> None:
    problems = [
        Mismatch(found.name, "not-finite", f"{found.counts[0]} value(s) of the result would be NaN or infinite")
        for outcome in outcomes
        for found in outcome.not_finite
    ]
    if problems:
        raise NotFiniteError(
            f"{len(problems)} tensor(s) of the result are not finite",
            problems,
            remedy="the target has such values, or the sum overflows its dtype; use a smaller weight, or leave "
            "the tensors out with --skip",
        )
