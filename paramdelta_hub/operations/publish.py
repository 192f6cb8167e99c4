"""Publish: a package, with its card, as a version that nobody can replace."""

from __future__ import annotations

from pathlib import Path

from paramdelta_hub.errors import OptionError, PackageError, RegistryError
from paramdelta_hub.format.durable import io_errors, read_small, write_file
from paramdelta_hub.format.manifest import Source
from paramdelta_hub.format.package import open_package
from paramdelta_hub.limits import CARD_BYTES
from paramdelta_hub.registry.cards import delta_card
from paramdelta_hub.registry.client import asking, connect
from paramdelta_hub.registry.locate import find
from paramdelta_hub.registry.markdown import hub_id, own_words
from paramdelta_hub.registry.protocol import Published
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
        progress: told how far the work is.

    Raises:
        OptionError: a version or a name that can't be; a card whose metadata can't be read.
        PackageError: not a package, or damaged.
        PublishError: the version is there with other content, or somebody else was faster.
        RegistryError: not reachable, not allowed, …
    """
    package = open_package(Path(delta))
    manifest = package.manifest
    there, reference = find(repo, registry)
    for wanted in (version, reference.revision):
        if wanted not in (None, manifest.version):
            raise OptionError(
                f"the package is version {manifest.version}, and can't be published as {wanted}: its version is part"
                " of its id",
                where=str(package.path),
                remedy=f"extract it again with --version {wanted}, or publish it as {manifest.version}",
            )
    on_hub = reference.root is None
    existing = _existing_card(package.path) or ""
    if not own_words(existing):
        existing = there.card(reference.repo) or existing  # what its author wrote must not be lost
    licenses = (_license(manifest.base), _license(manifest.post)) if on_hub else (None, None)
    card = delta_card(manifest, package.digest, reference.repo, existing, licenses=licenses, on_hub=on_hub)
    if card != existing:
        with io_errors("writing the model card"):
            write_file(package.path / CARD_NAME, card.encode())
    return there.publish(
        package.path,
        reference.repo,
        manifest.version,
        private=private,
        create_pr=create_pr,
        message=message,
        progress=progress,
    )


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
        with asking(repo):
            data = connect().model_info(repo, revision=source.commit).card_data
    except RegistryError:
        return None  # gated, gone, or out of reach: the card then says that it does not know
    name = data.get("license") if data else None
    return name if isinstance(name, str) else None
