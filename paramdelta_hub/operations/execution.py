"""Running a plan's tasks against a destination: skip what is done, keep a receipt of what ends, report progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from paramdelta_hub import engines
from paramdelta_hub.errors import OptionError
from paramdelta_hub.format.durable import io_errors
from paramdelta_hub.limits import WORKER_BYTES
from paramdelta_hub.work.destination import Destination
from paramdelta_hub.work.plan import Plan, Receipt
from paramdelta_hub.work.progress import Progress
from paramdelta_hub.work.threads import Stop, default_threads, run_tasks

__all__ = ["execute", "workers"]


def workers(threads: int | None, memory: int) -> int:
    """Return how many threads the memory allows, at least one and at most ``threads``.

    Raises:
        OptionError: less than one thread, or less memory than one needs.
    """
    if threads is not None and threads < 1:
        raise OptionError(f"{threads} threads can't do anything", remedy="give --threads 1 or more")
    if memory < WORKER_BYTES:
        raise OptionError(
            f"{memory} bytes of memory are too few", remedy=f"one thread's buffers take up to {WORKER_BYTES >> 20} MiB"
        )
    return max(1, min(threads or default_threads(), memory // WORKER_BYTES))


def execute(
    plan: Plan,
    run: Callable[[dict[str, Any], Callable[[int], None]], dict[str, Any]],
    done: Mapping[int, Receipt],
    destination: Destination,
    threads: int,
    progress: Progress,
    what: str,
    after: Callable[[dict[str, Any]], None],
    *,
    in_order: bool = False,
) -> list[dict[str, Any]]:
    """Return the outcome of every task of the plan, in the plan's order.

    Args:
        plan: what to do.
        run: does one task, given a callback for the bytes it has handled.
        done: receipts that still hold; their tasks are not run again.
        destination: keeps the new receipts.
        threads: tasks at a time.
        progress: told how far the work is.
        what: the stage's name.
        in_order: begin tasks in the plan's order, and not with the largest.
        after: called on this thread for each outcome: where files are forced to disk while the workers compute.
    """
    outcomes = {number: receipt.outcome for number, receipt in done.items()}
    todo = [(number, task) for number, task in enumerate(plan.tasks) if number not in outcomes]
    engines.choose(plan.nbytes)
    progress.start(what, plan.nbytes)
    progress.advance(sum(task["bytes"] for number, task in enumerate(plan.tasks) if number in outcomes))

    def run_one(number: int, task: dict[str, Any], stop: Stop) -> tuple[int, dict[str, Any]]:
        def advance(nbytes: int) -> None:
            stop.check()
            progress.advance(nbytes)

        with io_errors(what):
            return number, run(task, advance)

    try:
        for number, outcome in run_tasks(todo, run_one, threads, in_order=in_order):
            outcomes[number] = outcome
            if "not_finite" not in outcome:
                destination.keep(Receipt(plan.digest, number, outcome))
                with io_errors(what):
                    after(outcome)
    finally:
        progress.finish()
    return [outcomes[number] for number in range(len(plan.tasks))]
