"""What the tests of this folder see of a command is what the kernel sees: no call goes round the wrapped ones."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.robustness.cases import Verb, World
from tests.robustness.commands import Commands

NAMES = {
    "openat": "open", "pwrite64": "pwrite", "posix_fallocate": "fallocate", "replace": "rename", "renameat": "rename",
    "renameat2": "rename", "remove": "unlink", "unlinkat": "unlink", "mkdirat": "mkdir", "fdatasync": "fsync",
}  # fmt: skip
"""Of the kernel and of Python, for the same."""
TRACED = "openat,pwrite64,pwritev,write,fsync,fdatasync,ftruncate,fallocate,mkdir,mkdirat,rename,renameat,renameat2"
PROGRAM = """
from paramdelta_hub.tasks import plan
plan.TASK_BYTES_MIN = 1
from paramdelta_hub.cli import main
main()
"""


def name(path: str, place: Path) -> str:
    return re.sub(r"\.[0-9a-f]+\.tmp$", ".tmp", Path(path).relative_to(place).as_posix())


def from_tracer(text: str, place: Path) -> Counter[tuple[str, str]]:
    """Count the calls that succeeded, changed a file system, and were about something below ``place``."""
    seen: Counter[tuple[str, str]] = Counter()
    for line in text.splitlines():
        found = re.match(r"(\w+)\((.*)\) += (-?\d+)", line)
        if not found or found[3].startswith("-"):
            continue
        call, arguments = found[1], found[2]
        if call == "openat" and not re.search("O_CREAT|O_TRUNC", arguments):
            continue
        at = re.match(r'(?:\w+<([^>]*)>(?:\(deleted\))?,? ?)?(?:"([^"]*)")?', arguments)
        assert at, line
        path = str(Path(at[1] or "/", "" if "write" in call else at[2] or ""))
        if Path(path).is_relative_to(place):
            call = "rmdir" if call == "unlinkat" and "AT_REMOVEDIR" in arguments else NAMES.get(call, call)
            seen[call, name(path, place)] += 1
    return seen


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_no_call_goes_round(verb: Verb, small: World, commands: Commands, place: Path) -> None:
    case, tape = small.case(verb, place), place.with_name("tape")
    assert commands.run(case.command, tape=tape) == (0, "")
    taped = Counter(
        (NAMES.get(event["call"], event["call"]), name(event["path"], place))
        for event in map(json.loads, tape.read_text().splitlines())
    )
    shutil.rmtree(place)
    case, trace = small.case(verb, place), place.with_name("trace")
    command = ["strace", "-ff", "-y", "-e", f"trace={TRACED},unlink,unlinkat,rmdir", "-o", str(trace)]
    ran = [*command, sys.executable, "-c", PROGRAM, *case.command]
    done = subprocess.run(ran, capture_output=True, text=True, check=False, timeout=120)
    traces = [path.read_text() for path in place.parent.glob("trace.*")]  # one a thread
    if not traces or "Operation not permitted" in done.stderr:
        pytest.skip("this container may not trace")
    assert done.returncode == 0, done.stderr
    assert from_tracer("".join(traces), place) == taped
    assert len(taped) > 20
