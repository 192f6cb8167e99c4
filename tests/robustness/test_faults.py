"""The disk is full, fails, or does less than asked, at each call in turn: a clear error, and running again finishes."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from paramdelta_hub.errors import RegistryError, SourceError, StorageError
from tests.robustness.calls import Among, Fault
from tests.robustness.cases import Case, Verb, World
from tests.robustness.commands import Commands, Ended, finish, paths_of
from tests.support.hub import LoopbackHub

ERRORS = [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EINTR]
"""The kernel's own EINTR comes further below."""


def is_told(case: Case, ended: Ended, number: int, what: object) -> bool:
    """Check how a run under a fault ended; return whether the fault ended it."""
    if ended.status == 0:  # what failed was not needed: looking whether something is there, clearing away
        assert case.is_whole(), what
        return False
    assert ended.status in {error.exit_code for error in (StorageError, SourceError, RegistryError)}, (what, ended)
    assert ended.errors.startswith("error: "), (what, ended)
    assert os.strerror(number) in ended.errors, (what, ended)
    assert ended.status == SourceError.exit_code or "→" in ended.errors, (what, ended)
    return True


@pytest.mark.parametrize("number", ERRORS, ids=[errno.errorcode[number] for number in ERRORS])
def test_each_change_fails_once(verb: Verb, small: World, commands: Commands, place: Path, number: int) -> None:
    paths = paths_of(commands, small.case(verb, place))
    points = range(1, len(paths) + 1)
    told = 0
    for at in points:
        case, what = small.case(verb, place), (at, paths[at - 1])
        told += is_told(case, commands.run(case.command, Fault("errno", at, number)), number, what)
        finish(commands, case, what)
    assert told > 0.5 * len(points)


def fail_once_each(verb: Verb, world: World, commands: Commands, place: Path, among: Among) -> float:
    """Let every so many-th such call fail in turn; return which share of the runs it ended."""
    paths = paths_of(commands, world.case(verb, place), among)
    told = 0
    points = list(enumerate(paths, start=1))
    for at, path in points:
        case = world.case(verb, place)
        ended = commands.run(case.command, Fault("errno", at, errno.EIO, among=among))
        told += is_told(case, ended, errno.EIO, (at, path))
        finish(commands, case, (at, path))
    return told / len(points)


def test_each_read_fails_once(verb: Verb, small: World, commands: Commands, place: Path) -> None:
    assert fail_once_each(verb, small, commands, place, "reads") > 0.3


def test_each_listing_fails_once(verb: Verb, small: World, commands: Commands, place: Path) -> None:
    assert fail_once_each(verb, small, commands, place, "lists") > 0.1


@pytest.mark.parametrize("most", [1, 4099, 0], ids=["a byte", "a page", "half"])
def test_every_write_is_short(verb: Verb, small: World, commands: Commands, place: Path, most: int) -> None:
    """The kernel may move fewer bytes than it was asked to, at any time."""
    case = small.case(verb, place)
    assert commands.run(case.command, Fault("short", 0, most)) == (0, "")
    assert case.is_whole()


@pytest.mark.parametrize("most", [1, 0], ids=["a byte", "half"])
def test_every_read_is_short(verb: Verb, small: World, commands: Commands, place: Path, most: int) -> None:
    case = small.case(verb, place)
    assert commands.run(case.command, Fault("short", 0, most, among="reads")) == (0, "")
    assert case.is_whole()


def test_signals_as_often_as_can_be(verb: Verb, large: World, commands: Commands, place: Path) -> None:
    """A signal whose handler does nothing breaks off what the kernel does for us (EINTR), some thousand times."""
    case = large.case(verb, place)
    assert commands.run(case.command, Fault("storm", 0, 200)) == (0, "")
    assert case.is_whole()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB in memory."""
    if os.geteuid() or not sys.platform.startswith("linux"):
        pytest.skip("mounting needs root")
    mounted = tmp_path / "disk"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mounted)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this container may not mount")
    yield mounted
    subprocess.run(["umount", str(mounted)], check=True)


def test_a_full_disk(verb: Verb, small: World, commands: Commands, disk: Path) -> None:
    """A file system with no mocks and so many pages left, from none to enough."""
    enough = 0
    for pages in range(42):
        case = small.case(verb, disk / "place")
        with (disk / "ballast").open("wb") as ballast:
            free = os.statvfs(disk).f_bavail
            os.posix_fallocate(ballast.fileno(), 0, max(1, (free - pages) * 4096))
        ended = commands.run(case.command)
        (disk / "ballast").unlink()
        enough += not is_told(case, ended, errno.ENOSPC, pages) if "needs" not in ended.errors else 0
        finish(commands, case, pages)
    assert 0 < enough < len(range(42))


def run_limited(command: list[str], environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, with no mocks, in which the kernel lets no file exceed 700 bytes."""
    program = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700)); from paramdelta_hub.cli import main; main()"
    )
    arguments = [sys.executable, "-c", program, *command]
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_limit_on_file_sizes_while_the_hub_sends(small: World, tmp_path: Path) -> None:
    hub = LoopbackHub()
    repository = hub.add("org/delta", small.root / "registry/org/delta/1.0.0")
    repository.tags["1.0.0"] = repository.head.id
    with hub.running():
        done = run_limited(["pull", "org/delta@1.0.0", "-o", str(tmp_path / "out")], hub.environment(tmp_path / "home"))
    assert done.returncode == StorageError.exit_code, done.stderr
    assert "File too large" in done.stderr
    assert "connection" not in done.stderr


def test_a_limit_on_file_sizes(verb: Verb, small: World, place: Path, commands: Commands) -> None:
    """The kernel's own refusal (EFBIG)."""
    case = small.case(verb, place)
    done = run_limited(case.command)
    assert (done.returncode, done.stdout) == (StorageError.exit_code, "")
    assert "File too large" in done.stderr
    assert "→" in done.stderr
    assert not case.shown
    finish(commands, case, "the limit")


def test_the_faults_strike(small: World, commands: Commands, place: Path) -> None:
    """An error that nobody expects gets through: the tests above can fail."""
    case = small.case("extract", place)
    told = {commands.run(case.command, Fault("errno", at, errno.EIO)).status for at in range(1, 9)}
    assert told == {StorageError.exit_code}
    shutil.rmtree(case.place)
