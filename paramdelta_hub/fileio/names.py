"""Names from strangers, checked: file names that are safe on every system. And what messages print of them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from paramdelta_hub.errors import PackageError, SourceError
from paramdelta_hub.limits import NAME_BYTES, NAME_DEPTH, TENSOR_NAME_BYTES

__all__ = [
    "check_file_name",
    "check_file_names",
    "check_tensor_name",
    "counted",
    "human_bytes",
    "is_clear",
    "shown",
    "shown_names",
    "without_secrets",
]

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_COMPONENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", re.ASCII)
# Device names of Windows, which reserves them in every folder and with every extension.
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.ASCII | re.IGNORECASE)
_SECRETS = re.compile(r"(//)[^/@\s]+(?=@)|(\?)(?<=\S\?)(?=\S)[^\s'\">)]+|\bhf_[A-Za-z0-9_]{6,}")


def is_clear(text: str) -> bool:
    """Whether a text has no hidden characters: no control, format or surrogate characters, no line separators."""
    if text.isascii():
        return text.isprintable()
    return not any(unicodedata.category(character) in _HIDDEN for character in text)


def shown(text: str) -> str:
    """Return a stranger's text in a form that is safe to print on a line, with escapes for hidden characters."""
    return text if is_clear(text) else repr(text)[1:-1]


def shown_names(names: Iterable[str], limit: int = 5) -> str:
    """Return the first names of a list for a message, and the number of the others."""
    listed = list(names)
    more = f" and {len(listed) - limit:,} more" if len(listed) > limit else ""
    return ", ".join(map(shown, listed[:limit])) + more


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as ``1 tensor`` and ``1,234 tensors``."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def without_secrets(text: str) -> str:
    """Return a text without what nobody may see: tokens, and the passwords and queries (with signatures) of URLs."""
    return _SECRETS.sub(lambda found: f"{found[1] or found[2] or ''}…", text)


def human_bytes(count: int) -> str:
    """Return a size with three digits, such as ``43.3 MB``. Units are powers of 1000, as on the Hub."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def check_file_name(name: str, error: type[SourceError] = PackageError) -> str:
    """Return ``name`` if it is a relative path that always stays inside the folder that it is joined to.

    It has one to four components of ``[A-Za-z0-9._-]``. None of them begins or ends with a dot, or is a device name of
    Windows. This allows every name that models and packages use. It excludes ``..``, drives, streams, control
    characters, and everything that two file systems could read differently. Any other name raises ``error``.
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
    """Raise ``error`` if a name is unsafe, or if two names are equal or differ only in case."""
    seen: dict[str, str] = {}
    for name in names:
        check_file_name(name, error)
        folded = name.casefold()
        if folded in seen:
            raise error(f"the file names {seen[folded]!r} and {name!r} collide")
        seen[folded] = name


def check_tensor_name(name: str, error: type[SourceError] = PackageError) -> str:
    """Return ``name`` if it is not empty, not too long, and without hidden characters. It is never used as a path.

    Control, format and surrogate characters and line separators (Unicode Cc, Cf, Cs, Zl, Zp) are refused, because they
    could hide in a line of a terminal or a log, or rewrite it. Any other name raises ``error``.
    """
    if not name or not is_clear(name) or len(name.encode("utf-8", "surrogatepass")) > TENSOR_NAME_BYTES:
        raise error(f"unsafe tensor name {name[:200]!r}")
    return name
