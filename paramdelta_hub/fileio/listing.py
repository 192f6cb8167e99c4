"""What lies in a folder that should hold nothing but what somebody vouches for."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from paramdelta_hub.fileio.names import shown
from paramdelta_hub.limits import NAME_DEPTH

__all__ = ["files_below", "shown_names"]

_LEFT_BEHIND = {".git", ".cache", ".gitattributes", ".gitignore"}
"""By git and by the Hub's client, directly in the folder; they mean nothing here."""
_WRITTEN_NOW = re.compile(r"\.(README\.md|manifest\.json\.sig|paramdelta\.lock)\.[0-9]+\.tmp")
"""What lies beside a package's listed files is called so while it is being written, and when that was broken off."""


def files_below(top: Path) -> list[str]:
    """Return every file, link to a folder, and too deep folder below ``top``, by name, sorted; none is followed.

    How deep a stranger's folders go must not matter: deeper ones than any listed name can reach are not entered.
    """
    found = []
    for at, folders, files in os.walk(top):
        within = Path(at).relative_to(top)
        if not within.parts:
            folders[:] = [name for name in folders if name not in _LEFT_BEHIND]
            files = [name for name in files if name not in _LEFT_BEHIND and not _WRITTEN_NOW.fullmatch(name)]
        is_deep = len(within.parts) + 1 == NAME_DEPTH
        odd = {name for name in folders if is_deep or os.path.islink(os.path.join(at, name))}
        folders[:] = [name for name in folders if name not in odd]
        found += [(within / name).as_posix() for name in (*files, *odd)]
    return sorted(found)


def shown_names(names: Sequence[str], most: int = 5) -> str:
    """Return the first names of a list for a message, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown(name) for name in names[:most]) + more
