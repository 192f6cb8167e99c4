"""One plan, many machines: each rank does its share of the tasks, and one commit puts the result in its place.

All ranks are given the same request; each makes the plan for itself, from headers, and it is the same plan. What a
rank has done is told by receipts, so that ranks can run in any order, at any time, and again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

from paramdelta_hub.application.apply import Application, ApplyReport
from paramdelta_hub.application.request import ApplyRequest
from paramdelta_hub.errors import DestinationError, OptionError
from paramdelta_hub.extraction.extract import Extraction, ExtractReport
from paramdelta_hub.extraction.request import ExtractRequest
from paramdelta_hub.fileio.report import Report
from paramdelta_hub.outputs.replacing import check_new
from paramdelta_hub.tasks.partition import group_by_output_file, partition
from paramdelta_hub.tasks.plan import Plan, read_request
from paramdelta_hub.tasks.progress import Progress
from paramdelta_hub.tasks.requests import request_of
from paramdelta_hub.tasks.runner import ExecutorConfig, Operation, Outcomes, execute, intact, reopen, resume
from paramdelta_hub.tasks.workspace import Workspace, anything

__all__ = ["RankReport", "Request", "commit", "run_rank"]

Request: TypeAlias = "ExtractRequest | ApplyRequest"
_LISTED = 20
"""How many ranks and tasks a message spells out."""


class RankReport(Report):
    """What a rank has done."""

    path: Path
    """The result's folder, which the commit will make."""
    rank: int
    world: int
    tasks: int
    """Tasks of its share, all of which are done now."""
    resumed_tasks: int
    """Those of them that an earlier run of this rank had done."""
    nbytes: int
    """Bytes of weights that they read."""


def run_rank(
    request: Request,
    out: str | Path,
    rank: int,
    world: int,
    *,
    registry: str | Path | None = None,
    overwrite: bool = False,
    config: ExecutorConfig | None = None,
    progress: Progress | None = None,
) -> RankReport:
    """Do the share of rank ``rank`` (from 0) of ``world``; when every rank has done its own, :func:`commit` ends it.

    Ranks run at the same time, or one after another, in any order; running one again does what is left of its share.
    They need a file system that all of them see under the same paths. A rank that dies leaves nothing that counts
    as done and is not.

    Args:
        request: what is wanted, the same for all ranks.
        out: the result's folder, the same for all ranks.
        rank: which share, from 0.
        world: how many shares there are.
        registry: where a bare ``org/name`` lies.
        overwrite: go on although there is a finished ``out``, which the commit will replace.
        config: what does the tasks.
        progress: told how far the work is.

    Raises:
        OptionError: there is no such rank, or the files of the target are to be streamed.
        DestinationError: ``out`` exists, or is being made of another plan.
        ParamdeltaError: whatever an extract or apply of the request can raise.
    """
    if not 0 <= rank < world:
        raise OptionError(f"there is no rank {rank} of {world}", remedy="ranks are counted from 0")
    if isinstance(request, ApplyRequest) and request.stream:
        raise OptionError("ranks can't share a target that is streamed", remedy="download it, or remove --stream")
    config, progress = config or ExecutorConfig(), progress or Progress()
    check_new(out, overwrite=overwrite, registry=registry)
    operation = _opened(request, out, registry, progress)
    may_replace = operation.may_replace if overwrite else None
    with Workspace(Path(out), may_replace=may_replace, shared=True) as workspace:
        claimed = resume(operation, workspace, config)
        workspace.enlist(rank, world)
        mine = _shares(operation.plan, world)[rank]
        done = intact(
            operation, workspace, {n: outcome for n, outcome in claimed.items() if n in mine}, config, progress
        )
        outcomes = execute(operation, workspace, done, mine, config, progress)
        operation.refuse(outcomes)
    nbytes = sum(operation.plan.tasks[number].nbytes for number in mine)
    return RankReport(path=Path(out), rank=rank, world=world, tasks=len(mine), resumed_tasks=len(done), nbytes=nbytes)


def commit(
    out: str | Path,
    *,
    overwrite: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> ExtractReport | ApplyReport:
    """Check everything that ranks have made in ``OUT.partial``, and make it visible as ``out``.

    Every receipt is checked against the bytes that it speaks of: the result is read once.

    Args:
        out: the result's folder, as the ranks were given it.
        overwrite: replace a finished ``out``.
        threads: files to check at a time; by default as many as there are processors.
        progress: told how far the check is.

    Raises:
        DestinationError: nothing has been begun there, a rank is still at work, tasks are missing (and it says which
            rank to run again), or the inputs are no longer those of the plan.
        ParamdeltaError: whatever the end of an extract or apply can raise.
    """
    config, progress = ExecutorConfig(threads=threads), progress or Progress()
    if not Workspace(Path(out)).plan_path.exists():
        raise DestinationError(
            "there is nothing to commit", where=str(out), remedy="run the ranks first, with the same -o"
        )
    with Workspace(Path(out), may_replace=anything if overwrite else None) as workspace:
        kind, fields = read_request(workspace.request_path)
        wanted: type[Request] = ExtractRequest if kind == "extract" else ApplyRequest
        operation = _opened(request_of(wanted, fields, str(workspace.request_path)), out, None, progress)
        if not workspace.holds(operation.plan):
            raise DestinationError(
                "the inputs have changed since the plan was made, or another version of paramdelta made it",
                where=str(workspace.plan_path),
                remedy="delete the folder, and run all ranks again",
            )
        if overwrite:
            workspace.may_replace = operation.may_replace
            workspace.check()
        outcomes = reopen(operation, workspace, config, progress)
        _refuse_missing(operation, workspace, outcomes)
        report: ExtractReport | ApplyReport = operation.finish(workspace, outcomes, len(outcomes))
        return report


def _opened(request: Request, out: str | Path, registry: str | Path | None, progress: Progress) -> Operation[Any]:
    if isinstance(request, ExtractRequest):
        return Extraction(request)
    return Application(request, out, registry=registry, progress=progress)


def _shares(plan: Plan, world: int) -> list[list[int]]:
    groups = group_by_output_file([task.writes for task in plan.tasks])
    return partition(groups, [task.nbytes for task in plan.tasks], world)


def _refuse_missing(operation: Operation[Any], workspace: Workspace, outcomes: Outcomes) -> None:
    missing = [number for number in range(len(operation.plan.tasks)) if number not in outcomes]
    if not missing:
        return
    ranks = workspace.ranks()
    lines = []
    for world in sorted({world for _, world in ranks}):
        for rank, mine in enumerate(_shares(operation.plan, world)):
            if its := [number for number in missing if number in mine]:
                begun = "" if (rank, world) in ranks else ", which has not started"
                lines.append(f"--rank {rank} --world {world}{begun}: tasks {_some(its)}")
    raise DestinationError(
        f"{len(missing)} of {len(operation.plan.tasks)} tasks are not done, or their files have changed since"
        + "".join(f"\n  - {line}" for line in lines[:_LISTED])
        + (f"\n  - … and {len(lines) - _LISTED} more ranks" if len(lines) > _LISTED else ""),
        where=str(workspace.out),
        remedy="run these ranks again, then commit" if lines else "run the same command again to resume",
    )


def _some(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:_LISTED]))
    return f"{shown}, … ({len(numbers)} in all)" if len(numbers) > _LISTED else shown
