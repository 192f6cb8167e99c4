"""The catalog: a page that lists the deltas of a registry by base, and a report for each. Files, and no program.

Everything can be read without JavaScript; where there is some, it narrows the list to what is typed.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Literal

from pydantic import Field

from paramdelta_hub.fileio import strict_json
from paramdelta_hub.fileio.sizes import human_bytes
from paramdelta_hub.limits import FILES
from paramdelta_hub.package.manifest import Manifest
from paramdelta_hub.package.records import Record, Sha256, Text, at_most
from paramdelta_hub.registry.artifacts import SITE_NAME
from paramdelta_hub.registry.protocol import Hit, Version
from paramdelta_hub.registry.search import Verdict
from paramdelta_hub.reports.delta_page import delta_sections, footer, relative_change
from paramdelta_hub.reports.markup import Markup, element, join, link, name, page, table
from paramdelta_hub.reports.spectra import Spectrum

__all__ = ["SITE_NAME", "Entry", "SiteFiles", "site_pages"]

_INDEX = "index.html"
_DAY = len("2026-01-31")


class SiteFiles(Record):
    """What ``paramdelta_catalog.json`` says."""

    format: Literal["paramdelta-catalog"] = "paramdelta-catalog"
    format_version: Literal[1] = 1
    files: Annotated[dict[Text, Sha256], at_most(FILES)] = Field(description="every other file of the site, by name")


@dataclass(frozen=True)
class Entry:
    """One delta of the catalog, as far as it could be learnt of."""

    hit: Hit
    manifest: Manifest | None = None
    """Of its newest version; None where that can't be had."""
    package_id: str = ""
    problem: str = ""
    """Why there is no manifest."""
    reference: str = ""
    """What commands call its newest version."""
    versions: tuple[Version, ...] = ()
    verdicts: tuple[tuple[str, Verdict], ...] = ()
    """(model, whether the delta can be applied to it), for the models that were asked for."""
    spectra: tuple[Spectrum, ...] | None = None

    @property
    def base(self) -> str:
        """What it was taken of; empty where that is not known."""
        return self.manifest.base.name if self.manifest else self.hit.base or ""

    @property
    def fingerprint(self) -> str:
        """Of its base's architecture; empty where that is not known."""
        return self.manifest.architecture.fingerprint if self.manifest else ""


def site_pages(title: str, entries: Sequence[Entry]) -> Iterator[tuple[str, bytes]]:
    """Yield every file of the site, the list of the others last: its path, and its content.

    Equal entries give equal files.

    Args:
        title: what the site is called.
        entries: the deltas, whose repositories are safe as paths.

    Raises:
        OptionError: the charts' library is not installed.
    """
    files = {}
    for path, content in _pages(title, entries):
        files[path] = hashlib.sha256(content).hexdigest()
        yield path, content
    yield SITE_NAME, strict_json.pretty(SiteFiles(files=files).model_dump(mode="json"))


def _pages(title: str, entries: Sequence[Entry]) -> Iterator[tuple[str, bytes]]:
    ordered = sorted(entries, key=lambda entry: (entry.base.casefold(), entry.base, entry.hit.repo))
    yield _INDEX, _index(title, ordered)
    kin: dict[str, list[Entry]] = defaultdict(list)
    for entry in ordered:
        kin[entry.fingerprint].append(entry)
    for entry in ordered:
        if entry.manifest is not None:
            yield f"deltas/{entry.hit.repo}/{_INDEX}", _delta(title, entry, entry.manifest, kin)


def _index(title: str, entries: Sequence[Entry]) -> bytes:
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry.base].append(entry)
    anchors = {base: f"base-{number}" for number, base in enumerate(groups, start=1)}
    field = element(
        "div",
        element("label", "Search by base, name or license", for_="filter"),
        element("input", type="search", id="filter", autocomplete="off", spellcheck="false", aria_describedby="found"),
        element("p", id="found", class_="soft", role="status"),
        id="search",
        role="search",
        hidden=True,
    )
    bases = [
        element("li", link(f"#{anchors[base]}", name(base or "unknown")), f" ({len(group)})")
        for base, group in groups.items()
    ]
    body = element(
        "main",
        element("h1", title),
        element("p", _counted(len(entries), len(groups)), class_="lead"),
        field if entries else None,
        element("nav", element("ul", bases, class_="bases"), aria_label="Bases") if len(groups) > 1 else None,
        (_group(base, group, anchors[base]) for base, group in groups.items()),
        id="content",
    )
    script = resources.files(__package__).joinpath("filter.js").read_text("utf-8")
    return page(title, _skip(), body, footer("the registry’s manifests"), script=script)


def _group(base: str, entries: Sequence[Entry], anchor: str) -> Markup:
    heading = element("h2", "Of ", name(base), id=anchor) if base else element("h2", "Of an unknown base", id=anchor)
    return element(
        "section", heading, element("ul", map(_item, entries), class_="deltas"), class_="base", aria_labelledby=anchor
    )


def _item(entry: Entry) -> Markup:
    hit, manifest = entry.hit, entry.manifest
    label = name(hit.repo)
    title = link(f"deltas/{hit.repo}/{_INDEX}", label) if manifest else label
    facts = [f"makes {manifest.post.name if manifest else hit.post or 'an unknown model'}"]
    if manifest:
        facts.append(f"changes weights by {relative_change(manifest)}")
    if hit.nbytes is not None:
        facts.append(human_bytes(hit.nbytes))
    facts.append(_license(entry) or "license not stated")
    if entry.versions:
        facts.append(f"{len(entry.versions)} version{'s' * (len(entry.versions) > 1)}")
    if hit.created:
        facts.append(hit.created[:_DAY])
    words = [hit.repo, hit.title, entry.base, hit.post or "", _license(entry), *_classes(manifest)]
    verdicts = [element("p", "For ", name(model), ": ", *_verdict(verdict)) for model, verdict in entry.verdicts]
    return element(
        "li",
        element("h3", title, " ", element("span", hit.version or "", class_="version")),
        element("p", " · ".join(facts), class_="soft"),
        verdicts,
        element("p", f"No report: {entry.problem}", class_="soft") if entry.problem else None,
        data_words=" ".join(words).lower(),
    )


def _delta(title: str, entry: Entry, manifest: Manifest, kin: Mapping[str, Sequence[Entry]]) -> bytes:
    up = "../" * (entry.hit.repo.count("/") + 2)
    alike = [other for other in kin[entry.fingerprint] if other is not entry]
    body = element(
        "main",
        *delta_sections(manifest, entry.package_id, entry.reference, entry.spectra),
        element("h2", "Fits"),
        _fits(entry, alike, up),
        element("h2", "Versions"),
        _versions(entry.versions),
        id="content",
    )
    here = element("nav", link(f"{up}{_INDEX}", f"← {title}"), aria_label="Catalog")
    return page(f"{entry.hit.repo} {manifest.version}", _skip(), here, body, footer())


def _fits(entry: Entry, alike: Sequence[Entry], up: str) -> Markup:
    parts = [
        element(
            "p",
            "Models with the fingerprint above: ",
            name(entry.base),
            " and what was made of it. pd-apply compares values before it adds, and refuses what is not kin.",
        )
    ]
    if entry.verdicts:
        rows = [(name(model), *_verdict(verdict)) for model, verdict in entry.verdicts]
        parts.append(table(("Model", "Judged", "Because"), [(m, j, b) for m, j, _, b in rows], "As far as names tell."))
    if alike:
        items = [
            element(
                "li", link(f"{up}deltas/{other.hit.repo}/{_INDEX}", name(other.hit.repo)), ", of ", name(other.base)
            )
            for other in alike
        ]
        parts += [element("p", "Other deltas of the same architecture:"), element("ul", items)]
    return join(*parts)


def _versions(versions: Sequence[Version]) -> Markup:
    rows = [(v.version, element("code", v.revision[:16]), (v.created or "")[:_DAY] or "–") for v in versions]
    return table(("Version", "Revision", "Published"), rows, "The newest first; what is published never changes.")


def _verdict(verdict: Verdict) -> tuple[Markup, str, str]:
    return element("strong", verdict.judgement), " — ", verdict.reason


def _license(entry: Entry) -> str:
    return (entry.manifest.license if entry.manifest else None) or entry.hit.license or ""


def _classes(manifest: Manifest | None) -> tuple[str, ...]:
    return (*manifest.architecture.classes, manifest.architecture.model_type or "") if manifest else ()


def _counted(deltas: int, bases: int) -> str:
    if not deltas:
        return "No delta is published here yet."
    return f"{deltas:,} delta{'s' * (deltas > 1)} of {bases:,} base model{'s' * (bases > 1)}."


def _skip() -> Markup:
    return element("a", "Skip to the content", href="#content", class_="skip")
