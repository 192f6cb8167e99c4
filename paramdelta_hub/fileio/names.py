"""Names that are safe to join to a folder, on every system, whatever a stranger wrote."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from paramdelta_hub.errors import PackageError, SourceError
from paramdelta_hub.limits import NAME_BYTES, NAME_DEPTH, TENSOR_NAME_BYTES

__all__ = ["check_file_name", "check_file_names", "check_tensor_name", "is_clear", "shown"]

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_COMPONENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", re.ASCII)
# Device names of Windows, which reserves them in every folder and with every extension.
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.ASCII | re.IGNORECASE)


def is_clear(text: str) -> bool:
    """Whether a text shows as what it is: no control, format or surrogate characters, no line separators."""
    if text.isascii():
        return text.isprintable()
    return not any(unicodedata.category(character) in _HIDDEN for character in text)


def shown(text: str) -> str:
    """Return a stranger's text as a line can hold it: what would not show as what it is, as escapes."""
    return text if is_clear(text) else repr(text)[1:-1]


def check_file_name(name: str, error: type[SourceError] = PackageError) -> str:
    """Return ``name`` if it is a relative path that can only name a file inside the folder it is joined to.

    One to four components of ``[A-Za-z0-9._-]``, none beginning with a dot or ending in one, none a device name of
    Windows. This admits every name that models and packages use, and no ``..``, no drive, no stream, no control
    character, and nothing that two file systems could read differently.

    Raises:
        SourceError: (as ``error``) any other name.
    """
    components = name.split("/")
    safe = len(components) <= NAME_DEPTH and all(
        _COMPONENT.fullmatch(part)
        and len(part) <= NAME_BYTES
        and not part.endswith(".")
        and not _RESERVED.fullmatch(part)
        for part in components
    )
    if not safe:
        raise error(f"unsafe file name {name[:200]!r}")
    return name


def check_file_names(names: Iterable[str], error: type[SourceError] = PackageError) -> None:
    """Check every name, and that no two are the same file where case does not count.

    Raises:
        SourceError: (as ``error``) an unsafe name, or two that collide.
    """
    seen: dict[str, str] = {}
    for name in names:
        check_file_name(name, error)
        folded = name.casefold()
        if folded in seen:
            raise error(f"the file names {seen[folded]!r} and {name!r} collide")
        seen[folded] = name


def check_tensor_name(name: str, error: type[SourceError] = PackageError) -> str:
    """Return ``name`` if it is not empty, not over-long, and shows as what it is; tensor names never become paths.

    Refused are control, format and surrogate characters and line separators (Unicode Cc, Cf, Cs, Zl, Zp): what could
    hide in, or rewrite, the line of a terminal or a log.

    Raises:
        SourceError: (as ``error``) any other name.
    """
    is_clear = (name.isascii() and name.isprintable()) or not any(unicodedata.category(c) in _HIDDEN for c in name)
    if not name or not is_clear or len(name.encode("utf-8", "surrogatepass")) > TENSOR_NAME_BYTES:
        raise error(f"unsafe tensor name {name[:200]!r}")
    return name
