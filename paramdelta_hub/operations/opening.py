"""What an apply opens and fits together before anything is planned: target, deltas, companions, rows."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from paramdelta_hub.checkpoints.checkpoint import Checkpoint, open_checkpoint
from paramdelta_hub.checkpoints.logical import LogicalModel, logical_model
from paramdelta_hub.checkpoints.quantization import quantization_files
from paramdelta_hub.checkpoints.remote import RemoteModel, RemoteValues, open_remote
from paramdelta_hub.errors import OptionError
from paramdelta_hub.format.package import Package, open_package
from paramdelta_hub.operations.differences import tokenizer_folder
from paramdelta_hub.operations.fitting import Fit, preflight
from paramdelta_hub.operations.placing import Placer
from paramdelta_hub.operations.readiness import Choice, Mode, choose
from paramdelta_hub.operations.requantize import Dtype, keeps_fp8
from paramdelta_hub.operations.requests import ApplyRequest
from paramdelta_hub.operations.summands import AppliedDelta, check_lineage
from paramdelta_hub.operations.weights import WeightMap, Weights
from paramdelta_hub.registry.locate import locate_delta
from paramdelta_hub.registry.protocol import Part
from paramdelta_hub.work.progress import Progress

__all__ = ["Inputs", "open_inputs"]


@dataclass(frozen=True)
class Inputs:
    """A target and deltas that fit one another."""

    request: ApplyRequest
    """Its deltas are folders on this machine."""
    remote: RemoteModel | None
    """The target, where it is streamed."""
    model: Checkpoint
    logical: LogicalModel
    packages: list[Package]
    weights: Weights
    choice: Choice
    fit: Fit

    def kin(self) -> list[AppliedDelta]:
        """Compare every delta's samples with the target's values; with a few of them, where it is streamed.

        Raises:
            CheckpointError: they can't be read.
            LineageError: the target is not kin to a delta's base, and the request does not force it.
        """
        remote = RemoteValues(self.remote) if self.remote else None
        return [
            check_lineage(self.fit, number, package, weight, self.request.force, remote)
            for number, (package, weight) in enumerate(zip(self.packages, self.weights.deltas, strict=True))
        ]


def open_inputs(
    request: ApplyRequest,
    pieces: Path,
    *,
    registry: str | Path | None = None,
    part: Part = "package",
    progress: Progress | None = None,
) -> Inputs:
    """Open what a request names, and fit it together; weights are not read.

    Args:
        request: what is wanted.
        pieces: where the files of a streamed target lie for a while.
        registry: where a bare ``org/name`` lies.
        part: what to fetch of a delta that lies in a registry.
        progress: told of deltas that are fetched.

    Raises:
        CheckpointError: the target can't be read.
        PackageError: a delta can't be read, or is damaged.
        MismatchError: target and delta don't fit; every misfit is listed.
        RegistryError: a delta can't be had from its registry.
    """
    if not request.deltas:
        raise OptionError("no delta to apply")
    code = request.keep_remote_code_of_target
    remote = open_remote(request.target, pieces, code=code) if request.stream else None
    model = remote.checkpoint if remote else open_checkpoint(request.target, code=code)
    located = [locate_delta(delta, registry, part=part, progress=progress or Progress()) for delta, _ in request.deltas]
    packages = [open_package(folder) for folder in located]
    deltas = tuple(weight for _, weight in request.deltas)
    added = [number for number, weight in enumerate(deltas) if weight > 0]
    choice = choose(
        model,
        [packages[number] for number in added],
        cast(Mode, request.companions),
        keep_remote_code_of_target=code,
    )
    tokenizer = tokenizer_folder(request.target_tokenizer, model)
    leader = None if choice.tokenizer_of is None else added[choice.tokenizer_of]
    logical, weights = logical_model(model), Weights(deltas, WeightMap(request.weight_map))
    in_fp8 = keeps_fp8(logical, cast("Dtype | None", request.dtype))
    if in_fp8:
        choice = replace(choice, own={**choice.own, **quantization_files(model)})
    fit = preflight(logical, packages, request.rules, Placer(tokenizer, packages, leader), weights, in_fp8)
    here = replace(request, deltas=tuple(zip(map(os.fspath, located), deltas, strict=True)))
    return Inputs(here, remote, model, logical, packages, weights, choice, fit)
