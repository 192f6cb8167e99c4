"""Loops that Numba compiles: on first use, which takes seconds; from then on they are loaded from disk.

What holds for all of them: no fast-math, so that every operation is rounded as IEEE 754 says; no lock of Python's is
held while they run; and they check no index, so that whoever calls one has checked what it is given. Integers are kept
at their width by hand, because Numba's grow to 64 bits, and mixed signs become floats.

Where values are worked on one after another in vectors, that is done in slices of :data:`SLICE` elements, with indices
that count from 0: only those does LLVM vectorize, and what lies in between stays in the first-level cache.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
from numba.core import event
from numba.extending import overload

__all__ = ["SLICE", "by_type", "compiled", "when_compiling"]

SLICE = 4096
"""Elements that are worked on at a time: their wide values take 16 KiB, or 32."""


def _cache_folder() -> Path | None:
    """Return where compiled loops are kept: beside the package, else in the user's cache, else nowhere.

    Numba looks at the file of a loop alone, not at those of the loops that are compiled into it. So the folder has a
    digest of all of them in its name: an upgrade of the package never meets loops of another version.
    """
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for source in sorted([*package.glob("numerics/*.py"), *package.glob("codecs/**/*.py")]):
        digest.update(hashlib.sha256(source.read_bytes()).digest())
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        places = [Path(chosen)]
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        places = [package / "__pycache__", cache / "paramdelta-hub"]
    for place in places:
        folder = place / f"paramdelta-loops-{digest.hexdigest()[:16]}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except (OSError, RuntimeError):  # RuntimeError: nobody's home
            continue
    return None


_FOLDER = _cache_folder()


def compiled(loop: Callable[..., Any]) -> Any:
    """Compile a loop when it is first called, and keep it on disk where that is possible."""
    config: Any = numba.config
    elsewhere, config.CACHE_DIR = config.CACHE_DIR, str(_FOLDER or "")
    try:
        return numba.njit(nogil=True, cache=_FOLDER is not None, error_model="numpy")(loop)
    finally:
        config.CACHE_DIR = elsewhere


def by_type(function: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a function, within compiled code, the loop that is right for its arguments' types.

    What is decorated is called with these types, and returns the loop. So each compiled caller has the one loop that it
    needs, and none of the others.
    """
    return overload(function, jit_options={"error_model": "numpy"})


class _First(event.Listener):
    """Calls a function when the first loop is compiled; those that are loaded from disk are not."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell: Callable[[], None] | None = tell

    def on_start(self, event: Any) -> None:
        tell, self._tell = self._tell, None
        if tell is not None:
            tell()

    def on_end(self, event: Any) -> None:
        pass


@contextmanager
def when_compiling(tell: Callable[[], None]) -> Iterator[None]:
    """Call ``tell`` once if any loop has to be compiled inside of the block, in whatever thread."""
    with event.install_listener("numba:compile", _First(tell)):
        yield
