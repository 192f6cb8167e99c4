"""Publish: a package, with its card and perhaps a signature, as a version that nobody can replace."""

from __future__ import annotations

import tempfile
from pathlib import Path

from paramdelta_hub.errors import PackageError, PublishError, RegistryError
from paramdelta_hub.format.durable import io_errors, read_small, write_file
from paramdelta_hub.format.manifest import Source
from paramdelta_hub.format.package import Package, open_package
from paramdelta_hub.hub.errors import translate_hub_errors
from paramdelta_hub.limits import CARD_BYTES
from paramdelta_hub.registry.cards import delta_card
from paramdelta_hub.registry.client import connect
from paramdelta_hub.registry.keys import PrivateKey, read_private_key
from paramdelta_hub.registry.locate import find
from paramdelta_hub.registry.markdown import hub_id, own_words
from paramdelta_hub.registry.names import check_version
from paramdelta_hub.registry.protocol import Published, Registry
from paramdelta_hub.registry.receiving import SIGNATURE_NAME, alone_in
from paramdelta_hub.registry.signing import SignatureError, Trust, read_manifest, read_signature
from paramdelta_hub.registry.signing import sign as signature_of
from paramdelta_hub.work.progress import Progress

__all__ = ["CARD_NAME", "publish"]

CARD_NAME = "README.md"


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

    Its model card is written anew, into the package's folder, from its manifest; what the author wrote between the
    card's markers stays, and so does what stands between those of the card published before.

    Args:
        delta: the package's folder.
        repo: ``org/name``, or a folder or URL that ends so.
        version: must be the manifest's, if given: a package can't change its version, which is part of its id.
        registry: a folder or an fsspec URL in which a bare ``org/name`` lies; by default what PARAMDELTA_REGISTRY
            names, else the Hub.
        private: make a new repository on the Hub private.
        create_pr: propose it there by a pull request.
        message: of the commit there.
        sign: a private key in PEM (P-256, P-384 or P-521), PARAMDELTA_KEY_PASSWORD its password if it has one: the
            manifest is signed with it, for this repository.
        progress: told how far the work is.

    Raises:
        OptionError: a version or a name that can't be; a card whose metadata can't be read; no model-signing here.
        SourceError: the key can't be read.
        PackageError: not a package, or damaged.
        PublishError: the version is there with other content, or without this signature, or somebody else was faster.
        RegistryError: not reachable, not allowed, …
    """
    package = open_package(Path(delta))
    manifest = package.manifest
    there, reference = find(repo, registry)
    for wanted in (version, reference.revision):
        check_version(manifest.version, wanted, str(package.path))
    key = read_private_key(Path(sign)) if sign is not None else None
    on_hub = reference.root is None
    existing = _existing_card(package.path) or ""
    if not own_words(existing):
        existing = there.card(reference.repo) or existing  # what its author wrote must not be lost
    licenses = (_license(manifest.base), _license(manifest.post)) if on_hub else (None, None)
    card = delta_card(manifest, package.digest, reference.repo, existing, licenses=licenses, on_hub=on_hub)
    with alone_in(package.path):  # which clears away what one who died here left behind
        if card != existing:
            with io_errors("writing the model card"):
                write_file(package.path / CARD_NAME, card.encode())
        if key is not None:
            _sign(package, reference.repo, key)
    published = there.publish(
        package.path,
        reference.repo,
        manifest.version,
        private=private,
        create_pr=create_pr,
        message=message,
        progress=progress,
    )
    if key is not None and not (published.uploaded or published.pull_request):
        _check_signed(there, published, key)
    return published


def _sign(package: Package, repo: str, key: PrivateKey) -> None:
    """Put a signature into the package's folder; one of this key for this repository, from an earlier run, stays."""
    manifest = read_manifest(package)
    try:
        Trust((key.public,)).check(manifest, read_signature(package.path), str(package.path), repo)
    except SignatureError:
        with io_errors("writing the signature"):
            write_file(package.path / SIGNATURE_NAME, signature_of(manifest, repo, key))


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


def _existing_card(folder: Path) -> str | None:
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
