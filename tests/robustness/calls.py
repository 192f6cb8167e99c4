"""Every call that a command makes to the file system: counted, recorded, failed, cut short, or died at.

Python's functions of ``os`` are wrapped in the process that runs the command, so this works on a bare machine;
``test_tape.py`` compares with what the kernel saw, where a tracer is installed.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

CHANGES = frozenset(
    {"ftruncate", "fsync", "fdatasync", "link", "mkdir", "posix_fallocate", "pwrite", "remove", "rename", "replace"}
    | {"rmdir", "symlink", "unlink", "write"}
)
READS = frozenset({"pread", "preadv", "read"})
LISTS = frozenset({"listdir", "scandir"})
SYNCS = frozenset({"fsync", "fdatasync"})
REMOVALS = frozenset({"remove", "rmdir", "unlink"})

Among = Literal["changes", "reads", "lists"]
Arguments = tuple[Any, ...]
Hook = Callable[["Call"], Any]


@dataclass(frozen=True)
class Call:
    """One call, not yet made."""

    name: str
    arguments: Arguments
    options: dict[str, Any]
    real: Callable[..., Any]

    def make(self) -> Any:
        """Let it happen."""
        return self.real(*self.arguments, **self.options)

    def make_short(self, most: int) -> Any:
        """Let it happen with at most so many bytes; calls that move no bytes happen as they are."""
        match self.name, self.arguments:
            case (("pwrite" | "write"), (descriptor, data, *rest)):
                return self.real(descriptor, memoryview(data).cast("B")[:most], *rest)
            case "preadv", (descriptor, [buffer, *_], *rest):
                return self.real(descriptor, [memoryview(buffer).cast("B")[:most]], *rest)
            case (("pread" | "read"), (descriptor, size, *rest)):
                return self.real(descriptor, min(size, most), *rest)
        return self.make()

    @property
    def size(self) -> int:
        """Bytes it is to move."""
        match self.name, self.arguments:
            case (("pwrite" | "write"), (_, data, *_)):
                return memoryview(data).nbytes
            case "preadv", (_, buffers, *_):
                return sum(memoryview(buffer).nbytes for buffer in buffers)
            case (("pread" | "read"), (_, size, *_)):
                return int(size)
        return 0

    @property
    def changes(self) -> bool:
        """Whether it may change a file system."""
        return self.name in CHANGES or (self.name == "open" and bool(self.arguments[1] & (os.O_CREAT | os.O_TRUNC)))

    def is_among(self, among: Among) -> bool:
        """Whether it is of this kind."""
        if among == "changes":
            return self.changes
        return self.name in LISTS if among == "lists" else self.name in READS or self.name == "open"

    @property
    def path(self) -> str:
        """What it is about, by its present name."""
        at = self.arguments[0] if self.arguments else "."
        if isinstance(at, int):
            return os.readlink(f"/proc/self/fd/{at}")
        folder = self.options.get("dir_fd")
        return os.path.abspath(os.path.join(os.readlink(f"/proc/self/fd/{folder}") if folder else "", os.fspath(at)))


class _File:
    """What ``os.fdopen(…, "rb")`` returns, made of calls that are wrapped."""

    def __init__(self, descriptor: int, buffered: bool) -> None:
        self._descriptor, self._buffered = descriptor, buffered

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def fileno(self) -> int:
        return self._descriptor

    def read(self, size: int) -> bytes:
        content = os.read(self._descriptor, size)
        while self._buffered and len(content) < size and (more := os.read(self._descriptor, size - len(content))):
            content += more
        return content


def wrap(hook: Hook, replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """Let ``hook`` decide on every call: it makes it, or not, and returns what the caller gets."""

    def wrapped(name: str) -> Callable[..., Any]:
        real = getattr(os, name)
        return lambda *arguments, **options: hook(Call(name, arguments, options, real))

    for name in sorted(CHANGES | READS | LISTS | {"open"}):
        if hasattr(os, name):
            replace(os, name, wrapped(name))
    replace(os, "fdopen", lambda descriptor, mode, buffering=-1: _File(descriptor, buffering != 0))


@contextmanager
def wrapped(hook: Hook) -> Iterator[None]:
    """As :func:`wrap`, for a while."""
    real: dict[str, Any] = {}

    def replace(module: Any, name: str, call: Any) -> None:
        real[name] = getattr(module, name)
        setattr(module, name, call)

    wrap(hook, replace)
    try:
        yield
    finally:
        for name, call in real.items():
            setattr(os, name, call)


@dataclass(frozen=True)
class Fault:
    """What happens at the ``at``-th call of those that count; 0 is never, or always for ``short``."""

    kind: Literal["none", "signal", "errno", "short", "storm"] = "none"
    """A storm is a signal with a handler of its own, as often as can be, so that the kernel breaks off its calls."""
    at: int = 0
    number: int = 0
    """Of the signal, of the error; how many bytes a short call moves at most; microseconds between signals."""
    half: bool = False
    """A write is cut in its middle before the signal comes."""
    among: Among = "changes"

    @property
    def is_survived(self) -> bool:
        """Whether it is nothing but an error to the process that it strikes."""
        return self.kind in ("none", "errno")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Faulty:
    """A hook that counts the calls that may fail, records them on a tape, and lets one fault happen.

    Forcing to disk is left out: a killed process loses nothing that it has written.
    """

    def __init__(self, fault: Fault, tape: int | None) -> None:
        self._fault, self._tape = fault, tape
        self._made = 0
        self._lock = threading.RLock()
        self._write, self._fstat = os.write, os.fstat
        if fault.kind == "storm":
            signal.signal(signal.SIGALRM, lambda *_: None)
            signal.setitimer(signal.ITIMER_REAL, fault.number / 1e6, fault.number / 1e6)

    def __call__(self, call: Call) -> Any:
        if not call.is_among(self._fault.among):
            return call.make()
        with self._lock:  # so that the tape has the order of what happened
            self._made += 1
            strikes = self._made == self._fault.at
            match self._fault.kind:
                case "signal" if strikes:
                    self._signal(call)
                case "errno" if strikes:
                    raise OSError(self._fault.number, os.strerror(self._fault.number))
                case "short" if strikes or not self._fault.at:
                    return call.make_short(self._fault.number or max(1, call.size // 2))
            if self._tape is None:
                return None if call.name in SYNCS else call.make()
            return self._record(call)

    def _signal(self, call: Call) -> None:
        if self._fault.half and call.size:
            call.make_short(call.size // 2)
        if self._fault.number == signal.SIGINT:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        else:
            os.kill(os.getpid(), self._fault.number)

    def _record(self, call: Call) -> Any:
        event: dict[str, Any] = {"call": call.name, "path": call.path}
        if call.name in ("rename", "replace"):
            event["to"] = os.path.abspath(os.fspath(call.arguments[1]))
        if call.name == "open":
            event["made"] = not os.path.lexists(event["path"])
        if call.name == "pwrite":
            event["bytes"] = call.size
        result: Any = None if call.name in SYNCS else call.make()
        if call.changes and (call.name == "open" or isinstance(call.arguments[0], int)):
            event["inode"] = self._fstat(result if call.name == "open" else call.arguments[0]).st_ino
        assert self._tape is not None
        self._write(self._tape, json.dumps(event).encode() + b"\n")
        return result
