"""Listing a folder that should hold only known files."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from paramdelta_hub.fileio.names import shown
from paramdelta_hub.limits import NAME_DEPTH

__all__ = ["files_below", "shown_names"]

_TOOL_FILES = {".git", ".cache", ".gitattributes", ".gitignore"}
"""Files of git and of the Hub's client, at the top of the folder. They are ignored."""
_TEMPORARY_FILES = re.compile(r"\.(README\.md|manifest\.json\.sig|paramdelta\.lock)\.[0-9]+\.tmp")
"""Temporary names of the files that a manifest does not list. A killed run leaves such files behind."""


def files_below(top: Path) -> list[str]:
    """Return the names of all files below ``top``, sorted, with links to folders and folders that are too deep.

    Links are not followed. A folder that is deeper than any listed name can be is not entered, so a stranger's nesting
    does no harm.
    """
    found = []
    for at, folders, files in os.walk(top):
        within = Path(at).relative_to(top)
        if not within.parts:
            folders[:] = [name for name in folders if name not in _TOOL_FILES]
            files = [name for name in files if name not in _TOOL_FILES and not _TEMPORARY_FILES.fullmatch(name)]
        is_deep = len(within.parts) + 1 == NAME_DEPTH
        odd = {name for name in folders if is_deep or os.path.islink(os.path.join(at, name))}
        folders[:] = [name for name in folders if name not in odd]
        found += [(within / name).as_posix() for name in (*files, *odd)]
    return sorted(found)


def shown_names(names: Sequence[str], limit: int = 5) -> str:
    """Return the first names of a list for a message, and the number of the others."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(shown(name) for name in names[:limit]) + more
