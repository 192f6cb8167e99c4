"""Registries in a folder or in any fsspec store: what the two have in common."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from paramdelta_hub.errors import IntegrityError, OptionError, PackageError, PublishError, RegistryError
from paramdelta_hub.fileio.digests import check_digest
from paramdelta_hub.fileio.durable import expand, file_digest
from paramdelta_hub.fileio.names import shown_names
from paramdelta_hub.fileio.paths import resolve_inside
from paramdelta_hub.limits import CARD_BYTES, COMPANION_BYTES, MANIFEST_BYTES, SIGNATURE_BYTES
from paramdelta_hub.package.manifest import MANIFEST_NAME, FileRecord, Manifest, parse_manifest
from paramdelta_hub.package.package import Package, open_package
from paramdelta_hub.registry.install import Snapshot, install
from paramdelta_hub.registry.materialize import CARD_NAME, EXTRAS, SIGNATURE_NAME, read_extras, receive
from paramdelta_hub.registry.names import check_address, check_repo, folder_of, is_id, is_repo
from paramdelta_hub.registry.protocol import HIGHER_VERSION, Hit, Part, Published, Pulled, Version, files_of
from paramdelta_hub.registry.signing import Trust, read_manifest
from paramdelta_hub.registry.stores.bucket import BucketStore
from paramdelta_hub.registry.stores.folder import FolderStore
from paramdelta_hub.registry.versions import check_version, is_version, newest, newest_first
from paramdelta_hub.tasks.progress import Progress

__all__ = ["Store", "StoreRegistry", "check_options"]


class Store(Protocol):
    """A tree of files. The folder of a version is ``org/name/VERSION``, relative to the registry."""

    url: str
    missing: str
    """The message for a registry that does not exist."""

    def exists(self) -> bool:
        """Whether the registry exists; RegistryError if something else is there, or nobody can tell."""

    def check_apart(self, repo: str) -> None:
        """Check that publishing does not write into another output of ours; PublishError if it does."""

    def list_names(self, folder: str) -> list[str]:
        """Return the names of the files and folders in ``folder``, without hidden ones."""

    def list_folders(self, folder: str) -> list[str]:
        """Return the names of the folders in ``folder``; empty if there is no such folder."""

    def read(self, folder: str, name: str, limit: int) -> bytes | None:
        """Return the content of a small file, or None if it does not exist."""

    def chunks(self, folder: str, name: str) -> Iterator[bytes]:
        """Yield a file's content in pieces."""

    def created(self, folder: str) -> str | None:
        """Return when a version was published, ISO 8601 in UTC, if the store knows."""

    def local_path(self, folder: str) -> Path | None:
        """Return the path of a version, if the store is on this machine."""

    def put(
        self, package: Package, folder: str, manifest: bytes, extras: Mapping[str, bytes], progress: Progress | None
    ) -> None:
        """Upload a version completely or not at all; PublishError if somebody else published it first."""


STORES: dict[str, Callable[[str], Store]] = {}
"""Stores with URLs of their own, by scheme. All other URLs are opened by fsspec."""


class StoreRegistry:
    """The registry at ``root``: a folder, which may not exist yet, or an fsspec URL.

    ``ROOT/org/name/VERSION/`` is the package itself, so a version in a local registry can be used by its path.

    Raises:
        OptionError: the URL holds credentials.
        RegistryError: the kind of URL is unknown, or needs a package that is not installed.
    """

    def __init__(self, root: str | Path) -> None:
        folder = str(root) if isinstance(root, Path) else folder_of(root)
        if folder is not None:
            self._store: Store = FolderStore(expand(folder))
        else:
            scheme = check_address(str(root)).partition("://")[0].lower()
            self._store = STORES.get(scheme, BucketStore)(str(root))

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
        """Publish a package completely or not at all. Publishing the same content again does nothing.

        A missing registry is created; ``progress`` is told. Who can see it is up to the store. Stores keep no messages,
        so ``message`` is not used. The arguments are those of :meth:`.protocol.Registry.publish`.

        Raises:
            OptionError: ``version`` is not the package's, or an option works on the Hub only.
            PackageError: the package is broken.
            PublishError: the version exists with other content, or somebody else published it first. Or the registry
                is, or is inside, another output of ours.
            RegistryError: not allowed, not reachable, …
            StorageError: the disk is full or fails.
        """
        self._store.check_apart(check_repo(repo))
        check_options(private=private, create_pr=create_pr)
        opened = open_package(Path(package))
        check_version(opened.manifest.version, version, str(package))
        folder = f"{repo}/{version}"
        published_id = self._id(folder)
        uploaded = published_id is None
        if uploaded:
            files = read_extras(opened.path, extras)
            _check_in_place(opened, opened.manifest.files, progress)
            self._announce(opened, repo, notes, progress or Progress())
            try:
                self._store.put(opened, folder, read_manifest(opened), files, progress)
            except PublishError:
                published_id, uploaded = self._id(folder), False
                if published_id is None:
                    raise
        if not uploaded and published_id != opened.digest:
            raise PublishError(
                f"{repo} {version} is published already, with other content (id {str(published_id)[:16]}…)",
                where=f"{self._store.url}/{folder}",
                remedy=HIGHER_VERSION,
            )
        return Published(
            repo=repo,
            version=version,
            revision=opened.digest,
            id=opened.digest,
            url=f"{self._store.url}/{folder}",
            uploaded=uploaded,
        )

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
        """Fetch a version (by default the newest) into ``folder``, or into a cache.

        The size and sha256 of every file are checked. Intact files that are already in ``folder`` are kept. Without
        ``folder``, a version on this machine is checked and used in place. With ``trust`` it is copied nevertheless:
        others could change it after the check.

        Raises:
            SignatureError: see :meth:`.protocol.Registry.pull`.
            IntegrityError: a file is not what the manifest promises, or the version has changed since an earlier pull.
            DestinationError: ``folder`` holds something else, or a version that must not be replaced; see
                :func:`~paramdelta_hub.registry.lockfile.pin`.
            RegistryError: no such repository or version, not allowed, not reachable, …
        """
        found = self._find(check_repo(repo), revision)
        if found is None:
            raise self._not_found(repo, revision)
        version, content = found
        source = f"{repo}/{version}"
        where = f"{self._store.url}/{source}"
        manifest, package_id = self._parse(content, source, version)
        files = files_of(manifest, part)
        signed_by = None
        if trust is not None:
            signed_by = trust.check(content, self._store.read(source, SIGNATURE_NAME, SIGNATURE_BYTES), where, repo)
        local = self._store.local_path(source)
        if folder is None and local is not None and trust is None:
            _check_in_place(Package(local, manifest, package_id), files, progress)
            return Pulled(
                path=local, repo=repo, version=version, revision=package_id, id=package_id, downloaded_nbytes=0
            )
        out = Path(os.path.abspath(os.path.expanduser(folder or self._cached(source))))
        extras = self._extras(source) if part == "package" else None
        written = install(
            Snapshot(self._store.url, repo, package_id, manifest, content, package_id, extras),
            out,
            lambda: receive(files, lambda name: self._store.chunks(source, name), out, where, progress),
            named=revision is not None,
            allow_downgrade=allow_downgrade,
            companions=[file for file in manifest.companions if file in files and folder is not None],
        )
        return Pulled(
            path=out,
            repo=repo,
            version=version,
            revision=package_id,
            id=package_id,
            downloaded_nbytes=written,
            signed_by=signed_by,
        )

    def versions(self, repo: str) -> list[Version]:
        """Return all versions, the newest first by semantic version.

        Raises:
            RegistryError: the registry does not exist, is not allowed, or is not reachable.
        """
        found = []
        for version in self._names(check_repo(repo)):
            if package_id := self._id(f"{repo}/{version}"):
                found.append(Version(version, package_id, package_id, self._store.created(f"{repo}/{version}")))
        if not found:
            self._check_registry()
        return found

    def card(self, repo: str) -> str | None:
        """Return the model card of the newest version, or None if there is no version or no card.

        Raises:
            RegistryError: the card is not UTF-8, not allowed, or not reachable.
        """
        found = self._find(check_repo(repo), None)
        content = found and self._store.read(f"{repo}/{found[0]}", CARD_NAME, CARD_BYTES)
        try:
            return content.decode() if content else None
        except UnicodeDecodeError:
            raise RegistryError("README.md is not UTF-8", where=f"{self._store.url}/{repo}") from None

    def search(self, query: str | None, base: str | None, fingerprint: str | None) -> Iterator[Hit]:
        """Yield the newest version of every delta that matches. Only manifests are read; broken ones are skipped.

        Raises:
            RegistryError: the registry does not exist, is not allowed, or is not reachable.
        """
        is_empty = True
        for repo in self._repositories():
            try:
                found = self._find(repo, None)
                if found is None:
                    continue
                is_empty = False
                version, content = found
                manifest, package_id = self._parse(content, f"{repo}/{version}", version)
            except PackageError:
                is_empty = False
                continue
            words = f"{repo}\n{manifest.name}".casefold()
            architecture = manifest.architecture.fingerprint
            if (
                (query or "").casefold() in words
                and base in (None, manifest.base.name)
                and fingerprint in (None, architecture)
            ):
                yield Hit(
                    repo=repo,
                    title=manifest.name,
                    version=version,
                    revision=package_id,
                    base=manifest.base.name,
                    post=manifest.post.name,
                    fingerprint=architecture,
                    nbytes=manifest.nbytes,
                    license=manifest.license,
                    created=self._store.created(f"{repo}/{version}"),
                )
        if is_empty:
            self._check_registry()

    def _repositories(self) -> Iterator[str]:
        for org in sorted(self._store.list_folders("")):
            if is_repo(f"{org}/x"):
                yield from (
                    f"{org}/{name}" for name in sorted(self._store.list_folders(org)) if is_repo(f"{org}/{name}")
                )

    def _names(self, repo: str) -> list[str]:
        """Return the names of a repository's versions, the highest first. Some may still be in the making."""
        return newest_first(filter(is_version, self._store.list_folders(repo)))

    def _manifest(self, folder: str) -> bytes | None:
        return self._store.read(folder, MANIFEST_NAME, MANIFEST_BYTES)

    def _id(self, folder: str) -> str | None:
        """Return the id of the version that is published in ``folder``, or None if there is none."""
        content = self._manifest(folder)
        return None if content is None else hashlib.sha256(content).hexdigest()

    def _find(self, repo: str, revision: str | None) -> tuple[str, bytes] | None:
        """Return the version that ``revision`` names, and the content of its manifest; None if there is none."""
        candidates = [name for name in self._names(repo) if revision in (None, name) or is_id(revision or "")]
        while version := newest(candidates):
            content = self._manifest(f"{repo}/{version}")
            if content is not None and (revision in (None, version) or hashlib.sha256(content).hexdigest() == revision):
                return version, content
            candidates.remove(version)
        return None

    def _check_registry(self) -> None:
        """Check that there is a registry. Called only if nothing was found, so that a successful search costs no more.

        Raises:
            RegistryError: there is nothing, or something else.
        """
        if not self._store.exists():
            raise RegistryError(
                f"no registry: {self._store.missing}",
                where=self._store.url,
                remedy="check the spelling of the registry; publishing creates a new one",
            )
        if not self._has_shape():
            raise RegistryError(
                f"not a registry; it holds {shown_names(self._store.list_names(''))}",
                where=self._store.url,
                remedy="name the FOLDER in which deltas lie as FOLDER/org/name/VERSION",
            )

    def _has_shape(self) -> bool:
        """Whether this looks like a registry: it has a version, or only empty folders, as a killed run leaves."""
        is_empty = True
        try:
            orgs = self._store.list_folders("")
            is_empty &= set(self._store.list_names("")) <= set(orgs)
            for org in orgs:
                repos = self._store.list_folders(org)
                is_empty &= set(self._store.list_names(org)) <= set(repos)
                for name in repos:
                    inside = self._store.list_names(f"{org}/{name}")
                    if any(is_version(version.removesuffix(".partial")) for version in inside):
                        return True
                    is_empty &= not inside
        except RegistryError:  # folders that we may not read could hold versions
            return True
        return is_empty

    def _announce(self, package: Package, repo: str, notes: Sequence[str], progress: Progress) -> None:
        """Tell ``progress`` where the package will be published, before anything is uploaded."""
        for note in notes:
            progress.note(note)
        url, manifest = self._store.url, package.manifest
        is_folder = "://" not in url
        new = "" if self._store.exists() else " (a new registry)"
        if is_folder and not new and not self._has_shape():
            new = " (a folder that holds other things)"
        to = f"the folder {url}/{repo}" if is_folder else f"{url}/{repo}"
        progress.note(f"publishing {manifest.name} {manifest.version} to {to}{new}")

    def _not_found(self, repo: str, revision: str | None) -> RegistryError:
        self._check_registry()
        published = [name for name in self._names(repo) if self._manifest(f"{repo}/{name}") is not None]
        return RegistryError(
            f"there is no version {revision}" if published else "no such delta in this registry",
            where=f"{self._store.url}/{repo}",
            remedy=f"published versions: {', '.join(published[:10])}" if published else "check the spelling",
        )

    def _parse(self, content: bytes, folder: str, version: str) -> tuple[Manifest, str]:
        where = f"{self._store.url}/{folder}"
        manifest, package_id = parse_manifest(content, where)
        if manifest.version != version:
            raise IntegrityError(f"published as {version}, but the manifest says {manifest.version}", where=where)
        for file in manifest.companions:
            if file.size > COMPANION_BYTES:
                raise PackageError(
                    f"the companion {file.path!r} has {file.size} bytes; the limit is {COMPANION_BYTES}", where=where
                )
        return manifest, package_id

    def _extras(self, folder: str) -> dict[str, bytes]:
        """Return the card and the signature of a version, by file name."""
        found = {name: self._store.read(folder, name, limit) for name, limit in EXTRAS.items()}
        return {name: content for name, content in found.items() if content is not None}

    def _cached(self, source: str) -> Path:
        """Return the cache folder of a version. Every registry has a cache of its own."""
        home = os.environ.get("XDG_CACHE_HOME", "")
        cache = Path(home) if os.path.isabs(home) else expand("~/.cache")
        return cache / "paramdelta-hub" / hashlib.sha256(self._store.url.encode()).hexdigest()[:16] / source


def check_options(*, private: bool, create_pr: bool) -> None:
    """Check that no option is used that works on the Hub only.

    Raises:
        OptionError: there is one.
    """
    if private or create_pr:
        raise OptionError(
            "folders and buckets have no private repositories and no pull requests",
            remedy="remove the option; set access rights in the store itself",
        )


def _check_in_place(package: Package, files: tuple[FileRecord, ...], progress: Progress | None) -> None:
    """Check the size and sha256 of files where they are."""
    progress = progress or Progress()
    progress.start("check", sum(file.size for file in files))
    try:
        if files == package.manifest.files:
            package.check_files(progress.advance)
        else:
            for file in files:
                digest, _ = file_digest(resolve_inside(package.path, file.path), advance=progress.advance)
                check_digest(digest, file.sha256, f"the file {file.path!r}", str(package.path))
    finally:
        progress.finish()
