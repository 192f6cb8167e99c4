"""Names of repositories, versions, commits and packages, and addresses of registries.

``packaging.version`` is no substitute for our comparison of versions: it implements PEP 440, which reads ``1.0.0-1`` as
a release *after* 1.0.0 and refuses ``1.0.0-rc.x``. The grammar is the manifest's own.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from urllib.parse import unquote

from pydantic import TypeAdapter, ValidationError

from paramdelta_hub.errors import OptionError, SourceError
from paramdelta_hub.fileio.names import check_file_name
from paramdelta_hub.package.records import SemanticVersion

__all__ = [
    "check_address",
    "check_repo",
    "check_version",
    "folder_of",
    "is_commit",
    "is_id",
    "is_repo",
    "is_version",
    "newest",
    "newest_first",
    "precedence",
]

_PART = re.compile(r"(?!.*(?:--|\.\.|\.git$))[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?", re.ASCII)
"""The rule of the Hub. It holds for folders and buckets too, so that every delta can be moved to the Hub."""
_RULE = (
    "a name has up to 96 letters, digits, '.', '_' and '-', but no '--' or '..', no '.' or '-' at an end, and no '.git'"
)
_COMMIT, _ID = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")
_VERSION: TypeAdapter[str] = TypeAdapter(SemanticVersion)
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
    """Return ``text`` if it names a repository; otherwise raise OptionError, which proposes a name."""
    if not is_repo(text):
        name = _similar_repo(text)
        raise OptionError(
            f"{text[:200]!r} is not a valid repository name",
            remedy=f"did you mean {name}? {_RULE.capitalize()}" if name else f"write org/name; {_RULE}",
        )
    return text


def _similar_repo(text: str) -> str | None:
    """Return a valid name that is like an invalid one, if there is one."""
    parts = []
    for part in text.split("/"):
        letters = (letter for letter in unicodedata.normalize("NFKD", part) if not unicodedata.combining(letter))
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", "".join(letters))
        short = re.sub(r"-{2,}", "-", re.sub(r"\.{2,}", ".", plain)).lstrip("._-")[:96]
        parts.append(re.sub(r"(\.git|[.-])+$", "", short))
    name = "/".join(parts)
    return name if is_repo(name) else None


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


def is_version(text: str) -> bool:
    """Whether a text is a semantic version, by the manifest's own grammar."""
    try:
        _VERSION.validate_python(text)
    except ValidationError:
        return False
    return True


def check_version(found: str, wanted: str | None, where: str) -> None:
    """Check that the version to publish is the package's own; ``wanted`` may be None.

    Raises:
        OptionError: another version was asked for.
    """
    if wanted is not None and wanted != found:
        raise OptionError(
            f"the package is version {found}, not {wanted[:200]}; the version is part of the package's id",
            where=where,
            remedy=f"publish it as {found}, or change it: paramdelta relabel DELTA -o NEW --version {wanted[:200]}",
        )


def precedence(version: str) -> tuple[object, ...]:
    """Return the sort key of a semantic version (semver.org, section 11). Build metadata does not count."""
    core, _, prerelease = version.partition("+")[0].partition("-")
    identifiers = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in prerelease.split(".") if part]
    return (*map(int, core.split(".")), not prerelease, tuple(identifiers))


def newest(versions: Iterable[str]) -> str | None:
    """Return the version meant where none is named: the highest release, or without one the highest pre-release."""
    return max(versions, key=lambda version: (precedence(version)[3], precedence(version), version), default=None)


def newest_first(versions: Iterable[str]) -> list[str]:
    """Return versions from the highest to the lowest, pre-releases in their place."""
    return sorted(versions, key=lambda version: (precedence(version), version), reverse=True)
