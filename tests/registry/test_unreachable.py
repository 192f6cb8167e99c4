"""A Hub or a bucket that is not there, refuses, breaks or is silent: every command ends with exit 8 and names the host.

Only what is about a model, and not about the server, is exit 3: there is none, or it is not for this account.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from paramdelta_hub import limits
from paramdelta_hub.cli import main
from paramdelta_hub.registry.stores import bucket
from tests.conftest import Family
from tests.registry.conftest import Packages
from tests.registry.hub.test_registry import published
from tests.support.hub import Fault, LoopbackHub
from tests.support.hub.client import Client

REGISTRY = {
    "pull": "pull DELTA",
    "pull a version": "pull DELTA@1.0.0 -o OUT",
    "publish": "publish PACKAGE DELTA",
    "search": "search ships",
    "search for a model": "search --base TARGET",
    "versions": "versions DELTA",
    "yank": "yank DELTA 1.0.0 --reason wrong",
    "take back": "yank DELTA 1.0.0 --undo",
    "apply": "apply TARGET DELTA -o OUT",
    "verify": "verify DELTA",
    "inspect": "inspect DELTA",
    "compare": "inspect DELTA PACKAGE",
    "relabel": "relabel DELTA -o OUT --version 2.0.0",
    "catalog": "catalog -o OUT",
}
"""Every command that asks a registry."""
ON_THE_HUB = REGISTRY | {
    "propose": "publish PACKAGE DELTA --create-pr",
    "link": "link DELTA MODEL",
    "unlink": "link DELTA MODEL --remove",
    "search for a model of the Hub": "search --base MODEL",
    "apply to a model": "apply MODEL PACKAGE -o OUT",
    "stream": "apply MODEL PACKAGE -o OUT --stream",
    "preview": "apply MODEL PACKAGE -o OUT --dry-run",
    "extract": "extract MODEL MODEL@main -o OUT",
    "verify against a model": "verify PACKAGE --base MODEL",
}
FILES = "(GET|HEAD) .*/resolve/"
"""Requests for files."""
OF_FILES = ["pull", "pull a version", "apply", "verify", "inspect", "relabel", "link", "extract", "stream"]
FAULTS = {
    "silent": Fault("mute"),
    "drops": Fault("drop", value=1),
    "slow": Fault("slow head"),
    "broken": Fault("status", value=500),
    "busy": Fault("status", value=503, after=600),
    "too many": Fault("status", value=429, after=600),
    "refused": Fault("status", value=403, text="not from this country"),
    "a page": Fault("page"),
    "no Hub": Fault("status", value=405, text="Method Not Allowed"),
}


def words(command: str, **names: object) -> list[str]:
    """Return a command line with these names put in."""
    parts = (word.partition("@") for word in command.split())
    return [f"{names.get(name, name)}{at}{revision}" for name, at, revision in parts]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def hurried(client: Client) -> Client:
    client("limit", SILENT_SECONDS=0.2, SILENT_NOTE_SECONDS=0.1, COMMIT_SECONDS=0.3, SLOW_SECONDS=0.3)
    return client


@pytest.fixture(scope="module")
def alice(new_client: Callable[..., Client]) -> Client:
    return hurried(new_client())


@pytest.fixture(scope="module")
def lost(new_client: Callable[..., Client]) -> tuple[Client, str]:
    """A client whose Hub is a port on which nobody listens, and the host."""
    host = f"127.0.0.1:{free_port()}"
    return hurried(new_client(HF_ENDPOINT=f"http://{host}")), host


@pytest.fixture(autouse=True)
def _no_faults(hub: LoopbackHub) -> Iterator[None]:
    yield
    hub.faults = []


@pytest.mark.parametrize("command", ON_THE_HUB)
@pytest.mark.parametrize("fault", ["absent", *FAULTS])
def test_a_hub_that_can_not_be_had(
    hub: LoopbackHub,
    alice: Client,
    lost: tuple[Client, str],
    shared_family: Family,
    packages: Packages,
    tmp_path: Path,
    command: str,
    fault: str,
) -> None:
    client, host = lost if fault == "absent" else (alice, hub.endpoint.removeprefix("http://"))
    hub.faults = [Fault(**{**vars(FAULTS[fault]), "times": 99})] if fault != "absent" else []
    names = {"DELTA": "org/delta", "MODEL": "org/model", "PACKAGE": packages.v1, "TARGET": shared_family.target}
    out = tmp_path / "out"
    code, _, said = client("command", arguments=words(ON_THE_HUB[command], OUT=out, **names))
    assert code == 8, said
    assert host in said
    assert "→" in said
    assert not out.exists()


@pytest.mark.parametrize("command", OF_FILES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_hub_whose_files_can_not_be_had(
    hub: LoopbackHub,
    alice: Client,
    shared_family: Family,
    packages: Packages,
    repo: str,
    tmp_path: Path,
    command: str,
    fault: str,
) -> None:
    published(hub, repo, packages.v1)
    hub.add(f"{repo}-model", shared_family.base)
    hub.faults = [Fault(**{**vars(FAULTS[fault]), "times": 99, "pattern": FILES})]
    names = {"DELTA": repo, "MODEL": f"{repo}-model", "PACKAGE": packages.v1, "TARGET": shared_family.target}
    out = tmp_path / "out"
    code, _, said = alice("command", arguments=words(ON_THE_HUB[command], OUT=out, **names))
    assert code == (3 if fault == "refused" and command in ("extract", "stream") else 8), said
    assert hub.endpoint.removeprefix("http://") in said
    assert not (out / "manifest.json").exists()


# Buckets.


@contextmanager
def bad_store(status: int | None, body: bytes = b"") -> Iterator[int]:
    """Run a server that answers every request with a status and a body, or never; yield its port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            if status is None:
                self.close_connection = True
                self.connection.recv(1, socket.MSG_PEEK)
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 - the base class's naming

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's naming
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module", params=["absent", "silent", 503, 403])
def store(request: pytest.FixtureRequest) -> Iterator[str]:
    """A store that can't be had; the environment points to it."""
    import s3fs

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1"}.items():
            patch.setenv(f"AWS_{name}", value)
        patch.setattr(limits, "SILENT_SECONDS", 0.3)
        patch.setattr(bucket, "_STORE_TRIES", 1)
        with bad_store(request.param if isinstance(request.param, int) else None) as port:
            at = free_port() if request.param == "absent" else port
            patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{at}")
            s3fs.S3FileSystem.clear_instance_cache()
            yield f"127.0.0.1:{at}"
            s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("command", REGISTRY)
def test_a_bucket_that_can_not_be_had(
    store: str,
    shared_family: Family,
    packages: Packages,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out, names = tmp_path / "out", {"DELTA": "org/delta", "PACKAGE": packages.v1, "TARGET": shared_family.target}
    line = words(REGISTRY[command], OUT=out, **names)
    root = ["s3://deltas/lost"] if command == "catalog" else ["--registry", "s3://deltas/lost"]
    done = CliRunner().invoke(main, [*line, *root])
    assert done.exit_code == 8, (done.output, done.exception)
    assert store in done.stderr
    assert "→" in done.stderr
    assert not out.exists()


def test_the_words_of_a_bucket_are_passed_on(
    packages: Packages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    said = "<Error><Code>QuotaExceeded</Code><Message>The quota of 5 GB is used up</Message></Error>"
    with bad_store(403, said.encode()) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        s3fs.S3FileSystem.clear_instance_cache()
        done = CliRunner().invoke(main, ["versions", "org/delta", "--registry", "s3://deltas/lost"])
    s3fs.S3FileSystem.clear_instance_cache()
    assert done.exit_code == 8
    assert "QuotaExceeded: The quota of 5 GB is used up" in done.stderr
