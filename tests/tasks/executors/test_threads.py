"""The executor: every task once, the first error wins, nothing runs on after the end."""

from __future__ import annotations

import threading
import time

import pytest

from paramdelta_hub.errors import OptionError
from paramdelta_hub.limits import WORKER_BYTES
from paramdelta_hub.tasks.executors.threads import Interrupted, Stop, default_threads, run_tasks
from paramdelta_hub.tasks.runner import workers


@pytest.mark.parametrize("threads", [0, 1, 2, 7])
def test_every_task_runs_once(threads: int) -> None:
    assert sorted(run_tasks(range(40), lambda number, stop: number, threads)) == list(range(40))
    assert list(run_tasks([], lambda *_: None, threads)) == []


def test_the_largest_begin_first() -> None:
    order: list[int] = []
    list(run_tasks([3, 9, 1, 7], lambda size, stop: order.append(size), 1, size=lambda size: size))
    assert order == [9, 7, 3, 1]
    list(run_tasks([3, 9, 1, 7], lambda size, stop: order.append(size), 1))
    assert order[4:] == [3, 9, 1, 7], "in the order given, without a size"


def test_no_more_than_so_many_at_a_time() -> None:
    running, most, lock = [0], [0], threading.Lock()

    def work(number: int, stop: Stop) -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.005)
        with lock:
            running[0] -= 1

    list(run_tasks(range(30), work, 3))
    assert most[0] == 3


def test_the_first_error_stops_the_others_and_is_raised() -> None:
    started: list[int] = []

    def work(number: int, stop: Stop) -> None:
        started.append(number)
        if number == 0:
            raise ValueError("the disk is full")
        while True:
            stop.check()
            time.sleep(0.001)

    with pytest.raises(ValueError, match="the disk is full"):
        list(run_tasks(range(100), work, 3))
    assert len(started) < 10, "tasks that had not begun never begin"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("paramdelta")]


def test_a_consumer_that_stops_listening_stops_the_work() -> None:
    def work(number: int, stop: Stop) -> int:
        if number:
            while True:
                stop.check()
                time.sleep(0.001)
        return number

    results = run_tasks(range(3), work, 3)
    assert next(results) == 0
    results.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("paramdelta")]


def test_stop() -> None:
    stop = Stop()
    stop.check()
    stop.set()
    with pytest.raises(Interrupted):
        stop.check()


def test_how_many() -> None:
    assert 1 <= default_threads() <= 16
    assert workers(1, WORKER_BYTES) == 1
    assert workers(8, WORKER_BYTES) == 1, "memory for one"
    assert workers(8, 3 * WORKER_BYTES) == 3
    assert workers(8, 100 * WORKER_BYTES) == 8
    assert workers(None, 1000 * WORKER_BYTES) == default_threads()
    for threads, memory in ((0, 1 << 30), (-2, 1 << 30), (1, WORKER_BYTES - 1), (None, 0)):
        with pytest.raises(OptionError):
            workers(threads, memory)
