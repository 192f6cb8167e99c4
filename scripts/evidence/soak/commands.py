"""The soak's commands: real ones, each in a process of its own."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.evidence.soak.models import ROOT, Family
from tests.support.hub import LoopbackHub

__all__ = ["TOKEN", "VERBS", "Ended", "Job", "Process", "job_of"]

VERBS = ("extract", "apply", "verify", "publish", "pull", "publish to the Hub", "pull from the Hub")
TOKEN = "hf_soak"
COMMAND = """
import sys
from paramdelta_hub.tasks import plan
plan.TASK_BYTES_MIN = int(sys.argv.pop(1))  # small tasks, so that small models have several
from paramdelta_hub.cli import main
main(prog_name="paramdelta")
"""


@dataclass
class Ended:
    """How a process ended."""

    status: int
    errors: str
    struck: bool = False
    """Whether it still ran when the signal came."""


class Process:
    """One command under way."""

    def __init__(self, arguments: Sequence[str], task_bytes: int, hub: LoopbackHub, home: Path, limit: int | None):
        def starve() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # told by EFBIG instead
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit or 0, limit or 0))

        self._process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, str(task_bytes), *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,  # a file would be under the limit, too
            env=hub.environment(home, TOKEN, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"),
            preexec_fn=starve if limit is not None else None,
        )

    @property
    def running(self) -> bool:
        """Whether it has not ended, leaving its end to be collected."""
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def strike(self, number: signal.Signals) -> bool:
        """Send a signal; return whether there was anybody to get it."""
        alive = self.running
        os.kill(self._process.pid, number)  # not collected before end(), so the number is still its own
        return alive

    def end(self, struck: bool = False) -> Ended:
        """Wait for it."""
        assert self._process.stderr
        with self._process.stderr as told:
            errors = told.read().decode("utf-8", "replace")
        return Ended(self._process.wait(), errors, struck)


@dataclass(frozen=True)
class Job:
    """A command, what it reads that can be damaged, where it shows its output, and what must be there then."""

    arguments: list[str]
    reads: list[Path]
    out: Path | None
    working: Path | None
    """What is there while it works."""
    expected: dict[str, str]


def job_of(verb: str, family: Family, hub: LoopbackHub, place: Path, root: Path) -> Job:
    """Return a command whose output goes below ``root``; the package it reads is a copy of its own, in ``place``."""
    delta, registry = place / "delta", place / "registry" / "org" / "delta"
    shutil.copytree(family.delta, delta)
    shards = [path for path in sorted(delta.rglob("*")) if path.is_file() and path.name != "manifest.json"]
    if verb == "extract":
        out = root / "out"
        return Job(["extract", str(family.base), str(family.post), "-o", str(out), "--name", "soak"], [], out,
                   root / "out.partial", family.trees["extract"])  # fmt: skip
    if verb == "apply":
        out = root / "out"
        return Job(["apply", str(family.target), str(delta), "-o", str(out)], shards, out,
                   root / "out.partial", family.trees["apply"])  # fmt: skip
    if verb == "verify":
        return Job(["verify", str(delta), "--base", str(family.base)], shards, None, None, {})
    if verb == "publish":
        registry = root / "registry" / "org" / "delta"
        return Job(["publish", str(delta), str(registry)], shards, registry / "1.0.0",
                   registry / "1.0.0.partial", family.trees["publish"])  # fmt: skip
    if verb == "pull":
        shutil.copytree(family.published, registry / "1.0.0")
        reads = [registry / "1.0.0" / path.relative_to(delta) for path in shards]
        return Job(["pull", f"{registry}@1.0.0", "-o", str(root / "out")], reads, root / "out",
                   root / "out", family.trees["publish"])  # fmt: skip
    if verb == "publish to the Hub":
        return Job(["publish", str(delta), "org/delta"], shards, None, None, {})
    published = hub.add("org/delta", family.published)
    published.tags["1.0.0"] = published.head.id
    return Job(["pull", "org/delta@1.0.0", "-o", str(root / "out")], [], root / "out", root / "out",
               family.trees["publish"])  # fmt: skip
