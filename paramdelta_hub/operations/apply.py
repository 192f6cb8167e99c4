"""Apply: target ⊕ Δ, for one delta or a weighted sum of several, in one pass over the weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from paramdelta_hub.checkpoints.checkpoint import INDEX, open_checkpoint
from paramdelta_hub.checkpoints.companions import read_companion
from paramdelta_hub.checkpoints.logical import logical_model
from paramdelta_hub.checkpoints.pairing import Rules
from paramdelta_hub.checkpoints.quantization import quantization_files
from paramdelta_hub.checkpoints.remote import open_remote
from paramdelta_hub.errors import Mismatch, NotFiniteError, OptionError
from paramdelta_hub.format import jsontext
from paramdelta_hub.format.durable import io_errors, sync_file, write_file
from paramdelta_hub.format.package import Package, open_package
from paramdelta_hub.limits import DEFAULT_MEMORY
from paramdelta_hub.operations.applying import out_digests, run_apply_task
from paramdelta_hub.operations.differences import tokenizer_folder
from paramdelta_hub.operations.execution import execute, workers
from paramdelta_hub.operations.fitting import Fit, preflight
from paramdelta_hub.operations.layout import index_text, lay_out
from paramdelta_hub.operations.placing import Placer
from paramdelta_hub.operations.planning import passing_bytes, plan_apply
from paramdelta_hub.operations.provenance import PROVENANCE_NAME, is_post, provenance_of
from paramdelta_hub.operations.readiness import Mode, Readiness, choose, make_ready
from paramdelta_hub.operations.requantize import Dtype, Requantization, keeps_fp8, requantization
from paramdelta_hub.operations.streaming import FilePool
from paramdelta_hub.operations.summands import AppliedDelta, check_lineage, sums_of
from paramdelta_hub.operations.weights import Summand, WeightMap, Weights
from paramdelta_hub.registry.cards import result_card
from paramdelta_hub.registry.locate import locate_delta
from paramdelta_hub.work.destination import Destination
from paramdelta_hub.work.progress import Progress

__all__ = ["PROVENANCE_NAME", "ApplyReport", "Summand", "WeightMap", "apply"]

CARD_NAME = "README.md"


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
    readiness: Readiness
    """What lies beside the weights, and where it comes from."""
    omissions: tuple[tuple[str, str, str], ...]
    notes: tuple[str, ...]
    """What became of ties and of the rows of vocabularies."""
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
            "omissions": [{"name": name, "side": side, "reason": reason} for name, side, reason in self.omissions],
            "notes": list(self.notes),
            "companions": self.readiness.to_json(),
            "requantization": self.requantization and self.requantization.to_json(),
            "resumed_tasks": self.resumed_tasks,
        }


def apply(
    target: str | Path,
    deltas: str | Path | Summand | Sequence[str | Path | Summand],
    out: str | Path,
    *,
    weight_map: WeightMap | None = None,
    rules: Rules | None = None,
    dtype: Dtype | None = None,
    companions: Mode = "post",
    prefer: Literal["target", "post"] = "target",
    keep_remote_code_of_target: bool = False,
    target_tokenizer: str | Path | None = None,
    stream: bool = False,
    registry: str | Path | None = None,
    force: bool = False,
    overwrite: bool = False,
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
        deltas: a package's folder or ``org/name[@version]`` in a registry, or several, each with a weight if it is a
            :class:`Summand`.
        out: the result's folder.
        weight_map: factors for chosen tensors; 0 leaves a tensor as the target has it.
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
        overwrite: replace a finished ``out``.
        threads: tasks at a time; by default as many as there are processors.
        memory: bytes that all buffers together may take.
        progress: told how far the work is.

    Raises:
        CheckpointError: the target can't be read.
        PackageError: a delta can't be read, or is damaged.
        MismatchError: target and delta don't fit; every misfit is listed.
        LineageError: the target is not kin to base.
        NotFiniteError: a value of the target or of the result is NaN or infinite.
        DestinationError: ``out`` exists, or is being written to.
        StorageError: the disk is full or fails.
        RegistryError: a delta can't be had from its registry.
    """
    rules, progress, threads = rules or Rules(), progress or Progress(), workers(threads, memory)
    weight_map = weight_map or WeightMap()
    listed = [deltas] if isinstance(deltas, (str, Path, Summand)) else deltas
    summands = [delta if isinstance(delta, Summand) else Summand(delta) for delta in listed]
    if not summands:
        raise OptionError("no delta to apply")
    place = Destination(Path(out), overwrite=overwrite)
    remote = open_remote(str(target), place.pieces, code=keep_remote_code_of_target) if stream else None
    model = remote.checkpoint if remote else open_checkpoint(target, code=keep_remote_code_of_target)
    packages = [open_package(locate_delta(summand.delta, registry, progress=progress)) for summand in summands]
    added = [number for number, summand in enumerate(summands) if summand.weight > 0]
    choice = choose(
        model,
        [packages[number] for number in added],
        companions,
        keep_remote_code_of_target=keep_remote_code_of_target,
    )
    tokenizer = tokenizer_folder(target_tokenizer, model)
    weights = Weights(tuple(summand.weight for summand in summands), weight_map)
    leader = None if choice.tokenizer_of is None else added[choice.tokenizer_of]
    logical = logical_model(model)
    in_fp8 = keeps_fp8(logical, dtype)
    if in_fp8:
        choice = replace(choice, own={**choice.own, **quantization_files(model)})
    fit = preflight(logical, packages, rules, Placer(tokenizer, packages, leader), weights, in_fp8)
    kin = functools.partial(_kin, fit, packages, weights, force)
    applied = [] if remote else kin()
    sums = sums_of(fit, packages, weights)
    files = lay_out(model, fit.results, fit.beside)
    plan = plan_apply(fit, files, packages, sums, weights, rules)
    with place as destination:
        done = destination.resume(plan)
        fetched = sorted(file.header.size for file in model.files)[-threads - 1 :] if remote else []
        destination.check_space(sum(file.size for file in files.values()) + sum(fetched) + passing_bytes(plan, threads))
        with io_errors("preparing the output files"):
            for file in files.values():
                file.prepare(destination.result)
        done = {
            number: receipt
            for number, receipt in done.items()
            if out_digests(plan.tasks[number], destination.result) == receipt.outcome["tensors"]
        }

        pool = FilePool(remote, [task for number, task in enumerate(plan.tasks) if number not in done])
        if remote:
            applied = kin(pool.first())  # of what is there first: samples of all files would take all files

        def run(task: dict[str, Any], advance: Callable[[int], None]) -> dict[str, Any]:
            with pool.hold(task):
                return run_apply_task(task, destination.result, advance)

        def after(outcome: dict[str, Any]) -> None:
            # Forced to disk while the workers compute, so that little is left to wait for at the end.
            for name in outcome["files"]:
                sync_file(destination.result / name)

        outcomes = execute(
            plan,
            run,
            done,
            destination,
            threads,
            progress,
            "applying",
            after,
            in_order=stream,
        )
        _refuse_not_finite(outcomes)
        digests = {name: digest for outcome in outcomes for name, digest in outcome["tensors"].items()}
        exactly_post, lost = is_post(applied, fit, digests), requantization(outcomes)
        with io_errors("writing the companion files"):
            readiness = make_ready(choice, destination.result, prefer=prefer, settled=fit.settled, is_post=exactly_post)
            if model.index is not None:
                index = index_text(model, list(files.values()), fit.results) or read_companion(
                    (model.folder / INDEX).resolve()
                )
                write_file(destination.result / INDEX, index)
            provenance = provenance_of(fit, applied, weight_map, rules, digests, exactly_post)
            provenance["companions"] = readiness.to_json()
            provenance["requantization"] = lost and lost.to_json()
            write_file(destination.result / PROVENANCE_NAME, jsontext.pretty(provenance))
            card = result_card(provenance, [delta.package.manifest for delta in applied], readiness.lines())
            write_file(destination.result / CARD_NAME, card.encode())
        destination.commit()
    return ApplyReport(
        out=Path(out),
        target=model.source.name,
        deltas=tuple(applied),
        nbytes=sum(file.size for file in files.values()),
        is_post=exactly_post,
        changed_tensors=len(sums),
        kept_tensors=len(logical.tensors) + len(fit.ties) - len(sums),
        readiness=readiness,
        omissions=fit.omissions,
        notes=fit.notes,
        requantization=lost,
        resumed_tasks=len(done),
    )


def _kin(
    fit: Fit, packages: Sequence[Package], weights: Weights, force: bool, file: Path | None = None
) -> list[AppliedDelta]:
    return [
        check_lineage(fit, number, package, weight, force, file)
        for number, (package, weight) in enumerate(zip(packages, weights.deltas, strict=True))
    ]


def _refuse_not_finite(outcomes: Iterable[dict[str, Any]]) -> None:
    problems = [
        Mismatch(name, "not-finite", f"{count} value(s) of the result would be NaN or infinite")
        for outcome in outcomes
        for name, count in outcome.get("not_finite", [])
    ]
    if problems:
        raise NotFiniteError(
            f"{len(problems)} tensor(s) of the result are not finite",
            problems,
            remedy="the target has such values, or the sum overflows its dtype: use a smaller weight, or --skip them",
        )
