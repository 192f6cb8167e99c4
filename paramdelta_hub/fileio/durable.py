"""Reading only regular files, and writing that survives a crash.

Why a crash does no harm, in the order of calls:

1. Every file is written under a name that nobody reads.
2. Its bytes are forced to disk (fsync), and then the folders that contain it.
3. One rename makes everything visible.
4. The folder above is forced to disk.

A crash before the rename leaves nothing visible. After it, everything is there.
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
"""The pattern of temporary names of small files. Only a killed process leaves such a file behind."""
_LONGEST_NAME = 255
"""The limit of a file's name in bytes, on all common file systems."""


def storage_error(doing: str, error: OSError) -> StorageError:
    """Return our error for an OSError, with what was being done and a remedy."""
    remedy = {
        errno.ENOSPC: "free some space, then run the same command again to resume",
        errno.EDQUOT: "the disk quota is used up; free some space, then run the same command again to resume",
        errno.EROFS: "the file system is read-only; write elsewhere",
        errno.EACCES: "check the permissions",
        errno.ENAMETOOLONG: "choose a shorter path",
        **dict.fromkeys((errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENOENT, errno.ENOTDIR), "check the path"),
        errno.EIO: "the disk reported an I/O error; check it, then run the same command again",
    }.get(error.errno or 0, "run the same command again to resume")
    what = f"{doing} failed: {error.strerror or error}"
    return StorageError(what, where=os.fsdecode(error.filename or "") or None, remedy=remedy)


@contextlib.contextmanager
def io_errors(doing: str) -> Iterator[None]:
    """Turn an OSError into a StorageError that says what was being done, with a remedy."""
    try:
        yield
    except OSError as error:
        raise storage_error(doing, error) from error


def open_regular(path: Path, error: type[SourceError] = PackageError, *, follow: bool = False) -> int:
    """Open a regular file for reading and return its descriptor. Symbolic links are refused unless ``follow`` is True.

    Raises:
        SourceError: (as ``error``) the file is missing, not readable, or not a regular file.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except OSError as problem:
        if problem.errno == errno.ELOOP:
            raise error("symbolic links are not allowed here", where=str(path)) from None
        raise error(f"can't be opened: {problem.strerror}", where=str(path)) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise error("not a regular file", where=str(path))
    return descriptor


def expand(path: str | os.PathLike[str]) -> Path:
    """Return a path with ``~`` at its start replaced by the home folder, as a shell does."""
    return Path(os.path.expanduser(path))


def is_folder(path: Path) -> bool:
    """Whether there is a folder at ``path``; False also if the text is not a valid path."""
    try:
        return path.is_dir()
    except (OSError, ValueError):  # too long, a zero byte
        return False


def read_exactly(descriptor: int, buffer: NDArray[Any], offset: int, error: type[SourceError], where: str) -> None:
    """Fill ``buffer`` (uint8) from ``offset`` with pread. A truncated file is an error, not a crash as with mmap.

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


def read_small(path: Path, limit: int, error: type[SourceError] = PackageError, *, follow: bool = False) -> bytes:
    """Return the content of a file of at most ``limit`` bytes.

    Raises:
        SourceError: (as ``error``) the file is larger, :func:`open_regular` refuses it, or the disk fails.
    """
    descriptor = open_regular(path, error, follow=follow)
    with os.fdopen(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise error(f"the file has {size} bytes; the limit is {limit}", where=str(path))
        try:
            content = file.read(size + 1)
        except OSError as problem:
            raise error(f"reading failed: {problem.strerror}", where=str(path)) from problem
    if len(content) != size:
        raise error("the file changed while it was read", where=str(path))
    return content


def write_exactly(descriptor: int, data: Any, offset: int) -> None:
    """Write all of ``data`` (a buffer of bytes) at ``offset``. Short writes are continued."""
    view = memoryview(data).cast("B")
    while len(view):
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def allocate(path: Path, size: int) -> None:
    """Create ``path`` and reserve ``size`` bytes of disk, so that a full disk is noticed at once."""
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
    """Write a small file atomically: a temporary name, fsync, rename to ``path``, fsync of the folder.

    Without ``durable`` both fsyncs are omitted. This is enough if the reader checks the content, because a crash of the
    machine may then lose or damage the file.
    """
    temporary = path.with_name(TEMPORARY.replace("*", f"{path.name}.{os.getpid()}"))
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        write_exactly(descriptor, content, 0)
        if durable:
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):  # an interrupt arrived after the rename
            os.unlink(temporary)
        raise
    finally:
        os.close(descriptor)
    if durable:
        sync_folder(path.parent)


def make_folders(folder: Path) -> None:
    """Create a folder and its missing parents. Each is forced to disk before the next one is created in it.

    Raises:
        OSError: it can't be created, or is not a folder. Nothing is created if the path of a file in the folder would
            be too long for the system.
    """
    try:
        (folder / ("x" * _LONGEST_NAME)).lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise OSError(error.errno, error.strerror, str(folder)) from None
    existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    with contextlib.suppress(PermissionError):  # a killed run may have created it without the sync
        sync_folder(existing.parent)
    for path in reversed([folder, *folder.parents][: len(folder.parts) - len(existing.parts)]):
        _make_folder(path)
        sync_folder(path.parent)
    _make_folder(folder)  # raises if it is not a folder


def _make_folder(path: Path) -> None:
    """Create a folder, if it is not there; again, if another process has removed it just when we looked."""
    while True:
        try:
            path.mkdir()
        except FileExistsError:
            if path.is_dir():
                return
            if os.path.lexists(path):
                raise
        else:
            return


_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def exchange(one: Path, other: Path) -> bool:
    """Exchange two paths atomically with Linux's renameat2; False if the system does not support it.

    Raises:
        OSError: the system supports it, and it failed.
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


def sync_file(path: Path, flags: int = 0) -> None:
    """Force a file's content to disk. ``flags`` are added to those that it is opened with."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to disk. A rename or a new file is not durable before this."""
    sync_file(folder, os.O_DIRECTORY)


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
    """Return the sha256 (hex) and the size of a file. It is read once, through one reused buffer.

    Raises:
        SourceError: (as ``error``) :func:`open_regular` refuses the file, or the disk fails.
    """
    descriptor = open_regular(path, error, follow=follow)
    digest, size = hashlib.sha256(), 0
    try:
        # No larger than the file: to zero 4 MiB takes a thousand times as long as to hash a small file.
        buffer = memoryview(bytearray(min(COPY_BYTES, os.fstat(descriptor).st_size + 1)))
        while got := os.preadv(descriptor, [buffer], size):
            digest.update(buffer[:got])
            size += got
            advance(got)
    except OSError as problem:
        raise error(f"reading failed: {problem.strerror}", where=str(path)) from problem
    finally:
        os.close(descriptor)
    return digest.hexdigest(), size
