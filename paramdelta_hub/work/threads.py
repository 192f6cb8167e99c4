"""The executor for one machine: threads over tasks, the largest first.

NumPy, zstandard, hashlib and the file calls release the GIL, so threads scale; and they share the page cache, the
interpreter and the start-up time, which processes would not.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

__all__ = ["Interrupted", "Stop", "default_threads", "run_tasks"]

T = TypeVar("T")


class Interrupted(Exception):  # noqa: N818 - not an error: somebody else's error, or Ctrl-C, ended the run
    """Raised inside a task that is asked to stop; never leaves :func:`run_tasks`."""


class Stop:
    """A flag that tasks look at between chunks, so that a failed or interrupted run ends within milliseconds."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Ask all tasks to stop."""
        self._event.set()

    def check(self) -> None:
        """Raise if asked to stop.

        Raises:
            Interrupted: :meth:`set` was called.
        """
        if self._event.is_set():
            raise Interrupted


def default_threads() -> int:
    """Return how many threads to use: the processors this process may run on, at most 16."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, 16)


def run_tasks(
    tasks: list[tuple[int, dict[str, Any]]],
    run: Callable[[int, dict[str, Any], Stop], T],
    threads: int,
    *,
    in_order: bool = False,
) -> Iterator[T]:
    """Run every task and yield what each returned, in the order in which they end.

    The first error stops the others and is raised; so does ``Ctrl-C``. Nothing runs on when this returns or raises.

    Args:
        tasks: (number, task); the largest, by ``task["bytes"]``, are begun first, so that no large one is left over.
        run: called as ``run(number, task, stop)`` on some thread.
        threads: how many run at a time.
        in_order: begin them in the order given instead.
    """
    stop = Stop()
    ordered = tasks if in_order else sorted(tasks, key=lambda numbered: -numbered[1]["bytes"])
    pool = ThreadPoolExecutor(max_workers=max(threads, 1), thread_name_prefix="paramdelta")
    pending: set[Future[T]] = set()
    try:
        pending = {pool.submit(run, number, task, stop) for number, task in ordered}
        while pending:
            # A bounded wait keeps the main thread able to see Ctrl-C.
            done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            # What ended well is told first: a failure beside it must not cost its receipt.
            for future in sorted(done, key=lambda future: future.exception() is not None):
                yield future.result()
    finally:
        stop.set()
        for future in pending:
            future.cancel()
        pool.shutdown(wait=True)
