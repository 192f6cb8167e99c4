"""What a registry is. Two implementations: :mod:`.hub` (``org/name``) and :mod:`.stores` (a folder, any fsspec URL)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from paramdelta_hub.package.manifest import Manifest
from paramdelta_hub.package.records import FileRecord
from paramdelta_hub.registry.names import is_version
from paramdelta_hub.registry.signing import Trust
from paramdelta_hub.tasks.progress import Progress

__all__ = ["HIGHER_VERSION", "Hit", "Part", "Published", "Pulled", "Registry", "Version", "files_of"]

HIGHER_VERSION = "publish yours as a higher version: paramdelta relabel DELTA -o NEW --version …"
"""The remedy where a version is there with other content: what is published is never replaced."""
Part = Literal["package", "companions", "manifest", "lineage", "evidence"]
"""What to pull: everything; the manifest alone, or with the companions, the lineage file, or both."""


def files_of(manifest: Manifest, part: Part) -> tuple[FileRecord, ...]:
    """Return the files that a part has beside the manifest."""
    if part == "package":
        return manifest.files
    companions = manifest.companions if part in ("companions", "evidence") else ()
    return (*companions, manifest.lineage) if part in ("lineage", "evidence") else companions


@dataclass(frozen=True)
class Version:
    """One published version of a delta. A version is never replaced."""

    version: str
    """Semantic version, as in the manifest."""
    revision: str
    """What pins it: the commit on the Hub, the package's id elsewhere."""
    id: str | None
    """sha256 of its manifest, where it is known without a download."""
    created: str | None
    """ISO 8601, UTC, where the registry keeps it."""


@dataclass(frozen=True)
class Published:
    """What a publication made, or found there already."""

    repo: str
    version: str
    revision: str
    id: str
    url: str
    uploaded: bool
    """False: just this content was there already, and nothing was done."""
    pull_request: str | None = None
    notes: tuple[str, ...] = ()
    """What the publisher may not have meant, such as a license that is gone."""


@dataclass(frozen=True)
class Pulled:
    """A package, or the part of it that was asked for, as it lies on disk now, every file checked."""

    path: Path
    repo: str
    version: str
    revision: str
    id: str
    downloaded: int
    """Bytes that were not there before."""
    signed_by: str | None = None
    """Which trusted key its signature holds good for; None where no signature was asked for."""


@dataclass(frozen=True)
class Hit:
    """A delta that a search found, as the registry describes it; judged in :mod:`.search`."""

    repo: str
    title: str
    version: str | None
    revision: str
    base: str | None
    post: str | None
    fingerprint: str | None
    """Of base's architecture."""
    nbytes: int | None
    license: str | None
    created: str | None

    @property
    def pullable(self) -> str | None:
        """The version that it claims, if it can be one; else the newest is meant."""
        return self.version if self.version and is_version(self.version) else None

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable record."""
        return dict(self.__dict__)


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
        """Publish a package whole or not at all; equal content again is no error and does nothing.

        Before anything is sent, ``progress`` is told where to and who will see it. The package's folder is only read.

        Args:
            package: the folder.
            repo: ``org/name``.
            version: the manifest's.
            extras: the model card and the signature to go with it, by their names in
                :data:`~paramdelta_hub.registry.materialize.EXTRAS`; what is not given is taken from the folder.
            private: make a new repository on the Hub private.
            create_pr: propose it there by a pull request.
            message: of the commit there.
            notes: what ``progress`` is told, too, once it is known that something is to be sent.
            progress: told where the package goes, and how far the work is.

        Raises:
            PublishError: the version is there with other content, or somebody else was faster; nothing is replaced.
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
        """Fetch a version (the newest if None) into ``folder``, or a cache; every file's size and sha256 is checked.

        A folder that holds another version is changed only if the new one was named, and to a lower one only with
        ``allow_downgrade``. With ``trust``, the manifest must be signed, for this repository, by one of its keys; that
        is checked before anything is written.

        Raises:
            SignatureError: not signed so.
            IntegrityError: what came is not what the manifest promises.
            DestinationError: the folder holds something else.
            RegistryError: no such repository or version, not allowed, not reachable, …
        """

    def versions(self, repo: str) -> list[Version]:
        """Return all versions, the newest first by semantic version."""

    def card(self, repo: str) -> str | None:
        """Return the model card of the newest version, or None where nothing is published, or no card with it."""

    def search(self, query: str | None, base: str | None, fingerprint: str | None) -> Iterator[Hit]:
        """Yield deltas; ``query`` is looked for in names and titles, ``base`` and ``fingerprint`` must be equal."""
