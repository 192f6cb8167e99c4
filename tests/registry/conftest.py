"""Servers on loopback for the tests of the registry: a Hub and a client process a module, an S3 server in all."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import fsspec
import pytest

from tests.conftest import Family
from tests.registry.packages import altered, labelled
from tests.support.hub import Account, LoopbackHub
from tests.support.hub.client import Client

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
    started.cdn, started.renamed, started.bare, started.date = False, {}, set(), None
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


def start_server(log: IO[bytes]) -> tuple[subprocess.Popen[bytes], str]:
    """Start an S3 server and wait until it answers; on another port if somebody took the first one meanwhile."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=log, stderr=log)
        while server.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return server, f"http://127.0.0.1:{port}"
            time.sleep(0.1)
        assert b"in use" in Path(log.name).read_bytes(), "the server ends at once"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an S3 server that has the bucket ``deltas``."""
    with open(tmp_path_factory.mktemp("s3") / "log", "wb") as log:
        server, address = start_server(log)
        try:
            fsspec.filesystem("s3", key="somebody", secret="not-so-secret", endpoint_url=address).mkdir("deltas")
            yield address
        finally:
            server.terminate()
            server.wait()


@pytest.fixture(scope="module")
def endpoint(server: str) -> Iterator[str]:
    """The S3 server's address; the environment points to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server)
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "not-so-secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        yield server
