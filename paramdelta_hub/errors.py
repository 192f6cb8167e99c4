"""Every error a caller can meet, grouped by what a handler would do about it.

    ParamdeltaError                      exit 1   anything below
    ├── OptionError                      exit 2   the request itself makes no sense: change the command
    ├── SourceError                      exit 3   something given to read can't be read: fix or replace it
    │   ├── CheckpointError                       … a model
    │   └── PackageError                          … a delta package
    │       ├── UnsupportedFormatError            … written by a later major format
    │       └── IntegrityError                    … whose bytes differ from its manifest
    ├── MismatchError                    exit 4   readable, but not meant for each other: choose another pair
    │   ├── LineageError                          … same shapes, other ancestry
    │   └── NotFiniteError                        … a value that is, or would become, NaN or infinite
    ├── VerificationError                exit 5   the package is whole, but is not what it says it is
    │   └── SignatureError                        … not signed as required
    ├── DestinationError                 exit 6   the output place is taken, or somebody else is writing to it
    ├── StorageError                     exit 7   no space, no permission, I/O error: mend, then run again
    └── RegistryError                    exit 8   a registry can't be reached, refuses, or lacks what was asked for
        └── PublishError                          … the version exists with other content, or somebody was faster

``Ctrl-C`` ends with 130, as shells expect. Every error is built from plain values, which travel between processes as
JSON or pickled, and carries a stable ``kind`` for programs; the text is for people and may change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

__all__ = [
    "CheckpointError",
    "DestinationError",
    "IntegrityError",
    "LineageError",
    "Mismatch",
    "MismatchError",
    "NotFiniteError",
    "OptionError",
    "PackageError",
    "ParamdeltaError",
    "PublishError",
    "RegistryError",
    "SignatureError",
    "SourceError",
    "StorageError",
    "UnsupportedFormatError",
    "VerificationError",
]

SHOWN_MISMATCHES = 10
"""How many lines of mismatches a message has; the exception and ``--json`` always carry all of them."""
_ALIKE, _NAMED = 3, 5
"""Of more mismatches than these that are worded alike, a message has one line, with the first names."""


class ParamdeltaError(Exception):
    """The root: catches everything this library raises on purpose.

    Args:
        what: what is wrong, in one sentence without a full stop.
        where: the file, folder or tensor it is about, if any.
        remedy: what the user can do, if we know.
    """

    kind: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__(what)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  → {self.remedy}" if self.remedy else text


class OptionError(ParamdeltaError):
    """The request itself makes no sense."""

    kind, exit_code = "option", 2


class SourceError(ParamdeltaError):
    """Something given to read can't be read."""

    kind, exit_code = "source", 3


class CheckpointError(SourceError):
    """A model can't be read."""

    kind = "checkpoint"


class PackageError(SourceError):
    """A delta package can't be read."""

    kind = "package"


class UnsupportedFormatError(PackageError):
    """The package was written in a format this version does not know."""

    kind = "unsupported-format"


class IntegrityError(PackageError):
    """Bytes of the package differ from what its manifest promises."""

    kind = "integrity"


class Mismatch(NamedTuple):
    """One thing that does not fit: which tensor (or file), what kind of misfit, in words."""

    location: str
    kind: str
    message: str

    def __str__(self) -> str:
        return f"{self.location}: {self.message}"


class MismatchError(ParamdeltaError):
    """Readable, but not meant for each other. ``mismatches`` holds every one, not only the first."""

    kind, exit_code = "mismatch", 4

    def __init__(
        self, what: str, mismatches: Sequence[Mismatch] = (), *, where: str | None = None, remedy: str | None = None
    ) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.mismatches = tuple(mismatches)

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        groups = list(self._lines())
        lines += [f"  - {line}" for line, _ in groups[:SHOWN_MISMATCHES]]
        if left := sum(count for _, count in groups[SHOWN_MISMATCHES:]):
            lines.append(f"  - … and {left} more (all of them with --json)")
        if self.remedy:
            lines.append(f"  → {self.remedy}")
        return "\n".join(lines)

    def _lines(self) -> Iterator[tuple[str, int]]:
        """Give each line of the list, and how many mismatches it tells of."""
        alike: dict[str, list[Mismatch]] = {}
        for mismatch in self.mismatches:
            alike.setdefault(mismatch.message, []).append(mismatch)
        for mismatch in self.mismatches:
            group = alike[mismatch.message]
            if len(group) <= _ALIKE:
                yield str(mismatch), 1
            elif mismatch is group[0]:
                names = ", ".join(each.location for each in group[:_NAMED])
                more = f" and {len(group) - _NAMED} more" if len(group) > _NAMED else ""
                yield f"{len(group)} times: {mismatch.message}: {names}{more}", len(group)


class LineageError(MismatchError):
    """Right shapes, but no descent from base. ``correlation`` is measured; ``mismatches`` are the unrelated tensors."""

    kind = "lineage"

    def __init__(
        self,
        what: str,
        correlation: float = math.nan,
        mismatches: Sequence[Mismatch] = (),
        *,
        where: str | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(what, mismatches, where=where, remedy=remedy)
        self.correlation = correlation


class NotFiniteError(MismatchError):
    """A value is, or the sum would be, NaN or infinite; each tensor with its count is in ``mismatches``."""

    kind = "not-finite"


class VerificationError(ParamdeltaError):
    """The package is whole, but is not what it says it is."""

    kind, exit_code = "verification", 5


class SignatureError(VerificationError):
    """A package is not signed, or not by whom it must be, or not as what it is given out for."""

    kind = "signature"


class DestinationError(ParamdeltaError):
    """The output place is taken, or another process is writing to it."""

    kind, exit_code = "destination", 6


class StorageError(ParamdeltaError):
    """The disk is full, read-only or failing. Nothing finished was lost; running again goes on."""

    kind, exit_code = "storage", 7


class RegistryError(ParamdeltaError):
    """A registry can't be reached, refuses, or has not what was asked for."""

    kind, exit_code = "registry", 8


class PublishError(RegistryError):
    """The version exists with other content, or somebody else published at the same moment; nothing was replaced."""

    kind = "publish"
