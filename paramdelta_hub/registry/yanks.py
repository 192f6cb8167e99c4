"""Withdrawn versions: a small file beside the versions of a repository says why. Nothing of the version is changed.

Its name says which version it is about, so a listing alone tells what is withdrawn: ``.yanked-1.2.0.json``. It lies in
the repository's folder, or on the main branch of a repository on the Hub.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from paramdelta_hub.errors import OptionError, SourceError
from paramdelta_hub.fileio import strict_json
from paramdelta_hub.fileio.names import is_clear
from paramdelta_hub.fileio.report import Report
from paramdelta_hub.limits import KIB
from paramdelta_hub.registry.names import is_version

__all__ = ["YANK_BYTES", "Yanked", "check_reason", "parse_yank", "warning", "yank_content", "yank_name", "yanked_in"]

YANK_BYTES = 4 * KIB
"""A file with a reason."""
_NAME = re.compile(r"\.yanked-(.+)\.json")
_LONGEST = 500
_UNKNOWN = "no reason given"


class Yanked(Report):
    """The result of withdrawing a version, or of taking that back."""

    repo: str
    version: str
    reason: str | None
    """Why it is withdrawn; None if it is not, or not any more."""
    changed: bool
    """False if that was so before."""
    newest: str | None
    """What a pull without a version brings now; None if nothing is left."""


def check_reason(reason: str) -> str:
    """Return a reason in one line; OptionError if it is empty, too long, or holds hidden characters."""
    reason = " ".join(reason.split())
    if not reason or len(reason) > _LONGEST or not is_clear(reason):
        raise OptionError(
            f"a reason has 1 to {_LONGEST} characters, all of them visible", remedy='write --reason "wrong tokenizer"'
        )
    return reason


def yank_name(version: str) -> str:
    """Return the name of the file that withdraws a version."""
    return f".yanked-{version}.json"


def yanked_in(names: Iterable[str]) -> set[str]:
    """Return the versions that the files of a repository withdraw."""
    found = (_NAME.fullmatch(name) for name in names)
    return {match[1] for match in found if match and is_version(match[1])}


def yank_content(reason: str) -> bytes:
    """Return the content of the file."""
    return strict_json.pretty({"reason": reason})


def parse_yank(content: bytes | None) -> str:
    """Return the reason in a file. People may edit it, so it need not be valid: the version is withdrawn anyway."""
    try:
        match strict_json.parse((content or b"").removeprefix(b"\xef\xbb\xbf")):
            case {"reason": str(reason)} if is_clear(reason) and 0 < len(reason) <= _LONGEST:
                return reason
    except SourceError:
        pass
    return _UNKNOWN


def warning(repo: str, version: str, reason: str) -> str:
    """Return the warning to those who pull a withdrawn version by its name."""
    return f"{repo} {version} was withdrawn by its publisher: {reason}"
