"""Relabel: copy a package under another name, version or license."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from paramdelta_hub.errors import OptionError
from paramdelta_hub.fileio.durable import expand
from paramdelta_hub.fileio.paths import resolve_inside
from paramdelta_hub.fileio.report import derived
from paramdelta_hub.limits import RELABELINGS
from paramdelta_hub.outputs.replacing import Replacement, check_apart, check_new, registry_places
from paramdelta_hub.package.labels import check_labels
from paramdelta_hub.package.manifest import MANIFEST_NAME, Earlier, Manifest, parse_manifest
from paramdelta_hub.package.package import Package, open_package
from paramdelta_hub.package.report import PackageReport
from paramdelta_hub.registry.cards.card import WRITTEN_KEYS
from paramdelta_hub.registry.cards.front_matter import metadata
from paramdelta_hub.registry.cards.generated import own_text, without_generated
from paramdelta_hub.registry.locate import locate_delta
from paramdelta_hub.registry.materialize import CARD_NAME, file_chunks, receive, write_if_changed
from paramdelta_hub.registry.publish import read_card
from paramdelta_hub.tasks.progress import Progress
from paramdelta_hub.tasks.workspace import Workspace

__all__ = ["RelabelReport", "relabel"]


class RelabelReport(PackageReport):
    """What a relabeling made."""

    before: Manifest = Field(exclude=True)
    """Of the package that was relabeled."""
    id_before: str

    @derived
    def changes(self) -> dict[str, tuple[str | None, str | None]]:
        """Every label that changed: what it was, and what it is."""
        labels = {label: (getattr(self.before, label), getattr(self.manifest, label)) for label in _LABELS}
        return {label: values for label, values in labels.items() if values[0] != values[1]}


_LABELS = ("name", "version", "license")


def relabel(
    delta: str | Path,
    out: str | Path,
    *,
    name: str | None = None,
    version: str | None = None,
    license: str | None = None,  # noqa: A002 - the field's own name
    registry: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RelabelReport:
    """Write the package ``out``: ``delta`` with other labels; neither model is needed, and no weight is touched.

    Every other file is the same to the byte, and checked while it is copied. It is another package, with an id of its
    own: the signature and the lock do not come along; of README.md, the author's own words and metadata do. The
    manifest records what it was before. A killed run leaves no ``out``.

    Args:
        delta: the package's folder, or ``org/name[@version]`` in a registry.
        out: the new package's folder.
        name: its name, if it changes.
        version: its semantic version, likewise.
        license: its license, likewise: an SPDX expression, or a license name of the Hub.
        registry: where a bare ``org/name`` lies; by default what PARAMDELTA_REGISTRY names, else the Hub.
        overwrite: replace an older package at ``out``; never anything else (:mod:`.replacing`).
        progress: told how far the work is.

    Raises:
        OptionError: a label that can't be used, or none that changes.
        PackageError: not a package, or damaged.
        RegistryError: the delta is not there, not allowed, or not reachable.
        DestinationError: ``out`` exists, is being written to, or is mixed up with ``delta``.
        StorageError: the disk is full or fails.
    """
    out = expand(out)
    labels = _given_labels(name, version, license)  # before anything is fetched
    package = open_package(locate_delta(delta, registry, progress=progress))
    text = _with_labels(package, labels).to_json()
    manifest, digest = parse_manifest(text)  # what we write, we can read
    places = [("the package that is relabeled", package.path), *registry_places(registry, [str(delta)])]
    check_apart(out, places[:1])
    check_new(out, overwrite=overwrite, registry=registry)
    card = _own_card(read_card(package.path))
    with Workspace(out, may_replace=Replacement("package", places) if overwrite else None) as workspace:
        workspace.start_afresh()
        source, result = package.path, workspace.result
        receive(manifest.files, lambda file: file_chunks(resolve_inside(source, file)), result, str(source), progress)
        write_if_changed(result / CARD_NAME, None if card is None else card.encode())
        write_if_changed(result / MANIFEST_NAME, text)
        workspace.commit()
    return RelabelReport(
        path=workspace.given,
        id=digest,
        manifest=manifest,
        model_nbytes=manifest.model_nbytes,
        before=package.manifest,
        id_before=package.digest,
    )


def _with_labels(package: Package, labels: dict[str, str]) -> Manifest:
    """Return the package's manifest with other labels.

    Raises:
        OptionError: it has them already, or it was relabeled too often.
    """
    manifest = package.manifest
    if all(getattr(manifest, label) == value for label, value in labels.items()):
        raise OptionError(
            "no label would change",
            where=str(package.path),
            remedy=f"it is {manifest.name} {manifest.version}, license {manifest.license or 'not stated'}: "
            "give another --name, --version or --license",
        )
    earlier = (*manifest.relabeled_from, Earlier(id=package.digest, name=manifest.name, version=manifest.version))
    if len(earlier) > RELABELINGS:
        raise OptionError(
            f"it was relabeled {RELABELINGS} times, which is the limit",
            where=str(package.path),
            remedy="relabel an earlier package of the list that `pd-inspect --json` shows",
        )
    return manifest.model_copy(update={**labels, "relabeled_from": earlier})


def _given_labels(name: str | None, version: str | None, license_name: str | None) -> dict[str, str]:
    """Return the labels that are given, as a manifest states them. The labels of the old manifest are not checked.

    Raises:
        OptionError: one can't be used.
    """
    given = {"name": name, "version": version, "license": license_name}
    labels = check_labels("delta" if name is None else name, "1.0.0" if version is None else version, license_name)
    return {label: getattr(labels, label) for label, value in given.items() if value is not None}


def _own_card(existing: str | None) -> str | None:
    """Return what the author wrote in a card; the generated part speaks of the package as it was."""
    if not existing:
        return None
    is_empty = not own_text(existing, CARD_NAME).strip() and metadata(existing, CARD_NAME).keys() <= WRITTEN_KEYS
    return None if is_empty else without_generated(existing, CARD_NAME)
