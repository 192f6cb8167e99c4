"""What a worker in another process answers: a task's outcome, or the error that ended it, as plain JSON."""

from __future__ import annotations

import traceback
from typing import Any, Protocol

from paramdelta_hub import errors
from paramdelta_hub.errors import ParamdeltaError

__all__ = ["ATTEMPTS", "Perform", "answer", "died", "outcome_of"]

ATTEMPTS = 3
"""How often a task is begun before a worker's death is taken for the task's own fault: a machine may be taken away, or
its memory run short for a moment, but a task that kills its worker does so every time."""


class Perform(Protocol):
    """Does one task; a function of some module, so that other processes find it by its name."""

    __module__: str
    __qualname__: str

    def __call__(self, books: str, digest: str, number: int) -> dict[str, Any]:
        """Do task ``number`` of the plan in the folder ``books``; return its outcome when all is on disk."""


def answer(perform: Perform, books: str, digest: str, number: int) -> dict[str, Any]:
    """Do a task and return its answer; whatever goes wrong is in it."""
    try:
        return {"outcome": perform(books, digest, number)}
    except ParamdeltaError as error:
        told = {"what": error.what, "where": error.where, "remedy": error.remedy}
        return {"error": type(error).__name__, "told": told}
    except Exception:
        return {"error": None, "told": traceback.format_exc()}


def outcome_of(answered: dict[str, Any]) -> dict[str, Any]:
    """Return the outcome in an answer.

    Raises:
        ParamdeltaError: what the worker raised, of its own class.
        RuntimeError: a worker's error that is none of ours, with the place in the code where it arose.
    """
    if "outcome" in answered:
        outcome: dict[str, Any] = answered["outcome"]
        return outcome
    told = answered["told"]
    if answered["error"] is None:
        raise RuntimeError(f"a worker failed:\n{told}")
    kind: type[ParamdeltaError] = getattr(errors, answered["error"])
    raise kind(told["what"], where=told["where"], remedy=told["remedy"])


def died(numbers: list[int], why: str) -> ParamdeltaError:
    """Return the error of tasks whose workers died again and again."""
    tasks = f"task {numbers[0]}" if len(numbers) == 1 else f"tasks {numbers[0]}–{numbers[-1]}"
    return ParamdeltaError(
        f"{ATTEMPTS} workers died at {tasks}: {why}",
        remedy="the system may want memory: use fewer --threads; what is done is kept, and the same command goes on",
    )
