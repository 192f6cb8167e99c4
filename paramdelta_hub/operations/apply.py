"""Apply: target ⊕ Δ, for one delta or a weighted sum of several, in one pass over the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from paramdelta_hub import __about__
from paramdelta_hub.checkpoints.checkpoint import INDEX, open_checkpoint
from paramdelta_hub.checkpoints.companions import read_companion
from paramdelta_hub.checkpoints.logical import logical_model
from paramdelta_hub.checkpoints.pairing import SKIPPED, Rules
from paramdelta_hub.checkpoints.quantization import quantization_files
from paramdelta_hub.errors import Mismatch, NotFiniteError, OptionError
from paramdelta_hub.format import jsontext
from paramdelta_hub.format.durable import io_errors, sync_file, write_file
from paramdelta_hub.format.package import open_package
from paramdelta_hub.limits import DEFAULT_MEMORY
from paramdelta_hub.operations.applying import out_digests, run_apply_task
from paramdelta_hub.operations.differences import tokenizer_folder
from paramdelta_hub.operations.execution import execute, workers
from paramdelta_hub.operations.fitting import Fit, preflight
from paramdelta_hub.operations.layout import OutputFile, index_text, lay_out
from paramdelta_hub.operations.placing import Placer
from paramdelta_hub.operations.readiness import Mode, Readiness, choose, make_ready
from paramdelta_hub.operations.requantize import Dtype, Requantization, keeps_fp8, requantization
from paramdelta_hub.operations.summands import AppliedDelta, check_lineage, sums_of
from paramdelta_hub.operations.weights import Summand, WeightMap, Weights
from paramdelta_hub.registry.cards import result_card
from paramdelta_hub.registry.locate import locate_delta
from paramdelta_hub.work.destination import Destination
from paramdelta_hub.work.plan import Plan, cut
from paramdelta_hub.work.progress import Progress

__all__ = ["PROVENANCE_NAME", "ApplyReport", "Summand", "WeightMap", "apply"]

CARD_NAME, PROVENANCE_NAME = "README.md", "paramdelta_provenance.json"


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
    model = open_checkpoint(target)
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
    applied = [
        check_lineage(fit, number, package, summand.weight, force)
        for number, (package, summand) in enumerate(zip(packages, summands, strict=True))
    ]
    sums = sums_of(fit, applied, weights)
    files = lay_out(model, fit.results, fit.beside)
    plan = _plan(fit, files, applied, sums, (weight_map, rules))
    with Destination(Path(out), overwrite=overwrite) as destination:
        done = destination.resume(plan)
        destination.check_space(sum(file.size for file in files.values()))
        with io_errors("preparing the output files"):
            for file in files.values():
                file.prepare(destination.result)
        done = {
            number: receipt
            for number, receipt in done.items()
            if out_digests(plan.tasks[number], destination.result) == receipt.outcome["tensors"]
        }

        def after(outcome: dict[str, Any]) -> None:
            # Forced to disk while the workers compute, so that little is left to wait for at the end.
            for name in outcome["files"]:
                sync_file(destination.result / name)

        outcomes = execute(
            plan,
            lambda task, advance: run_apply_task(task, destination.result, advance),
            done,
            destination,
            threads,
            progress,
            "applying",
            after,
        )
        _refuse_not_finite(outcomes)
        digests = {name: digest for outcome in outcomes for name, digest in outcome["tensors"].items()}
        is_post, lost = _is_post(applied, fit, digests), requantization(outcomes)
        with io_errors("writing the companion files"):
            readiness = make_ready(choice, destination.result, prefer=prefer, settled=fit.settled, is_post=is_post)
            if model.index is not None:
                index = index_text(model, list(files.values()), fit.results) or read_companion(
                    (model.folder / INDEX).resolve()
                )
                write_file(destination.result / INDEX, index)
            provenance = _provenance(fit, applied, weight_map, rules, digests, is_post)
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
        is_post=is_post,
        changed_tensors=len(sums),
        kept_tensors=len(logical.tensors) + len(fit.ties) - len(sums),
        readiness=readiness,
        omissions=fit.omissions,
        notes=fit.notes,
        requantization=lost,
        resumed_tasks=len(done),
    )


def _plan(
    fit: Fit,
    files: Mapping[str, OutputFile],
    applied: Sequence[AppliedDelta],
    sums: dict[str, list[dict[str, Any]]],
    options: tuple[WeightMap, Rules],
) -> Plan:
    weight_map, rules = options
    target, results = fit.target.checkpoint, fit.results
    places = {
        name: {"name": name, "file": file.name, "start": start, "nbytes": results[name].nbytes}
        for file in files.values()
        for name, start in file.starts.items()
    }
    scales = {fit.tensor(name).view["scale"]["name"] for name in {*sums, *fit.placed} if fit.in_fp8(name)}
    tasks = []
    for file in files.values():
        names = [name for name in file.starts if name not in scales]  # those are written with their weights
        for group in cut(names, lambda name: results[name].nbytes, target.nbytes):
            tensors = [_task_tensor(name, fit, places, sums.get(name, [])) for name in group]
            tasks.append({"bytes": sum(tensor["nbytes"] for tensor in tensors), "tensors": tensors})
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


def _task_tensor(
    name: str, fit: Fit, places: Mapping[str, dict[str, Any]], deltas: list[dict[str, Any]]
) -> dict[str, Any]:
    tensor, placed = fit.source(name, summed=bool(deltas)), fit.placed.get(name)
    arranged = tensor.arrange(placed.start if placed else None)
    task: dict[str, Any] = {
        "name": name,
        "dtype": tensor.dtype,
        "elements": arranged.elements,
        "nbytes": arranged.nbytes,
        "view": arranged.view,
        "out": [places[name]],
        "deltas": deltas,
    }
    if placed and deltas:
        task["rows"] = math.prod(tensor.shape[1:])
    if fit.in_fp8(name) and (deltas or placed):
        scale = tensor.view["scale"]
        task["out"] = [places[name], places[scale["name"]]]
        task["quantized"] = {"grid": tensor.view["grid"], "scale": scale["dtype"]}
    return task


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


def _is_post(applied: Sequence[AppliedDelta], fit: Fit, digests: dict[str, str]) -> bool:
    """Whether every tensor of the delta came out as post's own, by its digest, and post has no others."""
    if len(applied) != 1:
        return False
    records, pairs = applied[0].package.records, fit.matches[0].pairs
    if any(omission.reason == SKIPPED for omission in applied[0].package.manifest.omissions):
        return False
    return len(pairs) == len(records) and all(
        digests[ours] == records[theirs].post_sha256 for ours, theirs in pairs.items()
    )


def _provenance(
    fit: Fit,
    applied: Sequence[AppliedDelta],
    weight_map: WeightMap,
    rules: Rules,
    digests: dict[str, str],
    is_post: bool,
) -> dict[str, Any]:
    """Return what the result is made of. No time and no path: equal inputs give an equal file."""
    source = fit.target.checkpoint.source
    return {
        "format": "paramdelta-provenance",
        "format_version": 1,
        "created_by": __about__.CREATED_BY,
        "target": {"name": source.name, "commit": source.commit},
        "deltas": [delta.to_json() for delta in applied],
        "weight_map": [{"pattern": pattern, "factor": factor} for pattern, factor in weight_map.rules],
        "renames": [{"pattern": pattern, "replacement": new} for pattern, new in rules.renames],
        "skips": list(rules.skips),
        "omissions": [{"name": name, "side": side, "reason": reason} for name, side, reason in fit.omissions],
        "notes": list(fit.notes),
        "is_post": is_post,
        "tensors": {name: digests[name] for name in fit.results},
    }
