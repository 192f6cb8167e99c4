"""Registries that are a folder, or lie wherever fsspec reaches: what the two have in common."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from paramdelta_hub.errors import IntegrityError, OptionError, PackageError, PublishError, RegistryError
from paramdelta_hub.fileio.digests import check_digest
from paramdelta_hub.fileio.durable import expand, file_digest
from paramdelta_hub.fileio.listing import shown_names
from paramdelta_hub.fileio.symlinks import settle
from paramdelta_hub.limits import CARD_BYTES, COMPANION_BYTES, MANIFEST_BYTES, SIGNATURE_BYTES
from paramdelta_hub.package.manifest import MANIFEST_NAME, FileRecord, Manifest, parse_manifest
from paramdelta_hub.package.package import Package, open_package
from paramdelta_hub.registry.lockfile import Lock, pin
from paramdelta_hub.registry.materialize import (
    CARD_NAME,
    EXTRAS,
    SIGNATURE_NAME,
    alone_in,
    put_small,
    read_extras,
    receive,
)
from paramdelta_hub.registry.names import (
    check_repo,
    check_version,
    folder_of,
    is_id,
    is_repo,
    is_version,
    newest,
    precedence,
)
from paramdelta_hub.registry.protocol import HIGHER_VERSION, Hit, Part, Published, Pulled, Version, files_of
from paramdelta_hub.registry.signing import Trust, read_manifest
from paramdelta_hub.registry.stores.bucket import BucketStore
from paramdelta_hub.registry.stores.folder import FolderStore
from paramdelta_hub.tasks.progress import Progress

__all__ = ["Store", "StoreRegistry", "check_options"]


class Store(Protocol):
    """A tree of files. A version's folder, as the methods take it, is ``org/name/VERSION``."""

    url: str
    absent: str
    """What to say where the registry is not there."""

    def exists(self) -> bool:
        """Whether the registry is there; RegistryError where something else is, or nobody can tell."""

    def check_apart(self, repo: str) -> None:
        """Check that publishing breaks nothing else that we made; PublishError where it would."""

    def names(self, folder: str) -> list[str]:
        """Return what lies in ``folder``, files too, hidden ones not."""

    def below(self, folder: str) -> list[str]:
        """Return the names of the folders in ``folder``; none where there is no such folder."""

    def read(self, folder: str, name: str, most: int) -> bytes | None:
        """Return the content of a small file, or None where there is none."""

    def chunks(self, folder: str, name: str) -> Iterator[bytes]:
        """Yield a file's content piece by piece."""

    def created(self, folder: str) -> str | None:
        """Return when a version was published, ISO 8601 in UTC, if the store tells."""

    def place(self, folder: str) -> Path | None:
        """Return where a version lies on this machine, if it does."""

    def put(
        self, package: Package, folder: str, text: bytes, extras: Mapping[str, bytes], progress: Progress | None
    ) -> None:
        """Make a version visible, whole or not at all; PublishError if somebody else was faster."""


class StoreRegistry:
    """The registry at ``root``, a folder (it need not exist yet) or an fsspec URL.

    ``ROOT/org/name/VERSION/`` is the package itself, so that a version in a folder can be used by its path.

    Raises:
        OptionError: credentials in the URL.
        RegistryError: a kind of URL that is unknown, or needs a package which is not installed.
    """

    def __init__(self, root: str | Path) -> None:
        folder = str(root) if isinstance(root, Path) else folder_of(root)
        self._store: Store = BucketStore(str(root)) if folder is None else FolderStore(expand(folder))

    def publish(
        self,
        package: Path,
        repo: str,
        version: str,
        *,
        extras: Mapping[str, bytes] | None = None,
        private: bool = False,
        create_pr: bool = False,
        message: str | None = None,
        notes: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Published:
        """Publish a package whole or not at all; equal content again is no error and does nothing.

        A registry that is not there is made, and ``progress`` told so. Who may see it is up to the store, and a store
        keeps no messages: ``message`` goes nowhere. The arguments are those of :meth:`.protocol.Registry.publish`.

        Raises:
            OptionError: not the package's version; or something that only the Hub can do.
            PackageError: the package is not whole.
            PublishError: the version is there with other content, or somebody else was faster; nothing is replaced.
                Or the registry is, or lies in, something else that we made.
            RegistryError: not allowed, not reachable, …
            StorageError: the disk is full or fails.
        """
        self._store.check_apart(check_repo(repo))
        check_options(private=private, create_pr=create_pr)
        opened = open_package(Path(package))
        check_version(opened.manifest.version, version, str(package))
        folder = f"{repo}/{version}"
        there = self._id(folder)
        uploaded = there is None
        if uploaded:
            beside = read_extras(opened.path, extras)
            _check_in_place(opened, opened.manifest.files, progress)
            self._tell(opened, repo, notes, progress or Progress())
            try:
                self._store.put(opened, folder, read_manifest(opened), beside, progress)
            except PublishError:
                there, uploaded = self._id(folder), False
                if there is None:
                    raise
        if not uploaded and there != opened.digest:
            raise PublishError(
                f"{repo} {version} is published already, with other content (id {str(there)[:16]}…)",
                where=f"{self._store.url}/{folder}",
                remedy=HIGHER_VERSION,
            )
        return Published(repo, version, opened.digest, opened.digest, f"{self._store.url}/{folder}", uploaded)

    def pull(
        self,
        repo: str,
        revision: str | None,
        folder: Path | None = None,
        *,
        part: Part = "package",
        allow_downgrade: bool = False,
        trust: Trust | None = None,
        progress: Progress | None = None,
    ) -> Pulled:
        """Fetch a version (the newest if None) into ``folder``, or a cache; every file's size and sha256 is checked.

        What is in ``folder`` already, and right, is kept. Without ``folder``, a version in a registry on this machine
        is checked and used where it lies; but not with ``trust``, as others could change it after the check.

        Raises:
            SignatureError: see :meth:`.protocol.Registry.pull`.
            IntegrityError: what came is not what the manifest promises, or what was pulled as this version before.
            DestinationError: ``folder`` holds something else, or a version that is not to be replaced; see
                :func:`~paramdelta_hub.registry.lockfile.pin`.
            RegistryError: no such repository or version, not allowed, not reachable, …
            StorageError: the disk is too small, or fails.
        """
        found = self._find(check_repo(repo), revision)
        if found is None:
            raise self._nothing_there(repo, revision)
        version, text = found
        source = f"{repo}/{version}"
        where = f"{self._store.url}/{source}"
        manifest, package_id = self._parse(text, source, version)
        files = files_of(manifest, part)
        signed_by = None
        if trust is not None:
            signed_by = trust.check(text, self._store.read(source, SIGNATURE_NAME, SIGNATURE_BYTES), where, repo)
        place = self._store.place(source)
        if folder is None and place is not None and trust is None:
            _check_in_place(Package(place, manifest, package_id), files, progress)
            return Pulled(place, repo, version, package_id, package_id, 0)
        out = Path(os.path.abspath(os.path.expanduser(folder or self._cached(source))))
        beside = self._extras(source) if part == "package" else None
        lock = Lock.of(manifest, package_id, registry=self._store.url, repo=repo, revision=package_id, extras=beside)
        with alone_in(out):
            named = revision is not None
            yours = [file for file in manifest.companions if file in files and folder is not None]
            pin(
                out,
                lock,
                named=named,
                allow_downgrade=allow_downgrade,
                with_extras=beside is not None,
                companions=yours,
            )
            came = receive(files, lambda name: self._store.chunks(source, name), out, where, progress)
            if beside is not None:
                came += sum(put_small(out / name, beside.get(name)) for name in EXTRAS)
            came += put_small(out / MANIFEST_NAME, text)
        return Pulled(out, repo, version, package_id, package_id, came, signed_by)

    def versions(self, repo: str) -> list[Version]:
        """Return all versions, the newest first by semantic version.

        Raises:
            RegistryError: the registry is not there, not allowed, not reachable.
        """
        found = []
        for version in self._names(check_repo(repo)):
            if package_id := self._id(f"{repo}/{version}"):
                found.append(Version(version, package_id, package_id, self._store.created(f"{repo}/{version}")))
        if not found:
            self._check_registry()
        return found

    def card(self, repo: str) -> str | None:
        """Return the model card of the newest version, or None where nothing is published, or no card with it.

        Raises:
            RegistryError: not UTF-8, not allowed, not reachable.
        """
        found = self._find(check_repo(repo), None)
        text = found and self._store.read(f"{repo}/{found[0]}", CARD_NAME, CARD_BYTES)
        try:
            return text.decode() if text else None
        except UnicodeDecodeError:
            raise RegistryError("its README.md is not UTF-8", where=f"{self._store.url}/{repo}") from None

    def search(self, query: str | None, base: str | None, fingerprint: str | None) -> Iterator[Hit]:
        """Yield the newest version of every delta that fits, reading manifests only; broken ones are passed over.

        Raises:
            RegistryError: the registry is not there, not allowed, not reachable.
        """
        is_empty = True
        for repo in self._repositories():
            try:
                found = self._find(repo, None)
                if found is None:
                    continue
                is_empty = False
                version, text = found
                manifest, package_id = self._parse(text, f"{repo}/{version}", version)
            except PackageError:
                is_empty = False
                continue
            words = f"{repo}\n{manifest.name}".casefold()
            made_for = manifest.architecture.fingerprint
            if (
                (query or "").casefold() in words
                and base in (None, manifest.base.name)
                and fingerprint in (None, made_for)
            ):
                yield Hit(
                    repo=repo,
                    title=manifest.name,
                    version=version,
                    revision=package_id,
                    base=manifest.base.name,
                    post=manifest.post.name,
                    fingerprint=made_for,
                    nbytes=manifest.nbytes,
                    license=manifest.license,
                    created=self._store.created(f"{repo}/{version}"),
                )
        if is_empty:
            self._check_registry()

    def _repositories(self) -> Iterator[str]:
        for org in sorted(self._store.below("")):
            if is_repo(f"{org}/x"):
                yield from (f"{org}/{name}" for name in sorted(self._store.below(org)) if is_repo(f"{org}/{name}"))

    def _names(self, repo: str) -> list[str]:
        """Return the names of a repository's versions, those perhaps still being published too; the highest first."""
        names = filter(is_version, self._store.below(repo))
        return sorted(names, key=lambda name: (precedence(name), name), reverse=True)

    def _manifest(self, folder: str) -> bytes | None:
        return self._store.read(folder, MANIFEST_NAME, MANIFEST_BYTES)

    def _id(self, folder: str) -> str | None:
        """Return the id of what is published in ``folder``, or None if nothing is."""
        text = self._manifest(folder)
        return None if text is None else hashlib.sha256(text).hexdigest()

    def _find(self, repo: str, revision: str | None) -> tuple[str, bytes] | None:
        """Return the version that is meant, and its manifest as it lies there; None if there is none."""
        left = [name for name in self._names(repo) if revision in (None, name) or is_id(revision or "")]
        while chosen := newest(left):
            text = self._manifest(f"{repo}/{chosen}")
            meant = revision in (None, chosen) or (text and hashlib.sha256(text).hexdigest() == revision)
            if text is not None and meant:
                return chosen, text
            left.remove(chosen)
        return None

    def _check_registry(self) -> None:
        """Raise if there is no registry: asked where nothing was found, so that looking costs no more.

        Raises:
            RegistryError: nothing is there, or other things are.
        """
        if not self._store.exists():
            raise RegistryError(
                f"no registry: {self._store.absent}",
                where=self._store.url,
                remedy="check the spelling of the registry; publishing to it makes a new one",
            )
        if not self._has_shape():
            raise RegistryError(
                f"not a registry: it holds {shown_names(self._store.names(''))}",
                where=self._store.url,
                remedy="a delta in a registry is FOLDER/org/name/VERSION: name that FOLDER",
            )

    def _has_shape(self) -> bool:
        """Whether anything was ever published here, or else nothing lies here but empty folders, as a death leaves."""
        is_bare = True
        try:
            orgs = self._store.below("")
            is_bare &= set(self._store.names("")) <= set(orgs)
            for org in orgs:
                repos = self._store.below(org)
                is_bare &= set(self._store.names(org)) <= set(repos)
                for name in repos:
                    inside = self._store.names(f"{org}/{name}")
                    if any(is_version(version.removesuffix(".partial")) for version in inside):
                        return True
                    is_bare &= not inside
        except RegistryError:  # what others keep to themselves may be versions
            return True
        return is_bare

    def _tell(self, package: Package, repo: str, notes: Sequence[str], progress: Progress) -> None:
        """Say where the package goes, before anything is sent."""
        for note in notes:
            progress.note(note)
        url, manifest = self._store.url, package.manifest
        is_folder = "://" not in url
        new = "" if self._store.exists() else " (a new registry)"
        if is_folder and not new and not self._has_shape():
            new = " (a folder that holds other things)"
        to = f"the folder {url}/{repo}" if is_folder else f"{url}/{repo}"
        progress.note(f"publishing {manifest.name} {manifest.version} to {to}{new}")

    def _nothing_there(self, repo: str, revision: str | None) -> RegistryError:
        self._check_registry()
        there = [name for name in self._names(repo) if self._manifest(f"{repo}/{name}") is not None]
        return RegistryError(
            f"has no version {revision}" if there else "no such delta in this registry",
            where=f"{self._store.url}/{repo}",
            remedy=f"it has {', '.join(there[:10])}" if there else "check the spelling",
        )

    def _parse(self, text: bytes, folder: str, version: str) -> tuple[Manifest, str]:
        where = f"{self._store.url}/{folder}"
        manifest, package_id = parse_manifest(text, where)
        if manifest.version != version:
            raise IntegrityError(f"is published as {version}, and says it is {manifest.version}", where=where)
        for file in manifest.companions:
            if file.size > COMPANION_BYTES:
                raise PackageError(
                    f"the companion {file.path!r} has {file.size} bytes, which makes no sense", where=where
                )
        return manifest, package_id

    def _extras(self, folder: str) -> dict[str, bytes]:
        """Return what lies beside a version and is not listed, by name."""
        found = {name: self._store.read(folder, name, most) for name, most in EXTRAS.items()}
        return {name: content for name, content in found.items() if content is not None}

    def _cached(self, source: str) -> Path:
        """Return where a version is kept that the user gave no folder for: a place for each registry."""
        home = os.environ.get("XDG_CACHE_HOME", "")
        cache = Path(home) if os.path.isabs(home) else expand("~/.cache")
        return cache / "paramdelta-hub" / hashlib.sha256(self._store.url.encode()).hexdigest()[:16] / source


def check_options(*, private: bool, create_pr: bool) -> None:
    """Check that nothing is asked of a folder or a bucket that only the Hub can do.

    Raises:
        OptionError: it is.
    """
    if private or create_pr:
        raise OptionError(
            "folders and buckets have neither private repositories nor pull requests",
            remedy="leave the option out, and set access rights where the store has them",
        )


def _check_in_place(package: Package, files: tuple[FileRecord, ...], progress: Progress | None) -> None:
    progress = progress or Progress()
    progress.start("check", sum(file.size for file in files))
    try:
        if files == package.manifest.files:
            package.check_files(progress.advance)
        else:
            for file in files:
                digest, _ = file_digest(settle(package.path, file.path), advance=progress.advance)
                check_digest(digest, file.sha256, f"the file {file.path!r}", str(package.path))
    finally:
        progress.finish()
