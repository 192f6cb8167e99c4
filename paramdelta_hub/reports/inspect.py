"""Inspect a package, by its manifest, and compare several packages, by their weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from paramdelta_hub.errors import OptionError
from paramdelta_hub.fileio.durable import io_errors, write_file
from paramdelta_hub.fileio.report import Report, derived
from paramdelta_hub.limits import SPECTRUM_MATRICES
from paramdelta_hub.outputs.replacing import check_output_file
from paramdelta_hub.package.manifest import Architecture, ConfigChange, Earlier, Source
from paramdelta_hub.package.package import open_package
from paramdelta_hub.package.records import ConfigName
from paramdelta_hub.package.report import PackageReport
from paramdelta_hub.registry.cards.changes import ratio
from paramdelta_hub.registry.locate import locate_delta
from paramdelta_hub.reports.agreement import Comparison, compare_packages
from paramdelta_hub.reports.comparison_page import comparison_page
from paramdelta_hub.reports.delta_page import delta_page
from paramdelta_hub.reports.pages import is_page
from paramdelta_hub.reports.spectra import Spectrum, has_weights, measure_spectra
from paramdelta_hub.tasks.progress import Progress

__all__ = ["InspectReport", "check_report", "compare", "inspect", "write_report"]

DEFAULT_SAMPLES = 16
"""The number of matrices whose effective rank a report shows by default. They take a few seconds."""


class ChangedTensor(Report):
    """How much a tensor changed."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    relative_change: float | None
    """|Δ| / |base|; None if base is zero."""
    changed: float
    """The share of elements that changed."""


class InspectReport(PackageReport):
    """What a package is."""

    spectra: tuple[Spectrum, ...] | None = None
    """The spectra of sampled matrices; None if no weights were read."""
    top: int = Field(default=10, exclude=True)
    """How many of the most changed tensors are listed."""
    html: Path | None = None
    """The page that was written, if one was."""

    @derived
    def created_by(self) -> str:
        """The program that made it."""
        return self.manifest.created_by

    @derived
    def relabeled_from(self) -> tuple[Earlier, ...]:
        """The packages that it was before it was relabeled, the first one first."""
        return self.manifest.relabeled_from

    @derived
    def base(self) -> Source:
        """The model that it was taken from."""
        return self.manifest.base

    @derived
    def post(self) -> Source:
        """The model that it leads to."""
        return self.manifest.post

    @derived
    def architecture(self) -> Architecture:
        """What a target must look like."""
        return self.manifest.architecture

    @derived
    def configs(self) -> dict[ConfigName, ConfigChange]:
        """What post changed in its configs, by file."""
        return self.manifest.configs

    @derived
    def unchanged_tensors(self) -> int:
        """How many tensors are the same in base and post."""
        return sum(not tensor.changed for tensor in self.manifest.tensors)

    @derived
    def most_changed(self) -> tuple[ChangedTensor, ...]:
        """The changed tensors with the largest |Δ| relative to |base|, the largest first."""
        tensors = (tensor for tensor in self.manifest.tensors if tensor.delta_norm > 0)
        changed = [(ratio(tensor.delta_norm, tensor.base_norm), tensor) for tensor in tensors]
        return tuple(
            ChangedTensor(
                name=tensor.name,
                shape=tensor.shape,
                dtype=tensor.dtype,
                relative_change=change if tensor.base_norm else None,
                changed=tensor.changed / tensor.elements if tensor.elements else 0.0,
            )
            for change, tensor in sorted(changed, key=lambda found: (-found[0], found[1].name))[: self.top]
        )


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
        samples = DEFAULT_SAMPLES if has_weights(package) else 0
    spectra = tuple(measure_spectra(package, samples)) if samples else None
    return InspectReport(
        path=package.path,
        id=package.digest,
        manifest=package.manifest,
        model_nbytes=package.manifest.model_nbytes,
        spectra=spectra,
    )


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
    packages = [open_package(locate_delta(delta, registry, progress=progress)) for delta in deltas]
    return compare_packages(packages, threads=threads, progress=progress)


def check_report(path: str | Path, *, overwrite: bool = False) -> Path:
    """Return the path of a report, checked before the report is made; DestinationError if it may not be replaced."""
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
        content = delta_page(report.manifest, report.id, reference or str(report.path), report.spectra)
    with io_errors("writing the report"):
        write_file(file, content)
    return file
