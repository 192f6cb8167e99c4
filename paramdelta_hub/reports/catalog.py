"""A catalog: a registry as a static site, which any file server or a Space on the Hub can serve."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from paramdelta_hub.errors import ParamdeltaError
from paramdelta_hub.fileio.durable import expand, io_errors
from paramdelta_hub.fileio.report import Report
from paramdelta_hub.limits import CATALOG_DELTAS
from paramdelta_hub.outputs.replacing import Replacement, check_new, registry_places
from paramdelta_hub.package.package import open_package
from paramdelta_hub.registry.locate import Reference, open_registry, registry_root
from paramdelta_hub.registry.names import is_repo
from paramdelta_hub.registry.protocol import Hit, Registry
from paramdelta_hub.registry.search import Wanted, describe_base, judge
from paramdelta_hub.reports.site import Entry, site_pages
from paramdelta_hub.reports.spectra import has_weights, measure_spectra
from paramdelta_hub.tasks.progress import Progress
from paramdelta_hub.tasks.workspace import Workspace

__all__ = ["CatalogReport", "catalog"]


class CatalogReport(Report):
    """What the site contains."""

    path: Path
    listed_deltas: int
    pages: int
    nbytes: int
    """Of all files."""
    without_report: dict[str, str]
    """The reasons why deltas, by repository, are listed without a page: their manifest can't be read."""
    more: bool
    """Whether the registry has more deltas than were requested."""


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
    """Write the deltas of a registry as a static site: a searchable list, and a report for each.

    The folder appears whole or not at all. Equal registries give equal files. A delta whose manifest can't be read is
    listed with the reason.

    Args:
        registry: a folder or an fsspec URL; by default PARAMDELTA_REGISTRY, or else the Hub.
        out: the folder to write.
        query: text that a name or title must contain; by default all deltas are listed.
        bases: folders, or ``org/name`` on the Hub, of models for which every delta is judged.
        title: the title of the site.
        limit: the maximum number of deltas.
        samples: how many matrices of each local delta to decode for their effective rank.
        overwrite: whether to replace an older catalog.
        progress: receives the progress of the work.

    Raises:
        CheckpointError: a model of ``bases`` can't be read.
        DestinationError: ``out`` exists, or is being written.
        RegistryError: not allowed, or not reachable.
    """
    out, bases = os.path.expanduser(out), [os.path.expanduser(base) for base in bases]
    root = registry_root(registry)
    client = open_registry(root)
    local_bases = [("a base", expand(model)) for model in bases if os.path.exists(model)]
    may_replace = Replacement("catalog", [*registry_places(registry), *local_bases]) if overwrite else None
    check_new(out, overwrite=overwrite, registry=registry)
    wanted = [(_public_name(model), describe_base(model)) for model in bases]
    hits = [hit for hit in itertools.islice(client.search(query, None, None), limit + 1) if is_repo(hit.repo)]
    with Workspace(Path(out), may_replace=may_replace) as place:
        entries = list(_entries(client, root, hits[:limit], wanted, samples, progress or Progress()))
        place.start_afresh()
        pages, nbytes = _write_site(place.result, title, entries)
        place.commit()
    return CatalogReport(
        path=place.out,
        listed_deltas=len(entries),
        pages=pages,
        nbytes=nbytes,
        without_report={entry.hit.repo: entry.problem for entry in entries if entry.problem},
        more=len(hits) > limit,
    )


def _write_site(folder: Path, title: str, entries: Sequence[Entry]) -> tuple[int, int]:
    """Write the files of the site; return the number of pages, and the bytes of all files."""
    pages = nbytes = 0
    with io_errors("writing the site"):
        for name, content in site_pages(title, entries):
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            pages, nbytes = pages + name.endswith(".html"), nbytes + len(content)
    return pages, nbytes


def _entries(
    client: Registry,
    root: str | None,
    hits: Sequence[Hit],
    wanted: Sequence[tuple[str, Wanted]],
    samples: int,
    progress: Progress,
) -> Iterator[Entry]:
    progress.start("deltas", len(hits))
    try:
        for hit in hits:
            yield _entry(client, root, hit, wanted, samples)
            progress.advance(1)
    finally:
        progress.finish()


def _entry(client: Registry, root: str | None, hit: Hit, wanted: Sequence[tuple[str, Wanted]], samples: int) -> Entry:
    """Return a delta with the manifest of its newest version, or with the reason why it can't be read."""
    verdicts = tuple((model, judge(hit, what)) for model, what in wanted)
    try:
        versions = tuple(client.versions(hit.repo))
        package = open_package(client.pull(hit.repo, hit.pullable, part="manifest").path)
        # Visitors of the site can't use a folder of this machine, but they may reach a bucket.
        address = root if root is None or "://" in root else None
        reference = str(Reference(address, hit.repo, package.manifest.version))
        spectra = tuple(measure_spectra(package, samples)) if samples and has_weights(package) else None
    except ParamdeltaError as error:
        return Entry(hit, problem=error.what, verdicts=verdicts)
    return Entry(hit, package.manifest, package.digest, "", reference, versions, verdicts, spectra)


def _public_name(model: str) -> str:
    """Return the name of a model without the path of its folder on this machine."""
    return os.path.basename(os.path.abspath(model)) if os.path.exists(model) else model
