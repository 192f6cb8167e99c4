"""Workers in other processes: they answer, fail, die and are ended as those of this process would be."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paramdelta_hub.errors import DestinationError, MismatchError, ParamdeltaError, StorageError
from paramdelta_hub.work.answers import ATTEMPTS, Perform, answer, outcome_of
from paramdelta_hub.work.destination import Destination
from paramdelta_hub.work.processes import Processes
from paramdelta_hub.work.threads import Interrupted, Stop, run_tasks
from tests.work import performing

ROOT = Path(__file__).parents[2]


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[int]:
    with Destination(tmp_path / "out") as destination:
        yield destination.lock


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited for a minute"
        time.sleep(0.01)


def test_workers_answer_and_are_used_again(tmp_path: Path, lock: int) -> None:
    with Processes(performing.square, str(tmp_path), "d" * 64, lock) as processes:
        tasks = [(number, {"bytes": 1}) for number in range(12)]
        found = dict(run_tasks(tasks, lambda number, _, stop: (number, processes.run(number, stop)), 2))
    assert {number: outcome["square"] for number, outcome in found.items()} == {n: n * n for n in range(12)}
    pids = {outcome["pid"] for outcome in found.values()}
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert {(outcome["books"], outcome["digest"], len(outcome["long"])) for outcome in found.values()} == {
        (str(tmp_path), "d" * 64, 300_000)
    }
    assert not any(map(is_alive, pids))


def test_errors_come_back_as_what_they_were(tmp_path: Path, lock: int) -> None:
    with Processes(performing.fail, str(tmp_path), "", lock) as processes:
        with pytest.raises(StorageError) as ours:
            processes.run(2, Stop())
        with pytest.raises(RuntimeError, match=r"(?s)a mistake of the programmer's") as theirs:
            processes.run(3, Stop())
        with pytest.raises(StorageError):
            processes.run(4, Stop())  # the worker has survived both
    assert (ours.value.what, ours.value.where, ours.value.remedy) == (
        "the disk is full",
        str(tmp_path),
        "free some space",
    )
    assert "performing.py" in str(theirs.value), "it says where"


def test_every_error_survives_the_way() -> None:
    def performing(kind: type[ParamdeltaError]) -> Perform:
        def perform(books: str, digest: str, number: int) -> dict[str, Any]:
            raise kind("what", where="where", remedy="remedy")

        return perform

    for kind in (ParamdeltaError, DestinationError, StorageError, MismatchError):
        with pytest.raises(kind) as caught:
            outcome_of(answer(performing(kind), "", "", 0))
        assert type(caught.value) is kind
        assert str(caught.value) == "where: what\n  → remedy"


@pytest.mark.parametrize("deaths", [1, ATTEMPTS - 1])
def test_a_task_whose_worker_dies_is_done_again(tmp_path: Path, lock: int, deaths: int) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    with Processes(performing.die_at_first, str(marks), str(deaths), lock) as processes:
        tasks = [(number, {"bytes": 1}) for number in range(6)]
        found = dict(run_tasks(tasks, lambda number, _, stop: (number, processes.run(number, stop)), 2))
    assert found == {number: {"number": number} for number in range(6)}
    assert len(list(marks.iterdir())) == deaths


def test_a_task_that_kills_its_workers_is_given_up(tmp_path: Path, lock: int) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    with (
        Processes(performing.die_at_first, str(marks), "99", lock) as processes,
        pytest.raises(ParamdeltaError, match=r"3 workers died at task 3: killed by signal 9(?s:.*)fewer --threads"),
    ):
        processes.run(3, Stop())
    assert len(list(marks.iterdir())) == ATTEMPTS


def test_who_is_asked_to_stop_kills_its_worker(tmp_path: Path, lock: int) -> None:
    stop, ended = Stop(), []
    with Processes(performing.sleep, str(tmp_path), "", lock) as processes:

        def work() -> None:
            try:
                processes.run(7, stop)
            except Interrupted:
                ended.append(True)

        thread = threading.Thread(target=work)
        thread.start()
        written = tmp_path / "7.pid"
        wait_for(lambda: written.exists() and written.read_text())
        stop.set()
        thread.join(60)
        assert ended == [True]
    assert not is_alive(int(written.read_text()))


_PARENT = """
import sys
from pathlib import Path
from paramdelta_hub.work.destination import Destination
from paramdelta_hub.work.processes import Processes
from paramdelta_hub.work.threads import Stop
from tests.work import performing

with Destination(Path(sys.argv[1], "out")) as destination:
    with Processes(performing.sleep, sys.argv[1], "", destination.lock) as processes:
        processes.run(1, Stop())
"""


def test_no_worker_outlives_its_parent_and_until_then_it_holds_the_lock(tmp_path: Path) -> None:
    """``kill -9`` of the parent: the place is free when, and only when, the last worker is gone."""
    parent = subprocess.Popen([sys.executable, "-c", _PARENT, str(tmp_path)], cwd=ROOT)
    written = tmp_path / "1.pid"
    wait_for(lambda: written.exists() and written.read_text())
    worker = int(written.read_text())
    parent.kill()
    parent.wait()

    def is_free() -> bool:
        try:
            with Destination(tmp_path / "out"):
                assert not is_alive(worker)
                return True
        except DestinationError:
            return False

    wait_for(is_free)
