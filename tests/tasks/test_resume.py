"""Killed, failed, interrupted and raced runs: nothing half-done is ever seen, and running again finishes the job."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import paramdelta_hub as pd
from paramdelta_hub.errors import DestinationError, StorageError
from paramdelta_hub.tasks import plan
from tests.conftest import Family, make_family
from tests.support.models import read_weights, tuned, write_model
from tests.tasks.forking import Forks, inputs, make_older, tree

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Models of two shards, so that there are several tasks."""
    return make_family(tmp_path_factory.mktemp("resume"), seed=3, shards=2)


@pytest.fixture
def expected(operation: str, models: Family, forks: Forks, tmp_path: Path) -> dict[str, str]:
    assert forks.ask(operation, *inputs(operation, models), tmp_path / "undisturbed" / "out") == [0]
    return tree(tmp_path / "undisturbed" / "out")


def count_calls(operation: str, models: Family, forks: Forks, root: Path, **options: Any) -> int:
    report = root / "calls"
    assert forks.ask(
        operation, *inputs(operation, models), root / "counted" / "out", report=str(report), **options
    ) == [0]
    return int(report.read_text())


def finish(operation: str, models: Family, forks: Forks, out: Path, expected: dict[str, str], what: object) -> None:
    """Run again, undisturbed; the result is the one of a run that was never disturbed, and nothing else remains."""
    if out.exists():
        assert tree(out) == expected, f"{what}: something half-done is visible"
    else:
        assert forks.ask(operation, *inputs(operation, models), out) == [0], what
    assert tree(out) == expected, what
    for partial in out.parent.glob("*.partial"):
        shutil.rmtree(partial)  # left behind only by a death after the result was whole


@pytest.mark.parametrize("half", [False, True], ids=["before", "half-way"])
def test_killed_at_every_call(
    operation: str, models: Family, forks: Forks, tmp_path: Path, expected: dict[str, str], half: bool
) -> None:
    """``kill -9`` before, or in the middle of, every call that changes a file system."""
    total = count_calls(operation, models, forks, tmp_path)
    assert total > 25
    for number in range(1 + half, total + 1):
        out = tmp_path / "out"
        status = forks.ask(
            operation, *inputs(operation, models), out, report=str(tmp_path / "x"), kill_at=number, half=half
        )
        assert status == [-signal.SIGKILL]
        finish(operation, models, forks, out, expected, number)
        shutil.rmtree(out)


def test_killed_again_and_again(
    operation: str, models: Family, forks: Forks, tmp_path: Path, expected: dict[str, str]
) -> None:
    """Killed up to five times in a row, each time somewhere else."""
    total, source = count_calls(operation, models, forks, tmp_path), random.Random(1)
    for _ in range(60):
        out, deaths = tmp_path / "out", []
        for _ in range(source.randint(2, 5)):
            if not out.exists():
                deaths.append(source.randint(1, total))
                forks.ask(
                    operation,
                    *inputs(operation, models),
                    out,
                    report=str(tmp_path / "x"),
                    kill_at=deaths[-1],
                    half=True,
                )
        finish(operation, models, forks, out, expected, deaths)
        shutil.rmtree(out)


def test_killed_while_replacing(
    operation: str, models: Family, forks: Forks, tmp_path: Path, expected: dict[str, str]
) -> None:
    """With overwrite: the old result, or the new one, and where the file system can exchange two, nothing between."""
    overwrite = {"overwrite": True}
    older = make_older(operation, models, tmp_path / "older")
    old = tree(older)
    shutil.copytree(older, tmp_path / "counted" / "out")
    total = count_calls(operation, models, forks, tmp_path, options=overwrite)
    seen = set()
    for number in range(1, total + 1):
        out = tmp_path / "out"
        shutil.copytree(older, out)
        forks.ask(
            operation, *inputs(operation, models), out, options=overwrite, report=str(tmp_path / "x"), kill_at=number
        )
        if not out.exists():
            assert tree(tmp_path / "out.partial" / "replaced") == old, number
            assert tree(tmp_path / "out.partial" / "result") == expected, number
        else:
            seen.add("old" if tree(out) == old else "new")
            assert tree(out) in (old, expected), number
        assert forks.ask(operation, *inputs(operation, models), out, options=overwrite) == [0], number
        assert tree(out) == expected, number
        assert [path.name for path in tmp_path.glob("*.partial")] == [], number
        shutil.rmtree(out)
    assert seen == {"old", "new"}


def test_another_plan_between(
    operation: str, models: Family, forks: Forks, tmp_path: Path, expected: dict[str, str]
) -> None:
    """Plan A killed, plan B killed at every call, plan A again: B's beginnings must not get in A's way."""
    out, report = tmp_path / "out", str(tmp_path / "x")
    total = count_calls(operation, models, forks, tmp_path)
    for number in range(1, min(total, 30)):
        forks.ask(operation, *inputs(operation, models), out, report=report, kill_at=total * 2 // 3)
        assert (tmp_path / "out.partial" / "plan.json").exists()
        forks.ask(
            operation, *inputs(operation, models), out, options={"rules": ["norm"]}, report=report, kill_at=number
        )
        finish(operation, models, forks, out, expected, number)
        shutil.rmtree(out)


def test_finished_tasks_are_not_done_again(models: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "TASK_BYTES_MIN", 1)
    for operation in ("extract", "apply"):
        run = getattr(pd, operation)

        class StopsLate(pd.Progress):
            tasks = 0

            def advance(self, nbytes: int) -> None:
                self.tasks += nbytes > 0
                if self.tasks == 5:
                    raise StorageError("enough")

        out = tmp_path / operation
        with pytest.raises(StorageError, match="enough"):
            run(*inputs(operation, models), out, threads=1, progress=StopsLate())
        assert not out.exists()
        report = run(*inputs(operation, models), out, threads=1)
        assert report.resumed_tasks >= 1


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "receipt"])
def test_a_damaged_piece_is_made_again(
    operation: str, models: Family, forks: Forks, tmp_path: Path, expected: dict[str, str], damage: str
) -> None:
    """A receipt is believed only as far as the bytes it speaks of still have their digest."""
    total = count_calls(operation, models, forks, tmp_path)
    out, work_dir = tmp_path / "out", tmp_path / "out.partial"
    tried = 0
    for number in range(total // 3, total, 5):
        forks.ask(operation, *inputs(operation, models), out, report=str(tmp_path / "x"), kill_at=number)
        if out.exists():
            break
        files = sorted([*(work_dir / "pieces").iterdir(), *(work_dir / "result").iterdir()])
        if damage == "receipt":
            files = sorted((work_dir / "receipts").glob("*.json"))
        if files:
            tried += 1
            file = files[number % len(files)]
            content = file.read_bytes()
            if damage == "flip":
                file.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:] if len(content) > 5 else b"")
            elif damage == "truncate":
                file.write_bytes(content[: len(content) // 2])
            else:
                file.unlink()
        finish(operation, models, forks, out, expected, number)
        shutil.rmtree(out)
    assert tried > 2


def test_races(operation: str, models: Family, forks: Forks, tmp_path: Path, expected: dict[str, str]) -> None:
    """25 races of three processes for one OUT (50 with both operations): one wins, the others are told so."""
    for number in range(25):
        out = tmp_path / f"race{number}"
        statuses = forks.ask(operation, *inputs(operation, models), out, race=3)
        assert sorted(statuses) == [0, DestinationError.exit_code, DestinationError.exit_code], number
        assert tree(out) == expected
        shutil.rmtree(out)


def test_a_finished_race_leaves_nothing_behind(models: Family, forks: Forks, tmp_path: Path) -> None:
    for number in range(15):
        forks.ask("apply", *inputs("apply", models), tmp_path / f"race{number}", race=4)
    assert sorted(path.name for path in tmp_path.glob("*.partial")) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_every_failing_call_is_a_clear_error_and_can_be_resumed(
    operation: str, models: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The disk is full, or fails, at each call that could tell; then it works again."""
    monkeypatch.setattr(plan, "TASK_BYTES_MIN", 1)
    run, real = getattr(pd, operation), {name: getattr(os, name) for name in ("pwrite", "fsync", "fdatasync",
    "ftruncate", "posix_fallocate", "mkdir", "rename", "replace", "open")}  # fmt: skip
    run(*inputs(operation, models), tmp_path / "undisturbed", threads=1)
    expected = tree(tmp_path / "undisturbed")
    state = {"made": 0, "fail_at": 0}

    def wrap(name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            if name == "open" and not args[1] & os.O_CREAT:
                return real[name](*args, **options)
            if name == "mkdir" and os.path.isdir(args[0]):
                return real[name](*args, **options)  # mkdir(exist_ok=True): whatever it says, the folder is there
            state["made"] += 1
            if state["made"] == state["fail_at"]:
                raise OSError(number, os.strerror(number))
            return None if "sync" in name else real[name](*args, **options)

        return call

    for name in real:
        monkeypatch.setattr(os, name, wrap(name))
    run(*inputs(operation, models), tmp_path / "counted", threads=1)
    total = state["made"]
    assert total > 25
    for at in range(1, total + 1):
        out = tmp_path / "out"
        state.update(made=0, fail_at=at)
        with pytest.raises(StorageError, match=f"(?s){os.strerror(number)}.*→"):  # and says what helps
            run(*inputs(operation, models), out, threads=1)
        state["fail_at"] = 0
        if out.exists():  # the rename was made, but the disk would not confirm it
            assert tree(out) == expected, at
        else:
            run(*inputs(operation, models), out, threads=1)
        assert tree(out) == expected, at
        shutil.rmtree(out)
        shutil.rmtree(tmp_path / "out.partial", ignore_errors=True)


_LIMITED = """
import resource, signal, sys
import paramdelta_hub as pd
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
try: getattr(pd, sys.argv[2])(*sys.argv[3:])
except pd.StorageError as error: print(error); sys.exit(7)
"""


def test_a_limit_on_file_sizes(
    operation: str, models: Family, tmp_path: Path, expected: dict[str, str], forks: Forks
) -> None:
    """The kernel's own refusal (EFBIG), in a process of its own, with no mocks."""
    out = tmp_path / "out"
    arguments = [operation, *map(str, inputs(operation, models)), str(out)]
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, "700", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 7, done.stderr
    assert "File too large" in done.stdout
    assert not out.exists()
    finish(operation, models, forks, out, expected, "after the limit")


def test_a_disk_that_is_too_small(
    operation: str, models: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Free space is looked at before anything is written."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=-(1 << 20)))
    with pytest.raises(StorageError, match=r"needs .*B; .* are free"):
        getattr(pd, operation)(*inputs(operation, models), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.geteuid() != 0 or not sys.platform.startswith("linux"), reason="mounting needs root")
def test_a_full_disk(operation: str, models: Family, tmp_path: Path, expected: dict[str, str], forks: Forks) -> None:
    """A tmpfs of 12 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", str(disk)], capture_output=True, check=False
    ).returncode:
        pytest.skip("this container may not mount")
    try:
        with pytest.raises(StorageError) as caught:
            getattr(pd, operation)(*inputs(operation, models), disk / "out", threads=1)
        assert "space" in str(caught.value)
        assert not (disk / "out").exists()
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        finish(operation, models, forks, disk / "out", expected, "a larger disk")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


_SLOW = """
import sys, time
import paramdelta_hub as pd
class Slow(pd.Progress):
    def advance(self, nbytes):
        print("working", flush=True); time.sleep(0.02)

from paramdelta_hub.tasks import plan
plan.TASK_BYTES_MIN = 1
try: getattr(pd, sys.argv[1])(*sys.argv[2:], progress=Slow(), threads=2)
except KeyboardInterrupt: sys.exit(130)
"""


def test_ctrl_c(operation: str, models: Family, tmp_path: Path, expected: dict[str, str], forks: Forks) -> None:
    """SIGINT in the middle ends the run promptly, with no result, no lock and no damage."""
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW, operation, *map(str, inputs(operation, models)), str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    for _ in range(3):
        process.stdout.readline()
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130, errors
    assert time.monotonic() - start < 5
    assert not out.exists()
    finish(operation, models, forks, out, expected, "Ctrl-C")


@pytest.mark.slow
def test_kill_9_at_random_moments(operation: str, forks: Forks, tmp_path: Path) -> None:
    """Processes on 30 MB models, killed from outside at twelve random moments, whatever they do; then run to the end.

    The moments are of the time that a first run takes. Where it ends sooner, the machine was busier then.
    """
    noise = torch.Generator().manual_seed(0)
    base = {f"layers.{n}.weight": torch.randn(600, 2100, generator=noise).bfloat16() for n in range(12)}
    models = {"base": base, "post": tuned(base, 1), "target": tuned(base, 2)}
    for name, tensors in models.items():
        write_model(tmp_path / name, tensors, shards=3)
    family = Family(tmp_path / "base", tmp_path / "post", tmp_path / "target", tmp_path / "delta")
    pd.extract(family.base, family.post, family.delta)

    def run(out: Path, kill_after: float | None) -> int:
        (status,) = forks.ask(operation, *inputs(operation, family), out, threads=2, kill_after=kill_after)
        return status

    reference, out = tmp_path / "reference" / "out", tmp_path / "out"
    start = time.monotonic()
    assert run(reference, None) == 0
    duration, expected, source, killed = time.monotonic() - start, tree(reference), random.Random(12), 0
    while killed < 12:
        afresh = not (tmp_path / "out.partial").exists()
        status = run(out, source.uniform(0.05, 0.95) * duration)
        assert status in (0, -signal.SIGKILL)
        if status:
            killed += 1
        elif afresh:
            duration /= 2
        if out.exists():
            assert tree(out) == expected
            shutil.rmtree(out)
            shutil.rmtree(tmp_path / "out.partial", ignore_errors=True)
    assert run(out, None) == 0
    assert tree(out) == expected
    assert not (tmp_path / "out.partial").exists()


def test_inputs_that_change_start_afresh(models: Family, forks: Forks, tmp_path: Path) -> None:
    """A base that was changed after the first attempt is another plan: nothing of the old attempt is used."""
    root = tmp_path / "models"
    shutil.copytree(models.base.parent, root)
    out = tmp_path / "out"
    total = count_calls("extract", models, forks, tmp_path)
    forks.ask("extract", root / "base", root / "post", out, report=str(tmp_path / "x"), kill_at=total - 10)
    assert list((tmp_path / "out.partial" / "receipts").iterdir())
    write_model(root / "base", tuned(read_weights(root / "base"), 77), shards=2)
    report = pd.extract(root / "base", root / "post", out)
    assert report.resumed_tasks == 0
    pd.verify(out, base=root / "base", post=root / "post")
