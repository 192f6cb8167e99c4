"""The interface of a registry. It has two implementations: :mod:`.hub` and :mod:`.stores` (a folder or fsspec URL)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from paramdelta_hub.fileio.report import Report
from paramdelta_hub.package.manifest import Manifest
from paramdelta_hub.package.records import FileRecord
from paramdelta_hub.registry.signing import Trust
from paramdelta_hub.registry.versions import is_version
from paramdelta_hub.tasks.progress import Progress

__all__ = ["HIGHER_VERSION", "Hit", "Part", "Published", "Pulled", "Registry", "Version", "VersionsReport", "files_of"]

HIGHER_VERSION = "publish yours as a higher version: paramdelta relabel DELTA -o NEW --version …"
"""The remedy if a version exists with other content: a published version is never replaced."""
Part = Literal["package", "companions", "manifest", "lineage", "evidence"]
"""What to pull: everything; or the manifest, alone or with the companions, the lineage file, or both."""


def files_of(manifest: Manifest, part: Part) -> tuple[FileRecord, ...]:
    """Return the files that a part has in addition to the manifest."""
    if part == "package":
        return manifest.files
    companions = manifest.companions if part in ("companions", "evidence") else ()
    return (*companions, manifest.lineage) if part in ("lineage", "evidence") else companions


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


class VersionsReport(Report):
    """What is published of a delta."""

    versions: tuple[Version, ...]
    """The newest first."""


class Published(Report):
    """The result of a publication."""

    repo: str
    version: str
    revision: str
    id: str
    url: str
    uploaded: bool
    """False if the same content was published before, so nothing was done."""
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


class Registry(Protocol):
    """Publish, pull, search, versions. Implementations raise only :class:`~paramdelta_hub.errors.ParamdeltaError`."""

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

        Before the upload, ``progress`` is told where the package goes and who can see it. The folder is only read.

        Args:
            package: the package's folder.
            repo: ``org/name``.
            version: the manifest's version.
            extras: the model card and the signature, by their names in
                :data:`~paramdelta_hub.registry.materialize.EXTRAS`; by default those in the folder.
            private: whether a new repository on the Hub is private.
            create_pr: whether to open a pull request on the Hub.
            message: the title of the commit on the Hub.
            notes: texts for ``progress``, if something will be uploaded.
            progress: receives the destination and the progress of the work.

        Raises:
            PublishError: the version exists with other content, or somebody else published it first.
            RegistryError: not allowed, not reachable, …
        """

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

        A folder that holds another version is changed only if the user named the new one; to a lower version only with
        ``allow_downgrade``. With ``trust``, the manifest must be signed for this repository by one of its keys. This is
        checked before anything is written.

        Raises:
            SignatureError: the manifest is not signed as demanded.
            IntegrityError: a file is not what the manifest promises.
            DestinationError: the folder holds something else.
            RegistryError: no such repository or version, not allowed, not reachable, …
        """

    def versions(self, repo: str) -> list[Version]:
        """Return all versions, the newest first by semantic version."""

    def card(self, repo: str) -> str | None:
        """Return the model card of the newest version, or None if there is no version or no card."""

    def search(self, query: str | None, base: str | None, fingerprint: str | None) -> Iterator[Hit]:
        """Yield deltas with ``query`` in their name or title, and with this ``base`` and ``fingerprint``."""
