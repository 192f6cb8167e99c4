"""Installing a snapshot of a package into a folder: what a pull into a folder does, for every kind of registry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from paramdelta_hub.package.manifest import MANIFEST_NAME, FileRecord, Manifest
from paramdelta_hub.registry.lockfile import Lock, pin
from paramdelta_hub.registry.materialize import EXTRAS, exclusive_dir, write_if_changed

__all__ = ["Snapshot", "install"]


@dataclass(frozen=True)
class Snapshot:
    """One published version, as a registry holds it at this moment."""

    registry: str
    """The registry's address."""
    repo: str
    revision: str
    """What pins the version: the commit on the Hub, the package's id elsewhere."""
    manifest: Manifest
    content: bytes
    """The manifest as it was published."""
    id: str
    """sha256 of ``content``."""
    extras: Mapping[str, bytes] | None
    """The card and the signature; None if they are not pulled."""


def install(
    snapshot: Snapshot,
    folder: Path,
    fetch_files: Callable[[], int],
    *,
    named: bool,
    allow_downgrade: bool,
    companions: Iterable[FileRecord],
) -> int:
    """Make ``folder`` hold a snapshot; return the number of bytes written. The manifest is written last.

    Args:
        snapshot: what to install.
        folder: where to; it is created if needed, and locked meanwhile.
        fetch_files: writes the listed files into the folder, and returns the number of bytes written.
        named: whether the user named a version.
        allow_downgrade: see :func:`.lockfile.pin`.
        companions: see :func:`.lockfile.pin`.

    Raises:
        DestinationError, IntegrityError: see :func:`.lockfile.pin`.
        StorageError: the disk is full or fails.
    """
    lock = Lock.of(
        snapshot.manifest,
        snapshot.id,
        registry=snapshot.registry,
        repo=snapshot.repo,
        revision=snapshot.revision,
        extras=snapshot.extras,
    )
    with exclusive_dir(folder):
        pin(
            folder,
            lock,
            named=named,
            allow_downgrade=allow_downgrade,
            with_extras=snapshot.extras is not None,
            companions=companions,
        )
        written = fetch_files()
        if snapshot.extras is not None:
            written += sum(write_if_changed(folder / name, snapshot.extras.get(name)) for name in EXTRAS)
        return written + write_if_changed(folder / MANIFEST_NAME, snapshot.content)
