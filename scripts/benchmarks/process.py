"""Run a command as a user would, and say what it took: seconds, peak memory, processor time, bytes read and written."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Command", "Took", "durable", "free_memory", "machine", "run", "touch", "warm"]

# A process's peak memory, as the kernel accounts it, begins with its parent's: so the parent is this, and small. The
# counters of a dead process are read before it is buried.
_LAUNCHER = """
import json, os, sys, time
nowhere = os.open(os.devnull, os.O_WRONLY)
begun = time.perf_counter()
child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, nowhere, 1)])
os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
seconds = time.perf_counter() - begun
try:
    with open(f"/proc/{child}/io") as file:
        io = dict(line.split(": ") for line in file.read().splitlines())
except OSError:
    io = {}
_, status, usage = os.wait4(child, 0)
print(json.dumps({
    "code": os.waitstatus_to_exitcode(status), "seconds": seconds, "peak_mb": usage.ru_maxrss / 1000,
    "user": usage.ru_utime, "system": usage.ru_stime,
    "read": int(io.get("rchar", 0)), "written": int(io.get("wchar", 0)),
}))
"""


@dataclass(frozen=True)
class Took:
    """What one run of a command took."""

    seconds: float
    peak_mb: float
    """Largest resident set, in millions of bytes."""
    user: float
    system: float
    """Seconds of processor time, over all threads."""
    read: int
    written: int
    """Bytes through system calls; what is mapped does not pass there, nor does what the kernel copies by itself."""


@dataclass(frozen=True)
class Command:
    """Something to measure, and what it needs around it."""

    name: str
    argv: Sequence[str]
    reads: Sequence[Path]
    """Folders that it reads; they are read just before, so that it finds them in memory, if they fit."""
    output: Path | None
    """What it makes; None if it only reads."""
    memory: int = 0
    """Bytes of memory that it can't do without, where that grows with the model."""
    env: Mapping[str, str] = field(default_factory=dict)
    prepare: Sequence[str] = ()
    prepared: Path | None = None
    """A command to run once, before all rounds, and the folder that it makes."""
    makes_model: bool = False
    """Whether the output is target + post − base, and can be compared with the formula."""


def durable(argv: Sequence[str]) -> list[str]:
    """Return a command that ends when the disk has what this one writes, for one that does not care itself."""
    return ["sh", "-c", '"$@" && sync', "sh", *argv]


def run(command: Sequence[str], env: Mapping[str, str] | None = None) -> Took:
    """Run a command to its end; what it prints goes nowhere, but for its errors. A failure ends the benchmark."""
    launch = [sys.executable, "-I", "-S", "-c", _LAUNCHER, *command]
    answer = json.loads(
        subprocess.run(launch, env={**os.environ, **(env or {})}, stdout=subprocess.PIPE, check=True).stdout
    )
    if code := answer.pop("code"):
        sys.exit(f"{' '.join(command)} ended with {code}")
    return Took(**answer)


def free_memory() -> int:
    """Return the bytes of memory that nothing uses, not even the page cache."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def warm(folder: Path) -> None:
    """Read every file of weights once, so that it lies in the page cache, if it fits."""
    for path in folder.rglob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def touch(nbytes: int) -> None:
    """Write to memory and give it back: virtual machines lend a page on its first use, at a tenth of the speed."""
    # In a process of its own, so that the memory really goes back.
    subprocess.run([sys.executable, "-c", f"import numpy; numpy.ones({nbytes // 8})"], check=True)


def machine() -> dict[str, Any]:
    """Describe the machine: processor, memory, system, and where the work lies."""
    return {
        "processor": _cpu_name() or platform.processor() or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
