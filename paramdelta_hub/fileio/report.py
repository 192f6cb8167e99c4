"""What an operation tells when it is done, to people and to programs; ``--json`` prints just its fields.

``schemas/reports-v1.schema.json`` is generated from these models. A thing has one name in all of them: ``path`` is
where it lies, ``nbytes`` its size, ``tensors`` a count of tensors, ``id`` the sha256 of a package's manifest.
"""

from __future__ import annotations

from builtins import property as derived
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, computed_field

__all__ = ["ErrorReport", "Problem", "Report", "derived"]

if not TYPE_CHECKING:  # to a type checker, it is a property

    def derived(function: Any) -> Any:
        """Make a property that stands in the JSON, too."""
        return computed_field(property(function))


class Report(BaseModel):
    """A report: its fields are its JSON, but for those that are excluded, which are for Python alone."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        arbitrary_types_allowed=True,
        json_schema_serialization_defaults_required=True,
    )

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable report."""
        return self.model_dump(mode="json")


class MismatchRecord(Report):
    """One thing that does not fit."""

    location: str
    """A tensor, or a file."""
    kind: str
    message: str


class Problem(Report):
    """What went wrong; its fields are the attributes of our errors."""

    kind: str
    what: str
    where: str | None
    remedy: str | None
    mismatches: tuple[MismatchRecord, ...] = ()
    """Everything that does not fit, where two things don't."""


class ErrorReport(Report):
    """What a command prints instead of its report where it fails."""

    error: Problem
