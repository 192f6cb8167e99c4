"""Runs commands of the command line, at the same moment or under a fault: in forked children where one may die of it.

``python -m tests.robustness.commands`` is a process of its own, because it must have no threads when it forks. It reads
one request a line and answers with the exit status and the errors of every run. :class:`Commands` is the other end.

A child costs more than the command that it runs: thousands of pages of memory that the two share until one writes to
them. So what is run by itself, and lives on, is run in the process that would fork.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from paramdelta_hub.cli import main
from paramdelta_hub.tasks import plan
from tests.robustness.calls import Among, Fault, Faulty, wrap, wrapped
from tests.support.piped import Piped

if TYPE_CHECKING:  # with it comes PyTorch, whose memory makes a fork cost three times as much
    from tests.robustness.cases import Case

UNTOLD = 99
"""The status of a child in which an error was raised that no command tells."""


class Ended(NamedTuple):
    """How a command ended, and what it told."""

    status: int
    errors: str


class Commands(Piped):
    """The other end of this file."""

    def __init__(self) -> None:
        super().__init__("tests.robustness.commands")

    def together(self, *commands: list[str], fault: Fault | None = None, tape: Path | None = None) -> list[Ended]:
        """Run commands at the same time, each under the fault; a tape gets what the first one changes."""
        request: dict[str, Any] = {"commands": commands, "tape": tape and str(tape)}
        return [Ended(*ended) for ended in self.send({**request, "fault": fault and fault.to_json()})]  # type: ignore[misc]

    def warm_up(self, command: list[str]) -> None:
        """Run a command where children are forked: what a first run imports and compiles, none has to do again."""
        assert self.run(command) == (0, "")

    def run(self, command: list[str], fault: Fault | None = None, tape: Path | None = None) -> Ended:
        """Run one command."""
        if fault is None or fault.is_survived:
            request = {"here": command, "tape": tape and str(tape), "fault": fault and fault.to_json()}
            return Ended(*self.send(request))  # type: ignore[arg-type]
        (ended,) = self.together(command, fault=fault, tape=tape)
        return ended


def paths_of(commands: Commands, case: Case, among: Among = "changes") -> list[str]:
    """Return what the calls of an undisturbed run are about that change a file system, or only read, in order."""
    tape = case.place / "tape"
    assert commands.run(case.command, Fault(among=among), tape) == (0, "")
    assert case.is_whole()
    paths = [json.loads(line)["path"] for line in tape.read_text().splitlines()]
    shutil.rmtree(case.place)
    return paths


def finish(commands: Commands, case: Case, what: object) -> None:
    """Run again, undisturbed: the output is that of a run never disturbed, and nothing else remains."""
    shown = case.shown
    if shown:
        assert case.is_whole(), f"{what}: something half-done can be seen"
    status, errors = commands.run(case.command)
    assert status == (case.again if shown else 0), (what, errors)
    assert case.is_whole(), what
    if not shown:  # a death after the output was whole can leave a folder behind that nobody needs any more
        assert case.beside() == [], what
    shutil.rmtree(case.place)


def call(command: list[str]) -> int:
    """Run a command, and return its exit status."""
    status: Any = UNTOLD
    try:
        main(command, prog_name="paramdelta")
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
    return int(status)


def faulty(fault: dict[str, Any] | None, tape: int | None) -> Faulty:
    """Return what is done at every call."""
    return Faulty(Fault(**fault or {}), tape)


def open_tape(path: str | None) -> int | None:
    """Return a descriptor that adds to the file, if there is one."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if path else None


def open_told() -> int:
    """Return a descriptor that holds what is written to it."""
    return os.memfd_create("told") if hasattr(os, "memfd_create") else os.open(os.devnull, os.O_RDWR)


def read_told(told: int) -> str:
    """Return what was written, and close the descriptor."""
    os.lseek(told, 0, os.SEEK_SET)
    text = os.read(told, 1 << 20).decode("utf-8", "replace")
    os.close(told)
    return text


def child(command: list[str], fault: dict[str, Any] | None, tape: str | None, gate: int, told: int) -> None:
    """Run a command and leave without a trace."""
    status = UNTOLD
    try:
        os.dup2(told, 2)
        recorded = open_tape(tape)
        os.read(gate, 1)
        wrap(faulty(fault, recorded))
        status = call(command)
    finally:
        os._exit(status)


def run_here(command: list[str], fault: dict[str, Any] | None, tape: str | None) -> tuple[int, str]:
    """Run a command in this process, and leave no thread behind."""
    told, stderr, recorded = open_told(), os.dup(2), open_tape(tape)
    os.dup2(told, 2)
    try:
        with wrapped(faulty(fault, recorded)):
            status = call(command)
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        if recorded is not None:
            os.close(recorded)
    assert threading.active_count() == 1
    return status, read_told(told)


def serve() -> None:
    """Answer requests until there are no more."""
    plan.TASK_BYTES_MIN = 1  # a task a tensor
    for line in sys.stdin:
        request = json.loads(line)
        if "here" in request:
            print(json.dumps(run_here(request["here"], request["fault"], request["tape"])), flush=True)
            continue
        gate, children = os.pipe(), []
        for number, command in enumerate(request["commands"]):
            told = open_told()
            pid = os.fork()
            if not pid:
                os.close(gate[1])
                child(command, request["fault"], None if number else request["tape"], gate[0], told)
            children.append((pid, told))
        for end in gate:
            os.close(end)
        answer = []
        for pid, told in children:
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            answer.append([status, read_told(told)])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
