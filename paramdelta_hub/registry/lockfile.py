"""``paramdelta.lock``: the lock file of a pulled copy. It stops a later pull from changing the copy unasked.

The lock file holds the digest of every pulled file. A file with another digest was changed by its owner:

- A pull of another version never touches such a file.
- A pull of the same version repairs shards and truncated files. It leaves everything else alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, cast

from pydantic import Field, ValidationError

from paramdelta_hub.errors import DestinationError, IntegrityError, PackageError, SourceError
from paramdelta_hub.fileio import strict_json
from paramdelta_hub.fileio.digests import check_digest
from paramdelta_hub.fileio.durable import file_digest, io_errors, read_small, write_file
from paramdelta_hub.fileio.names import check_file_names, shown_names
from paramdelta_hub.fileio.paths import resolve_inside
from paramdelta_hub.limits import FILES, LOCK_BYTES
from paramdelta_hub.package.manifest import MANIFEST_NAME, FileRecord, Manifest
from paramdelta_hub.package.package import LOCK_NAME, open_package
from paramdelta_hub.package.records import Record, SemanticVersion, Sha256, Text, at_most, check_keys
from paramdelta_hub.registry.materialize import EXTRAS
from paramdelta_hub.registry.names import precedence

_Extra = Literal["README.md", "manifest.json.sig"]
_MAX_NAMES = 10

__all__ = ["LOCK_NAME", "Lock", "pin", "read_lock"]


class Lock(Record):
    """What a folder holds, and where it came from."""

    lock_version: Literal[1] = 1
    registry: Text = Field(description="the Hub's address, a folder or an fsspec URL; never with credentials")
    repo: Text
    version: SemanticVersion
    revision: Text = Field(description="what pins the version: the commit on the Hub, the id elsewhere")
    id: Sha256 = Field(description="sha256 of the manifest")
    files: Annotated[dict[Text, Sha256], at_most(FILES)] = Field(description="the digest of every listed file, by name")
    extras: dict[_Extra, Sha256] = Field(description="the digests of the card and the signature, as pulled")

    @classmethod
    def of(
        cls, manifest: Manifest, package_id: str, registry: str, repo: str, revision: str, extras: Mapping[str, bytes]
    ) -> Lock:
        """Return the lock of a package that is about to be pulled; ``extras`` are its card and its signature."""
        return cls(
            registry=registry,
            repo=repo,
            version=manifest.version,
            revision=revision,
            id=package_id,
            files={file.path: file.sha256 for file in manifest.files},
            extras={cast(_Extra, name): hashlib.sha256(content).hexdigest() for name, content in extras.items()},
        )


def read_lock(folder: Path) -> Lock | None:
    """Return the folder's lock, or None if there is no lock file.

    Raises:
        PackageError: the lock file can't be read.
    """
    path = folder / LOCK_NAME
    if not os.path.lexists(path):
        return None
    text = read_small(path, LOCK_BYTES)
    value = strict_json.parse(text, PackageError, str(path))
    try:
        check_keys(value, Lock, PackageError, str(path), "the lock")
        lock = Lock.model_validate_json(text)
        check_file_names(lock.files)
    except (ValidationError, SourceError):
        raise PackageError(
            "not a valid lock file", where=str(path), remedy="pull into another folder, or delete this file"
        ) from None
    return lock


def pin(
    folder: Path,
    lock: Lock,
    *,
    named: bool,
    allow_downgrade: bool = False,
    with_extras: bool = True,
    companions: Iterable[FileRecord] = (),
) -> None:
    """Write ``lock`` into ``folder`` before its files are pulled, after checking that nothing of value gets lost.

    If the folder holds another version, the files that the new version lacks are removed, the manifest first. So a
    mixture of two versions never looks like a package. A card or signature with new content is removed as well:
    otherwise a killed pull could leave an old one that looks edited.

    The caller has locked ``folder``. Unless the user named a version, the folder keeps the one that it has. Without
    ``with_extras``, its card and its signature stay. ``companions`` are those that a user may have edited.

    Raises:
        DestinationError: the folder holds something else, a version that must not be replaced, or edited files.
        IntegrityError: this version had another id when it was pulled before.
        StorageError: the disk fails.
    """
    held = read_lock(folder)
    if held is None:
        _check_adoptable(folder, lock)
    elif held.id != lock.id:
        _check_version_change(folder, held, lock, named, allow_downgrade)
    if held is not None and held.id == lock.id and not with_extras:
        lock = lock.model_copy(update={"extras": held.extras})
    _check_unchanged(folder, held, lock, with_extras=with_extras, companions=companions)
    with io_errors("preparing the folder"):
        if held is not None and held.id != lock.id:
            for name in (MANIFEST_NAME, *EXTRAS, *sorted(held.files.keys() - lock.files.keys())):
                resolve_inside(folder, name).unlink(missing_ok=True)
        elif held is not None:
            for name in sorted(dict(held.extras.items() - lock.extras.items())):
                resolve_inside(folder, name).unlink(missing_ok=True)
        if held != lock:
            write_file(folder / LOCK_NAME, strict_json.pretty(lock.model_dump(mode="json")))


def _check_adoptable(folder: Path, lock: Lock) -> None:
    """Check that a folder without a lock file is empty, or holds a copy of exactly this package."""
    if not os.listdir(folder):
        return
    try:
        check_digest(open_package(folder).digest, lock.id, "its manifest")
    except PackageError:
        raise DestinationError(
            "the folder holds something else", where=str(folder), remedy="choose an empty folder, or a new name"
        ) from None


def _check_unchanged(
    folder: Path, held: Lock | None, lock: Lock, *, with_extras: bool, companions: Iterable[FileRecord]
) -> None:
    """Check that no file will be replaced or removed that the user has edited. The error names all such files.

    A pull of the same version repairs damaged files: shards, which nobody edits, and truncated companions.
    """
    before: dict[str, str] = {} if held is None else dict(held.extras.items())
    after: dict[str, str] = dict(lock.extras.items())
    is_other = held is not None and held.id != lock.id
    touched = set(EXTRAS) if with_extras or is_other else set()
    if held is not None and is_other:
        before |= {MANIFEST_NAME: held.id, **held.files}
        after |= {MANIFEST_NAME: lock.id, **lock.files}
        touched |= {MANIFEST_NAME, *held.files, *lock.files}
    changed = [name for name in sorted(touched) if not _is_one_of(folder, name, (before.get(name), after.get(name)))]
    if not is_other:
        changed += [file.path for file in companions if _is_edited(folder, file)]
    if changed:
        raise DestinationError(
            f"these files differ from what was pulled, and would be lost: {shown_names(changed, _MAX_NAMES)}",
            where=str(folder),
            remedy="move them elsewhere, or "
            + ("pull into another folder" if is_other else "delete them to fetch them again"),
        )


def _is_one_of(folder: Path, name: str, digests: tuple[str | None, ...]) -> bool:
    """Whether a file is missing, or has one of these digests."""
    try:
        return not os.path.lexists(folder / name) or file_digest(resolve_inside(folder, name))[0] in digests
    except SourceError:  # a link, a folder, or a file that can't be read
        return False


def _is_edited(folder: Path, file: FileRecord) -> bool:
    """Whether a companion was edited: its content differs, and it is not just truncated."""
    try:
        path = resolve_inside(folder, file.path)
        return path.stat().st_size >= file.size and file_digest(path)[0] != file.sha256
    except (OSError, SourceError):  # missing, or not a file: the repair reports that
        return False


def _check_version_change(folder: Path, held: Lock, lock: Lock, named: bool, allow_downgrade: bool) -> None:
    """Check that ``lock`` may replace ``held``, which is of another package."""
    where = str(folder)
    if (held.registry, held.repo) != (lock.registry, lock.repo):
        raise DestinationError(
            f"the folder holds {held.repo} {held.version} from {held.registry}",
            where=where,
            remedy="choose another folder",
        )
    if held.version == lock.version:
        raise IntegrityError(
            f"{lock.repo} {lock.version} had the id {held.id[:16]}… when it was pulled before, and now has"
            f" {lock.id[:16]}…; a published version is never replaced",
            where=where,
            remedy="ask the publisher what happened; if you trust the new one, pull it into another folder",
        )
    if not named:
        raise DestinationError(
            f"the folder holds {held.version}; the newest version is {lock.version}",
            where=where,
            remedy=f"name the version: {lock.repo}@{lock.version}, or @{held.version} to keep it",
        )
    if precedence(lock.version) < precedence(held.version) and not allow_downgrade:
        raise DestinationError(
            f"the folder holds {held.version}, which is newer than {lock.version}",
            where=where,
            remedy="add --allow-downgrade, or choose another folder",
        )
