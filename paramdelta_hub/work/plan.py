"""Plans and receipts: plain JSON, so that any process on any machine can take part."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from paramdelta_hub import __about__
from paramdelta_hub.format import jsontext
from paramdelta_hub.limits import TASK_BYTES_MAX, TASK_BYTES_MIN, TASKS_WANTED

__all__ = ["Plan", "Receipt", "cut"]


@dataclass(frozen=True)
class Plan:
    """What one run makes, of which inputs, in which independent pieces.

    ``inputs`` identifies every file read (path, size, time of change), ``options`` all that shapes the output, and
    ``tasks`` hold whatever their kind needs; the executor looks only at ``task["bytes"]``. Equal plans make equal
    outputs, so a plan's digest names its outcome.
    """

    kind: Literal["extract", "apply"]
    inputs: tuple[Any, ...]
    options: dict[str, Any]
    tasks: tuple[dict[str, Any], ...]

    def to_json(self) -> bytes:
        """Return the plan's canonical text. The tool's version is part of it: another version starts afresh."""
        return self._text

    @cached_property
    def _text(self) -> bytes:
        return jsontext.canonical(
            {
                "created_by": __about__.CREATED_BY,
                "kind": self.kind,
                "inputs": self.inputs,
                "options": self.options,
                "tasks": self.tasks,
            }
        )

    @cached_property
    def digest(self) -> str:
        """sha256 of the canonical text."""
        return hashlib.sha256(self._text).hexdigest()

    @property
    def nbytes(self) -> int:
        """Bytes of weights that all tasks together read."""
        return sum(task["bytes"] for task in self.tasks)


@dataclass(frozen=True)
class Receipt:
    """The proof that a task is done: which plan, which task, and what came of it (digests included)."""

    plan: str
    task: int
    outcome: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {"plan": self.plan, "task": self.task, "outcome": self.outcome}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Receipt:
        """Rebuild a receipt."""
        return cls(value["plan"], value["task"], value["outcome"])


def cut(items: Iterable[Any], size: Callable[[Any], int], total: int) -> list[list[Any]]:
    """Group neighbours so that a group has about a 32nd of ``total`` bytes; an item is never cut.

    Where to cut depends on the items alone, never on the number of workers: equal inputs give equal tasks.
    """
    wanted = min(max(total // TASKS_WANTED, TASK_BYTES_MIN), TASK_BYTES_MAX)
    groups: list[list[Any]] = []
    filled = wanted
    for item in items:
        if filled >= wanted or (filled and filled + size(item) > 2 * wanted):
            groups.append([])
            filled = 0
        groups[-1].append(item)
        filled += size(item)
    return groups
