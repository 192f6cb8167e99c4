"""A Hub on loopback for the tests of the registry: one Hub and one client process a module, a repository a test."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Family
from tests.hub import Account, LoopbackHub
from tests.hub.client import Client
from tests.registry.packages import altered, labelled

ALICE, BOB = "hf_alices_secret", "hf_bobs_secret"
"""Alice belongs to ``org``; Bob does not."""


@pytest.fixture(scope="module")
def started() -> Iterator[LoopbackHub]:
    made = LoopbackHub()
    made.accounts = {ALICE: Account("alice", ("org",)), BOB: Account("bob")}
    with made.running():
        yield made


@pytest.fixture
def hub(started: LoopbackHub) -> LoopbackHub:
    """The module's Hub, without faults and with nothing asked of it yet."""
    started.faults, started.requests = [], []
    started.page_size, started.part_bytes, started.xet = 1000, None, None
    return started


@pytest.fixture(scope="module")
def new_client(started: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Client]]:
    """Start a client process: with a token, with a cache of its own unless ``home`` is given."""
    with ExitStack() as stack:

        def start(token: str | None = ALICE, home: Path | None = None, **extra: str) -> Client:
            environment = started.environment(home or tmp_path_factory.mktemp("hf"), token, **extra)
            return stack.enter_context(Client(environment))

        yield start


@pytest.fixture(scope="module")
def client(new_client: Callable[..., Client]) -> Client:
    """Alice."""
    return new_client()


@pytest.fixture(scope="module")
def bob(new_client: Callable[..., Client]) -> Client:
    return new_client(BOB)


@pytest.fixture
def repo(request: pytest.FixtureRequest) -> str:
    """A repository that is this test's own, and does not exist yet."""
    return "org/" + re.sub(r"[^A-Za-z0-9]+", "-", request.node.name)[:80].strip("-")


@dataclass(frozen=True)
class Packages:
    """Packages of one delta: two versions, another content under the first's version, and a pre-release."""

    v1: Path
    v2: Path
    other: Path
    early: Path


@pytest.fixture(scope="session")
def packages(shared_family: Family, tmp_path_factory: pytest.TempPathFactory) -> Packages:
    root = tmp_path_factory.mktemp("packages")
    delta = shared_family.delta
    return Packages(
        labelled(delta, root / "v1", "1.0.0"),
        labelled(delta, root / "v2", "1.10.0"),
        altered(delta, root / "other", "1.0.0"),
        labelled(delta, root / "early", "2.0.0-rc.1"),
    )
