"""Registries in a folder or in any fsspec store: what the two have in common."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from paramdelta_hub.errors import (
    IntegrityError,
    OptionError,
    PackageError,
    PublishError,
    RegistryError,
    SourceError,
    StorageError,
)
from paramdelta_hub.fileio.durable import expand
from paramdelta_hub.fileio.names import shown_names
from paramdelta_hub.limits import CARD_BYTES, COMPANION_BYTES, MANIFEST_BYTES
from paramdelta_hub.package.manifest import MANIFEST_NAME, Earlier, FileRecord, parse_manifest
from paramdelta_hub.package.package import Package
from paramdelta_hub.registry.cards.front_matter import metadata
from paramdelta_hub.registry.materialize import (
    CARD_NAME,
    EXTRAS,
    check_place,
    receive,
)
from paramdelta_hub.registry.names import (
    check_address,
    check_repo,
    folder_of,
    is_id,
    is_repo,
    is_version,
    newest,
    newest_first,
)
from paramdelta_hub.registry.protocol import (
    HIGHER_VERSION,
    CardMaker,
    Extras,
    Hit,
    Part,
    Publication,
    Published,
    Registry,
    Snapshot,
    Version,
    all_withdrawn,
)
from paramdelta_hub.registry.signing import read_manifest
from paramdelta_hub.registry.stores.bucket import BucketStore
from paramdelta_hub.registry.stores.folder import FolderStore
from paramdelta_hub.registry.words import has_words
from paramdelta_hub.registry.yanks import YANK_BYTES, parse_yank, yank_content, yank_name, yanked_in
from paramdelta_hub.tasks.package_files import check_files
from paramdelta_hub.tasks.progress import Progress

__all__ = ["Store", "StoreRegistry", "check_options"]


class Store(Protocol):
    """A tree of files. The folder of a version is ``org/name/VERSION``, relative to the registry.

    Every method raises RegistryError if something is not reachable, or not allowed.
    """

    url: str
    missing: str
    """The message for a registry that does not exist."""

    def exists(self) -> bool:
        """Whether the registry exists; RegistryError if something else is there."""

    def check_apart(self, repo: str) -> None:
        """Check that publishing does not write into another output of ours; PublishError if it does."""

    def list_folder(self, folder: str) -> dict[str, bool]:
        """Return the names in ``folder``, and whether each is a folder; empty if there is no such folder."""

    def read(self, folder: str, name: str, limit: int) -> bytes | None:
        """Return the content of a file, or None if it does not exist; PackageError if it is larger than ``limit``."""

    def chunks(self, folder: str, name: str) -> Iterator[bytes]:
        """Yield a file's content in pieces; PackageError if there is no such file."""

    def created(self, folder: str) -> str | None:
        """Return when a version was published, ISO 8601 in UTC, if the store knows."""

    def local_path(self, folder: str) -> Path | None:
        """Return the path of a version, if the store is on this machine."""

    def write(self, folder: str, name: str, content: bytes) -> None:
        """Write a small file of a repository's folder, or replace it."""

    def remove(self, folder: str, name: str) -> None:
        """Remove a small file of a repository's folder, if it is there."""

    def put(
        self, package: Package, folder: str, manifest: bytes, extras: Mapping[str, bytes], progress: Progress
    ) -> None:
        """Upload a version with its card and signature completely or not at all.

        Raises:
            PublishError: somebody else is publishing it or was faster, or something else has this name.
            StorageError: the disk is full or fails.
        """


STORES: dict[str, Callable[[str], Store]] = {}
"""Stores with URLs of their own, by scheme. All other URLs are opened by fsspec."""


class StoreRegistry(Registry):
    """The registry at ``root``: a folder, which may not exist yet, or an fsspec URL.

    ``ROOT/org/name/VERSION/`` is the package itself, so a version in a local registry can be used by its path. Who can
    see it is up to the store. The first publication creates the registry.

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

    @property
    def address(self) -> str:
        """The path or the URL."""
        return self._store.url

    def versions(self, repo: str) -> list[Version]:
        """Return all versions, the newest first by semantic version."""
        found = []
        names, yanked = self._names(check_repo(repo))
        for version in names:
            if (content := self._manifest(f"{repo}/{version}")) is not None:
                package_id = hashlib.sha256(content).hexdigest()
                created = self._store.created(f"{repo}/{version}")
                reason = self._reason(repo, version) if version in yanked else None
                found.append(Version(version, package_id, package_id, created, reason, _earlier(content)))
        if not found:
            self._check_registry()
        return found

    def card(self, repo: str) -> str | None:
        """Return the model card of the newest version, withdrawn or not; None if there is no version or no card."""
        names, _ = self._names(check_repo(repo))
        found = newest(name for name in names if self._manifest(f"{repo}/{name}") is not None)
        content = found and self._store.read(f"{repo}/{found}", CARD_NAME, CARD_BYTES)
        try:
            return content.decode() if content else None
        except UnicodeDecodeError:
            raise RegistryError("README.md is not UTF-8", where=f"{self.address}/{repo}") from None

    def search(self, query: str | None, base: str | None, fingerprint: str | None) -> Iterator[Hit]:
        """Yield the newest version of every delta that matches, by manifests and cards. Broken ones are skipped."""
        is_empty = True
        for repo in self._repositories():
            try:
                found = self._lookup(repo, None)
                if found is None:
                    continue
                is_empty = False
                snapshot = self._snapshot(repo, *found)
            except PackageError:
                is_empty = False
                continue
            manifest = snapshot.manifest
            architecture = manifest.architecture.fingerprint
            if (
                base in (None, manifest.base.name)
                and fingerprint in (None, architecture)
                and self._has_words(snapshot, query)
            ):
                yield Hit(
                    repo=repo,
                    title=manifest.name,
                    version=manifest.version,
                    revision=snapshot.revision,
                    base=manifest.base.name,
                    post=manifest.post.name,
                    fingerprint=architecture,
                    nbytes=manifest.nbytes,
                    license=manifest.license,
                    created=self._store.created(f"{repo}/{manifest.version}"),
                )
        if is_empty:
            self._check_registry()

    def _has_words(self, found: Snapshot, query: str | None) -> bool:
        """Whether a query fits a version. The card is read only if its tags can decide."""
        manifest = found.manifest
        texts = (found.repo, manifest.name, manifest.base.name, manifest.post.name)
        return has_words(query, texts) or has_words(query, (*texts, *self._tags(_folder(found))))

    def _tags(self, folder: str) -> list[str]:
        try:
            content = self._store.read(folder, CARD_NAME, CARD_BYTES)
            tags = metadata((content or b"").decode("utf-8", "replace"), folder).get("tags")
        except SourceError:
            return []
        return [tag for tag in (tags if isinstance(tags, list) else [tags]) if isinstance(tag, str)]

    def _plan(self, publication: Publication) -> Published:
        repo, opened = publication.repo, publication.package
        published_id = self._id_of(publication)
        extras = publication.make_extras(self.card(repo))
        version = opened.manifest.version
        names, yanked = self._names(repo)
        is_newest = newest([*(name for name in names if name not in yanked), version]) == version
        where = f"{self.address}/{repo}/{version}"
        if published_id is not None:
            self._check_same(publication, published_id)
            return publication.planned(opened.digest, where, {}, is_newest, None)
        check_files(opened, opened.manifest.files, publication.progress)
        self._announce(publication, extras)
        files = {file.path: file.size for file in opened.manifest.files}
        files |= {name: len(content) for name, content in extras.files.items()}
        files[MANIFEST_NAME] = len(read_manifest(opened))
        if (local := self._store.local_path(f"{repo}/{version}")) is not None:
            check_place(local, sum(files.values()))
        return publication.planned(opened.digest, where, files, is_newest, extras)

    def _id_of(self, publication: Publication) -> str | None:
        """Return the id under which a version is published, after checking that it may be published here."""
        self._store.check_apart(publication.repo)
        check_options(private=publication.private, create_pr=publication.create_pr)
        return self._id(f"{publication.repo}/{publication.package.manifest.version}")

    def _check_same(self, publication: Publication, published_id: str | None) -> None:
        repo, opened = publication.repo, publication.package
        if published_id != opened.digest:
            raise PublishError(
                f"{repo} {opened.manifest.version} is published already, with other content"
                f" (id {str(published_id)[:16]}…)",
                where=f"{self.address}/{repo}/{opened.manifest.version}",
                remedy=HIGHER_VERSION,
            )

    def _publish(self, publication: Publication) -> Published:
        repo, opened = publication.repo, publication.package
        folder = f"{repo}/{opened.manifest.version}"
        published_id = self._id_of(publication)
        extras = publication.make_extras(self.card(repo))
        uploaded = published_id is None
        if uploaded:
            check_files(opened, opened.manifest.files, publication.progress)
            self._announce(publication, extras)
            try:
                self._store.put(opened, folder, read_manifest(opened), extras.files, publication.progress)
            except PublishError:
                published_id, uploaded = self._id(folder), False
                if published_id is None:
                    raise
        if not uploaded:
            self._check_same(publication, published_id)
        return publication.done(opened.digest, f"{self.address}/{folder}", extras if uploaded else None)

    def _announce(self, publication: Publication, extras: Extras) -> None:
        is_folder = "://" not in self.address
        new = "" if self._store.exists() else " (a new registry)"
        if is_folder and not new and not self._has_shape():
            new = " (a folder that holds other things)"
        publication.announce(f"{'the folder ' * is_folder}{self.address}/{publication.repo}{new}", extras)

    def _yank(self, repo: str, version: str, reason: str | None, make_card: CardMaker) -> None:
        if reason is None:
            self._store.remove(repo, yank_name(version))
        else:
            self._store.write(repo, yank_name(version), yank_content(reason))

    def _find(self, repo: str, revision: str | None) -> Snapshot:
        if found := self._lookup(repo, revision):
            return self._snapshot(repo, *found)
        self._check_registry()
        names, _ = self._names(repo)
        published = [name for name in names if self._manifest(f"{repo}/{name}") is not None]
        if published and revision is None:
            raise all_withdrawn(f"{self.address}/{repo}", {name: self._reason(repo, name) for name in published})
        raise RegistryError(
            f"there is no version {revision}" if published else "no such delta in this registry",
            where=f"{self.address}/{repo}",
            remedy=f"published versions: {', '.join(published[:10])}" if published else "check the spelling",
        )

    def _snapshot(self, repo: str, version: str, content: bytes) -> Snapshot:
        where = f"{self.address}/{repo}/{version}"
        manifest, package_id = parse_manifest(content, where)
        if manifest.version != version:
            raise IntegrityError(f"published as {version}, but the manifest says {manifest.version}", where=where)
        for file in manifest.companions:
            if file.size > COMPANION_BYTES:
                raise PackageError(
                    f"the companion {file.path!r} has {file.size} bytes; the limit is {COMPANION_BYTES}", where=where
                )
        yanked = self._reason(repo, version) if version in self._names(repo)[1] else None
        return Snapshot(repo, package_id, manifest, content, package_id, where, yanked)

    def _extra(self, found: Snapshot, name: str) -> bytes | None:
        return self._store.read(_folder(found), name, EXTRAS[name])

    def _fetch(self, found: Snapshot, files: Sequence[FileRecord], folder: Path, progress: Progress) -> int:
        source = _folder(found)
        return receive(files, lambda name: self._store.chunks(source, name), folder, found.where, progress)

    def _pull_into_cache(self, found: Snapshot, part: Part, signed: bool, progress: Progress) -> tuple[Path, int]:
        """Pull into a cache of this registry's own.

        A version on this machine is checked and used in place, but not a signed one: others could change it after the
        check.
        """
        local = self._store.local_path(_folder(found))
        if local is not None and not signed:
            check_files(Package(local, found.manifest, found.id), found.files(part), progress)
            return local, 0
        home = os.environ.get("XDG_CACHE_HOME", "")
        cache = Path(home) if os.path.isabs(home) else expand("~/.cache")
        own = hashlib.sha256(self.address.encode()).hexdigest()[:16]
        folder = cache / "paramdelta-hub" / own / _folder(found)
        try:
            return folder, self._install(found, part, folder, progress, is_cache=True)
        except StorageError as error:
            error.remedy = f"{error.remedy}; XDG_CACHE_HOME can name a folder on another disk"
            raise

    def _repositories(self) -> Iterator[str]:
        for org in filter(lambda org: is_repo(f"{org}/x"), self._folders("")):
            yield from filter(is_repo, (f"{org}/{name}" for name in self._folders(org)))

    def _folders(self, folder: str) -> list[str]:
        return sorted(name for name, is_folder in self._store.list_folder(folder).items() if is_folder)

    def _files(self, folder: str) -> list[str]:
        return _visible(name for name, is_folder in self._store.list_folder(folder).items() if not is_folder)

    def _names(self, repo: str) -> tuple[list[str], set[str]]:
        """Return a repository's versions, the highest first, and those of them that are withdrawn.

        Some of the versions may still be in the making.
        """
        entries = self._store.list_folder(repo)
        versions = newest_first(name for name, is_folder in entries.items() if is_folder and is_version(name))
        return versions, yanked_in(entries)

    def _reason(self, repo: str, version: str) -> str:
        try:
            return parse_yank(self._store.read(repo, yank_name(version), YANK_BYTES))
        except PackageError:  # too large, a link, or no file at all: it is withdrawn anyway
            return parse_yank(None)

    def _manifest(self, folder: str) -> bytes | None:
        return self._store.read(folder, MANIFEST_NAME, MANIFEST_BYTES)

    def _id(self, folder: str) -> str | None:
        """Return the id of the version that is published in ``folder``, or None if there is none."""
        content = self._manifest(folder)
        return None if content is None else hashlib.sha256(content).hexdigest()

    def _lookup(self, repo: str, revision: str | None) -> tuple[str, bytes] | None:
        """Return the version that ``revision`` names, and the content of its manifest; None if there is none."""
        names, yanked = self._names(repo)
        candidates = [
            name for name in names if (name not in yanked if revision is None else revision == name or is_id(revision))
        ]
        while version := newest(candidates):
            content = self._manifest(f"{repo}/{version}")
            if content is not None and (revision in (None, version) or hashlib.sha256(content).hexdigest() == revision):
                return version, content
            candidates.remove(version)
        return None

    def _check_registry(self) -> None:
        """Check that there is a registry, but only if nothing was found, so that a successful search costs no more."""
        if not self._store.exists():
            raise RegistryError(
                f"no registry: {self._store.missing}",
                where=self.address,
                remedy="check the spelling of the registry; publishing creates a new one",
            )
        if not self._has_shape():
            raise RegistryError(
                f"not a registry; it holds {shown_names(_visible(self._store.list_folder('')))}",
                where=self.address,
                remedy="name the FOLDER in which deltas lie as FOLDER/org/name/VERSION",
            )

    def _has_shape(self) -> bool:
        """Whether this looks like a registry: it has a version, or only empty folders, as a killed run leaves."""
        try:
            is_empty = not self._files("")
            for org in self._folders(""):
                is_empty &= not self._files(org)
                for name in self._folders(org):
                    inside = _visible(self._store.list_folder(f"{org}/{name}"))
                    if any(is_version(version.removesuffix(".partial")) for version in inside):
                        return True
                    is_empty &= not inside
        except RegistryError:  # folders that we may not read could hold versions
            return True
        return is_empty


def _earlier(content: bytes) -> tuple[Earlier, ...]:
    """Return what a manifest says that the package was before; nothing if it can't be read."""
    try:
        return parse_manifest(content)[0].relabeled_from
    except PackageError:
        return ()


def _folder(found: Snapshot) -> str:
    return f"{found.repo}/{found.manifest.version}"


def _visible(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if not name.startswith("."))


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
