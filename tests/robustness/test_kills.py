"""Killed, interrupted and terminated at hundreds of calls: nothing half-done is seen, and running again finishes."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.robustness.calls import Fault
from tests.robustness.cases import Verb, World
from tests.robustness.commands import Commands, finish, paths_of

INTERRUPTED = 130


def spread(total: int, count: int) -> list[int]:
    """Return so many numbers from 1 to ``total``, evenly spread, and the last of them, a fifth as many."""
    return sorted({1 + number * total // count for number in range(count)} | set(range(total - count // 5, total + 1)))


def test_killed_at_many_points(verb: Verb, large: World, commands: Commands, place: Path) -> None:
    """``kill -9`` before calls that change a file system, and in the middle of writes."""
    paths = paths_of(commands, large.case(verb, place))
    points = [(number, half) for number in spread(len(paths), 110) for half in (False, True)]
    assert len(points) >= 220
    for number, half in points:
        case = large.case(verb, place)
        ended = commands.run(case.command, Fault("signal", number, signal.SIGKILL, half))
        assert ended == (-signal.SIGKILL, ""), (number, half)
        finish(commands, case, (number, half))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_at_many_points(
    verb: Verb, large: World, commands: Commands, place: Path, number: signal.Signals
) -> None:
    """Ctrl-C ends with 130 and a sentence; SIGTERM with the signal, as for any program that does not catch it."""
    paths = paths_of(commands, large.case(verb, place))
    points = spread(len(paths), 30)
    assert len(points) >= 30
    for point in points:
        case = large.case(verb, place)
        status, errors = commands.run(case.command, Fault("signal", point, number))
        if number == signal.SIGTERM:
            assert (status, errors) == (-number, ""), point
        else:
            assert status == INTERRUPTED, (point, errors)
            assert errors == "Interrupted. Run the same command again to resume.\n", point
        finish(commands, case, point)
