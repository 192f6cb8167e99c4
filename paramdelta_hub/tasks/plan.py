"""Plans and receipts: plain JSON, so that any process on any machine can take part."""

from __future__ import annotations

import contextlib
import gc
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, get_args

from pydantic import TypeAdapter

from paramdelta_hub import __about__
from paramdelta_hub.errors import DestinationError, SourceError
from paramdelta_hub.fileio import strict_json
from paramdelta_hub.fileio.durable import read_small
from paramdelta_hub.fileio.strict_json import JsonObject
from paramdelta_hub.limits import PLAN_BYTES, PLAN_VALUES, TASK_BYTES_MAX, TASK_BYTES_MIN, TASKS_WANTED
from paramdelta_hub.tasks.models import TASK, Outcome, Task

__all__ = ["RECEIPT", "Kind", "Plan", "Receipt", "cut", "planning", "read_request", "read_task"]

Kind: TypeAlias = Literal["extract", "apply"]


@dataclass(frozen=True)
class Plan:
    """What one run makes, of which inputs, in which independent tasks.

    ``inputs`` identifies every file read (path, size, time of change). Equal tasks on equal inputs have equal outcomes:
    they make the digest. ``request`` is all that was asked for. What of it shapes no task, such as whose tokenizer is
    beside the weights, may be asked for otherwise when an interrupted run goes on.
    """

    kind: Kind
    inputs: tuple[Any, ...]
    request: JsonObject
    tasks: tuple[Task, ...]

    @cached_property
    def text(self) -> bytes:
        """The plan as JSON, with a line for each task, so that a worker parses no more than its own.

        The tool's version is part of it: another version starts afresh.
        """
        head = {
            "created_by": __about__.CREATED_BY,
            "inputs": self.inputs,
            "kind": self.kind,
            "nbytes": self.nbytes,
            "tasks": [],  # the last key, as keys are sorted
        }
        opening = strict_json.canonical(head).removesuffix(_CLOSING)
        tasks = b",\n".join(map(TASK.dump_json, self.tasks))
        return b"".join([opening, b"\n", tasks, b"\n" * bool(self.tasks), _CLOSING])

    @property
    def request_text(self) -> bytes:
        """The canonical text of the request, and of what kind it is."""
        return strict_json.canonical({"kind": self.kind, "request": self.request})

    @cached_property
    def digest(self) -> str:
        """The sha256 of the text."""
        return hashlib.sha256(self.text).hexdigest()

    @cached_property
    def nbytes(self) -> int:
        """Bytes of weights that all tasks together read."""
        return sum(task.nbytes for task in self.tasks)


_CLOSING = b"]}"


def read_task(path: Path, digest: str, number: int) -> tuple[int, Task]:
    """Return the bytes that a plan in a file reads in all, and one of its tasks; the others are not parsed.

    Raises:
        DestinationError: the plan there has another digest.
        SourceError: the file can't be read.
    """
    text = read_small(path, PLAN_BYTES, SourceError)
    if hashlib.sha256(text).hexdigest() != digest:
        raise DestinationError("the plan was replaced during the run", where=str(path), remedy="run the command again")
    opening, *lines = text.split(b"\n", number + 2)
    head = _parsed(opening + _CLOSING, path)
    if head["created_by"] != __about__.CREATED_BY:
        raise DestinationError(
            f"the plan was made by {head['created_by']}, but this is {__about__.CREATED_BY}",
            where=str(path),
            remedy="install the same version on all machines",
        )
    return head["nbytes"], TASK.validate_json(lines[number].removesuffix(b","))


def read_request(path: Path) -> tuple[Kind, JsonObject]:
    """Return a plan's kind and request from the file that holds its request's text, or raise a SourceError."""
    found = _parsed(read_small(path, PLAN_BYTES, SourceError), path)
    if not isinstance(found, dict) or found.keys() != {"kind", "request"}:
        found = dict.fromkeys(("kind", "request"))
    kind, request = found["kind"], found["request"]
    if kind not in get_args(Kind) or not isinstance(request, dict):
        raise SourceError("not a request", where=str(path), remedy="delete the folder, and run the command again")
    return kind, request


def _parsed(text: bytes, path: Path) -> Any:
    return strict_json.parse(text, SourceError, str(path), PLAN_VALUES)


@dataclass(frozen=True)
class Receipt:
    """The proof that a task is done: which plan, which task, and what came of it (digests included)."""

    plan: str
    task: int
    outcome: Outcome


RECEIPT = TypeAdapter(Receipt)


@contextlib.contextmanager
def planning() -> Iterator[None]:
    """Pause the search for cyclic garbage while a plan is made.

    Millions of small objects are made, hardly one of them in a cycle, and Python looks through all of them again and
    again: with 91,000 tensors, a third of the time. What other threads drop meanwhile is found later.
    """
    searched = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searched:
            gc.enable()


class Divisible(Protocol):
    """A tensor, or a part of one, that a task has to do with."""

    @property
    def nbytes(self) -> int:
        """How many bytes it has."""

    def divide(self: D, parts: int) -> Sequence[D]:
        """Return it in up to so many parts of whole chunks; whole, if it can't be divided."""


D = TypeVar("D", bound=Divisible)


def cut(items: Iterable[D], total: int) -> list[list[D]]:
    """Group neighbors so that a group has about a 64th of ``total`` bytes; larger items are divided.

    A group has no two parts of one item. Where to cut depends on the items alone, never on the number of workers:
    equal inputs give equal tasks.
    """
    wanted = min(max(total // TASKS_WANTED, TASK_BYTES_MIN), TASK_BYTES_MAX)
    groups: list[list[D]] = []
    filled = wanted
    for item in items:
        for number, part in enumerate(item.divide(max(1, round(item.nbytes / wanted)))):
            if number or filled >= wanted or (filled and filled + part.nbytes > 2 * wanted):
                groups.append([])
                filled = 0
            groups[-1].append(part)
            filled += part.nbytes
    return groups
