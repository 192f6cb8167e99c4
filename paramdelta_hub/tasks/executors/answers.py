"""What a worker in another process answers: a task's outcome, or the error that ended it, as plain JSON."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Any, Protocol

from paramdelta_hub.errors import Mismatch, ParamdeltaError
from paramdelta_hub.tasks.models import OUTCOME, Outcome

__all__ = ["ATTEMPTS", "Perform", "answer", "died", "outcome_of"]

ATTEMPTS = 3
"""How often a task is begun before a worker's death is taken for the task's own fault: a machine may be taken away, or
its memory run short for a moment, but a task that kills its worker does so every time."""


class Perform(Protocol):
    """Does one task; a function of some module, so that other processes find it by its name."""

    __module__: str
    __qualname__: str

    def __call__(self, work_dir: str, digest: str, number: int) -> Outcome:
        """Do task ``number`` of the plan in the folder ``work_dir``; return its outcome when all is on disk."""


def answer(perform: Perform, work_dir: str, digest: str, number: int) -> dict[str, Any]:
    """Do a task and return its answer; whatever goes wrong is in it."""
    try:
        return {"outcome": OUTCOME.dump_json(perform(work_dir, digest, number)).decode()}
    except ParamdeltaError as error:
        names = [cls.__name__ for cls in type(error).__mro__ if issubclass(cls, ParamdeltaError)]
        return {"error": names, "told": vars(error)}
    except Exception:
        return {"error": None, "told": traceback.format_exc()}


def outcome_of(answered: dict[str, Any]) -> Outcome:
    """Return the outcome in an answer.

    Raises:
        ParamdeltaError: what the worker raised, with all that it knows. A class that this process has not loaded
            becomes the nearest above it, which a handler treats alike.
        RuntimeError: a worker's error that is none of ours, with the place in the code where it arose.
    """
    if "outcome" in answered:
        return OUTCOME.validate_json(answered["outcome"])
    told = answered["told"]
    if answered["error"] is None:
        raise RuntimeError(f"a worker failed:\n{told}")
    known = {cls.__name__: cls for cls in _classes(ParamdeltaError)}
    error = next(known[name] for name in answered["error"] if name in known)(told["what"])
    vars(error).update(told)
    if "mismatches" in told:
        vars(error)["mismatches"] = tuple(Mismatch(*mismatch) for mismatch in told["mismatches"])
    raise error


def _classes(above: type[ParamdeltaError]) -> Iterator[type[ParamdeltaError]]:
    """Yield a class of errors and all below it."""
    yield above
    for cls in above.__subclasses__():
        yield from _classes(cls)


def died(numbers: list[int], why: str) -> ParamdeltaError:
    """Return the error of tasks whose workers died again and again."""
    tasks = f"task {numbers[0]}" if len(numbers) == 1 else f"tasks {numbers[0]}–{numbers[-1]}"
    return ParamdeltaError(
        f"{ATTEMPTS} workers stopped at {tasks}: {why}",
        remedy="the system may be out of memory; use fewer --threads, and run the same command again to resume",
    )
