"""git-lfs pointers: small texts that lie in the place of large files in a clone made without git-lfs."""

from __future__ import annotations

from paramdelta_hub.errors import SourceError

__all__ = ["POINTER_BYTES", "POINTER_START", "refuse_pointer"]

POINTER_START = b"version https://git-lfs.github.com/spec/"
POINTER_BYTES = 1024
"""A pointer is smaller, by git-lfs's specification."""
_REMEDY = "run `git lfs pull` in the folder, or download the model again with `hf download`"


def refuse_pointer(start: bytes, error: type[SourceError], where: str | None) -> None:
    """Refuse a file that begins as a pointer does.

    Raises:
        SourceError: (as ``error``) it does.
    """
    if start.startswith(POINTER_START):
        raise error("a git-lfs pointer, not the file itself", where=where, remedy=_REMEDY)
