"""Two at once on one output, one registry, one repository, and on a package that somebody changes meanwhile."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import paramdelta_hub as pd
from paramdelta_hub.errors import DestinationError, PublishError
from tests.registry.packages import labelled
from tests.robustness.calls import READS, Call, wrap
from tests.robustness.cases import Verb, World, tree
from tests.robustness.commands import Commands
from tests.support.hub import Account, LoopbackHub
from tests.support.hub.client import CallError, Client

RACES = 50
TOKEN = "hf_racer"


@pytest.mark.parametrize("verb", ["extract", "apply"])
def test_races_for_one_output(verb: Verb, small: World, commands: Commands, place: Path) -> None:
    """One wins; the other is told that the place is taken."""
    for number in range(RACES):
        case = small.case(verb, place)
        ended = commands.together(case.command, case.command)
        assert sorted(status for status, _ in ended) == [0, DestinationError.exit_code], (number, ended)
        assert case.is_whole()
        assert case.beside() == []
        shutil.rmtree(place)


def test_races_in_one_folder_registry(small: World, commands: Commands, memory: Path, place: Path) -> None:
    """Two packages as one version: one wins, the other is told, and what is there is one of the two, whole."""
    alone = labelled(small.root / "delta", memory / "alone", name="other")
    pd.publish(alone, f"{memory}/registry/org/delta")
    whole = (small.trees["publish"], tree(memory / "registry/org/delta/1.0.0"))
    for number in range(RACES):
        case = small.case("publish", place)
        other = labelled(small.root / "delta", place / "other", name="other")
        rival = [case.command[0], str(other), *case.command[2:]]
        jobs = [case.command, rival]
        ended = commands.together(*(jobs if number % 2 else jobs[::-1]))
        assert sorted(status for status, _ in ended) == [0, PublishError.exit_code], (number, ended)
        assert tree(case.out) in whole, number
        assert case.beside() == []
        shutil.rmtree(place)


def test_races_of_pulls_into_one_folder(small: World, commands: Commands, place: Path) -> None:
    """Both succeed: the second waits, and finds it done."""
    for number in range(RACES):
        case = small.case("pull", place)
        ended = commands.together(case.command, case.command)
        assert [status for status, _ in ended] == [0, 0], (number, ended)
        assert case.is_whole()
        shutil.rmtree(place)


def test_races_of_one_package(small: World, commands: Commands, place: Path) -> None:
    """Both publish the same: one does it, the other finds it done, or is told that somebody is at it."""
    for number in range(RACES):
        case = small.case("publish", place)
        ended = commands.together(case.command, case.command)
        assert {status for status, _ in ended} in ({0}, {0, PublishError.exit_code}), (number, ended)
        assert case.is_whole()
        shutil.rmtree(place)


@pytest.fixture
def publishers(tmp_path: Path) -> Iterator[tuple[LoopbackHub, Client, Client]]:
    """A Hub on loopback, and two who may publish to it."""
    hub = LoopbackHub()
    hub.accounts = {TOKEN: Account("racer", ("org",))}
    with (
        hub.running(),
        Client(hub.environment(tmp_path / "one", TOKEN)) as one,
        Client(hub.environment(tmp_path / "two", TOKEN)) as two,
    ):
        yield hub, one, two


def test_races_on_one_hub(small: World, publishers: tuple[LoopbackHub, Client, Client], tmp_path: Path) -> None:
    """Two packages as one version of a repository: one wins, the other is told, and the winner's is what one pulls."""
    hub, *clients = publishers
    packages = [labelled(small.root / "delta", tmp_path / name, name=name) for name in ("this", "that")]
    for number in range(RACES):
        repo = f"org/race-{number}"
        for client, package in zip(clients, packages if number % 2 else packages[::-1], strict=True):
            client.begin("publish", package=package, repo=repo, version="1.0.0")
        won, told = [], []
        for client in clients:
            try:
                won.append(client.end()["id"])
            except CallError as error:
                told.append(error.kind)
        assert told == ["publish"], (number, won, told)
        assert clients[0]("pull", repo=repo, revision="1.0.0")["id"] == won[0]
        assert list(hub.repositories[repo].tags) == ["1.0.0"]


class Mutator:
    """A hook that lets the reads pass, and at the chosen one changes a file of the package first."""

    def __init__(self, at: int, change: Callable[[], object]) -> None:
        self._left, self._change = at, change

    def __call__(self, call: Call) -> Any:
        if call.name in READS or (call.name == "open" and not call.changes):
            self._left -= 1
            if self._left == 0:
                self._change()
        return call.make()


def changes(package: Path, other: Path, chance: random.Random) -> Callable[[], object]:
    """Return one thing that somebody may do to a package while it is read."""
    path = chance.choice([path for path in sorted(package.rglob("*")) if path.is_file()])
    content = path.read_bytes()
    place = chance.randrange(len(content))

    def flip() -> None:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :])

    def link() -> None:
        path.unlink()
        path.symlink_to("/etc/passwd")

    def pipe() -> None:
        path.unlink()
        os.mkfifo(path)

    def swap() -> None:
        shutil.copytree(other, package, dirs_exist_ok=True)

    def patch() -> None:
        with path.open("r+b") as file:  # in place: whoever has it open sees it
            file.seek(place)
            file.write(bytes([content[place] ^ 255]))

    return chance.choice(
        [
            flip, link, pipe, swap, patch, path.unlink,
            lambda: os.truncate(path, place),
            lambda: path.write_bytes(content + b"\0"),
            lambda: shutil.copyfile(other / path.relative_to(package), path),
            lambda: shutil.rmtree(package),
        ]
    )  # fmt: skip


def without_card(folder: Path) -> dict[str, str]:
    """Return the digests of all files that a digest somewhere vouches for."""
    return {name: digest for name, digest in tree(folder).items() if name not in ("README.md", "paramdelta.lock")}


@pytest.fixture(scope="module")
def rival(small: World, memory: Path) -> World:
    """Another package with files of the same names and sizes, and what applying it makes."""
    root = memory / "rival"
    labelled(small.root / "delta", root / "delta", name="atled")
    pd.apply(small.root / "target", root / "delta", root / "applied", threads=1)
    return World(root, {})


def do(what: str, package: Path, target: Path, out: Path) -> None:
    """Read a package, and make something of it below ``out``."""
    if what == "apply":
        pd.apply(target, package, out / "applied", threads=1)
    elif what == "verify":
        pd.verify(package)
    elif what == "publish":
        pd.publish(package, f"{out}/org/delta")
    else:
        pd.pull(f"{package.parents[2]}/org/delta@1.0.0", out / "pulled")


@pytest.mark.parametrize("what", ["apply", "verify", "publish", "pull"])
def test_changed_while_it_is_read(
    what: str, small: World, rival: World, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,000 times: the result is that of the package as it was, as it is, or of the other one, or it is refused."""
    chance, refused = random.Random(what), 0
    made = {"apply": "applied", "publish": "org/delta/1.0.0", "pull": "pulled"}.get(what, "nothing")
    right = [without_card(world.root / ("applied" if what == "apply" else "delta")) for world in (small, rival)]
    for number in range(250):
        package, out = place / "registry/org/delta/1.0.0", place / "out"
        shutil.copytree(small.root / "delta", package)
        mutate = Mutator(chance.randint(1, 60), changes(package, rival.root / "delta", chance))
        with monkeypatch.context() as patched:
            wrap(mutate, patched.setattr)
            try:
                do(what, package, small.root / "target", out)
            except pd.ParamdeltaError:
                refused += 1
        if (out / made / "manifest.json" if what == "pull" else out / made).exists():
            found = without_card(out / made)
            if found not in right:
                # A manifest with another letter in a text may be that of a package, too: then of that one.
                do(what, package, small.root / "target", place / "again")
                assert found == without_card(place / "again" / made), number
        shutil.rmtree(place)
    assert 30 < refused < 220
