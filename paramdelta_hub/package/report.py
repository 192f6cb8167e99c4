"""What every report of a package says of it."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from paramdelta_hub.fileio.report import Report, derived
from paramdelta_hub.package.manifest import Exactness, FileRecord, Manifest, Omission

__all__ = ["PackageReport"]


class PackageReport(Report):
    """A package: where it lies, what it is called, how large it is, and what it leaves out."""

    path: Path
    id: str
    """sha256 of the manifest."""
    manifest: Manifest = Field(exclude=True)
    model_nbytes: int
    """Size of the full model's tensors."""

    @derived
    def name(self) -> str:
        """What its maker calls it."""
        return self.manifest.name

    @derived
    def version(self) -> str:
        """Its semantic version."""
        return self.manifest.version

    @derived
    def license(self) -> str | None:
        """Its license, if its maker states one."""
        return self.manifest.license

    @derived
    def nbytes(self) -> int:
        """Size of the package without its manifest."""
        return self.manifest.nbytes

    @derived
    def ratio(self) -> float | None:
        """Its size over the model's."""
        return self.nbytes / self.model_nbytes if self.model_nbytes else None

    @derived
    def tensors(self) -> int:
        """How many tensors it has."""
        return len(self.manifest.tensors)

    @derived
    def exactness(self) -> Exactness:
        """What was checked when it was made."""
        return self.manifest.exactness

    @derived
    def omissions(self) -> tuple[Omission, ...]:
        """Tensors that it leaves out, and why."""
        return self.manifest.omissions

    @derived
    def companions(self) -> tuple[FileRecord, ...]:
        """Its files beside the weights."""
        return self.manifest.companions
