"""This package's registry calls in a process of their own, where ``huggingface_hub`` reads its environment at import.

``python -m tests.hub.client`` reads one JSON call a line and answers with one line. :class:`Client` is the other end.
The client's pauses before it tries again are cut to nothing, or 200 schedules of faults would take hours.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[2]


class CallError(Exception):
    """What the call in the other process raised: ``kind`` of our errors, or ``bug`` for any other."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind
        self.text = text


class Client:
    """A process that makes calls as one account; ``begin`` and ``end`` let two processes call at the same moment."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hub.client"],
            env=environment,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait(timeout=30)
        if self._process.stdout:
            self._process.stdout.close()

    def __call__(self, name: str, **arguments: Any) -> Any:
        self.begin(name, **arguments)
        return self.end()

    def begin(self, name: str, **arguments: Any) -> None:
        """Send a call."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps([name, arguments], default=str) + "\n")
        self._process.stdin.flush()

    def end(self) -> Any:
        """Return what the call returned.

        Raises:
            CallError: what it raised.
        """
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the client process died"
        value, kind, text = json.loads(line)
        if kind is not None:
            raise CallError(kind, text)
        return value

    def kill(self) -> None:
        """Kill the process without a word (SIGKILL)."""
        self._process.kill()
        self._process.wait()


def _calls() -> dict[str, Callable[..., Any]]:
    import huggingface_hub

    from paramdelta_hub.operations import registries as operations
    from paramdelta_hub.registry import links, search
    from paramdelta_hub.registry.hub import HubRegistry

    hub = HubRegistry()
    return {
        "publish": lambda package, **rest: hub.publish(Path(package), **rest),
        "pull": lambda folder=None, revision=None, **rest: hub.pull(
            folder=Path(folder) if folder else None, revision=revision, **rest
        ),
        "versions": hub.versions,
        "search": lambda query=None, base=None, fingerprint=None: list(hub.search(query, base, fingerprint)),
        "card": hub.card,
        "describe_base": lambda model: search.describe_base(model)[:3],
        "find": lambda query=None, base=None: [found.to_json() for found in operations.search(query, base=base)],
        "link": links.link,
        "snapshot": lambda repo: huggingface_hub.snapshot_download(repo),
    }


class _Impatient:
    """The module ``time`` for the Hub's client: all of it but the waiting."""

    def __getattr__(self, name: str) -> Any:
        return (lambda _: None) if name == "sleep" else getattr(time, name)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
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

    import huggingface_hub.utils._http as http

    http.time = _Impatient()  # type: ignore[assignment]
    logging.disable(logging.WARNING)
    calls = _calls()
    for line in sys.stdin:
        with _one_answer() as answer:
            name, arguments = json.loads(line)
            answer[0] = calls[name](**arguments)


if __name__ == "__main__":
    main()
