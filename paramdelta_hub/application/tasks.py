"""What a plan's tasks do, by kind, given nothing but the plan's folder: what a worker on any machine calls."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paramdelta_hub.application.execute import run_apply_task
from paramdelta_hub.extraction.encode import run_extract_task
from paramdelta_hub.fileio.durable import TEMPORARY, io_errors, sync_file
from paramdelta_hub.numerics.kernels import Kernel, kernel_for
from paramdelta_hub.tasks.plan import Kind, read_task
from paramdelta_hub.tasks.workspace import PIECES, PLAN_NAME, RESULT

__all__ = ["perform", "run_task", "sync_outcome", "written"]

Task = dict[str, Any]
Outcome = dict[str, Any]


def perform(books: str, digest: str, number: int) -> Outcome:
    """Do one task of the plan in the folder ``books`` and return its outcome; by then all it wrote is on disk.

    Raises:
        DestinationError: the plan there has not this digest.
        SourceError: something can't be read.
        StorageError: the disk is full or fails.
    """
    folder = Path(books)
    kind, nbytes, task = read_task(folder / PLAN_NAME, digest, number)
    with io_errors(f"task {number}"):
        outcome = run_task(kind, task, folder, kernel_for(nbytes), lambda _: None)
        sync_outcome(kind, outcome, folder)
    return outcome


def run_task(kind: Kind, task: Task, books: Path, kernel: Kernel, advance: Callable[[int], None]) -> Outcome:
    """Do a task and return its outcome, plain JSON."""
    if kind == "apply":
        return run_apply_task(task, books / RESULT, kernel, advance)
    return _extract(task, books / PIECES, kernel, advance)


def _extract(task: Task, pieces: Path, kernel: Kernel, advance: Callable[[int], None]) -> Outcome:
    """Write a piece under a name of this attempt's own, so that no other attempt, late or beside it, can spoil it."""
    if "piece" not in task:
        return run_extract_task(task, pieces, kernel, advance)
    attempt = TEMPORARY.replace("*", f"{task['piece']}.{uuid.uuid4().hex}")
    outcome = run_extract_task({**task, "piece": attempt}, pieces, kernel, advance)
    if outcome.get("piece"):
        os.replace(pieces / attempt, pieces / task["piece"])
        outcome["piece"] = task["piece"]
    return outcome


def sync_outcome(kind: Kind, outcome: Outcome, books: Path) -> None:
    """Force to disk what a task has written, before its receipt says that it is there."""
    if kind == "apply":
        for name in outcome["files"]:
            sync_file(books / RESULT / name)
    elif outcome.get("piece"):
        sync_file(books / PIECES / outcome["piece"])


def written(kind: Kind, task: Task) -> set[str]:
    """Return the files that a task writes to: those of an apply hold tensors of several tasks."""
    if kind == "apply":
        return {out["file"] for tensor in task["tensors"] for out in tensor["out"]}
    return {task["piece"]} if "piece" in task else set()
