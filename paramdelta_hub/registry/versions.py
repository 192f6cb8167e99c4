"""Semantic versions: which texts are versions, how they compare, and which one is the newest.

``packaging.version`` is no substitute: it implements PEP 440, which reads ``1.0.0-1`` as a release *after* 1.0.0 and
refuses ``1.0.0-rc.x``. The grammar is the manifest's own; comparing is four lines.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import TypeAdapter, ValidationError

from paramdelta_hub.errors import OptionError
from paramdelta_hub.package.records import SemanticVersion

__all__ = ["check_version", "is_version", "newest", "newest_first", "precedence"]

_VERSION: TypeAdapter[str] = TypeAdapter(SemanticVersion)


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
