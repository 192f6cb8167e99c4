"""Reading without surprises and writing that survives a crash.

The argument for crash safety, in the order of calls: every file is written under a name nobody reads, its bytes are
forced to disk (fsync), then the folders that name it, then one rename makes the whole visible, then the folder above
is forced to disk. A crash before the rename leaves nothing visible; after it, everything is there.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paramdelta_hub.errors import PackageError, SourceError, StorageError
from paramdelta_hub.limits import COPY_BYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "TEMPORARY",
    "allocate",
    "exchange",
    "expand",
    "file_digest",
    "io_errors",
    "is_folder",
    "make_folders",
    "open_regular",
    "read_exactly",
    "read_small",
    "storage_error",
    "sync_file",
    "sync_folder",
    "sync_tree",
    "write_exactly",
    "write_file",
]


TEMPORARY = ".*.tmp"
"""The names under which small files are written; only a killed process leaves one behind."""
_LONGEST_NAME = 255
"""Bytes of a file's name, on every file system in use."""


def storage_error(doing: str, error: OSError) -> StorageError:
    """Return the error of ours for one of the system's: what was being done, and what helps."""
    remedy = {
        errno.ENOSPC: "free some space, then run the same command again: it goes on where it stopped",
        errno.EDQUOT: "the quota is used up; free some space, then run the same command again",
        errno.EROFS: "the file system is read-only; write elsewhere",
        errno.EACCES: "check the permissions",
        errno.ENAMETOOLONG: "choose a shorter path",
        **dict.fromkeys((errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENOENT, errno.ENOTDIR), "check the path"),
        errno.EIO: "the disk reports an I/O error; check it, then run the same command again",
    }.get(error.errno or 0, "run the same command again: it goes on where it stopped")
    what = f"{doing} failed: {error.strerror or error}"
    return StorageError(what, where=os.fsdecode(error.filename or "") or None, remedy=remedy)


@contextlib.contextmanager
def io_errors(doing: str) -> Iterator[None]:
    """Turn an OSError into a StorageError that says what was being done and what helps."""
    try:
        yield
    except OSError as error:
        raise storage_error(doing, error) from error


def open_regular(path: Path, error: type[SourceError] = PackageError, *, follow: bool = False) -> int:
    """Open ``path`` for reading and return the descriptor: regular files only, symbolic links only if ``follow``.

    Raises:
        SourceError: (as ``error``) missing, a link, a folder, a device, a FIFO, or not readable.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except OSError as problem:
        if problem.errno == errno.ELOOP:
            raise error("a symbolic link, where only files are read", where=str(path)) from None
        raise error(f"can't be opened: {problem.strerror}", where=str(path)) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise error("not a regular file", where=str(path))
    return descriptor


def expand(path: str | os.PathLike[str]) -> Path:
    """Return a path as the user means it: ``~`` at its start is the home folder, also where no shell has seen it."""
    return Path(os.path.expanduser(path))


def is_folder(path: Path) -> bool:
    """Whether there is a folder at ``path``; False also for what no file system takes as a path."""
    try:
        return path.is_dir()
    except (OSError, ValueError):  # too long, a zero byte
        return False


def read_exactly(descriptor: int, buffer: NDArray[Any], offset: int, error: type[SourceError], where: str) -> None:
    """Fill ``buffer`` (uint8) from ``offset`` by pread: unlike a mapped file, a truncated one is an error, not a crash.

    Raises:
        SourceError: (as ``error``) the file ends before the buffer is full, or the disk fails.
    """
    view = buffer.data
    while len(view):
        try:
            got = os.preadv(descriptor, [view], offset)
        except OSError as problem:
            raise error(f"reading failed: {problem.strerror}", where=where) from problem
        if got == 0:
            raise error("truncated while being read", where=where, remedy="get the file again")
        view, offset = view[got:], offset + got


def read_small(path: Path, most: int, error: type[SourceError] = PackageError, *, follow: bool = False) -> bytes:
    """Return the whole content of a file of at most ``most`` bytes.

    Raises:
        SourceError: (as ``error``) larger, or whatever :func:`open_regular` refuses, or the disk fails.
    """
    descriptor = open_regular(path, error, follow=follow)
    with os.fdopen(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        if size > most:
            raise error(f"{size} bytes, where at most {most} make sense", where=str(path))
        try:
            content = file.read(size + 1)
        except OSError as problem:
            raise error(f"reading failed: {problem.strerror}", where=str(path)) from problem
    if len(content) != size:
        raise error("changes while being read", where=str(path))
    return content


def write_exactly(descriptor: int, data: Any, offset: int) -> None:
    """Write all of ``data`` (a buffer of bytes) at ``offset``; short writes are continued."""
    view = memoryview(data).cast("B")
    while len(view):
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def allocate(path: Path, size: int) -> None:
    """Create ``path`` with ``size`` bytes of disk reserved, so that a full disk is found now and not half-way."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        if hasattr(os, "posix_fallocate") and size:
            try:
                os.posix_fallocate(descriptor, 0, size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    raise
        os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)


def write_file(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a small file whole or not at all: a temporary name, fsync, rename over ``path``, fsync of the folder.

    Without ``durable`` the two fsyncs are left out: enough for what a crash of the machine may lose or tear, because
    its reader checks it.
    """
    temporary = path.with_name(TEMPORARY.replace("*", f"{path.name}.{os.getpid()}"))
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        write_exactly(descriptor, content, 0)
        if durable:
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):  # an interrupt came when it had its name already
            os.unlink(temporary)
        raise
    finally:
        os.close(descriptor)
    if durable:
        sync_folder(path.parent)


def make_folders(folder: Path) -> None:
    """Make a folder and those above it that are missing, each forced to disk by name before the next is made in it.

    Raises:
        OSError: it can't be made, or is there and no folder; nothing is made where a file in it would have a path that
            is longer than the system allows.
    """
    try:
        (folder / ("x" * _LONGEST_NAME)).lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise OSError(error.errno, error.strerror, str(folder)) from None
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    with contextlib.suppress(PermissionError):  # may be of a run that died before it came to this; or anybody's
        sync_folder(there.parent)
    for path in reversed([folder, *folder.parents][: len(folder.parts) - len(there.parts)]):
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)
    folder.mkdir(exist_ok=True)  # an error, if it is no folder


_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one step, by Linux's renameat2; False where system or file system can't.

    Raises:
        OSError: it can, and it failed.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def sync_file(path: Path) -> None:
    """Force what has been written of a file so far to disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to disk; a rename or a new file is not durable before this."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Force every file below ``folder``, and the folders themselves, to disk."""
    for parent, _, files in os.walk(folder):
        for name in files:
            sync_file(Path(parent, name))
        sync_folder(Path(parent))


def file_digest(
    path: Path,
    error: type[SourceError] = PackageError,
    *,
    follow: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[str, int]:
    """Return the sha256 (hex) and the size of a file's content, reading it once through one reused buffer.

    Raises:
        SourceError: (as ``error``) what :func:`open_regular` refuses, or the disk fails.
    """
    descriptor = open_regular(path, error, follow=follow)
    digest, size, buffer = hashlib.sha256(), 0, memoryview(bytearray(COPY_BYTES))
    try:
        while got := os.preadv(descriptor, [buffer], size):
            digest.update(buffer[:got])
            size += got
            advance(got)
    except OSError as problem:
        raise error(f"reading failed: {problem.strerror}", where=str(path)) from problem
    finally:
        os.close(descriptor)
    return digest.hexdigest(), size
