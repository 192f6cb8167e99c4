"""This package's registry calls in a process of their own, where ``huggingface_hub`` reads its environment at import.

It reads one JSON call a line and answers with one line. :class:`Client` is the other end.
The client's pauses before it tries again are cut to nothing, or 200 schedules of faults would take hours.
"""

from __future__ import annotations

import atexit
import ctypes
import dataclasses
import functools
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[3]


IMPORTED_BY_THE_HUBS_CLIENT = (
    "anyio.streams.tls", "anyio.to_thread", "asyncio", "encodings.idna", "filelock", "h11", "http.server", "httpcore",
    "httpcore2", "httpx", "httpx2", "multiprocessing.synchronize", "tqdm.auto", "truststore", "yaml",
)  # fmt: skip
"""What it takes longest to import and is not of it."""


class CallError(Exception):
    """What the call in the other process raised: ``kind`` of our errors, or ``bug`` for any other."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind
        self.text = text


class _Nursery:
    """A process that has imported what it can, and forks a client when it is asked for one: 0.1 s instead of a second.

    It must have no threads when it forks, and must not import ``huggingface_hub``: its settings are each client's own.
    """

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._socket = ours
        with theirs:
            command = [sys.executable, "-m", "tests.support.hub.client", str(theirs.fileno())]
            self._process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        atexit.register(self.close)

    def close(self) -> None:
        """Let the process end; its clients end when nothing more is asked of them."""
        self._socket.close()
        self._process.wait(30)

    def start(self, environment: dict[str, str], descriptors: tuple[int, int]) -> int:
        """Start a client with this environment, standard input and output; return its process id."""
        text = json.dumps(environment).encode()
        socket.send_fds(self._socket, [len(text).to_bytes(4, "little")], descriptors)
        self._socket.sendall(text)
        return int.from_bytes(self._socket.recv(4, socket.MSG_WAITALL), "little")


@functools.cache
def _nursery() -> _Nursery:
    """Return this process's own; it ends with it."""
    return _Nursery()


class Client:
    """A process that makes calls as one account; ``begin`` and ``end`` let two processes call at the same moment."""

    def __init__(self, environment: dict[str, str]) -> None:
        (stdin, questions), (answers, stdout) = os.pipe(), os.pipe()
        self._id = _nursery().start(environment, (stdin, stdout))
        os.close(stdin)
        os.close(stdout)
        self._questions, self._answers = open(questions, "w"), open(answers)  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with suppress(BrokenPipeError):
            self._questions.close()
        self._answers.read()  # until its end
        self._answers.close()

    def __call__(self, name: str, **arguments: Any) -> Any:
        self.begin(name, **arguments)
        return self.end()

    def begin(self, name: str, **arguments: Any) -> None:
        """Send a call."""
        self._questions.write(json.dumps([name, arguments], default=str) + "\n")
        self._questions.flush()

    def end(self) -> Any:
        """Return what the call returned.

        Raises:
            CallError: what it raised.
        """
        line = self._answers.readline()
        assert line, "the client process died"
        value, kind, text = json.loads(line)
        if kind is not None:
            raise CallError(kind, text)
        return value

    def kill(self) -> None:
        """Kill the process without a word (SIGKILL)."""
        os.kill(self._id, signal.SIGKILL)
        self._answers.read()


def _calls() -> dict[str, Callable[..., Any]]:
    import huggingface_hub
    from click.testing import CliRunner

    from paramdelta_hub import limits
    from paramdelta_hub.checkpoints.files import resolve
    from paramdelta_hub.cli import main as cli
    from paramdelta_hub.registry import api as operations
    from paramdelta_hub.registry import publish as operations_publish
    from paramdelta_hub.registry import search
    from paramdelta_hub.registry.hub import links
    from paramdelta_hub.registry.hub.registry import HubRegistry

    hub = HubRegistry()

    def command(*arguments: str, **environment: str) -> tuple[int, str, str]:
        done = CliRunner().invoke(cli, arguments, env=environment)
        assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
        return done.exit_code, done.stdout, done.stderr

    return {
        "command": lambda arguments, **environment: command(*arguments, **environment),
        "publish": lambda package, **rest: hub.publish(Path(package), **rest),
        "pull": lambda folder=None, revision=None, **rest: hub.pull(
            folder=Path(folder) if folder else None, revision=revision, **rest
        ),
        "versions": hub.versions,
        "yank": operations_publish.yank,
        "publish_anew": operations_publish.publish,
        "search": lambda query=None, base=None, fingerprint=None: list(hub.search(query, base, fingerprint)),
        "card": hub.card,
        "describe_base": lambda model: search.describe_base(model)[:3],
        "find": lambda query=None, base=None: list(operations.search(query, base=base)),
        "link": links.link,
        "drop_rights": drop_rights,
        "limit": lambda **values: [setattr(limits, name, value) for name, value in values.items()],
        "resolve": lambda model: resolve.resolve(model).path,
        "snapshot": lambda repo, **rest: huggingface_hub.snapshot_download(repo, **rest),
    }


def drop_rights() -> None:
    """Make what the rights of files and folders say hold for root too (Linux)."""
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None, use_errno=True).capset(header, none) == 0, os.strerror(ctypes.get_errno())


class _Impatient:
    """The module ``time`` for the Hub's client: all of it but the waiting."""

    def __getattr__(self, name: str) -> Any:
        return (lambda _: None) if name == "sleep" else getattr(time, name)


def _plain(value: Any) -> Any:
    from paramdelta_hub.fileio.report import Report

    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Report):
        return value.to_json()
    if isinstance(value, frozenset):
        return sorted(value)
    return str(value)


@contextmanager
def _one_answer() -> Iterator[list[Any]]:
    from paramdelta_hub.errors import ParamdeltaError

    answer = [None, None, None]
    try:
        yield answer
    except ParamdeltaError as error:
        answer[1:] = [error.kind, str(error)]
    except Exception as error:
        answer[1:] = ["bug", repr(error)]
    sys.__stdout__.write(json.dumps(answer, default=_plain) + "\n")  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]


def main() -> None:
    """Answer calls until the input ends."""
    import logging

    from huggingface_hub import file_download
    from huggingface_hub.utils import _http

    from paramdelta_hub.hub import patience

    for module in (_http, file_download, patience):
        module.time = _Impatient()  # type: ignore[assignment]
    logging.disable(logging.WARNING)
    calls = _calls()
    for line in sys.stdin:
        with _one_answer() as answer:
            name, arguments = json.loads(line)
            answer[0] = calls[name](**arguments)


def nurse(asked: socket.socket) -> None:
    """Fork clients until nobody asks any more."""
    for name in IMPORTED_BY_THE_HUBS_CLIENT:
        with suppress(ImportError):
            importlib.import_module(name)

    from paramdelta_hub.registry import api, publish  # noqa: F401
    from paramdelta_hub.registry.cards import merge  # noqa: F401
    from paramdelta_hub.registry.hub import links  # noqa: F401

    assert "huggingface_hub" not in sys.modules
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    while True:
        size, descriptors, *_ = socket.recv_fds(asked, 4, 2)
        if not size:
            return
        environment = json.loads(asked.recv(int.from_bytes(size, "little"), socket.MSG_WAITALL))
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            asked.close()
            os.environ.clear()
            os.environ.update(environment)
            for standard, descriptor in enumerate(descriptors):
                os.dup2(descriptor, standard)
                os.close(descriptor)
            sys.stdin = open(0)  # noqa: SIM115
            try:
                main()
            finally:
                os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)
        asked.sendall(pid.to_bytes(4, "little"))


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as ours:
        nurse(ours)
