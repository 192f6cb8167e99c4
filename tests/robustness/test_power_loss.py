"""The power fails after any call: what was visible is whole, and what was reported done is there for good."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path

import pytest

from tests.robustness.calls import Fault
from tests.robustness.cases import Case, Verb, World
from tests.robustness.commands import Commands
from tests.robustness.disk import Disk, Node, lying

LOCK = "paramdelta.lock"


def events(tape: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in tape.read_text().splitlines()]


def check(case: Case, files: dict[str, Node], what: object, *, done: bool = False) -> None:
    """Check what lies there after a power cut: nothing of the output, or all; of a pulled folder, any whole files."""
    out = case.out.relative_to(case.place).as_posix() + "/"
    seen = {path[len(out) :]: node for path, node in files.items() if path.startswith(out)}
    if case.verb == "pull":
        torn = [name for name, node in seen.items() if node.is_torn and not name.endswith(".tmp")]
        assert not torn, (what, torn)
        if "manifest.json" not in seen and not done:
            return
        seen = {name: node for name, node in seen.items() if not name.endswith(".tmp")}
    if seen or done:
        assert seen.keys() == case.expected.keys(), what
        assert not [name for name, node in seen.items() if node.is_torn], what


def run_and_check(case: Case, disk: Disk, tape: list[dict[str, object]], *, every: int = 1) -> None:
    chance = random.Random(1)
    for number, event in enumerate(tape):
        disk.happens(event)
        for files in disk.after_a_cut(chance) if number % every == 0 else ():
            check(case, files, (number, event))
    for files in disk.after_a_cut(chance):
        check(case, files, "after success", done=True)


def test_at_any_moment(verb: Verb, small: World, commands: Commands, place: Path) -> None:
    case = small.case(verb, place)
    disk, tape = Disk(case.place, lying(case.place)), place.with_name("tape")
    assert commands.run(case.command, tape=tape) == (0, "")
    run_and_check(case, disk, events(tape))


@pytest.mark.parametrize("makes", ["extract", "apply", "publish"])
def test_in_folders_that_were_not_there(makes: Verb, small: World, commands: Commands, place: Path) -> None:
    case = small.case(makes, place, ready=False)
    disk, tape = Disk(case.place, lying(case.place)), place.with_name("tape")
    assert commands.run(case.command, tape=tape) == (0, "")
    run_and_check(case, disk, events(tape))


def test_at_any_moment_after_a_death(verb: Verb, small: World, commands: Commands, place: Path) -> None:
    """A killed run's changes may still not have come to the disk when the next one goes on from them."""
    counted, tape = small.case(verb, place.with_name("counted")), place.with_name("tape")
    assert commands.run(counted.command, tape=tape) == (0, "")
    total = len(events(tape))
    for number in range(2, total, max(1, total // 16)):
        tape.unlink()
        case = small.case(verb, place.with_name(f"place-{number}"))
        disk = Disk(case.place, lying(case.place))
        assert commands.run(case.command, Fault("signal", number, signal.SIGKILL), tape).status == -signal.SIGKILL
        if case.shown or any("/package/." in str(event["path"]) for event in events(tape)[-1:]):
            continue
        assert commands.run(case.command, tape=tape) == (0, ""), number
        run_and_check(case, disk, events(tape), every=5)


@pytest.mark.parametrize("made", ["extract", "publish", "pull"])
def test_the_manifest_is_written_last(made: Verb, small: World, commands: Commands, place: Path) -> None:
    case, tape = small.case(made, place), place.with_name("tape")
    assert commands.run(case.command, tape=tape) == (0, "")
    named = [str(event["to"]) for event in events(tape) if event["call"] in ("rename", "replace")]
    last = next(number for number, path in enumerate(named) if path.endswith("/manifest.json"))
    assert [path for path in named[last + 1 :] if path != str(case.out)] == []


def test_the_model_finds_what_it_should(small: World, commands: Commands, place: Path) -> None:
    """Leave out any one fsync of a file of the package, and a power cut can do harm."""
    case, tape = small.case("publish", place), place.with_name("tape")
    lay = lying(case.place)
    assert commands.run(case.command, tape=tape) == (0, "")
    everything = events(tape)
    inside = [event for event in everything if ".partial/" in str(event["path"])]
    written = {event["inode"] for event in inside if event["call"] == "pwrite"}
    forced = [at for at, event in enumerate(everything) if event["call"] == "fsync" and event["inode"] in written]
    assert len(forced) >= len(case.expected)
    for at in forced:
        with pytest.raises(AssertionError):
            run_and_check(case, Disk(case.place, lay), everything[:at] + everything[at + 1 :])
