"""Commands in forked processes, on models of several tasks, and what they leave behind."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import paramdelta_hub as pd
from tests.conftest import Family
from tests.support.piped import Piped


class Forks(Piped):
    """The other end of ``tests/tasks/forks.py``."""

    def __init__(self) -> None:
        super().__init__("tests.tasks.forks")

    def ask(self, operation: str, *arguments: Path, options: dict[str, Any] | None = None, **more: Any) -> list[int]:
        return self.send({"calls": [operation, [str(argument) for argument in arguments], options or {}], **more})


def tree(folder: Path) -> dict[str, str]:
    """Return the digest of every file below, hidden ones too."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def make_older(operation: str, models: Family, out: Path) -> Path:
    """Make an output of the same kind, and another content: only such a one may be replaced."""
    if operation == "extract":
        pd.extract(models.base, models.post, out, version="0.9.0", threads=1)
    else:
        pd.apply(models.target, (models.delta, 0.5), out, threads=1)
    return out


def inputs(operation: str, models: Family) -> tuple[Path, Path]:
    return (models.base, models.post) if operation == "extract" else (models.target, models.delta)
