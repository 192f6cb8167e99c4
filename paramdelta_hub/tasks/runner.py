"""Running a plan's tasks: on threads or on a cluster; what is done is not done again.

An :class:`Operation` is an extract or an apply whose plan is made. :func:`complete` carries it to its end;
:mod:`paramdelta_hub.ranks` does a part of its tasks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeAlias, TypeVar, get_args

from paramdelta_hub.errors import OptionError, ParamdeltaError
from paramdelta_hub.fileio.durable import io_errors, sync_file
from paramdelta_hub.limits import DEFAULT_MEMORY, WORKER_BYTES
from paramdelta_hub.numerics.compiled import when_compiling
from paramdelta_hub.tasks.executors.ray import Cluster
from paramdelta_hub.tasks.executors.threads import Stop, default_threads, run_tasks
from paramdelta_hub.tasks.models import Advance, Outcome
from paramdelta_hub.tasks.partition import group_by_output_file
from paramdelta_hub.tasks.plan import Plan, Receipt, read_task
from paramdelta_hub.tasks.progress import Progress
from paramdelta_hub.tasks.workspace import PLAN_NAME, MayReplace, Workspace

__all__ = [
    "Executor",
    "ExecutorConfig",
    "Operation",
    "Outcomes",
    "complete",
    "execute",
    "intact",
    "perform",
    "reopen",
    "resume",
    "workers",
]

Executor: TypeAlias = Literal["threads", "ray"]
Outcomes: TypeAlias = "dict[int, Outcome]"
"""What came of tasks, by their numbers."""
RunGroup: TypeAlias = "Callable[[list[int], Stop], list[Outcome]]"
R = TypeVar("R")
_CLUSTER_TASKS = 256
"""Groups of tasks that a cluster is given at a time, unless ``--threads`` says otherwise: it grows by its queue."""

COMPILING = "Compiling loops, once after installation; `paramdelta warmup` does it beforehand."


def workers(threads: int | None, memory: int) -> int:
    """Return how many threads the memory allows, at least one and at most ``threads``.

    Raises:
        OptionError: less than one thread, or less memory than one needs.
    """
    for what, number in (("threads", threads), ("memory", memory)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
            raise OptionError(f"{what} is a whole number, not {number!r}")
    if threads is not None and threads < 1:
        raise OptionError(f"{threads} threads are too few", remedy="give --threads 1 or more")
    if memory < WORKER_BYTES:
        raise OptionError(
            f"{memory} bytes of memory are too few",
            remedy=f"give at least {WORKER_BYTES >> 20} MiB, which one thread's buffers can take",
        )
    return max(1, min(threads or default_threads(), memory // WORKER_BYTES))


@dataclass(frozen=True)
class ExecutorConfig:
    """What runs the tasks, and how many at a time.

    Args:
        executor: ``threads`` of this process, or ``ray``: the machines of a cluster.
        threads: tasks at a time; by default as many as there are processors, or as a cluster takes.
        memory: bytes that all buffers together may take on this machine.

    Raises:
        OptionError: no such executor, no threads, or too little memory.
    """

    executor: Executor = "threads"
    threads: int | None = None
    memory: int = DEFAULT_MEMORY

    def __post_init__(self) -> None:
        if self.executor not in get_args(Executor):
            raise OptionError(f"tasks can run on {' or '.join(get_args(Executor))}, not {self.executor!r}")
        workers(self.threads, self.memory)

    @property
    def size(self) -> int:
        """Tasks at a time."""
        if self.executor == "ray":
            return self.threads or _CLUSTER_TASKS
        return workers(self.threads, self.memory)


class Operation(ABC, Generic[R]):
    """An extract or an apply: its inputs are opened and checked, its plan is made, nothing is written yet."""

    plan: Plan
    stage: str
    """The name of the stage for the progress."""
    fetches: bool = False
    """Whether tasks share what they fetch: they must run on threads of one process, in the order of the plan."""

    @property
    @abstractmethod
    def may_replace(self) -> MayReplace:
        """Judges whether a finished output may be replaced by what this makes."""

    @abstractmethod
    def prepare(self, workspace: Workspace, tasks_at_a_time: int) -> None:
        """Check the space and make the files that tasks write to; called again, it keeps what they hold."""

    def restore(self, workspace: Workspace, outcomes: Outcomes) -> None:
        """Undo what an interrupted :meth:`finish` of these outcomes has begun."""

    def begin(self, todo: Collection[int]) -> None:
        """Get ready to :meth:`run` these tasks."""

    def run(self, number: int, workspace: Workspace, advance: Advance) -> Outcome:
        """Do a task on a thread of this process."""
        return self.plan.tasks[number].run(workspace.work_dir, advance)

    @abstractmethod
    def refuse(self, outcomes: Outcomes) -> None:
        """Raise what tasks have found that makes the result useless."""

    @abstractmethod
    def finish(self, workspace: Workspace, outcomes: Outcomes, resumed: int) -> R:
        """Write what is left to write, commit, and return the report."""


def complete(
    operation: Operation[R], out: str | Path, config: ExecutorConfig, progress: Progress, *, overwrite: bool
) -> R:
    """Carry an operation to its end: do all tasks that are not done, commit, and return the report."""
    with Workspace(Path(out), may_replace=operation.may_replace if overwrite else None) as workspace:
        outcomes = reopen(operation, workspace, config, progress)
        resumed = len(outcomes)
        outcomes = execute(operation, workspace, outcomes, range(len(operation.plan.tasks)), config, progress)
        try:
            operation.refuse(outcomes)
        except ParamdeltaError:
            workspace.clear()  # nothing will come of it, however often it is run again
            raise
        return operation.finish(workspace, outcomes, resumed)


def reopen(operation: Operation[Any], workspace: Workspace, config: ExecutorConfig, progress: Progress) -> Outcomes:
    """Have the workspace ready, alone, and return the outcomes of the tasks that are done, and still hold."""
    outcomes = resume(operation, workspace, config)
    with io_errors("resuming an interrupted run"):
        operation.restore(workspace, outcomes)
    return intact(operation, workspace, outcomes, config, progress)


def resume(operation: Operation[Any], workspace: Workspace, config: ExecutorConfig) -> Outcomes:
    """Have the workspace ready, and return what its receipts claim."""
    receipts = workspace.resume(operation.plan, lambda: operation.prepare(workspace, config.size))
    numbers = range(len(operation.plan.tasks))
    return {number: receipt.outcome for number, receipt in receipts.items() if number in numbers}


def intact(
    operation: Operation[Any], workspace: Workspace, outcomes: Outcomes, config: ExecutorConfig, progress: Progress
) -> Outcomes:
    """Return the outcomes whose bytes are there, all of which are read."""
    tasks = operation.plan.tasks

    def check(number: int, stop: Stop) -> tuple[int, bool]:
        stop.check()
        is_done = tasks[number].is_done(outcomes[number], workspace.work_dir)
        progress.advance(tasks[number].nbytes)
        return number, is_done

    if not outcomes:
        return {}
    progress.start("checking", sum(tasks[number].nbytes for number in outcomes))
    try:
        threads = workers(config.threads, config.memory)
        done = dict(run_tasks(list(outcomes), check, threads, size=lambda number: tasks[number].nbytes))
    finally:
        progress.finish()
    return {number: outcome for number, outcome in outcomes.items() if done[number]}


def execute(
    operation: Operation[Any],
    workspace: Workspace,
    done: Outcomes,
    numbers: Collection[int],
    config: ExecutorConfig,
    progress: Progress,
) -> Outcomes:
    """Return the outcomes of the tasks ``numbers``: those in ``done``, and of the rest, which are done now.

    A receipt is kept of each, once its bytes are on disk, unless the outcome spoils the result.
    """
    tasks = operation.plan.tasks
    outcomes = {number: outcome for number, outcome in done.items() if number in numbers}
    todo = [number for number in numbers if number not in outcomes]
    progress.start(operation.stage, sum(tasks[number].nbytes for number in numbers))
    progress.advance(sum(tasks[number].nbytes for number in outcomes))
    try:
        with (
            when_compiling(lambda: progress.note(COMPILING)),
            _executor(operation, workspace, todo, config, progress) as (groups, run_group),
        ):

            def run(group: list[int], stop: Stop) -> dict[int, Outcome]:
                with io_errors(operation.stage):
                    return dict(zip(group, run_group(group, stop), strict=True))

            def size(group: list[int]) -> int:
                return sum(tasks[number].nbytes for number in group)

            for found in run_tasks(groups, run, config.size, size=None if operation.fetches else size):
                outcomes |= found
                for number, outcome in found.items():
                    if not outcome.not_finite:
                        with io_errors(operation.stage):
                            if config.executor == "threads":  # elsewhere the worker has done it
                                _sync(outcome, workspace.work_dir)
                        workspace.keep(Receipt(operation.plan.digest, number, outcome))
    finally:
        progress.finish()
    return {number: outcomes[number] for number in numbers}


@contextmanager
def _executor(
    operation: Operation[Any], workspace: Workspace, todo: list[int], config: ExecutorConfig, progress: Progress
) -> Iterator[tuple[list[list[int]], RunGroup]]:
    """Yield the groups that tasks are done in, and what does a group's tasks, one after another."""
    plan = operation.plan
    if config.executor == "ray":
        groups = group_by_output_file([plan.tasks[number].writes for number in todo])
        with Cluster(perform, str(workspace.work_dir), plan.digest) as cluster:

            def on_the_cluster(group: list[int], stop: Stop) -> list[Outcome]:
                outcomes = cluster.run(group, stop)
                progress.advance(sum(plan.tasks[number].nbytes for number in group))
                return outcomes

            yield [[todo[index] for index in group] for group in groups], on_the_cluster
        return
    operation.begin(todo)

    def on_this_thread(group: list[int], stop: Stop) -> list[Outcome]:
        def advance(nbytes: int) -> None:
            stop.check()
            progress.advance(nbytes)

        return [operation.run(number, workspace, advance) for number in group]

    yield [[number] for number in todo], on_this_thread


def perform(work_dir: str, digest: str, number: int) -> Outcome:
    """Do one task of the plan in a work folder, on whatever machine; by the return all it wrote is on disk.

    Raises:
        DestinationError: the plan there does not have this digest.
        SourceError: something can't be read.
        StorageError: the disk is full or fails.
    """
    folder = Path(work_dir)
    _, task = read_task(folder / PLAN_NAME, digest, number)
    with io_errors(f"task {number}"):
        outcome: Outcome = task.run(folder, lambda _: None)
        _sync(outcome, folder)
    return outcome


def _sync(outcome: Outcome, work_dir: Path) -> None:
    """Force to disk what a task has written, before its receipt says that it is there."""
    for path in outcome.paths(work_dir):
        sync_file(path)
