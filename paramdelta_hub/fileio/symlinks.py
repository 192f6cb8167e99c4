"""Symbolic links: refused in files from strangers, except the links of the Hub's cache, which stay in the cache."""

from __future__ import annotations

import os
from pathlib import Path

from paramdelta_hub.errors import PackageError, SourceError

__all__ = ["resolve_inside"]


def resolve_inside(folder: Path, name: str, error: type[SourceError] = PackageError) -> Path:
    """Return the real path of a listed file. It must be inside ``folder``, or among the blobs of the Hub's cache.

    In the cache, the files in ``models--org--name/snapshots/<commit>/`` are links to
    ``models--org--name/blobs/<digest>``, or to ``blobs/xx/<digest>``, which all repositories share. Any other link,
    also in the middle of a path, could make us read, hash or copy a private file.

    Raises:
        SourceError: (as ``error``) a link leads to any other place.
    """
    inside = os.path.realpath(folder)
    real = os.path.realpath(os.path.join(inside, name))
    if real == os.path.join(inside, *name.split("/")):
        return Path(real)
    snapshots = os.path.dirname(inside)
    repository = os.path.dirname(snapshots)
    if os.path.basename(snapshots) == "snapshots":
        own, shared = os.path.join(repository, "blobs"), os.path.join(os.path.dirname(repository), "blobs")
        above, digest = os.path.split(real)
        is_shared = os.path.dirname(above) == shared and digest.startswith(os.path.basename(above))
        if above == own or (is_shared and os.path.basename(repository).startswith("models--")):
            return Path(real)
    raise error("symbolic links are not allowed here", where=str(folder / name))
