"""Publishing a package, with its card and perhaps a signature, as a version that nobody can replace."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

from paramdelta_hub.checkpoints.files.resolve import path_exists
from paramdelta_hub.errors import OptionError, PackageError, PublishError, RegistryError, SignatureError, SourceError
from paramdelta_hub.fileio.durable import expand, read_small
from paramdelta_hub.fileio.names import shown_names
from paramdelta_hub.hub.client import connect
from paramdelta_hub.hub.errors import translate_hub_errors
from paramdelta_hub.limits import CARD_BYTES
from paramdelta_hub.package.manifest import Manifest, Source
from paramdelta_hub.package.package import Package, open_package
from paramdelta_hub.registry.cards.card import LIBRARY, delta_card
from paramdelta_hub.registry.cards.front_matter import metadata
from paramdelta_hub.registry.cards.markdown import hub_id
from paramdelta_hub.registry.cards.merge import card_diff, edits, merge_cards
from paramdelta_hub.registry.keys import PrivateKey, read_private_key
from paramdelta_hub.registry.locate import Reference, find_to_publish
from paramdelta_hub.registry.materialize import CARD_NAME, SIGNATURE_NAME
from paramdelta_hub.registry.names import check_version
from paramdelta_hub.registry.protocol import Extras, Published, Registry
from paramdelta_hub.registry.signing import Trust, check_made_for, read_manifest, read_signature, sign_manifest
from paramdelta_hub.registry.yanks import Yanked
from paramdelta_hub.tasks.progress import Progress

__all__ = ["publish", "read_card", "yank"]


def publish(
    delta: str | Path,
    repo: str | Path,
    *,
    version: str | None = None,
    registry: str | Path | None = None,
    private: bool = False,
    create_pr: bool = False,
    message: str | None = None,
    sign: str | Path | None = None,
    replace_edits: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Published:
    """Publish the package in the folder ``delta`` completely or not at all. Publishing it again does nothing.

    The folder is only read. A part of the model card is made from the manifest. The rest is the author's, and is kept
    to the byte: text and metadata of the card that was published before, and what the folder's README.md adds to it.

    Args:
        delta: the package's folder.
        repo: ``org/name``, or a folder or URL that ends in it; ``hf://org/name`` is always the Hub.
        version: must be the manifest's version, if given. The version is part of a package's id.
        registry: the folder or fsspec URL of a bare ``org/name``; by default that of PARAMDELTA_REGISTRY, or the Hub.
        private: whether a new repository on the Hub is private.
        create_pr: whether to open a pull request on the Hub.
        message: the title of the commit on the Hub.
        sign: a private key in PEM (P-256, P-384 or P-521) that signs the manifest for this repository.
            PARAMDELTA_KEY_PASSWORD is its password, if it has one.
        replace_edits: whether the new card may replace what was edited by hand: text in its generated part, a license
            that the package contradicts, and what the published card has and the folder's README.md has otherwise.
        dry_run: send nothing, and return what would be uploaded. It raises what the real run would.
        progress: receives the destination and the card's changes before the upload, and the progress of the work.

    Raises:
        OptionError: a version or a name is not valid; ``org`` is also a local folder; something that was edited by hand
            would be replaced; or model-signing is not installed.
        SourceError: the key, or the card's metadata, can't be read.
        PackageError: the folder is not a package, or is damaged.
        PublishError: the version exists with other content or without this signature.
        SignatureError: the folder's own signature is for another repository or another manifest.
        RegistryError: not reachable, not allowed, …
    """
    path_exists(expand(delta), PackageError)  # a folder that can't be read is not reported as missing
    package = open_package(expand(delta))
    manifest = package.manifest
    target, reference = find_to_publish(repo, registry)
    for wanted in (version, reference.revision):
        check_version(manifest.version, wanted, str(package.path))
    key = read_private_key(expand(sign)) if sign is not None else None
    signature = _signature(package, reference.repo, key)
    notes = _compare_with_newest(target, reference.repo, manifest, signature is not None)
    if beside := package.files_beside():
        notes += (f"not published, as it only lies beside the package: {shown_names(beside)}",)

    def make_extras(before: str | None) -> Extras:
        card, changes = _make_card(package, before, reference, replace_edits)
        files = {CARD_NAME: card.encode(), **({} if signature is None else {SIGNATURE_NAME: signature})}
        return Extras(files, card_diff(before or "", card, reference.repo), (*notes, *changes))

    published = target.publish(
        package.path,
        reference.repo,
        manifest.version,
        make_extras=make_extras,
        private=private,
        create_pr=create_pr,
        message=message,
        dry_run=dry_run,
        progress=progress or Progress(),
    )
    if key is not None and not (published.uploaded or published.pull_request):
        _check_signed(target, published, key)
    return published


def _make_card(
    package: Package, published: str | None, reference: Reference, replace_edits: bool
) -> tuple[str, tuple[str, ...]]:
    """Return the card, which keeps what the author wrote, and notes about what changes in it."""
    own = str(package.path / CARD_NAME)
    existing = merge_cards(published, read_card(package.path), reference.repo, own, replace_edits)
    where = f"{reference.repo}/{CARD_NAME}" if published else own
    card = _card_of(reference, package.manifest, package.digest, existing, replace_edits=replace_edits, where=where)
    if (size := len(card.encode())) > CARD_BYTES:
        raise PackageError(f"{CARD_NAME} would have {size} bytes; the limit is {CARD_BYTES}", where=reference.repo)
    notes = []
    if published is not None and (changes := edits(published, card, reference.repo)):
        notes.append(f"the card changes outside of its generated part:\n{changes}")
    if (library := metadata(card, CARD_NAME).get("library_name")) != LIBRARY:
        notes.append(
            f"the card keeps library_name {library}, by which the Hub counts downloads and shows how to load it"
        )
    return card, tuple(notes)


def _card_of(reference: Reference, manifest: Manifest, package_id: str, existing: str | None, **options: Any) -> str:
    on_hub = reference.root is None
    licenses = (_license(manifest.base), _license(manifest.post)) if on_hub else (None, None)
    return delta_card(manifest, package_id, reference.repo, existing, licenses=licenses, on_hub=on_hub, **options)


def _restored_card(reference: Reference, manifest: Manifest, package_id: str, existing: bytes | None) -> bytes | None:
    """Return the card of a version that is the newest again, with all that was edited by hand, or None to leave it."""
    try:
        card = None if existing is None else existing.decode()
        return _card_of(reference, manifest, package_id, card, keep_edits=True).encode()
    except (SourceError, UnicodeDecodeError):  # it can't be read
        return None


def _signature(package: Package, repo: str, key: PrivateKey | None) -> bytes | None:
    """Return a signature for this repository: the one in the folder if it is by this key, or a new one.

    Without a key, return the one in the folder.

    Raises:
        SignatureError: there is no key, and the one in the folder could never be verified there.
    """
    manifest, existing = read_manifest(package), read_signature(package.path)
    if key is None:
        if existing is not None:
            check_made_for(existing, manifest, repo, str(package.path))
        return existing
    try:
        Trust((key.public,)).check(manifest, existing, str(package.path), repo)
    except SignatureError:
        existing = None
    return existing or sign_manifest(manifest, repo, key)


def _compare_with_newest(registry: Registry, repo: str, manifest: Manifest, signed: bool) -> tuple[str, ...]:
    """Return notes if the license differs from that of the newest published version, or only that one is signed."""
    try:
        before, was_signed = registry.newest(repo)
    except (RegistryError, SourceError):
        return ()  # nothing is published yet, or it can't be read
    if before.version == manifest.version:
        return ()
    notes = []
    if before.license is not None and before.license.casefold() != (manifest.license or "").casefold():
        now = "has none" if manifest.license is None else f"has {manifest.license}"
        notes.append(f"the license changes: version {before.version} has {before.license}, {manifest.version} {now}")
    if was_signed and not signed:
        notes.append(
            f"version {before.version} is signed, and {manifest.version} is not: those who require a signature"
            " can't use it; sign it with --sign KEY"
        )
    return tuple(notes)


def yank(
    delta: str | Path,
    version: str,
    *,
    reason: str | None = None,
    undo: bool = False,
    registry: str | Path | None = None,
) -> Yanked:
    """Withdraw a published version, so that no pull without a version brings it. Nothing of the version is changed.

    A pull by its exact version still works, and warns with the reason. On the Hub, the main branch then holds the
    newest version that is left.

    Args:
        delta: ``org/name``, or a folder or URL that ends in it.
        version: the version to withdraw.
        reason: why, in a sentence.
        undo: take the withdrawal back.
        registry: the registry of a bare ``org/name``; by default the one in PARAMDELTA_REGISTRY, or the Hub.

    Raises:
        OptionError: a name is not valid, or there is no reason, or one too many.
        RegistryError: no such version, not allowed, or not reachable.
    """
    if undo == (reason is not None):
        raise OptionError("give a reason, or undo", remedy='add --reason "wrong tokenizer", or --undo')
    target, reference = find_to_publish(delta, registry)
    if reference.revision not in (None, version):
        what = f"two versions: {reference.revision} and {version[:200]}"
        raise OptionError(what, where=str(delta), remedy="give one")
    return target.yank(reference.repo, version, reason, functools.partial(_restored_card, reference))


def _check_signed(registry: Registry, published: Published, key: PrivateKey) -> None:
    """Check that a version that was published before is signed by this key. A signature can't be added later."""
    try:
        with tempfile.TemporaryDirectory() as scratch:
            registry.pull(published.repo, published.version, Path(scratch), part="manifest", trust=Trust((key.public,)))
    except SignatureError as error:
        raise PublishError(
            f"version {published.version} was published before without this signature ({error.what})",
            where=published.url,
            remedy="a published version never changes; sign the next version",
        ) from None


def read_card(folder: Path) -> str | None:
    """Return the model card in a package's folder, or None if there is none.

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
    """Return the license on the card of base or post; None if the card is not on the Hub or can't be read."""
    if (repo := hub_id(source.name, source.commit)) is None:
        return None
    try:
        with translate_hub_errors(repo):
            data = connect().model_info(repo, revision=source.commit).card_data
    except RegistryError:
        return None  # gated, deleted or not reachable: the card then says "Not stated"
    name = data.get("license") if data else None
    return name if isinstance(name, str) else None
