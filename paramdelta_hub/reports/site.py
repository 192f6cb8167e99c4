"""The catalog's pages: a list of a registry's deltas by base, and a report for each.

Everything can be read without JavaScript; with it, a search field narrows the list.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from paramdelta_hub.fileio import strict_json
from paramdelta_hub.fileio.names import human_bytes
from paramdelta_hub.outputs.replacing import SiteFiles
from paramdelta_hub.package.manifest import Manifest
from paramdelta_hub.registry.artifacts import SITE_NAME
from paramdelta_hub.registry.protocol import Hit, Version
from paramdelta_hub.registry.search import Verdict
from paramdelta_hub.reports.delta_page import relative_change, view_delta
from paramdelta_hub.reports.pages import render
from paramdelta_hub.reports.spectra import Spectrum

__all__ = ["Entry", "site_pages"]

_INDEX = "index.html"
_DAY = len("2026-01-31")


@dataclass(frozen=True)
class Entry:
    """A delta in the catalog, with what the registry knows about it."""

    hit: Hit
    manifest: Manifest | None = None
    """The manifest of its newest version; None if it can't be read."""
    package_id: str = ""
    problem: str = ""
    """The reason why there is no manifest."""
    reference: str = ""
    """The name of its newest version in commands."""
    versions: tuple[Version, ...] = ()
    verdicts: tuple[tuple[str, Verdict], ...] = ()
    """(model, whether the delta can be applied to it), for the requested models."""
    spectra: tuple[Spectrum, ...] | None = None

    @property
    def base(self) -> str:
        """The name of its base; empty if unknown."""
        return self.manifest.base.name if self.manifest else self.hit.base or ""

    @property
    def fingerprint(self) -> str:
        """The fingerprint of its base's architecture; empty if unknown."""
        return self.manifest.architecture.fingerprint if self.manifest else ""

    @property
    def license(self) -> str:
        """Its license; empty if none is stated."""
        return (self.manifest.license if self.manifest else None) or self.hit.license or ""

    @property
    def path(self) -> str:
        """The path of its report within the site."""
        return f"deltas/{self.hit.repo}/{_INDEX}"

    @property
    def facts(self) -> list[str]:
        """The facts about it in the list of deltas."""
        facts = [f"makes {self.manifest.post.name if self.manifest else self.hit.post or 'an unknown model'}"]
        if self.manifest:
            facts.append(f"changes weights by {relative_change(self.manifest)}")
        if self.hit.nbytes is not None:
            facts.append(human_bytes(self.hit.nbytes))
        facts.append(self.license or "license not stated")
        if self.versions:
            facts.append(f"{len(self.versions)} version{'s' * (len(self.versions) > 1)}")
        if self.hit.created:
            facts.append(self.hit.created[:_DAY])
        return facts

    @property
    def search_words(self) -> str:
        """The text that the search field searches."""
        architecture = self.manifest.architecture if self.manifest else None
        classes = (*architecture.classes, architecture.model_type or "") if architecture else ()
        words = (self.hit.repo, self.hit.title, self.base, self.hit.post or "", self.license, *classes)
        return " ".join(words).lower()


def site_pages(title: str, entries: Sequence[Entry]) -> Iterator[tuple[str, bytes]]:
    """Yield the path and the content of every file of the site, the list of files last.

    Equal entries give equal files. Repository names become paths, and must be safe as such.
    """
    files = {}
    for path, content in _pages(title, entries):
        files[path] = hashlib.sha256(content).hexdigest()
        yield path, content
    yield SITE_NAME, strict_json.pretty(SiteFiles(files=files).model_dump(mode="json"))


def _pages(title: str, entries: Sequence[Entry]) -> Iterator[tuple[str, bytes]]:
    ordered = sorted(entries, key=lambda entry: (entry.base.casefold(), entry.base, entry.hit.repo))
    by_base: dict[str, list[Entry]] = defaultdict(list)
    by_fingerprint: dict[str, list[Entry]] = defaultdict(list)
    for entry in ordered:
        by_base[entry.base].append(entry)
        by_fingerprint[entry.fingerprint].append(entry)
    yield _INDEX, render("catalog.html.j2", title, script="filter.js", entries=ordered, groups=by_base)
    for entry in ordered:
        if entry.manifest is not None:
            page = render(
                "catalog_delta.html.j2",
                f"{entry.hit.repo} {entry.manifest.version}",
                catalog_title=title,
                up="../" * entry.path.count("/"),
                entry=entry,
                delta=view_delta(entry.manifest, entry.package_id, entry.reference, entry.spectra),
                same_architecture=[other for other in by_fingerprint[entry.fingerprint] if other is not entry],
            )
            yield entry.path, page
