"""The open files of one task. Each is opened once, and all are closed at the end."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from paramdelta_hub.errors import SourceError
from paramdelta_hub.fileio.durable import open_regular, read_exactly

__all__ = ["OpenFiles"]


class OpenFiles(ExitStack):
    """A dictionary of read-only descriptors by path, opened at first use. Only regular files are opened."""

    def __init__(self, error: type[SourceError]) -> None:
        super().__init__()
        self._error = error
        self._open: dict[str, int] = {}

    def __getitem__(self, path: str) -> int:
        if path not in self._open:
            self._open[path] = open_regular(Path(path), self._error)
            self.callback(os.close, self._open[path])
        return self._open[path]

    def read(self, path: str, position: int, out: NDArray[Any]) -> None:
        """Fill ``out`` (uint8) with a file's bytes from ``position``; see :func:`read_exactly`."""
        read_exactly(self[path], out, position, self._error, path)
