"""Inspect a package, by its manifest, and compare several packages, by their weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paramdelta_hub.errors import OptionError
from paramdelta_hub.fileio.durable import io_errors, write_file
from paramdelta_hub.limits import SPECTRUM_MATRICES
from paramdelta_hub.outputs.replacing import check_output_file
from paramdelta_hub.package.manifest import Manifest, TensorRecord
from paramdelta_hub.package.package import Package, open_package
from paramdelta_hub.registry.locate import locate_delta
from paramdelta_hub.reports.agreement import Comparison, compare_packages
from paramdelta_hub.reports.comparison_page import comparison_page
from paramdelta_hub.reports.delta_page import delta_page
from paramdelta_hub.reports.pages import is_page
from paramdelta_hub.reports.spectra import Spectrum, measure_spectra
from paramdelta_hub.tasks.progress import Progress

__all__ = ["InspectReport", "check_report", "compare", "inspect", "relative_change", "write_report"]

DEFAULT_SAMPLES = 16
"""The number of matrices whose effective rank a report shows by default. They take a few seconds."""


@dataclass(frozen=True)
class InspectReport:
    """What a package is."""

    package: Path
    id: str
    manifest: Manifest
    spectra: tuple[Spectrum, ...] | None = None
    """The spectra of sampled matrices; None if no weights were read."""

    @property
    def nbytes(self) -> int:
        """The size of the package without its manifest."""
        return self.manifest.nbytes

    @property
    def model_nbytes(self) -> int:
        """The size of the full model's tensors that the delta covers."""
        return self.manifest.model_nbytes

    def most_changed(self, count: int) -> Sequence[TensorRecord]:
        """Return the changed tensors with the largest |Δ| relative to |base|, the largest first."""
        changed = [tensor for tensor in self.manifest.tensors if tensor.delta_norm > 0]
        return sorted(changed, key=lambda tensor: (-relative_change(tensor), tensor.name))[:count]

    def to_json(self, most_changed: int = 10) -> dict[str, Any]:
        """Return the machine-readable report."""
        manifest = self.manifest
        return {
            "package": str(self.package),
            "id": self.id,
            "name": manifest.name,
            "version": manifest.version,
            "license": manifest.license,
            "created_by": manifest.created_by,
            "base": manifest.base.model_dump(mode="json"),
            "post": manifest.post.model_dump(mode="json"),
            "architecture": manifest.architecture.model_dump(mode="json"),
            "exactness": manifest.exactness.model_dump(mode="json"),
            "tensors": len(manifest.tensors),
            "unchanged_tensors": sum(not tensor.changed for tensor in manifest.tensors),
            "omissions": [omission.model_dump(mode="json") for omission in manifest.omissions],
            "companions": [file.model_dump(mode="json") for file in manifest.companions],
            "configs": {name: change.model_dump(mode="json") for name, change in manifest.configs.items()},
            "bytes": self.nbytes,
            "model_bytes": self.model_nbytes,
            "ratio": self.nbytes / self.model_nbytes if self.model_nbytes else None,
            "most_changed": [
                {
                    "name": tensor.name,
                    "shape": list(tensor.shape),
                    "dtype": tensor.dtype,
                    "relative_change": None if tensor.base_norm == 0 else relative_change(tensor),
                    "changed": tensor.changed / tensor.elements if tensor.elements else 0.0,
                }
                for tensor in self.most_changed(most_changed)
            ],
            "spectra": None if self.spectra is None else [asdict(spectrum) for spectrum in self.spectra],
        }


def relative_change(tensor: TensorRecord) -> float:
    """Return |Δ| / |base|; infinite if base is zero."""
    return tensor.delta_norm / tensor.base_norm if tensor.base_norm else float("inf")


def inspect(delta: str | Path, *, registry: str | Path | None = None, samples: int | None = 0) -> InspectReport:
    """Describe the package ``delta``, a folder or ``org/name[@version]`` in a registry.

    By default its weights are neither fetched nor read.

    Args:
        delta: the package.
        registry: the folder or bucket of a bare ``org/name``; by default PARAMDELTA_REGISTRY, or else the Hub.
        samples: the number of matrices to decode for their effective rank. None decodes sixteen if the weights are on
            this machine.

    Raises:
        OptionError: too many samples.
        PackageError: not a package, the manifest breaks the format, or a sampled tensor is damaged.
        RegistryError: the delta can't be fetched from its registry.
    """
    if not 0 <= (samples or 0) <= SPECTRUM_MATRICES:
        raise OptionError(f"{samples} matrices can't be sampled", remedy=f"give 0 to {SPECTRUM_MATRICES}")
    package = open_package(locate_delta(delta, registry, part="package" if samples else "manifest"))
    if samples is None:
        here = all(os.path.lexists(package.path / file.path) for file in package.manifest.shards)
        samples = DEFAULT_SAMPLES if here else 0
    spectra = tuple(measure_spectra(package, samples)) if samples else None
    return InspectReport(package.path, package.digest, package.manifest, spectra)


def compare(
    deltas: Sequence[str | Path],
    *,
    registry: str | Path | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Compare two to six deltas: their cosines, and how often they move a weight in opposite directions.

    The weights are streamed: every thread holds one chunk of each delta.

    Args:
        deltas: folders, or ``org/name[@version]`` in a registry, which are pulled.
        registry: the folder or bucket of a bare ``org/name``; by default PARAMDELTA_REGISTRY, or else the Hub.
        threads: the number of tensors compared at a time; by default the number of processors.
        progress: receives the progress of the work.

    Raises:
        OptionError: too few or too many deltas, or no tensor in common.
        PackageError: not a package, or damaged.
        RegistryError: a delta can't be fetched from its registry.
    """
    packages: list[Package] = [open_package(locate_delta(delta, registry, progress=progress)) for delta in deltas]
    return compare_packages(packages, threads=threads, progress=progress)


def check_report(path: str | Path, *, overwrite: bool = False) -> Path:
    """Return the path of a report, checked before the report is made.

    Raises:
        DestinationError: the file exists.
    """
    return check_output_file(path, is_page, overwrite=overwrite)


def write_report(
    report: InspectReport | Comparison, path: str | Path, *, reference: str | None = None, overwrite: bool = False
) -> Path:
    """Write a report as one self-contained HTML page, whole or not at all. Equal reports give equal pages.

    Args:
        report: the result of :func:`inspect` or :func:`compare`.
        path: the file to write.
        reference: the name of the delta in the page's commands; by default the package's folder.
        overwrite: whether to replace an older report.

    Raises:
        DestinationError: the file exists.
        StorageError: it can't be written.
    """
    file = check_report(path, overwrite=overwrite)
    if isinstance(report, Comparison):
        content = comparison_page(report)
    else:
        content = delta_page(report.manifest, report.id, reference or str(report.package), report.spectra)
    with io_errors("writing the report"):
        write_file(file, content)
    return file
