"""The executor of processes on one machine: each worker is asked for one task at a time, over a pipe.

A worker that dies costs its task another attempt. A worker whose parent dies ends at once: its standard input is
closed then. Until it has, it holds the lock that it inherited, so that nobody begins beside it.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import selectors
import subprocess
import sys
import threading
from types import TracebackType
from typing import Any

from paramdelta_hub.errors import ParamdeltaError
from paramdelta_hub.work.answers import ATTEMPTS, Perform, answer, died, outcome_of
from paramdelta_hub.work.threads import Stop

__all__ = ["Processes", "serve"]

# Not multiprocessing, which would run the caller's own script again in every worker. The path is the caller's, so that
# a worker imports what the caller did, and not whatever lies in the current folder.
_BOOT = "import sys; sys.path[:] = sys.argv[5:]; from paramdelta_hub.work.processes import serve; serve(*sys.argv[1:5])"
_LOOK_AGAIN = 0.1
"""Seconds after which a thread that waits for its worker looks whether it shall stop."""


class Processes:
    """Workers, started when they are wanted and ended with the ``with`` block; used from several threads at a time."""

    def __init__(self, perform: Perform, books: str, digest: str, lock: int) -> None:
        """Take what workers do, where the plan is, and the lock that they hold as long as they live."""
        self._command = [sys.executable, "-c", _BOOT, perform.__module__, perform.__qualname__, books, digest]
        self._command += sys.path
        self._lock = lock
        self._workers: list[subprocess.Popen[bytes]] = []
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()

    def run(self, number: int, stop: Stop) -> dict[str, Any]:
        """Have a worker do a task and return the outcome.

        Raises:
            ParamdeltaError: what the worker raised, or that it died again and again.
            Interrupted: ``stop`` was set; the worker is killed.
        """
        for _ in range(ATTEMPTS):
            worker = self._worker()
            try:
                text = _ask(worker, number, stop)
            except BaseException:
                worker.kill()
                raise
            if text:
                self._idle.put(worker)
                return outcome_of(json.loads(text))
            status = worker.wait()
        raise died([number], f"killed by signal {-status}" if status < 0 else f"exit status {status}")

    def _worker(self) -> subprocess.Popen[bytes]:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            pass
        try:
            worker = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(self._lock,),
                start_new_session=True,  # Ctrl-C is for us; we end our workers
            )
        except OSError as error:
            raise ParamdeltaError(f"can't start a worker: {error.strerror}", remedy="use fewer --threads") from error
        self._workers.append(worker)
        return worker

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.kill()  # nothing is lost: what a worker is asked for is done when it has answered
        for worker in self._workers:
            worker.wait()
            for pipe in (worker.stdin, worker.stdout):
                if pipe:
                    pipe.close()


def _ask(worker: subprocess.Popen[bytes], number: int, stop: Stop) -> bytes:
    """Return the line that a worker answers with; nothing if it died."""
    assert worker.stdin
    assert worker.stdout
    try:
        os.write(worker.stdin.fileno(), b"%d\n" % number)
    except BrokenPipeError:
        return b""
    text = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(worker.stdout, selectors.EVENT_READ)
        while not text.endswith(b"\n"):
            stop.check()
            if not selector.select(_LOOK_AGAIN):
                continue
            piece = os.read(worker.stdout.fileno(), 1 << 20)
            if not piece:
                return b""
            text += piece
    return bytes(text)


def serve(module: str, name: str, books: str, digest: str) -> None:
    """Be a worker: read a task's number a line, do it, answer with a line of JSON, until the input ends."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what anything prints must not get between the answers
    perform: Perform = getattr(importlib.import_module(module), name)
    wanted: queue.SimpleQueue[int] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin.buffer:
            wanted.put(int(line))
        os._exit(0)  # our parent is gone, or done; in the middle of a task there is nobody left to want it

    threading.Thread(target=listen, daemon=True).start()
    while True:
        text = json.dumps(answer(perform, books, digest, wanted.get()), separators=(",", ":")).encode() + b"\n"
        view = memoryview(text)
        while view:
            view = view[answers.write(view) :]
