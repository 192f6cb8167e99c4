"""What every registry does: publish, pull, search, versions. Its kinds are in :mod:`.hub` and :mod:`.stores`."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from paramdelta_hub.errors import RegistryError
from paramdelta_hub.fileio.names import shown_names
from paramdelta_hub.fileio.report import Report
from paramdelta_hub.package.manifest import MANIFEST_NAME, Earlier, Manifest
from paramdelta_hub.package.package import Package, open_package
from paramdelta_hub.package.records import FileRecord
from paramdelta_hub.registry.lockfile import Lock, pin, read_lock
from paramdelta_hub.registry.materialize import (
    CARD_NAME,
    EXTRAS,
    SIGNATURE_NAME,
    exclusive_dir,
    read_extras,
    write_if_changed,
)
from paramdelta_hub.registry.names import check_repo, check_version, is_version, newest
from paramdelta_hub.registry.signing import Trust
from paramdelta_hub.registry.yanks import Yanked, check_reason, warning
from paramdelta_hub.tasks.progress import Progress

__all__ = [
    "HIGHER_VERSION",
    "CardMaker",
    "Extras",
    "ExtrasMaker",
    "Hit",
    "Part",
    "Publication",
    "Published",
    "Pulled",
    "Registry",
    "Snapshot",
    "UploadedFile",
    "Version",
    "VersionsReport",
    "all_withdrawn",
]

HIGHER_VERSION = "publish yours as a higher version: paramdelta relabel DELTA -o NEW --version …"
"""The remedy if a version exists with other content: a published version is never replaced."""
ExtrasMaker: TypeAlias = "Callable[[str | None], Extras]"
"""Makes the card and the signature of a package, given the card that is published."""
CardMaker: TypeAlias = Callable[[Manifest, str, bytes | None], bytes | None]
"""Makes the card of a version from its manifest, its id and the present card; None leaves that as it is."""
Part = Literal["package", "companions", "manifest", "lineage", "evidence"]
"""What to pull: everything; or the manifest, alone or with the companions, the lineage file, or both."""


@dataclass(frozen=True)
class Version:
    """One published version of a delta. It is never replaced."""

    version: str
    """Semantic version, as in the manifest."""
    revision: str
    """What pins the version: the commit on the Hub, the package's id elsewhere."""
    id: str | None
    """sha256 of its manifest, if it is known without a download."""
    created: str | None
    """ISO 8601, UTC, if the registry records it."""
    yanked: str | None = None
    """Why it is withdrawn; None if it is not. It is then no longer the newest, whatever its number."""
    relabeled_from: tuple[Earlier, ...] = ()
    """The packages that it was before, the first one first, where manifests are read anyway: not on the Hub."""


class VersionsReport(Report):
    """What is published of a delta."""

    versions: tuple[Version, ...]
    """The newest first."""


class UploadedFile(Report):
    """A file that a publication uploads."""

    path: str
    size: int


class Published(Report):
    """The result of a publication, or of its dry run."""

    repo: str
    version: str
    revision: str
    id: str
    url: str
    uploaded: bool
    """False if the same content was published before, so nothing was done. After a dry run, nothing is done at all."""
    dry_run: bool = False
    """Whether nothing was sent: the other fields then say what would be."""
    files: tuple[UploadedFile, ...] = ()
    """What would be uploaded, after a dry run. Files that are there already are left out."""
    newest: bool | None = None
    """Whether the version becomes the newest, after a dry run. On the Hub, the main branch then moves to it."""
    card_changes: str = ""
    """The difference between the published card and the new one, after a dry run."""
    pull_request: str | None = None
    """The address of the pull request that proposes it, if it was not published at once."""
    notes: tuple[str, ...] = ()
    """What the publisher may not have intended, such as a missing license."""


class Pulled(Report):
    """A pulled package, or the requested part of it, on disk. Every file is checked."""

    path: Path
    repo: str
    version: str
    revision: str
    id: str
    downloaded_nbytes: int
    """The bytes that were not there before."""
    signed_by: str | None = None
    """The trusted key that signed it; None if no signature was required."""
    notes: tuple[str, ...] = ()
    """What the caller may not expect, such as that the version was withdrawn."""


@dataclass(frozen=True)
class Hit:
    """A delta that a search found, as the registry describes it; see :mod:`.search` for the verdict."""

    repo: str
    title: str
    version: str | None
    revision: str
    base: str | None
    post: str | None
    fingerprint: str | None
    """The fingerprint of base's architecture."""
    nbytes: int | None
    license: str | None
    created: str | None

    @property
    def pullable(self) -> str | None:
        """The version to pull: the one that the card claims, if it is valid; None stands for the newest."""
        return self.version if self.version and is_version(self.version) else None


@dataclass(frozen=True)
class Snapshot:
    """One published version, as a registry holds it at this moment."""

    repo: str
    revision: str
    """What pins the version: the commit on the Hub, the package's id elsewhere."""
    manifest: Manifest
    content: bytes
    """The manifest as it was published."""
    id: str
    """sha256 of ``content``."""
    where: str
    """The version, for messages."""
    yanked: str | None = None
    """Why the version is withdrawn; None if it is not, as far as that is known here."""
    notes: tuple[str, ...] = ()
    """What could not be had, although nothing depends on it."""
    extras: Mapping[str, bytes] = field(default_factory=dict)
    """The card and the signature, if they are known already, by file name."""

    def files(self, part: Part) -> tuple[FileRecord, ...]:
        """Return the files that a part has in addition to the manifest."""
        if part == "package":
            return self.manifest.files
        companions = self.manifest.companions if part in ("companions", "evidence") else ()
        return (*companions, self.manifest.lineage) if part in ("lineage", "evidence") else companions


def all_withdrawn(where: str, reasons: Mapping[str, str]) -> RegistryError:
    """Return the error if a version is to be chosen, and all of them are withdrawn."""
    version, reason = next(iter(reasons.items()))
    return RegistryError(
        f"all versions are withdrawn; {version}: {reason}",
        where=where,
        remedy=f"ask its publisher; or pull a version by its name, such as @{version}",
    )


@dataclass(frozen=True)
class Extras:
    """The files of a publication that the manifest does not list: the card and the signature, by file name."""

    files: Mapping[str, bytes]
    card_changes: str = ""
    """How the published card changes, as a unified diff."""
    notes: tuple[str, ...] = ()
    """What the publisher may not have intended, to be told before anything is uploaded."""


@dataclass(frozen=True)
class Publication:
    """A package that is being published; see :meth:`Registry.publish`."""

    package: Package
    repo: str
    make_extras: ExtrasMaker
    private: bool
    create_pr: bool
    message: str | None
    progress: Progress
    dry_run: bool = False

    def announce(self, place: str, extras: Extras) -> None:
        """Tell ``progress`` where the package will be published, before anything is uploaded."""
        manifest, verb = self.package.manifest, "would publish" if self.dry_run else "publishing"
        for note in (*extras.notes, f"{verb} {manifest.name} {manifest.version} to {place}"):
            self.progress.note(note)

    def planned(
        self, revision: str, url: str, files: Mapping[str, int], newest: bool, extras: Extras | None
    ) -> Published:
        """Return the report of a dry run; without extras, nothing would be done.

        ``files`` are those that would be uploaded, by name with their sizes.
        """
        done = self.done(revision, url, extras)
        listed = tuple(UploadedFile(path=name, size=size) for name, size in files.items())
        changes = extras.card_changes if extras and CARD_NAME in files else ""
        return done.model_copy(update={"dry_run": True, "files": listed, "newest": newest, "card_changes": changes})

    def done(self, revision: str, url: str, extras: Extras | None, pull_request: str | None = None) -> Published:
        """Return the report of this publication; ``extras`` are those that were uploaded, if anything was."""
        return Published(
            repo=self.repo,
            version=self.package.manifest.version,
            revision=revision,
            id=self.package.digest,
            url=url,
            uploaded=extras is not None,
            pull_request=pull_request,
            notes=extras.notes if extras else (),
        )


class Registry(ABC):
    """Publish, pull, search, versions. Implementations raise only :class:`~paramdelta_hub.errors.ParamdeltaError`.

    Every method raises RegistryError if something does not exist, is not allowed, or is not reachable.
    """

    @property
    @abstractmethod
    def address(self) -> str:
        """The registry's address, as lock files record it."""

    def publish(
        self,
        package: Path,
        repo: str,
        version: str,
        *,
        make_extras: ExtrasMaker | None = None,
        private: bool = False,
        create_pr: bool = False,
        message: str | None = None,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> Published:
        """Publish a package completely or not at all. Publishing the same content again does nothing.

        A dry run sends nothing, and ends as the real run would.

        Before the upload, ``progress`` is told the notes of the extras, where the package goes and who can see it. The
        folder is only read. ``make_extras`` makes the model card and the signature; by default those in the folder are
        taken. It is asked again if somebody changes the published card meanwhile.
        ``private`` (for a new repository), ``create_pr`` and ``message`` are for the Hub.

        Raises:
            OptionError: ``version`` is not the manifest's, ``repo`` is not a valid name, or an option is for the Hub.
            PackageError: the package is broken.
            PublishError: the version exists with other content, or somebody else published it first.
            StorageError: the disk is full or fails.
        """
        check_repo(repo)
        opened = open_package(Path(package))
        check_version(opened.manifest.version, version, str(package))
        make_extras = make_extras or (lambda _: Extras(read_extras(opened.path)))
        publication = Publication(
            opened, repo, make_extras, private, create_pr, message, progress or Progress(), dry_run
        )
        return self._plan(publication) if dry_run else self._publish(publication)

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
        """Fetch a version (by default the newest) into ``folder``, or into a cache, and check every file.

        Intact files that are already there are kept, so a rerun continues file by file. A folder that holds another
        version is changed only if the user named the new one; to a lower version only with ``allow_downgrade``. With
        ``trust``, the manifest must be signed for this repository by one of its keys. This is checked before anything
        is written.

        Raises:
            SignatureError: the manifest is not signed as demanded.
            IntegrityError: a file is not what the manifest promises, or the version has changed since an earlier pull.
            DestinationError: the folder holds something else.
        """
        progress = progress or Progress()
        found = self._find(check_repo(repo), revision)
        notes = list(found.notes)
        if found.yanked is not None:
            notes.append(warning(repo, found.manifest.version, found.yanked))
        signed_by = None
        if trust is not None:
            signed_by = trust.check(found.content, self._extra(found, SIGNATURE_NAME), found.where, repo)
        for note in notes:
            progress.note(note)
        if folder is None:
            path, downloaded = self._pull_into_cache(found, part, trust is not None, progress)
        else:
            path = Path(os.path.abspath(os.path.expanduser(folder)))
            notes += self._compare_signatures(found, path)
            downloaded = self._install(
                found, part, path, progress, named=revision is not None, allow_downgrade=allow_downgrade
            )
        return Pulled(
            path=path,
            repo=repo,
            version=found.manifest.version,
            revision=found.revision,
            id=found.id,
            downloaded_nbytes=downloaded,
            signed_by=signed_by,
            notes=tuple(notes),
        )

    def newest(self, repo: str) -> tuple[Manifest, bool]:
        """Return the manifest of the newest version, and whether it is signed."""
        found = self._find(check_repo(repo), None)
        return found.manifest, self._extra(found, SIGNATURE_NAME) is not None

    def yank(self, repo: str, version: str, reason: str | None, make_card: CardMaker) -> Yanked:
        """Withdraw a version for a reason; with None, take that back. Nothing of the version is changed.

        ``make_card`` makes the card of the version that becomes the newest by that, where a registry shows one card.

        Raises:
            OptionError: the reason can't be used.
            RegistryError: there is no such version.
        """
        reason = None if reason is None else check_reason(reason)
        versions = {found.version: found.yanked for found in self.versions(check_repo(repo))}
        if version not in versions:
            raise RegistryError(
                f"there is no version {version[:200]}",
                where=f"{self.address}/{repo}",
                remedy=f"published versions: {shown_names(list(versions))}" if versions else "check the spelling",
            )
        if changed := versions[version] != reason:
            versions[version] = reason
            self._yank(repo, version, reason, make_card)
        left = newest(name for name, why in versions.items() if why is None)
        return Yanked(repo=repo, version=version, reason=reason, changed=changed, newest=left)

    @abstractmethod
    def versions(self, repo: str) -> list[Version]:
        """Return all versions, the newest first by semantic version."""

    @abstractmethod
    def card(self, repo: str) -> str | None:
        """Return the model card as its author left it, or None if there is none.

        It is that of the newest version, also if that is withdrawn: a withdrawal takes none of the author's words away.
        """

    @abstractmethod
    def search(self, query: str | None, base: str | None, fingerprint: str | None) -> Iterator[Hit]:
        """Yield deltas with this ``base`` and ``fingerprint``, and with all words of ``query``.

        Those of which all versions are withdrawn are left out.
        Every word must be in the name, the title, the tags of the card, or the names of base and post.
        """

    @abstractmethod
    def _publish(self, publication: Publication) -> Published:
        """Publish a package whose name and version are checked, and whose files are not."""

    @abstractmethod
    def _plan(self, publication: Publication) -> Published:
        """Return what :meth:`_publish` would do, and raise what it would raise. Nothing is sent."""

    @abstractmethod
    def _yank(self, repo: str, version: str, reason: str | None, make_card: CardMaker) -> None:
        """Withdraw a version that exists, or take that back."""

    @abstractmethod
    def _find(self, repo: str, revision: str | None) -> Snapshot:
        """Return the version that ``revision`` names, or the newest."""

    @abstractmethod
    def _extra(self, found: Snapshot, name: str) -> bytes | None:
        """Return the card or the signature of a version, if it has one."""

    @abstractmethod
    def _fetch(self, found: Snapshot, files: Sequence[FileRecord], folder: Path, progress: Progress) -> int:
        """Make ``folder`` hold every listed file; return the size of those that were missing or damaged."""

    @abstractmethod
    def _pull_into_cache(self, found: Snapshot, part: Part, signed: bool, progress: Progress) -> tuple[Path, int]:
        """Return the folder of a checked copy, which nobody is expected to edit, and the bytes that were fetched."""

    def _compare_signatures(self, found: Snapshot, folder: Path) -> list[str]:
        """Return a note if a folder holds a signed version of a delta, and the new one is not signed."""
        held = read_lock(folder) if folder.is_dir() else None
        if held is None or SIGNATURE_NAME not in held.extras or held.id == found.id:
            return []
        if self._extra(found, SIGNATURE_NAME) is not None:
            return []
        return [f"{found.repo} {found.manifest.version} is not signed, and {held.version} was"]

    def _install(
        self,
        found: Snapshot,
        part: Part,
        folder: Path,
        progress: Progress,
        *,
        named: bool = True,
        allow_downgrade: bool = False,
        is_cache: bool = False,
    ) -> int:
        """Make ``folder`` hold a version; return the number of bytes written. The manifest is written last.

        See :func:`.lockfile.pin` for what is refused.
        """
        files = found.files(part)
        with_extras = part == "package"
        wanted = EXTRAS if with_extras else ()
        extras = {name: content for name in wanted if (content := self._extra(found, name)) is not None}
        lock = Lock.of(found.manifest, found.id, self.address, found.repo, found.revision, extras)
        with exclusive_dir(folder):
            pin(
                folder,
                lock,
                named=named,
                allow_downgrade=allow_downgrade,
                with_extras=with_extras,
                companions=[] if is_cache else [file for file in found.manifest.companions if file in files],
            )
            written = self._fetch(found, files, folder, progress)
            if with_extras:
                written += sum(write_if_changed(folder / name, extras.get(name)) for name in EXTRAS)
            return written + write_if_changed(folder / MANIFEST_NAME, found.content)
