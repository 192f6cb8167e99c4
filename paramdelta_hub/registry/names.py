"""What registries, repositories and versions are called, and which version is the newest."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from urllib.parse import unquote

from pydantic import TypeAdapter, ValidationError

from paramdelta_hub.errors import OptionError, SourceError
from paramdelta_hub.fileio.names import check_file_name
from paramdelta_hub.package.records import SemanticVersion

__all__ = [
    "SITE_NAME",
    "check_address",
    "check_repo",
    "check_version",
    "folder_of",
    "is_commit",
    "is_id",
    "is_repo",
    "is_version",
    "newest",
    "precedence",
]

SITE_NAME = "paramdelta_catalog.json"
"""By this file a folder is known as a catalog of ours; it lists all others."""
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}", re.ASCII)
_COMMIT, _ID = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")
_LOCAL_URL = re.compile(r"(?:file|local)://(?:localhost)?(/.*)", re.DOTALL | re.IGNORECASE)
_VERSION: TypeAdapter[str] = TypeAdapter(SemanticVersion)


def is_repo(text: str) -> bool:
    """Whether a text is ``org/name``, with parts that the Hub takes and that are safe as folders on every system."""
    parts = text.split("/")
    try:
        check_file_name(text)
    except SourceError:
        return False
    return len(parts) == 2 and all(_PART.fullmatch(part) for part in parts)


def check_repo(text: str) -> str:
    """Return ``text`` if it names a repository.

    Raises:
        OptionError: it does not.
    """
    if not is_repo(text):
        raise OptionError(
            f"{text[:200]!r} can't be the name of a repository",
            remedy="give org/name, each part of letters, digits, '.', '_' and '-'",
        )
    return text


def check_address(url: str) -> str:
    """Return ``url`` if it holds no credentials: addresses are shown, and written to locks.

    Raises:
        OptionError: it does; the message does not repeat it.
    """
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise OptionError(
            "a URL with a name or a password in it",
            remedy="leave them out: credentials come from the environment, such as AWS_PROFILE",
        )
    return url


def folder_of(root: str) -> str | None:
    """Return the folder that a registry is, given by path or by URL; None where it lies elsewhere."""
    if found := _LOCAL_URL.fullmatch(root):
        root = unquote(found[1])
    return None if "://" in root else os.path.expanduser(root)


def is_version(text: str) -> bool:
    """Whether a text is a semantic version, by the manifest's own grammar."""
    try:
        _VERSION.validate_python(text)
    except ValidationError:
        return False
    return True


def is_commit(text: str) -> bool:
    """Whether a text can be a commit of the Hub: a sha1, written in hex."""
    return _COMMIT.fullmatch(text) is not None


def is_id(text: str) -> bool:
    """Whether a text can be a package's id, or any other sha256, written in hex."""
    return _ID.fullmatch(text) is not None


def check_version(found: str, wanted: str | None, where: str) -> None:
    """Check that a package is published as the version that it is; ``wanted`` may be None.

    Raises:
        OptionError: it is to be published as another.
    """
    if wanted is not None and wanted != found:
        raise OptionError(
            f"the package is version {found}, not {wanted[:200]}, and its version is part of its id",
            where=where,
            remedy=f"publish it as {found}, or change it: paramdelta relabel DELTA -o NEW --version {wanted[:200]}",
        )


def precedence(version: str) -> tuple[object, ...]:
    """Return what semantic versions are compared by (semver.org §11); build metadata does not count."""
    core, _, before = version.partition("+")[0].partition("-")
    identifiers = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in before.split(".") if part]
    return (*map(int, core.split(".")), not before, tuple(identifiers))


def newest(versions: Iterable[str]) -> str | None:
    """Return what a reference without a version means: the highest release or, if there is none, pre-release."""
    return max(versions, key=lambda version: (precedence(version)[3], precedence(version), version), default=None)
