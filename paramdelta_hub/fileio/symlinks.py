"""Symbolic links: refused in what strangers send, but for the Hub cache's own, which never leave the cache."""

from __future__ import annotations

import os
from pathlib import Path

from paramdelta_hub.errors import PackageError, SourceError

__all__ = ["settle"]


def settle(folder: Path, name: str, error: type[SourceError] = PackageError) -> Path:
    """Return the real path of a listed file, which lies in ``folder`` itself or among the blobs of its Hub cache.

    The cache keeps ``models--org--name/snapshots/<commit>/…`` as links to ``models--org--name/blobs/<digest>``, or to
    ``blobs/xx/<digest>``, which all its repositories share. Any other link, also in the middle of a path, could make us
    read, hash or copy a file that the sender never had.

    Raises:
        SourceError: (as ``error``) a link to anywhere else.
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
    raise error("a symbolic link, where only files are read", where=str(folder / name))
