"""The executor for one machine: threads over tasks, the largest first.

NumPy, zstandard, hashlib and the file calls release the GIL, so threads scale; and they share the page cache, the
interpreter and the start-up time, which processes would not.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any, TypeVar

__all__ = ["Interrupted", "Stop", "default_threads", "run_tasks"]

T = TypeVar("T")
R = TypeVar("R")


class Interrupted(Exception):  # noqa: N818 - not an error: somebody else's error, or Ctrl-C, ended the run
    """Raised inside a task that is asked to stop; never leaves :func:`run_tasks`."""


class Stop(Event):
    """A flag that tasks look at between chunks, so that a failed or interrupted run ends within milliseconds."""

    def check(self) -> None:
        """Raise Interrupted if the flag is set."""
        if self.is_set():
            raise Interrupted


def default_threads() -> int:
    """Return how many threads to use: the processors this process may run on, at most 16."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, 16)


def run_tasks(
    tasks: Sequence[T], run: Callable[[T, Stop], R], threads: int, *, size: Callable[[T], int] | None = None
) -> Iterator[R]:
    """Call ``run(task, stop)`` for every task and yield what each returned, in the order in which they end.

    The first error stops the others and is raised; so does ``Ctrl-C``. Nothing runs on when this returns or raises.
    With ``size``, the largest are begun first, so that no large one is left over; else in the order given.
    """
    stop = Stop()
    ordered = sorted(tasks, key=size, reverse=True) if size else tasks
    todo: SimpleQueue[T] = SimpleQueue()
    ended: SimpleQueue[tuple[bool, Any]] = SimpleQueue()
    for task in ordered:
        todo.put(task)

    # Queues and not futures: an interrupt in the middle of concurrent.futures.wait() leaves its locks taken, and the
    # workers waiting for them for ever.
    count = max(1, min(threads, len(tasks)))
    workers = [
        Thread(target=_work, args=(todo, ended, run, stop), name=f"paramdelta-{number}") for number in range(count)
    ]
    try:
        for worker in workers:
            worker.start()
        failure: BaseException | None = None
        for _ in tasks:
            succeeded, outcome = _next(ended)
            if not succeeded:
                failure = outcome
                break
            yield outcome
        if failure is not None:
            # What ended well beside a failure is told, too: it must not cost its receipt.
            stop.set()
            for worker in workers:
                worker.join()
            while not ended.empty():
                succeeded, outcome = ended.get()
                if succeeded:
                    yield outcome
            raise failure
    finally:
        stop.set()
        for worker in workers:
            if worker.is_alive():
                worker.join()


def _work(
    todo: SimpleQueue[T], ended: SimpleQueue[tuple[bool, Any]], run: Callable[[T, Stop], Any], stop: Stop
) -> None:
    """Run tasks until there are none left, one fails, or all are asked to stop."""
    with contextlib.suppress(Empty, Interrupted):
        while True:
            stop.check()
            task = todo.get_nowait()
            try:
                ended.put((True, run(task, stop)))
            except BaseException as error:  # raised again on the main thread
                ended.put((False, error))
                return


def _next(ended: SimpleQueue[tuple[bool, Any]]) -> tuple[bool, Any]:
    """Wait for a task to end, in short steps, so that the main thread sees Ctrl-C on every system."""
    while True:
        with contextlib.suppress(Empty):
            return ended.get(timeout=0.2)
