"""Runs commands of the command line in forked children, at the same moment or under a fault.

``python -m tests.robustness.commands`` is a process of its own, because it must have no threads when it forks. It reads
one request a line and answers with the exit status and the errors of every child. :class:`Commands` is the other end.
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
from tests.robustness.calls import Among, Fault, Faulty, wrap
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
        assert self.send({"warm_up": command}) == [0]

    def run(self, command: list[str], fault: Fault | None = None, tape: Path | None = None) -> Ended:
        """Run one command."""
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


def child(command: list[str], fault: dict[str, Any] | None, tape: str | None, gate: int, told: int) -> None:
    """Run a command and leave without a trace."""
    status: Any = UNTOLD
    try:
        os.dup2(told, 2)
        recorded = os.open(tape, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if tape else None
        os.read(gate, 1)
        wrap(Faulty(Fault(**fault or {}), recorded))
        main(command, prog_name="paramdelta")
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def run_here(command: list[str]) -> int:
    """Run a command in this process, and leave no thread behind."""
    try:
        main(command, prog_name="paramdelta")
    except SystemExit as end:
        assert threading.active_count() == 1
        return int(end.code or 0)
    return UNTOLD


def serve() -> None:
    """Answer requests until there are no more."""
    plan.TASK_BYTES_MIN = 1  # a task a tensor
    for line in sys.stdin:
        request = json.loads(line)
        if "warm_up" in request:
            print(json.dumps([run_here(request["warm_up"])]), flush=True)
            continue
        gate, children = os.pipe(), []
        for number, command in enumerate(request["commands"]):
            told = os.memfd_create("told") if hasattr(os, "memfd_create") else os.open(os.devnull, os.O_RDWR)
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
            os.lseek(told, 0, os.SEEK_SET)
            answer.append([status, os.read(told, 1 << 20).decode("utf-8", "replace")])
            os.close(told)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
