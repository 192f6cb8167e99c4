"""Open and check the inputs of an apply: target, deltas, companions and rows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from paramdelta_hub.application.companions import CompanionSelection, select_companions
from paramdelta_hub.application.compatibility import Compatibility, check_compatibility
from paramdelta_hub.application.kinship import AppliedDelta, check_lineage, evidence_of_earlier
from paramdelta_hub.application.output_files import OutputFile, plan_output_files
from paramdelta_hub.application.requantize import FP8, keeps_fp8
from paramdelta_hub.application.request import ApplyRequest
from paramdelta_hub.application.row_placement import RowPlanner
from paramdelta_hub.application.weights import WeightMap, Weights
from paramdelta_hub.checkpoints.checkpoint import Checkpoint, open_checkpoint
from paramdelta_hub.checkpoints.logical import logical_model
from paramdelta_hub.checkpoints.quantization import quantization_files
from paramdelta_hub.checkpoints.remote import RemoteModel, RemoteValues, open_remote
from paramdelta_hub.checkpoints.stored import Files
from paramdelta_hub.errors import Mismatch, MismatchError, OptionError
from paramdelta_hub.extraction.pairs import tokenizer_folder
from paramdelta_hub.outputs.replacing import Replacement, model_places, registry_places
from paramdelta_hub.package.package import Package, open_package
from paramdelta_hub.registry.locate import locate_delta
from paramdelta_hub.registry.protocol import Part
from paramdelta_hub.tasks.progress import Progress

__all__ = ["Inputs", "open_inputs"]


@dataclass(frozen=True)
class Inputs:
    """A target and deltas that fit it."""

    request: ApplyRequest
    """Its deltas are folders on this machine."""
    remote: RemoteModel | None
    """The target, where it is streamed."""
    model: Checkpoint
    packages: list[Package]
    weights: Weights
    companions: CompanionSelection
    compatibility: Compatibility
    may_replace: Replacement
    """Judges whether a finished output may be replaced: it must stand apart from all of these."""
    warnings: tuple[str, ...] = ()
    """What was forced although it looks like a slip, and which of the target's files were read, in words."""

    @cached_property
    def files(self) -> dict[str, OutputFile]:
        """The result's weight files by name."""
        return plan_output_files(self.model, self.compatibility.results, self.compatibility.colocate_with)

    @property
    def nbytes(self) -> int:
        """Bytes of the result's weight files."""
        return sum(file.size for file in self.files.values())

    def needed_bytes(self, tasks_at_a_time: int) -> int:
        """Return the bytes of the result's files and of those that, of a streamed target, lie there for a while."""
        fetched = sorted(file.header.size for file in self.model.files) if self.remote else []
        return self.nbytes + sum(fetched[-tasks_at_a_time - 1 :])

    @property
    def _weighted(self) -> Iterable[tuple[int, Package, float]]:
        """Every delta: its number, its package, its weight."""
        return zip(range(len(self.packages)), self.packages, self.weights.deltas, strict=True)

    @cached_property
    def _values(self) -> Files | None:
        """What reads the values of a streamed target."""
        return RemoteValues(self.remote) if self.remote else None

    def check_earlier(self) -> tuple[str, ...]:
        """Return in words which deltas the target seems to have already, where that is forced.

        Raises:
            MismatchError: it has one, and the request does not force it.
        """
        reasons, values = [], self._values
        for number, package, weight in self._weighted:
            if weight and (why := evidence_of_earlier(self.compatibility, number, package, weight, values)):
                reasons.append(f"{package.label}: {why}")
        if reasons and not self.request.force:
            raise MismatchError(
                "the target has this delta already",
                [Mismatch("target", "applied before", why) for why in reasons],
                where=str(self.model.source.path),
                remedy="apply it to the model that the target was made from, or use --force to add it again",
            )
        return tuple(f"added again: {why}" for why in reasons)

    def check_lineages(self) -> list[AppliedDelta]:
        """Compare every delta's samples with the target's values; with a few of them, where it is streamed.

        Raises:
            CheckpointError: they can't be read.
            LineageError: the target is not kin to a delta's base, and the request does not force it.
        """
        values = self._values
        return [check_lineage(self.compatibility, *delta, self.request.force, values) for delta in self._weighted]


def open_inputs(
    request: ApplyRequest,
    pieces: Path,
    *,
    registry: str | Path | None = None,
    part: Part = "package",
    progress: Progress | None = None,
) -> Inputs:
    """Open what a request names, and fit it together; weights are not read.

    Raises:
        OptionError: a delta that is named twice, or a rule that hits nothing.
        CheckpointError: the target can't be read.
        PackageError: a delta can't be read, or is damaged.
        MismatchError: target and delta don't fit; every misfit is listed.
        RegistryError: a delta can't be had from its registry.
    """
    code = request.keep_remote_code_of_target
    remote = open_remote(request.target, pieces, code=code) if request.stream else None
    model = remote.checkpoint if remote else open_checkpoint(request.target, code=code)
    folders = [locate_delta(delta, registry, part=part, progress=progress or Progress()) for delta, _ in request.deltas]
    packages = [open_package(folder) for folder in folders]
    warnings = (*_repeated_deltas(packages, request.force), *model.notes_of("the target"))
    deltas = tuple(weight for _, weight in request.deltas)
    added = [number for number, weight in enumerate(deltas) if weight > 0]
    providers = [packages[number] for number in added]
    companions = select_companions(model, providers, request.companions, keep_remote_code_of_target=code)
    tokenizer = tokenizer_folder(request.target_tokenizer, model)
    tokenizer_from = None if companions.tokenizer_of is None else added[companions.tokenizer_of]
    logical, weights = logical_model(model), Weights(deltas, WeightMap(request.weight_map))
    in_fp8 = keeps_fp8(logical, request.dtype)
    dtype = None if request.dtype == FP8 else request.dtype
    if in_fp8:
        companions = replace(companions, from_target={**companions.from_target, **quantization_files(model)})
    rows = RowPlanner(tokenizer, packages, tokenizer_from)
    compatibility = check_compatibility(
        logical, packages, request.rules, rows, weights, dtype, in_fp8, RemoteValues(remote) if remote else None
    )
    places = [
        *model_places("the target", model),
        *(("a delta", folder) for folder in folders),
        *([("a tokenizer", tokenizer)] if tokenizer else []),
        *registry_places(registry, [delta for delta, _ in request.deltas]),
    ]
    return Inputs(
        request=replace(request, deltas=tuple(zip(map(os.fspath, folders), deltas, strict=True))),
        remote=remote,
        model=model,
        packages=packages,
        weights=weights,
        companions=companions,
        compatibility=compatibility,
        may_replace=Replacement("model", places),
        warnings=warnings,
    )


def _repeated_deltas(packages: Sequence[Package], force: bool) -> tuple[str, ...]:
    """Return in words which deltas are named more than once, under whatever labels, where that is forced.

    Raises:
        OptionError: one is, and it is not forced.
    """
    labels: dict[str, list[str]] = {}
    for package in packages:
        labels.setdefault(package.manifest.content_id, []).append(package.label)
    reasons = [
        f"{names[0]} is given {len(names)} times" + (f", also as {', '.join(names[1:])}" if len(set(names)) > 1 else "")
        for names in labels.values()
        if len(names) > 1
    ]
    if reasons and not force:
        raise OptionError(
            "; ".join(reasons), remedy="give it once, with the total weight, or use --force to add it each time"
        )
    return tuple(reasons)
