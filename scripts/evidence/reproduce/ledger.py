"""A JSON file of finished runs: written whole after each, so that a stopped experiment goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Ledger"]


class Ledger:
    """Named records in named groups. One process writes a file; a record, once there, is never made again."""

    def __init__(self, file: Path, **header: Any) -> None:
        self._file = file
        self._content: dict[str, Any] = (json.loads(file.read_text()) if file.exists() else {}) | header

    def once(self, group: str, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the record; make and write it first if it is not there."""
        records = self._content.setdefault(group, {})
        if name not in records:
            records[name] = make()
            print(f"  {group} {name}: {json.dumps(records[name])}", flush=True)
            part = self._file.with_suffix(".part")
            self._file.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(self._content, indent=1) + "\n")
            os.replace(part, self._file)
        found: dict[str, Any] = records[name]
        return found
