"""Running a plan's tasks: on threads or a cluster; what is done is not done again.

An :class:`Operation` is an extract or an apply whose plan is made. :func:`complete` carries it to its end; a part of
its tasks is for :mod:`.sharing`.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeAlias, TypeVar, get_args

from paramdelta_hub.application.tasks import perform, run_task, sync_outcome, written
from paramdelta_hub.errors import OptionError, ParamdeltaError
from paramdelta_hub.fileio.durable import io_errors
from paramdelta_hub.limits import DEFAULT_MEMORY, WORKER_BYTES
from paramdelta_hub.numerics.kernels import Kernel, kernel_for
from paramdelta_hub.tasks.executors.ray import Cluster
from paramdelta_hub.tasks.executors.threads import Stop, default_threads, run_tasks
from paramdelta_hub.tasks.partition import lots
from paramdelta_hub.tasks.plan import Plan, Receipt
from paramdelta_hub.tasks.progress import Progress
from paramdelta_hub.tasks.workspace import Destination, MayReplace

__all__ = [
    "Crew",
    "Executor",
    "Operation",
    "Outcomes",
    "complete",
    "execute",
    "intact",
    "reopen",
    "resume",
    "workers",
]

Executor: TypeAlias = Literal["threads", "ray"]
Outcomes: TypeAlias = "dict[int, dict[str, Any]]"
R = TypeVar("R")
_ASKED_OF_A_CLUSTER = 256
"""Lots a cluster is given at a time, unless ``--threads`` says otherwise: it has a queue, by which it grows."""


def workers(threads: int | None, memory: int) -> int:
    """Return how many threads the memory allows, at least one and at most ``threads``.

    Raises:
        OptionError: less than one thread, or less memory than one needs.
    """
    for what, number in (("threads", threads), ("memory", memory)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
            raise OptionError(f"{what} is a whole number, not {number!r}")
    if threads is not None and threads < 1:
        raise OptionError(f"{threads} threads can't do anything", remedy="give --threads 1 or more")
    if memory < WORKER_BYTES:
        raise OptionError(
            f"{memory} bytes of memory are too few", remedy=f"one thread's buffers take up to {WORKER_BYTES >> 20} MiB"
        )
    return max(1, min(threads or default_threads(), memory // WORKER_BYTES))


@dataclass(frozen=True)
class Crew:
    """Who does the tasks, and how many at a time.

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
            return self.threads or _ASKED_OF_A_CLUSTER
        return workers(self.threads, self.memory)


class Operation(ABC, Generic[R]):
    """An extract or an apply: its inputs are opened and found to fit, its plan is made, nothing is written yet."""

    plan: Plan
    what: str
    """The stage's name for the progress."""
    fetches: bool = False
    """Whether tasks share what they fetch: they must run on threads of one process, and begin in the plan's order."""

    @property
    @abstractmethod
    def may_replace(self) -> MayReplace:
        """Judges whether a finished output may be replaced by what this makes."""

    @abstractmethod
    def prepare(self, destination: Destination, tasks_at_a_time: int) -> None:
        """Check the space and make the files that tasks write to; called again, it leaves what they hold alone."""

    @abstractmethod
    def holds(self, number: int, outcome: dict[str, Any], destination: Destination) -> bool:
        """Whether what a receipt speaks of is there, to the byte."""

    def restore(self, destination: Destination, outcomes: Outcomes) -> None:
        """Undo what an interrupted :meth:`finish` of these outcomes has begun."""

    def begin(self, todo: Collection[int]) -> None:
        """Get ready to :meth:`run` these tasks."""

    def run(
        self, number: int, destination: Destination, kernel: Kernel, advance: Callable[[int], None]
    ) -> dict[str, Any]:
        """Do a task on a thread of this process."""
        return run_task(self.plan.kind, self.plan.tasks[number], destination.books, kernel, advance)

    @abstractmethod
    def refuse(self, outcomes: Outcomes) -> None:
        """Raise what tasks have found that makes the result useless."""

    @abstractmethod
    def finish(self, destination: Destination, outcomes: Outcomes, resumed: int) -> R:
        """Write what is left to write, commit, and return the report."""


def complete(operation: Operation[R], out: str | Path, crew: Crew, progress: Progress, *, overwrite: bool) -> R:
    """Carry an operation to its end: do all tasks that are not done, commit, and return the report."""
    with Destination(Path(out), may_replace=operation.may_replace if overwrite else None) as destination:
        outcomes = reopen(operation, destination, crew, progress)
        resumed = len(outcomes)
        outcomes = execute(operation, destination, outcomes, range(len(operation.plan.tasks)), crew, progress)
        try:
            operation.refuse(outcomes)
        except ParamdeltaError:
            destination.clear()  # nothing will come of it, however often it is run again
            raise
        return operation.finish(destination, outcomes, resumed)


def reopen(operation: Operation[Any], destination: Destination, crew: Crew, progress: Progress) -> Outcomes:
    """Have the destination ready, alone, and return the outcomes of the tasks that are done, and still hold."""
    outcomes = resume(operation, destination, crew)
    with io_errors("going on with an interrupted run"):
        operation.restore(destination, outcomes)
    return intact(operation, destination, outcomes, crew, progress)


def resume(operation: Operation[Any], destination: Destination, crew: Crew) -> Outcomes:
    """Have the destination ready, and return what its receipts claim."""
    receipts = destination.resume(operation.plan, lambda: operation.prepare(destination, crew.size))
    numbers = range(len(operation.plan.tasks))
    return {number: receipt.outcome for number, receipt in receipts.items() if number in numbers}


def intact(
    operation: Operation[Any], destination: Destination, outcomes: Outcomes, crew: Crew, progress: Progress
) -> Outcomes:
    """Return the outcomes whose bytes are there; reads them all."""

    def check(number: int, task: dict[str, Any], stop: Stop) -> tuple[int, bool]:
        stop.check()
        held = operation.holds(number, outcomes[number], destination)
        progress.advance(task["bytes"])
        return number, held

    tasks = [(number, operation.plan.tasks[number]) for number in outcomes]
    if not tasks:
        return {}
    progress.start("checking", sum(task["bytes"] for _, task in tasks))
    try:
        hold = dict(run_tasks(tasks, check, workers(crew.threads, crew.memory)))
    finally:
        progress.finish()
    return {number: outcome for number, outcome in outcomes.items() if hold[number]}


def execute(
    operation: Operation[Any],
    destination: Destination,
    done: Outcomes,
    numbers: Collection[int],
    crew: Crew,
    progress: Progress,
) -> Outcomes:
    """Return the outcomes of tasks, by number: of those that are done, and of the rest, which are done now.

    A receipt is kept of each, once what it speaks of is on disk, unless the outcome spoils the result.

    Args:
        operation: whose tasks.
        destination: where they write to.
        done: outcomes of tasks that need not be done.
        numbers: the tasks that are wanted.
        crew: who does them.
        progress: told how far the work is.
    """
    plan = operation.plan
    outcomes = {number: outcome for number, outcome in done.items() if number in numbers}
    todo = [number for number in numbers if number not in outcomes]
    progress.start(operation.what, sum(plan.tasks[number]["bytes"] for number in numbers))
    progress.advance(sum(plan.tasks[number]["bytes"] for number in outcomes))
    try:
        with _hired(operation, destination, todo, crew, progress) as (lots_of_tasks, do):
            units = [
                (index, {"bytes": sum(plan.tasks[number]["bytes"] for number in lot), "lot": lot})
                for index, lot in enumerate(lots_of_tasks)
            ]

            def run(_: int, unit: dict[str, Any], stop: Stop) -> dict[int, dict[str, Any]]:
                with io_errors(operation.what):
                    return dict(zip(unit["lot"], do(unit["lot"], stop), strict=True))

            for found in run_tasks(units, run, crew.size, in_order=operation.fetches):
                outcomes |= found
                for number, outcome in found.items():
                    if "not_finite" not in outcome:
                        with io_errors(operation.what):
                            if crew.executor == "threads":  # while the others compute; elsewhere the worker has done it
                                sync_outcome(plan.kind, outcome, destination.books)
                        destination.keep(Receipt(plan.digest, number, outcome))
    finally:
        progress.finish()
    return {number: outcomes[number] for number in numbers}


Do: TypeAlias = "Callable[[list[int], Stop], list[dict[str, Any]]]"


@contextlib.contextmanager
def _hired(
    operation: Operation[Any], destination: Destination, todo: list[int], crew: Crew, progress: Progress
) -> Iterator[tuple[list[list[int]], Do]]:
    """Have a crew there: yield the lots that tasks are done in, and what does a lot's tasks."""
    plan, books = operation.plan, str(destination.books)

    def done(numbers: list[int], outcomes: list[dict[str, Any]]) -> list[dict[str, Any]]:
        progress.advance(sum(plan.tasks[number]["bytes"] for number in numbers))
        return outcomes

    if crew.executor == "ray":
        by_file = lots([written(plan.kind, plan.tasks[number]) for number in todo])
        with Cluster(perform, books, plan.digest) as cluster:
            yield (
                [[todo[index] for index in lot] for lot in by_file],
                lambda numbers, stop: done(numbers, cluster.run(numbers, stop)),
            )
    else:
        operation.begin(todo)
        kernel = kernel_for(plan.nbytes, wait=plan.kind != "apply")

        def on_a_thread(number: int, stop: Stop) -> dict[str, Any]:
            def advance(nbytes: int) -> None:
                stop.check()
                progress.advance(nbytes)

            return operation.run(number, destination, kernel, advance)

        yield [[number] for number in todo], lambda numbers, stop: [on_a_thread(number, stop) for number in numbers]
