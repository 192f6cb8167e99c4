"""Catalog: a registry as a static site, which any file server, or a Space on the Hub, can show."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paramdelta_hub.errors import ParamdeltaError
from paramdelta_hub.fileio.durable import expand, io_errors
from paramdelta_hub.limits import CATALOG_DELTAS
from paramdelta_hub.outputs.replacing import Replacement, check_new, registry_places
from paramdelta_hub.package.package import Package, open_package
from paramdelta_hub.registry.locate import registry_root
from paramdelta_hub.registry.names import is_repo
from paramdelta_hub.registry.protocol import Hit, Registry
from paramdelta_hub.registry.reference import Reference, open_registry
from paramdelta_hub.registry.search import Wanted, describe_base, judge
from paramdelta_hub.reports.charts import check_charts
from paramdelta_hub.reports.site import Entry, site_pages
from paramdelta_hub.reports.spectra import Spectrum, measure_spectra
from paramdelta_hub.tasks.progress import Progress
from paramdelta_hub.tasks.workspace import Destination

__all__ = ["CatalogReport", "catalog"]


@dataclass(frozen=True)
class CatalogReport:
    """What the site holds."""

    out: Path
    deltas: int
    pages: int
    nbytes: int
    without_report: tuple[tuple[str, str], ...]
    """(delta, why) of those that are listed and have no page, because their manifest can't be had."""
    more: bool
    """Whether the registry has more deltas than were asked for."""

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable report."""
        return {**asdict(self), "out": str(self.out), "without_report": dict(self.without_report)}


def catalog(
    registry: str | Path | None,
    out: str | Path,
    *,
    query: str | None = None,
    bases: Sequence[str] = (),
    title: str = "Deltas",
    limit: int = CATALOG_DELTAS,
    samples: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> CatalogReport:
    """Write the deltas of a registry as a static site: a list, searchable by base, and a report for each.

    The folder appears whole or not at all; an equal registry gives equal files. A delta whose manifest can't be had is
    listed with the reason.

    Args:
        registry: a folder or an fsspec URL; by default what PARAMDELTA_REGISTRY names, else the Hub.
        out: the folder to make.
        query: words that names or titles must have; on the Hub without it, all deltas are listed.
        bases: models, folders or ``org/name`` on the Hub, for which every delta is judged.
        title: of the site.
        limit: deltas to list.
        samples: matrices of each delta to decode for their effective rank, where its weights lie on this machine.
        overwrite: replace an older catalog; never anything else (:mod:`.replacing`).
        progress: told how far the work is.

    Raises:
        OptionError: the charts' library is not installed.
        CheckpointError: a model of ``bases`` can't be read.
        DestinationError: ``out`` exists, or is being written.
        RegistryError: not reachable, not allowed.
        StorageError: the disk is full or fails.
    """
    check_charts()
    out, bases = os.path.expanduser(out), [os.path.expanduser(base) for base in bases]
    root = registry_root(registry)
    there, progress = open_registry(root), progress or Progress()
    may_replace = Replacement("catalog", [*registry_places(registry), *_models(bases)]) if overwrite else None
    check_new(out, overwrite=overwrite, registry=registry)
    # Of a folder the last name will do: where it lies on this machine is nobody's business.
    wanted = [(_called(model), describe_base(model)) for model in bases]
    hits = [hit for hit in itertools.islice(there.search(query, None, None), limit + 1) if is_repo(hit.repo)]
    with Destination(Path(out), may_replace=may_replace) as place:
        entries = []
        progress.start("deltas", min(len(hits), limit))
        try:
            for hit in hits[:limit]:
                entries.append(_entry(there, root, hit, wanted, samples))
                progress.advance(1)
        finally:
            progress.finish()
        pages = nbytes = 0
        place.start_afresh()
        with io_errors("writing the site"):
            for name, content in site_pages(title, entries):
                file = place.result / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
                pages, nbytes = pages + name.endswith(".html"), nbytes + len(content)
        place.commit()
    without = tuple((entry.hit.repo, entry.problem) for entry in entries if entry.problem)
    return CatalogReport(place.out, len(entries), pages, nbytes, without, len(hits) > limit)


def _entry(there: Registry, root: str | None, hit: Hit, wanted: Sequence[tuple[str, Wanted]], samples: int) -> Entry:
    """Learn of a delta what its newest version's manifest says; what is wrong with one must not hide the others."""
    verdicts = tuple((model, judge(hit, what)) for model, what in wanted)
    try:
        versions = tuple(there.versions(hit.repo))
        package = open_package(there.pull(hit.repo, hit.pullable, part="manifest").path)
        # A visitor of the site has no use for a folder of this machine; a bucket's address is part of the name.
        address = root if root is None or "://" in root else None
        reference = str(Reference(address, hit.repo, package.manifest.version))
        spectra = _spectra(package, samples)
    except ParamdeltaError as error:
        return Entry(hit, problem=error.what, verdicts=verdicts)
    return Entry(hit, package.manifest, package.digest, "", reference, versions, verdicts, spectra)


def _spectra(package: Package, samples: int) -> tuple[Spectrum, ...] | None:
    here = samples and all(os.path.lexists(package.path / file.path) for file in package.manifest.shards)
    return tuple(measure_spectra(package, samples)) if here else None


def _models(bases: Sequence[str]) -> list[tuple[str, Path]]:
    return [("a base", expand(model)) for model in bases if os.path.exists(expand(model))]


def _called(model: str) -> str:
    return os.path.basename(os.path.abspath(model)) if os.path.exists(model) else model
