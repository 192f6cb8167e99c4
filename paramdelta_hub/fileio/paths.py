"""Paths: how two places relate, where links may lead, what lies below a folder, and how a path goes into JSON."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeAlias
from urllib.parse import quote, unquote_to_bytes

from pydantic import PlainSerializer, PlainValidator

from paramdelta_hub.errors import PackageError, SourceError
from paramdelta_hub.fileio.durable import expand
from paramdelta_hub.limits import NAME_DEPTH

__all__ = ["PathText", "files_below", "relation", "resolve_inside"]

Relation = Literal["is", "contains", "lies inside"]
PathText: TypeAlias = Annotated[
    str,
    PlainSerializer(lambda path: quote(os.fsencode(path))),
    PlainValidator(lambda text: os.fsdecode(unquote_to_bytes(text))),
]
"""A path as text. In JSON it is percent-encoded, because a path need not be valid UTF-8."""

_TOOL_FILES = {".git", ".cache/huggingface", ".gitattributes", ".gitignore"}
"""Files of git and of the Hub's client, at the top of the folder. They are ignored."""
_TEMPORARY_FILES = re.compile(r"\.(README\.md|manifest\.json\.sig|paramdelta\.lock)\.[0-9]+\.tmp")
"""Temporary names of the files that a manifest does not list. A killed run leaves such files behind."""


def relation(path: str | Path, place: str | Path) -> Relation | None:
    """Return how ``path`` relates to ``place``: it is that place, contains it or lies inside it; None if it is apart.

    Both may begin with ``~``. Neither needs to exist.
    """
    one, other = (Path(os.path.realpath(expand(text))) for text in (path, place))
    if one == other:
        return "is"
    if one in other.parents:
        return "contains"
    return "lies inside" if other in one.parents else None


def resolve_inside(folder: Path, name: str, error: type[SourceError] = PackageError) -> Path:
    """Return the real path of a listed file. It must be inside ``folder``, or among the blobs of the Hub's cache.

    In the cache, the files in ``models--org--name/snapshots/<commit>/`` are links to
    ``models--org--name/blobs/<digest>``, or to ``blobs/xx/<digest>``, which all repositories share. Any other link,
    also in the middle of a path, could make us read, hash or copy a private file: it raises ``error``.
    """
    inside = os.path.realpath(folder)
    parts = name.split("/")
    if _has_no_links(inside, parts):
        return Path(inside, *parts)
    real = os.path.realpath(os.path.join(inside, name))
    snapshots = os.path.dirname(inside)
    repository = os.path.dirname(snapshots)
    if os.path.basename(snapshots) == "snapshots":
        own, shared = os.path.join(repository, "blobs"), os.path.join(os.path.dirname(repository), "blobs")
        above, digest = os.path.split(real)
        is_shared = os.path.dirname(above) == shared and digest.startswith(os.path.basename(above))
        if above == own or (is_shared and os.path.basename(repository).startswith("models--")):
            return Path(real)
    raise error("symbolic links are not allowed here", where=str(folder / name))


def _has_no_links(at: str, parts: Sequence[str]) -> bool:
    """Whether no part of a path below ``at`` is a link, or leads upward. Parts that do not exist are none."""
    for part in parts:
        at = os.path.join(at, part)
        if part in ("", ".", "..") or os.path.islink(at):
            return False
    return True


def files_below(top: Path) -> list[str]:
    """Return the names of all files below ``top``, sorted, with links to folders and folders that are too deep.

    Links are not followed. A folder that is deeper than any listed name can be is not entered, so a stranger's nesting
    does no harm.
    """
    found = []
    for at, folders, files in os.walk(top):
        within = Path(at).relative_to(top)
        folders[:] = [name for name in folders if (within / name).as_posix() not in _TOOL_FILES]
        files = [name for name in files if (within / name).as_posix() not in _TOOL_FILES]
        if not within.parts:
            files = [name for name in files if not _TEMPORARY_FILES.fullmatch(name)]
        is_deep = len(within.parts) + 1 == NAME_DEPTH
        odd = {name for name in folders if is_deep or os.path.islink(os.path.join(at, name))}
        folders[:] = [name for name in folders if name not in odd]
        found += [(within / name).as_posix() for name in (*files, *odd)]
    return sorted(found)
