"""Writing a package's files into a folder: each file is complete and checked before it gets its name.

The manifest is written last, so a folder with a manifest holds what that manifest promises. If the process is killed,
the files that are already there are intact. A rerun keeps them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from paramdelta_hub.errors import IntegrityError, PackageError, SourceError, StorageError
from paramdelta_hub.fileio.digests import check_digest
from paramdelta_hub.fileio.durable import (
    TEMPORARY,
    file_digest,
    io_errors,
    make_folders,
    open_regular,
    read_small,
    sync_folder,
    write_exactly,
    write_file,
)
from paramdelta_hub.fileio.names import human_bytes
from paramdelta_hub.fileio.paths import resolve_inside
from paramdelta_hub.limits import CARD_BYTES, COPY_BYTES, SIGNATURE_BYTES
from paramdelta_hub.package.manifest import MANIFEST_NAME, FileRecord
from paramdelta_hub.package.package import LOCK_NAME
from paramdelta_hub.tasks.progress import Progress

__all__ = [
    "CARD_NAME",
    "EXTRAS",
    "SIGNATURE_NAME",
    "check_free_space",
    "check_place",
    "exclusive_dir",
    "file_chunks",
    "is_intact",
    "read_extras",
    "receive",
    "write_if_changed",
]

CARD_NAME, SIGNATURE_NAME = "README.md", "manifest.json.sig"
EXTRAS = {CARD_NAME: CARD_BYTES, SIGNATURE_NAME: SIGNATURE_BYTES}
"""Files that belong to a package although its manifest does not list them, with the size limit of each in bytes."""
_TEMPORARY_NAME = ".received.tmp"


@contextlib.contextmanager
def exclusive_dir(folder: Path) -> Iterator[None]:
    """Create ``folder`` if needed and lock it for the ``with`` block. Other processes that want the lock wait.

    Temporary files that a killed process left in it are removed.

    The lock is ``flock`` on the folder itself. ``filelock`` was considered: it needs a file of its own, which it would
    leave in the user's folder.

    Raises:
        StorageError: the folder can't be created or locked.
    """
    with io_errors("creating the folder"):
        make_folders(folder)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with io_errors("locking the folder"):
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # the system releases it, also after kill -9
            for name in (LOCK_NAME, MANIFEST_NAME, *EXTRAS):
                for leftover in folder.glob(TEMPORARY.replace("*", f"{name}.*")):
                    leftover.unlink()
        yield
    finally:
        os.close(descriptor)


def read_extras(folder: Path) -> dict[str, bytes]:
    """Return the card and the signature in a package's folder, by file name.

    Raises:
        PackageError: one is too large, or is not a regular file.
    """
    return {
        name: read_small(resolve_inside(folder, name), limit)
        for name, limit in EXTRAS.items()
        if os.path.lexists(folder / name)
    }


def receive(
    files: Iterable[FileRecord],
    chunks: Callable[[str], Iterator[bytes]],
    folder: Path,
    where: str,
    progress: Progress | None = None,
) -> int:
    """Write every file into ``folder``, force it to disk, and return the number of bytes written.

    Intact files that are already there are kept. They do not count. ``chunks`` returns a file's content by its name.
    Nobody else may write to ``folder``; see :func:`exclusive_dir`. ``where`` is the files' origin, for messages.

    Raises:
        IntegrityError: a file is not what the manifest promises. It does not get its name.
        PackageError: a symbolic link stands where a file belongs.
        StorageError: the disk is full or fails.
    """
    progress = progress or Progress()
    temporary = folder / _TEMPORARY_NAME
    with io_errors("preparing the folder"):
        _remove(temporary)
        # resolve_inside() raises where a symbolic link stands in a file's place: a link is never replaced.
        missing = [file for file in files if resolve_inside(folder, file.path) and not is_intact(folder, file)]
        needed = sum(file.size for file in missing)
        check_free_space(folder, needed)
    progress.start("files", needed)
    try:
        with io_errors("writing"):
            for file in missing:
                _receive_one(file, chunks(file.path), temporary, resolve_inside(folder, file.path), where, progress)
            # Also if nothing was missing: the process that wrote the files may have been killed before this step.
            for parent in {(folder / file.path).parent for file in files} | {folder}:
                sync_folder(parent)
    finally:
        progress.finish()
    return needed


def is_intact(folder: Path, file: FileRecord) -> bool:
    """Whether a folder holds a listed file with the promised content."""
    try:
        path = resolve_inside(folder, file.path)
        return path.stat().st_size == file.size and file_digest(path)[0] == file.sha256
    except (OSError, SourceError):
        return False


def check_free_space(folder: Path, needed: int) -> None:
    """Check that the disk of a folder has enough free space. The folder may not exist yet.

    This also stops a manifest that lists absurd sizes.

    Raises:
        StorageError: there is not enough space.
    """
    for path in (folder, *folder.parents):
        with contextlib.suppress(FileNotFoundError):  # not there yet, or another process has moved it away
            free = shutil.disk_usage(path).free
            break
    if needed > free:
        raise StorageError(
            f"needs {human_bytes(needed)}, but only {human_bytes(free)} are free",
            where=str(folder),
            remedy="free some space, or choose another disk",
        )


def check_place(folder: Path, needed: int) -> None:
    """Check that a folder that may not exist yet can be written, and that its disk has enough free space.

    Raises:
        StorageError: it can't, or there is not enough.
    """
    for path in (folder, *folder.parents):
        if os.access(path, os.W_OK | os.X_OK):
            break
        if path.exists():  # asked second: another process may have moved the folder away in between
            raise StorageError("can't be written", where=str(path), remedy="check the permissions")
    check_free_space(folder, needed)


def _receive_one(
    file: FileRecord, chunks: Iterator[bytes], temporary: Path, path: Path, where: str, progress: Progress
) -> None:
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        for chunk in chunks:
            if size + len(chunk) > file.size:
                raise IntegrityError(f"the file {file.path!r} is longer than {file.size} bytes", where=where)
            write_exactly(descriptor, chunk, size)
            digest.update(chunk)
            size += len(chunk)
            progress.advance(len(chunk))
        if size < file.size:
            raise IntegrityError(
                f"the file {file.path!r} ends after {size} of {file.size} bytes",
                where=where,
                remedy="run the same command again; if the error stays, the package must be published again",
            )
        check_digest(digest.hexdigest(), file.sha256, f"the file {file.path!r}", where)
        os.fsync(descriptor)
        make_folders(path.parent)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def write_if_changed(path: Path, content: bytes | None) -> int:
    """Write ``content`` to ``path`` unless it is there already; return the number of bytes written.

    The write is atomic. If ``content`` is None, the file is removed.

    Raises:
        StorageError: the disk fails.
    """
    with io_errors("writing"):
        if content is None:
            _remove(path)
            return 0
        if path.is_file() and not path.is_symlink() and path.read_bytes() == content:
            return 0
        write_file(path, content)
    return len(content)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        if os.path.lexists(path):  # a read-only disk refuses to remove even what is missing
            raise


def file_chunks(path: Path) -> Iterator[bytes]:
    """Yield the content of a regular file in pieces.

    Raises:
        PackageError: missing, not a regular file, or the disk fails.
    """
    descriptor = open_regular(path)
    try:
        while chunk := os.read(descriptor, COPY_BYTES):
            yield chunk
    except OSError as problem:
        raise PackageError(f"reading failed: {problem.strerror}", where=str(path)) from problem
    finally:
        os.close(descriptor)
