"""Publishes and pulls in forked children, which start at the same moment, or die at a chosen call to the system.

A process of its own, because it must have no threads when it forks. It reads one JSON object a line, and answers with
the exit status of every child: ``{"action": "publish", "jobs": [[root, package, repo, version], …], "kill_at": 7}``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from paramdelta_hub.errors import ParamdeltaError
from paramdelta_hub.registry.stores.registry import StoreRegistry
from tests.support.piped import Piped
from tests.tasks.forks import instrument, without_sync

DONE, NOTHING_TO_DO, TOLD, KILLED = 0, 20, 8, -signal.SIGKILL
"""What a child comes to; TOLD is the exit code of a PublishError."""


class Racers(Piped):
    """The other end of this file."""

    def __init__(self, **environment: str) -> None:
        super().__init__("tests.registry.racers", {**os.environ, **environment})

    def ask(self, action: str, *jobs: list[str], **more: Any) -> list[int]:
        """Run the jobs at the same time; return what each came to."""
        return self.send({"action": action, "jobs": jobs, **more})


def run(action: str, job: list[str]) -> int:
    """Do a job; return what it came to."""
    registry = StoreRegistry(job[0])
    try:
        if action == "publish":
            return DONE if registry.publish(Path(job[1]), job[2], job[3]).uploaded else NOTHING_TO_DO
        return DONE if registry.pull(job[2], job[3], Path(job[1])).downloaded_nbytes else NOTHING_TO_DO
    except ParamdeltaError as error:
        return error.exit_code


def child(request: dict[str, Any], job: list[str], gate: tuple[int, int]) -> None:
    """Run in the child and leave without a trace."""
    status = 99
    try:
        os.close(gate[1])
        os.read(gate[0], 1)
        os.fsync = os.fdatasync = without_sync
        if "report" in request:
            instrument(request.get("kill_at", 0), request.get("half", False), Path(request["report"]))
        status = run(request["action"], job)
    finally:
        os._exit(status)


def serve() -> None:
    """Answer requests until there are no more."""
    for line in sys.stdin:
        request = json.loads(line)
        gate, pids = os.pipe(), []
        for job in request["jobs"]:
            pid = os.fork()
            if not pid:
                child(request, job, gate)
            pids.append(pid)
        os.close(gate[0])
        os.close(gate[1])
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)


if __name__ == "__main__":
    if os.environ.get("AWS_ENDPOINT_URL"):
        import s3fs  # noqa: F401  (once here, and not in every child)
    serve()
