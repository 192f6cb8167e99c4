"""Publish: a package, with its card and perhaps a signature, as a version that nobody can replace."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from paramdelta_hub.checkpoints.resolve import path_exists
from paramdelta_hub.errors import PackageError, PublishError, RegistryError, SignatureError, SourceError
from paramdelta_hub.fileio.durable import expand, read_small
from paramdelta_hub.hub.client import connect
from paramdelta_hub.hub.errors import translate_hub_errors
from paramdelta_hub.limits import CARD_BYTES
from paramdelta_hub.package.manifest import Manifest, Source
from paramdelta_hub.package.package import Package, open_package
from paramdelta_hub.registry.cards.card import delta_card
from paramdelta_hub.registry.cards.markdown import hub_id, own_words
from paramdelta_hub.registry.keys import PrivateKey, read_private_key
from paramdelta_hub.registry.locate import find_to_publish
from paramdelta_hub.registry.materialize import CARD_NAME, SIGNATURE_NAME
from paramdelta_hub.registry.names import check_version
from paramdelta_hub.registry.protocol import Published, Registry
from paramdelta_hub.registry.signing import Trust, read_manifest, read_signature
from paramdelta_hub.registry.signing import sign as signature_of
from paramdelta_hub.tasks.progress import Progress

__all__ = ["publish", "read_card"]


def publish(
    delta: str | Path,
    repo: str,
    *,
    version: str | None = None,
    registry: str | Path | None = None,
    private: bool = False,
    create_pr: bool = False,
    message: str | None = None,
    sign: str | Path | None = None,
    progress: Progress | None = None,
) -> Published:
    """Publish the package in the folder ``delta`` whole or not at all; equal content again does nothing.

    The folder is only read. A new model card, made from the manifest, goes with the package: it has what the author
    wrote in the folder's README.md or else, between the markers, in the card published before.

    Args:
        delta: the package's folder.
        repo: ``org/name``, or a folder or URL that ends so; ``hf://org/name`` is always the Hub.
        version: must be the manifest's, if given: a package can't change its version, which is part of its id.
        registry: a folder or an fsspec URL in which a bare ``org/name`` lies; by default what PARAMDELTA_REGISTRY
            names, else the Hub.
        private: make a new repository on the Hub private.
        create_pr: propose it there by a pull request.
        message: of the commit there.
        sign: a private key in PEM (P-256, P-384 or P-521), PARAMDELTA_KEY_PASSWORD its password if it has one: the
            manifest is signed with it, for this repository.
        progress: told where the package goes before anything is sent, and how far the work is.

    Raises:
        OptionError: a version or a name that can't be; a name that begins like a folder here; a card whose
            metadata can't be read; no model-signing here.
        SourceError: the key can't be read.
        PackageError: not a package, or damaged.
        PublishError: the version is there with other content, or without this signature, or somebody else was faster.
        RegistryError: not reachable, not allowed, …
    """
    path_exists(expand(delta), PackageError)  # a folder that can't be read is not told as one that is missing
    package = open_package(expand(delta))
    manifest = package.manifest
    there, reference = find_to_publish(repo, registry)
    progress = progress or Progress()
    for wanted in (version, reference.revision):
        check_version(manifest.version, wanted, str(package.path))
    key = read_private_key(expand(sign)) if sign is not None else None
    on_hub = reference.root is None
    existing = read_card(package.path) or ""
    if not own_words(existing):
        existing = there.card(reference.repo) or existing  # what its author wrote must not be lost
    licenses = (_license(manifest.base), _license(manifest.post)) if on_hub else (None, None)
    card = delta_card(manifest, package.digest, reference.repo, existing, licenses=licenses, on_hub=on_hub)
    extras = {CARD_NAME: card.encode()}
    if key is not None:
        extras[SIGNATURE_NAME] = _signature(package, reference.repo, key)
    notes = _compare_license(there, reference.repo, manifest)
    published = there.publish(
        package.path,
        reference.repo,
        manifest.version,
        extras=extras,
        private=private,
        create_pr=create_pr,
        message=message,
        notes=notes,
        progress=progress,
    )
    if key is not None and not (published.uploaded or published.pull_request):
        _check_signed(there, published, key)
    return replace(published, notes=notes if published.uploaded else ())


def _signature(package: Package, repo: str, key: PrivateKey) -> bytes:
    """Return a signature for this repository: the folder's, if it is of this key, else a new one."""
    manifest, lying = read_manifest(package), read_signature(package.path)
    try:
        Trust((key.public,)).check(manifest, lying, str(package.path), repo)
    except SignatureError:
        lying = None
    return lying or signature_of(manifest, repo, key)


def _compare_license(there: Registry, repo: str, manifest: Manifest) -> tuple[str, ...]:
    """Return what there is to say where the newest version has a license, and this one none or another."""
    try:
        before = open_package(there.pull(repo, None, part="manifest").path).manifest
    except (RegistryError, SourceError):
        return ()  # nothing published yet, or nothing that can be read
    same = before.license is None or before.license.casefold() == (manifest.license or "").casefold()
    if same or before.version == manifest.version:
        return ()
    now = "has none" if manifest.license is None else f"has {manifest.license}"
    return (f"the license changes: version {before.version} has {before.license}, {manifest.version} {now}",)


def _check_signed(there: Registry, published: Published, key: PrivateKey) -> None:
    """Check that what was published before has a signature of this key: none can be added to it.

    Raises:
        PublishError: it has not.
    """
    try:
        with tempfile.TemporaryDirectory() as scratch:
            there.pull(published.repo, published.version, Path(scratch), part="manifest", trust=Trust((key.public,)))
    except SignatureError as error:
        raise PublishError(
            f"version {published.version} was published before without this signature ({error.what})",
            where=published.url,
            remedy="what is published never changes: sign the next version",
        ) from None


def read_card(folder: Path) -> str | None:
    """Return the model card that lies in a package's folder, or None if there is none.

    Raises:
        PackageError: too large, or not UTF-8.
    """
    path = folder / CARD_NAME
    if not path.exists():
        return None
    try:
        return read_small(path, CARD_BYTES, follow=True).decode()
    except UnicodeDecodeError:
        raise PackageError("not UTF-8", where=str(path), remedy="save it as UTF-8, or delete it") from None


def _license(source: Source) -> str | None:
    """Return what the card of base or post says, if that is on the Hub and can be asked."""
    if (repo := hub_id(source.name, source.commit)) is None:
        return None
    try:
        with translate_hub_errors(repo):
            data = connect().model_info(repo, revision=source.commit).card_data
    except RegistryError:
        return None  # gated, gone, or out of reach: the card then says that it does not know
    name = data.get("license") if data else None
    return name if isinstance(name, str) else None
