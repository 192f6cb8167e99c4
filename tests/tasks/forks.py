"""Runs extract or apply, in forked children where they are to die at a chosen call to the system, or to race.

A process of its own, because it must have no threads when it forks: it reads one JSON object a line and answers with
one. ``{"calls": ["extract", [...], {...}], "kill_at": 7}`` lets the child kill itself instead of making its seventh
call that changes a file system; ``half`` lets a write be cut in the middle first; ``race`` starts so many children at
once; ``kill_after`` kills the child from here after so many seconds, or leaves it alone. What does none of these is run
in the process itself: a child costs more than the work that it does.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import itertools
import json
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import paramdelta_hub as pd
from paramdelta_hub.fileio import direct_writer
from paramdelta_hub.tasks import plan

CALLS = (
    "open",
    "pwrite",
    "fsync",
    "fdatasync",
    "ftruncate",
    "posix_fallocate",
    "mkdir",
    "rename",
    "replace",
    "unlink",
    "rmdir",
)


def instrument(kill_at: int, half: bool, report: Path) -> None:
    """Count calls that change a file system; at the chosen one, die as by ``kill -9``."""
    made = itertools.count(1)  # in one step: a thread writes, too
    reporting, seen = threading.Lock(), [0]

    def wrap(name: str) -> None:
        call = getattr(os, name)

        def counted(*args: Any, **options: Any) -> Any:
            if name == "open" and not args[1] & os.O_CREAT:
                return call(*args, **options)
            number = next(made)
            if number == kill_at:
                if half and name == "pwrite":
                    # What a disk can have done of a direct write is whole pages, or nothing.
                    step = (
                        direct_writer._PAGE if fcntl.fcntl(args[0], fcntl.F_GETFL) & getattr(os, "O_DIRECT", 0) else 1
                    )
                    call(args[0], memoryview(args[1])[: len(args[1]) // 2 // step * step], args[2])
                os.kill(os.getpid(), signal.SIGKILL)
            if not kill_at and name not in ("unlink", "rmdir"):
                with reporting:
                    seen[0] = max(seen[0], number)
                    report.write_text(str(seen[0]))
            return call(*args, **options)

        setattr(os, name, counted)

    for name in CALLS:
        if hasattr(os, name):
            wrap(name)


def share(kind: str, first: str, second: str, out: str, threads: int, rank: int, world: int, skips: Any = ()) -> None:
    """Do a rank's share of an extract or an apply."""
    request = (
        pd.ExtractRequest(first, second, skips=tuple(skips))
        if kind == "extract"
        else pd.ApplyRequest(first, ((second, 1.0),), skips=tuple(skips))
    )
    pd.run_rank(request, out, rank, world, config=pd.ExecutorConfig(threads=threads))


def run(request: dict[str, Any], racer: int) -> int:
    """Do what is asked; return an exit status. Of ranks that race, each has its own number."""
    operation, arguments, options = request["calls"]
    if options.get("rules"):
        options["rules"] = pd.Rules(skips=tuple(options["rules"]))
    if options.get("rank") == "racer":
        options["rank"] = racer
    try:
        call = share if operation == "share" else getattr(pd, operation)
        call(*arguments, threads=request.get("threads", 1), **options)
    except pd.ParamdeltaError as error:
        return error.exit_code
    return 0


def without_sync(_: int) -> None:
    """Stand in for fsync: a killed process loses nothing that it has written, only a power cut could."""


def child(request: dict[str, Any], gate: tuple[int, int] | None, racer: int) -> None:
    """Run in the child and leave without a trace."""
    status = 99
    try:
        if gate:
            os.close(gate[1])
            os.read(gate[0], 1)
        if "report" in request:
            instrument(request.get("kill_at", 0), request.get("half", False), Path(request["report"]))
        status = run(request, racer)
    finally:
        os._exit(status)


def run_here(request: dict[str, Any]) -> int:
    """Run in this process, and leave no thread behind."""
    status = 99
    try:
        status = run(request, 0)
    except Exception:
        traceback.print_exc()
    assert threading.active_count() == 1
    return status


def warm_up(request: dict[str, Any]) -> None:
    """Do what is asked once, elsewhere: what a first run imports and compiles, no child has to do again."""
    operation, arguments, options = request["calls"]
    with tempfile.TemporaryDirectory() as folder:
        elsewhere = [*arguments[:2], f"{folder}/out", *arguments[3:]]
        run_here({**request, "calls": [operation, elsewhere, dict(options)]})


def serve() -> None:
    """Answer requests until there are no more."""
    os.fsync = os.fdatasync = without_sync
    warm: set[str] = set()
    for line in sys.stdin:
        request = json.loads(line)
        operation = request["calls"][0]
        if operation in ("extract", "apply", "share") and operation not in warm:
            warm_up(request)
            warm.add(operation)
            gc.freeze()  # or collections in children copy the pages that all objects lie on
        plan.TASK_BYTES_MIN = request.get("task_bytes", 1)
        # Direct writes, of the least that disks take: these models are small. (robustness/ has the other way.)
        direct_writer.DIRECT_FROM_BYTES, direct_writer._PAGE = 0, 512
        racers = request.get("race", 1)
        if racers == 1 and not request.keys() & {"report", "kill_after"}:
            print(json.dumps([run_here(request)]), flush=True)
            continue
        gate = os.pipe() if racers > 1 else None
        pids = []
        for racer in range(racers):
            pid = os.fork()
            if not pid:
                child(request, gate, racer)
            pids.append(pid)
        if gate:
            os.close(gate[0])
            os.close(gate[1])
        if request.get("kill_after") is not None:
            time.sleep(request["kill_after"])
            os.kill(pids[0], signal.SIGKILL)  # or what is left of it: it was not waited for
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps(statuses), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        serve()
