"""Names of repositories, commits and packages, and addresses of registries."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

from paramdelta_hub.errors import OptionError, SourceError
from paramdelta_hub.fileio.names import check_file_name

__all__ = [
    "check_address",
    "check_repo",
    "folder_of",
    "is_commit",
    "is_id",
    "is_repo",
]

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}", re.ASCII)
_COMMIT, _ID = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")
_LOCAL_URL = re.compile(r"(?:file|local)://(?:localhost)?(/.*)", re.DOTALL | re.IGNORECASE)


def is_repo(text: str) -> bool:
    """Whether a text is ``org/name``, with parts that the Hub accepts and that every system accepts as folder names."""
    parts = text.split("/")
    try:
        check_file_name(text)
    except SourceError:
        return False
    return len(parts) == 2 and all(_PART.fullmatch(part) for part in parts)


def check_repo(text: str) -> str:
    """Return ``text`` if it names a repository.

    Raises:
        OptionError: it is not a repository name.
    """
    if not is_repo(text):
        raise OptionError(
            f"{text[:200]!r} is not a valid repository name",
            remedy="write org/name; each part may use letters, digits, '.', '_' and '-'",
        )
    return text


def check_address(url: str) -> str:
    """Return ``url`` if it holds no credentials, because addresses are printed and written to lock files.

    Raises:
        OptionError: it holds credentials. The message does not repeat them.
    """
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise OptionError(
            "the URL contains a user name or a password",
            remedy="remove them; credentials come from the environment, such as AWS_PROFILE",
        )
    return url


def folder_of(root: str) -> str | None:
    """Return the local folder of a registry that is given as a path or a URL; None if it is not on this machine."""
    if found := _LOCAL_URL.fullmatch(root):
        root = unquote(found[1])
    return None if "://" in root else os.path.expanduser(root)


def is_commit(text: str) -> bool:
    """Whether a text has the form of a commit on the Hub: a sha1 in hex."""
    return _COMMIT.fullmatch(text) is not None


def is_id(text: str) -> bool:
    """Whether a text has the form of a package's id, or of any other sha256 in hex."""
    return _ID.fullmatch(text) is not None
