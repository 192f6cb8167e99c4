"""A package's files brought into a folder: each is whole and checked before it has its name, the manifest comes last.

So a folder with a manifest holds what that manifest promises; and after a death at any moment the files that are there
are right ones, which are kept when the same is asked for again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from paramdelta_hub.fileio.sizes import human_bytes
from paramdelta_hub.fileio.symlinks import settle
from paramdelta_hub.limits import CARD_BYTES, COPY_BYTES, SIGNATURE_BYTES
from paramdelta_hub.package.manifest import MANIFEST_NAME, FileRecord
from paramdelta_hub.package.package import LOCK_NAME
from paramdelta_hub.tasks.progress import Progress

__all__ = [
    "CARD_NAME",
    "EXTRAS",
    "SIGNATURE_NAME",
    "alone_in",
    "check_space",
    "file_chunks",
    "is_right",
    "put_small",
    "read_extras",
    "receive",
]

CARD_NAME, SIGNATURE_NAME = "README.md", "manifest.json.sig"
EXTRAS = {CARD_NAME: CARD_BYTES, SIGNATURE_NAME: SIGNATURE_BYTES}
"""What goes with a package though its manifest does not list it, and how many bytes each may have."""
_UNFINISHED = ".received.tmp"


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make ``folder`` if need be, and hold it for the length of a ``with`` block; others who want it wait.

    What a killed process left half-written in it, under names of ours, is removed.

    Raises:
        StorageError: it can't be made.
    """
    with io_errors("making the folder"):
        make_folders(folder)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with io_errors("locking the folder"):
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # of the folder itself: nothing is left behind, also by kill -9
            for name in (LOCK_NAME, MANIFEST_NAME, *EXTRAS):
                for torn in folder.glob(TEMPORARY.replace("*", f"{name}.*")):  # written when a process was killed
                    torn.unlink()
        yield
    finally:
        os.close(descriptor)


def read_extras(folder: Path, given: Mapping[str, bytes] | None = None) -> dict[str, bytes]:
    """Return what goes with the package in a folder: what is given, else what lies there, by name.

    Raises:
        PackageError: one is too large, or what lies there is no regular file.
    """
    found = {}
    for name, most in EXTRAS.items():
        if given is not None and name in given:
            if len(given[name]) > most:
                raise PackageError(f"{name} has {len(given[name])} bytes; the limit is {most}", where=str(folder))
            found[name] = given[name]
        elif os.path.lexists(folder / name):
            found[name] = read_small(settle(folder, name), most)
    return found


def receive(
    files: Iterable[FileRecord],
    chunks: Callable[[str], Iterator[bytes]],
    folder: Path,
    where: str,
    progress: Progress | None = None,
) -> int:
    """Bring every file into ``folder`` and force it to disk; return how many bytes came, those kept not counted.

    Args:
        files: what is wanted.
        chunks: gives a file's content by its name, piece by piece.
        folder: nobody else may write to it; see :func:`alone_in`.
        where: the files' origin, for messages.
        progress: is told of every byte that comes.

    Raises:
        IntegrityError: a file is longer, shorter or other than promised; it does not get its name.
        PackageError: the folder has a symbolic link where a file is to be.
        StorageError: the disk is too small, or fails.
    """
    progress = progress or Progress()
    temporary = folder / _UNFINISHED
    with io_errors("preparing the folder"):
        temporary.unlink(missing_ok=True)
        # settle() here too: a link where a file is to be is no file to replace, but an error.
        missing = [file for file in files if settle(folder, file.path) and not is_right(folder, file)]
        needed = sum(file.size for file in missing)
        check_space(folder, needed)
    progress.start("files", needed)
    try:
        with io_errors("writing"):
            for file in missing:
                _receive_one(file, chunks(file.path), temporary, settle(folder, file.path), where, progress)
            # Also where nothing is missing: whoever put it there may have died before it had this done.
            for parent in {(folder / file.path).parent for file in files} | {folder}:
                sync_folder(parent)
    finally:
        progress.finish()
    return needed


def is_right(folder: Path, file: FileRecord) -> bool:
    """Whether a folder holds a listed file with the promised bytes already."""
    try:
        path = settle(folder, file.path)
        return path.stat().st_size == file.size and file_digest(path)[0] == file.sha256
    except (OSError, SourceError):
        return False


def check_space(folder: Path, needed: int) -> None:
    """Check that a folder, which need not exist yet, has room: also what stops a manifest that promises too much.

    Raises:
        StorageError: it has not.
    """
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if needed > (free := shutil.disk_usage(there).free):
        raise StorageError(
            f"needs {human_bytes(needed)}; {human_bytes(free)} are free",
            where=str(folder),
            remedy="free some space, or choose another disk",
        )


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
                remedy="run the same command again; if it stays so, the package must be published again",
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


def put_small(path: Path, content: bytes | None) -> int:
    """Make ``path`` hold ``content`` (None: not be there), whole or not at all; return how many bytes were new.

    Raises:
        StorageError: the disk fails.
    """
    with io_errors("writing"):
        if content is None:
            path.unlink(missing_ok=True)
            return 0
        if path.is_file() and not path.is_symlink() and path.read_bytes() == content:
            return 0
        write_file(path, content)
    return len(content)


def file_chunks(path: Path) -> Iterator[bytes]:
    """Yield the content of a regular file, piece by piece.

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
