"""What workers in other processes do in tests: as the product's function does, by folder, digest and number."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from paramdelta_hub.errors import StorageError


def square(books: str, digest: str, number: int) -> dict[str, Any]:
    """Answer, and print what must not get between the answers."""
    print("a library says something", flush=True)
    os.write(1, b"and something without Python\n")
    return {"square": number**2, "pid": os.getpid(), "books": books, "digest": digest, "long": "x" * 300_000}


def fail(books: str, digest: str, number: int) -> dict[str, Any]:
    """Fail in our way for even numbers, in Python's for others."""
    if number % 2:
        raise ZeroDivisionError("a mistake of the programmer's")
    raise StorageError("the disk is full", where=books, remedy="free some space")


def die_at_first(books: str, digest: str, number: int) -> dict[str, Any]:
    """Die as for want of memory, at most so often as the digest says; leave a mark each time."""
    marks = Path(books)
    deaths = len(list(marks.glob(f"{number}-*")))
    if number == 3 and deaths < int(digest):
        (marks / f"{number}-{deaths}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"number": number}


def sleep(books: str, digest: str, number: int) -> dict[str, Any]:
    """Tell who it is, and never end."""
    Path(books, f"{number}.pid").write_text(str(os.getpid()))
    while True:
        time.sleep(60)
