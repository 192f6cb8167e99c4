"""Apply: target ⊕ Δ, for one delta or a weighted sum of several, in one pass over the weights."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paramdelta_hub import __about__
from paramdelta_hub.checkpoints.checkpoint import INDEX, Checkpoint, WeightFile, open_checkpoint
from paramdelta_hub.checkpoints.companions import companions, read_companion
from paramdelta_hub.checkpoints.pairing import Match, Rules
from paramdelta_hub.errors import CheckpointError, Mismatch, NotFiniteError, OptionError
from paramdelta_hub.format import jsontext
from paramdelta_hub.format.durable import (
    allocate,
    io_errors,
    open_regular,
    read_exactly,
    sync_file,
    write_exactly,
    write_file,
)
from paramdelta_hub.format.headers import TensorSpan
from paramdelta_hub.format.package import open_package
from paramdelta_hub.limits import DEFAULT_MEMORY
from paramdelta_hub.operations.adding import run_apply_task, tensor_digest
from paramdelta_hub.operations.descriptors import Descriptors
from paramdelta_hub.operations.execution import execute, workers
from paramdelta_hub.operations.summands import AppliedDelta, Summand, WeightMap, check_lineage, preflight, sums_of
from paramdelta_hub.work.destination import Destination
from paramdelta_hub.work.plan import Plan, Receipt, cut
from paramdelta_hub.work.progress import Progress

__all__ = ["PROVENANCE_NAME", "ApplyReport", "Summand", "WeightMap", "apply"]

PROVENANCE_NAME = "paramdelta_provenance.json"


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
    omissions: tuple[tuple[str, str, str], ...] = field(default=())
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
            "resumed_tasks": self.resumed_tasks,
        }


def apply(
    target: str | Path,
    deltas: str | Path | Summand | Sequence[str | Path | Summand],
    out: str | Path,
    *,
    weight_map: WeightMap | None = None,
    rules: Rules | None = None,
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
        deltas: a package's folder, or several, each with a weight if it is a :class:`Summand`.
        out: the result's folder.
        weight_map: factors for chosen tensors; 0 leaves a tensor as the target has it.
        rules: renames (of the deltas' tensors) and skips.
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
    """
    rules, progress, threads = rules or Rules(), progress or Progress(), workers(threads, memory)
    weight_map = weight_map or WeightMap()
    listed = [deltas] if isinstance(deltas, (str, Path, Summand)) else deltas
    summands = [delta if isinstance(delta, Summand) else Summand(delta) for delta in listed]
    if not summands:
        raise OptionError("no delta to apply")
    model = open_checkpoint(target)
    packages = [open_package(Path(summand.delta)) for summand in summands]
    matches = preflight(model, packages, rules)
    applied = [
        check_lineage(model, package, summand.weight, found, force)
        for package, summand, found in zip(packages, summands, matches, strict=True)
    ]
    sums = sums_of(applied, matches, weight_map)
    plan = _plan(model, applied, sums, (weight_map, rules))
    with Destination(Path(out), overwrite=overwrite) as destination:
        done = destination.resume(plan)
        destination.check_space(sum(file.header.size for file in model.files))
        with io_errors("preparing the output files"):
            for file in model.files:
                _prepare(file, destination.result / file.name)
        done = {
            number: receipt
            for number, receipt in done.items()
            if _still_there(receipt, plan.tasks[number], destination.result)
        }
        outcomes = execute(
            plan,
            lambda task, advance: run_apply_task(task, destination.result, advance),
            done,
            destination,
            threads,
            progress,
            "applying",
            # Forced to disk while the workers compute, so that little is left to wait for at the end.
            lambda outcome: sync_file(destination.result / outcome["file"]),
        )
        _refuse_not_finite(outcomes)
        digests = {name: digest for outcome in outcomes for name, digest in outcome["tensors"].items()}
        omissions = tuple(dict.fromkeys(omission for found in matches for omission in found.omissions))
        is_post = _is_post(applied, matches, digests)
        with io_errors("writing the companion files"):
            for name, path in companions(model).items():
                (destination.result / name).parent.mkdir(exist_ok=True)
                write_file(destination.result / name, read_companion(path))
            if model.index is not None:
                write_file(destination.result / INDEX, read_companion((model.folder / INDEX).resolve()))
            provenance = _provenance(model, applied, weight_map, rules, omissions, digests, is_post)
            write_file(destination.result / PROVENANCE_NAME, jsontext.pretty(provenance))
        destination.commit()
    return ApplyReport(
        out=Path(out),
        target=model.source.name,
        deltas=tuple(applied),
        nbytes=sum(file.header.size for file in model.files),
        is_post=is_post,
        changed_tensors=len(sums),
        kept_tensors=len(model.tensors) - len(sums),
        omissions=omissions,
        resumed_tasks=len(done),
    )


def _plan(
    target: Checkpoint,
    applied: Sequence[AppliedDelta],
    sums: dict[str, list[dict[str, Any]]],
    options: tuple[WeightMap, Rules],
) -> Plan:
    weight_map, rules = options
    tasks: list[dict[str, Any]] = []

    def size(span: TensorSpan) -> int:
        return span.nbytes

    for file in target.files:
        for group in cut(file.header.tensors, size, target.nbytes):
            tensors = [
                {
                    "name": span.name,
                    "dtype": span.dtype,
                    "elements": span.elements,
                    "start": span.start,
                    "nbytes": span.nbytes,
                    "deltas": sums.get(span.name, []),
                }
                for span in group
            ]
            tasks.append(
                {
                    "bytes": sum(span.nbytes for span in group),
                    "source": str(file.path),
                    "file": file.name,
                    "tensors": tensors,
                }
            )
    return Plan(
        kind="apply",
        inputs=(*(file.identity() for file in target.files), *(delta.package.digest for delta in applied)),
        options={
            "weights": [delta.weight for delta in applied],
            "weight_map": weight_map.rules,
            "renames": rules.renames,
            "skips": rules.skips,
        },
        tasks=tuple(tasks),
    )


def _prepare(file: WeightFile, path: Path) -> None:
    """Make an output file at its final size, with the target's own header: order, metadata and padding are kept.

    Of an interrupted run's file only what receipts prove is believed, so the header is written again.
    """
    allocate(path, file.header.size)
    header = np.empty(file.header.data_start, np.uint8)
    source = open_regular(file.path, CheckpointError)
    output = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        read_exactly(source, header, 0, CheckpointError, str(file.path))
        write_exactly(output, header, 0)
    finally:
        os.close(source)
        os.close(output)


def _still_there(receipt: Receipt, task: dict[str, Any], result: Path) -> bool:
    """Whether the tensors that a receipt of an interrupted run speaks of are still there, to the byte."""
    path, promised = str(result / task["file"]), receipt.outcome["tensors"]
    with Descriptors(CheckpointError) as files:
        return all(tensor_digest(path, tensor, files) == promised.get(tensor["name"]) for tensor in task["tensors"])


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


def _is_post(applied: Sequence[AppliedDelta], matches: Sequence[Match], digests: dict[str, str]) -> bool:
    """Whether every tensor of the delta came out as post's own, by its digest."""
    if len(applied) != 1:
        return False
    records, pairs = applied[0].package.records, matches[0].pairs
    return len(pairs) == len(records) and all(
        digests[ours] == records[theirs].post_sha256 for ours, theirs in pairs.items()
    )


def _provenance(
    target: Checkpoint,
    applied: Sequence[AppliedDelta],
    weight_map: WeightMap,
    rules: Rules,
    omissions: Sequence[tuple[str, str, str]],
    digests: dict[str, str],
    is_post: bool,
) -> dict[str, Any]:
    """Return what the result is made of. No time and no path: equal inputs give an equal file."""
    return {
        "format": "paramdelta-provenance",
        "format_version": 1,
        "created_by": __about__.CREATED_BY,
        "target": {"name": target.source.name, "commit": target.source.commit},
        "deltas": [delta.to_json() for delta in applied],
        "weight_map": [{"pattern": pattern, "factor": factor} for pattern, factor in weight_map.rules],
        "renames": [{"pattern": pattern, "replacement": new} for pattern, new in rules.renames],
        "skips": list(rules.skips),
        "omissions": [{"name": name, "side": side, "reason": reason} for name, side, reason in omissions],
        "is_post": is_post,
        "tensors": {name: digests[name] for name in target.tensors},
    }
