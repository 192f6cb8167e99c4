"""``paramdelta.lock``: what a pulled copy is, so that pulling again can't make it something else unasked.

It has the digest of everything that was pulled. What differs from it was changed by its owner, and no pull of another
version touches it; of the same version, shards and what is cut short are repaired, and all else stays as well.
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
from paramdelta_hub.fileio.names import check_file_names
from paramdelta_hub.fileio.symlinks import settle
from paramdelta_hub.limits import FILES, LOCK_BYTES
from paramdelta_hub.package.manifest import MANIFEST_NAME, FileRecord, Manifest
from paramdelta_hub.package.package import LOCK_NAME, open_package
from paramdelta_hub.package.records import Record, SemanticVersion, Sha256, Text, at_most, check_keys
from paramdelta_hub.registry.materialize import EXTRAS
from paramdelta_hub.registry.names import precedence

_Extra = Literal["README.md", "manifest.json.sig"]
_SHOWN = 10

__all__ = ["LOCK_NAME", "Lock", "pin", "read_lock"]


class Lock(Record):
    """What lies in a folder, and where it came from."""

    lock_version: Literal[1] = 1
    registry: Text = Field(description="the Hub's address, a folder or an fsspec URL; never with credentials")
    repo: Text
    version: SemanticVersion
    revision: Text = Field(description="what pins it there: the commit on the Hub, the id elsewhere")
    id: Sha256 = Field(description="sha256 of the manifest")
    files: Annotated[dict[Text, Sha256], at_most(FILES)] = Field(description="of every listed file, by name")
    extras: dict[_Extra, Sha256] = Field(description="of what came with the package and is not listed, as it came")

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        package_id: str,
        *,
        registry: str,
        repo: str,
        revision: str,
        extras: Mapping[str, bytes] | None = None,
    ) -> Lock:
        """Return the lock of a package about to be pulled; ``extras`` are the card and the signature that come too."""
        files = {file.path: file.sha256 for file in manifest.files}
        digests = {cast(_Extra, name): hashlib.sha256(content).hexdigest() for name, content in (extras or {}).items()}
        return cls(
            registry=registry,
            repo=repo,
            version=manifest.version,
            revision=revision,
            id=package_id,
            files=files,
            extras=digests,
        )


def read_lock(folder: Path) -> Lock | None:
    """Return the folder's lock, or None if it has none.

    Raises:
        PackageError: it can't be read.
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
            "not a lock of this version", where=str(path), remedy="pull into another folder, or delete this one"
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
    """Make ``folder`` the place of what ``lock`` describes, before its files come; what it held before must allow it.

    Files of another version that this one lacks are removed, its manifest first, so that at no moment a mixture looks
    like a package. So is an old card or signature that gets another content, lest a killed pull leaves one that looks
    as if somebody had changed it.

    Args:
        folder: it exists; nobody else works on it.
        lock: what is to be pulled.
        named: whether the user named a version. If not, the folder keeps the one it has.
        allow_downgrade: let a lower version take the place of a higher one.
        with_extras: whether the card and the signature come, too; if not, those that lie there stay.
        companions: those that come, where somebody may have edited the old ones: not in a cache.

    Raises:
        DestinationError: the folder holds something else, or a version that is not to be replaced, or files that its
            owner has changed.
        IntegrityError: the same version had another id when it was pulled first.
        StorageError: the disk fails.
    """
    held = read_lock(folder)
    if held is None:
        _adopt(folder, lock)
    elif held.id != lock.id:
        _check_change(folder, held, lock, named, allow_downgrade)
    if held is not None and held.id == lock.id and not with_extras:
        lock = lock.model_copy(update={"extras": held.extras})
    _check_unchanged(folder, held, lock, with_extras=with_extras, companions=companions)
    with io_errors("preparing the folder"):
        if held is not None and held.id != lock.id:
            for name in (MANIFEST_NAME, *EXTRAS, *sorted(held.files.keys() - lock.files.keys())):
                settle(folder, name).unlink(missing_ok=True)
        elif held is not None:
            for name in sorted(dict(held.extras.items() - lock.extras.items())):
                settle(folder, name).unlink(missing_ok=True)
        if held != lock:
            write_file(folder / LOCK_NAME, strict_json.pretty(lock.model_dump(mode="json")))


def _adopt(folder: Path, lock: Lock) -> None:
    """Take a folder without a lock: an empty one, or one that holds a copy of just this package."""
    if not os.listdir(folder):
        return
    try:
        check_digest(open_package(folder).digest, lock.id, "its manifest")
    except PackageError:
        raise DestinationError(
            "holds something else", where=str(folder), remedy="choose an empty folder, or a new name"
        ) from None


def _check_unchanged(
    folder: Path, held: Lock | None, lock: Lock, *, with_extras: bool, companions: Iterable[FileRecord]
) -> None:
    """Check that nothing will be replaced or removed but what was pulled, or is what is to come anyway.

    Of the same version, what is damaged is to be repaired: shards, which nobody edits, and companions cut short.

    Raises:
        DestinationError: something would be; every file is named.
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
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise DestinationError(
            f"files differ from what was pulled, and would be lost: {', '.join(changed[:_SHOWN])}{more}",
            where=str(folder),
            remedy="move them elsewhere, or "
            + ("pull into another folder" if is_other else "delete them to have them fetched again"),
        )


def _is_one_of(folder: Path, name: str, digests: tuple[str | None, ...]) -> bool:
    """Whether a file is missing, or has one of the digests."""
    try:
        return not os.path.lexists(folder / name) or file_digest(settle(folder, name))[0] in digests
    except SourceError:  # a link, a folder, or a file that can't be read
        return False


def _is_edited(folder: Path, file: FileRecord) -> bool:
    """Whether a companion has another content that is no shorter than its own."""
    try:
        path = settle(folder, file.path)
        return path.stat().st_size >= file.size and file_digest(path)[0] != file.sha256
    except (OSError, SourceError):  # missing; or no file, which is told where it was to be repaired
        return False


def _check_change(folder: Path, held: Lock, lock: Lock, named: bool, allow_downgrade: bool) -> None:
    where = str(folder)
    if (held.registry, held.repo) != (lock.registry, lock.repo):
        raise DestinationError(
            f"holds {held.repo} {held.version} of {held.registry}", where=where, remedy="choose another folder"
        )
    if held.version == lock.version:
        raise IntegrityError(
            f"{lock.repo} {lock.version} had the id {held.id[:16]}… when it was pulled first, and has {lock.id[:16]}… "
            "now; a version is never replaced",
            where=where,
            remedy="ask its publisher what happened; to trust the new one, pull it into another folder",
        )
    if not named:
        raise DestinationError(
            f"holds {held.version}; the newest is {lock.version}",
            where=where,
            remedy=f"name the version: {lock.repo}@{lock.version}, or @{held.version} to keep it",
        )
    if precedence(lock.version) < precedence(held.version) and not allow_downgrade:
        raise DestinationError(
            f"holds {held.version}, which is later than {lock.version}",
            where=where,
            remedy="allow the downgrade, or choose another folder",
        )
