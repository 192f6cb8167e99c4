"""Reading regular files only, and writing so that a crash leaves all or nothing."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paramdelta_hub.errors import CheckpointError, PackageError, StorageError
from paramdelta_hub.fileio import durable


def link(path: Path) -> None:
    path.with_name("real").write_bytes(b"content")
    path.symlink_to("real")


def bound_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        previous = os.getcwd()
        os.chdir(path.parent)  # socket paths are short
        try:
            opened.bind(path.name)
        finally:
            os.chdir(previous)


LAYOUTS: dict[str, Callable[[Path], Any]] = {
    "link": link,
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "absolute link": lambda path: path.symlink_to("/etc/passwd"),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to a folder": lambda path: path.symlink_to(path.parent),
    "FIFO": lambda path: os.mkfifo(path),
    "folder": lambda path: path.mkdir(),
    "socket": bound_socket,
    "nothing": lambda path: None,
}


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "file"
    LAYOUTS[layout](path)
    start = time.monotonic()
    for read in (
        lambda: durable.open_regular(path),
        lambda: durable.read_small(path, 1 << 20),
        lambda: durable.file_digest(path),
    ):
        with pytest.raises(PackageError) as caught:
            read()
        assert caught.value.where == str(path)
    assert time.monotonic() - start < 1, "a FIFO must not make anybody wait"


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/tty"])
def test_devices(device: str) -> None:
    with pytest.raises(CheckpointError):
        durable.open_regular(Path(device), CheckpointError)
    with pytest.raises(CheckpointError):
        durable.open_regular(Path(device), CheckpointError, follow=True)


def test_links_are_followed_where_that_is_asked_for_but_not_to_devices(tmp_path: Path) -> None:
    link(tmp_path / "file")
    assert durable.read_small(tmp_path / "file", 100, follow=True) == b"content"
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("zero", "loop"):
        with pytest.raises(PackageError):
            durable.read_small(tmp_path / name, 100, follow=True)


def test_no_descriptor_leaks(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    before = set(os.listdir("/dev/fd"))
    for _ in range(20):
        for name in ("folder", "fifo", "nothing"):
            with pytest.raises(PackageError):
                durable.file_digest(tmp_path / name)
    assert set(os.listdir("/dev/fd")) == before


def test_permissions_are_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("root may read everything")
    with pytest.raises(PackageError, match="Permission denied"):
        durable.open_regular(path)


def test_read_small(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert durable.read_small(path, 5) == b"12345"
    with pytest.raises(PackageError, match="5 bytes; the limit is 4"):
        durable.read_small(path, 4)


def test_a_sparse_terabyte_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(PackageError, match="the limit is 1000"):
        durable.read_small(path, 1000)


@pytest.mark.parametrize("missing", [1, 5, 10])
def test_read_exactly_beyond_the_end(tmp_path: Path, missing: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    descriptor = durable.open_regular(path)
    try:
        buffer = np.empty(10, np.uint8)
        durable.read_exactly(descriptor, buffer, 0, CheckpointError, "it")
        assert buffer.tobytes() == b"0123456789"
        with pytest.raises(CheckpointError, match="truncated while being read"):
            durable.read_exactly(descriptor, buffer, missing, CheckpointError, "it")
        durable.read_exactly(descriptor, buffer[:0], 99, CheckpointError, "it")
    finally:
        os.close(descriptor)


def test_short_reads_and_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may hand over less than was asked for, at any time."""
    content = os.urandom(1000)
    read, write = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: read(fd, [buffers[0][:7]], at))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:9], at))
    path = tmp_path / "file"
    durable.write_file(path, content)
    assert path.read_bytes() == content
    descriptor, buffer = durable.open_regular(path), np.empty(900, np.uint8)
    durable.read_exactly(descriptor, buffer, 100, PackageError, "it")
    os.close(descriptor)
    assert buffer.tobytes() == content[100:]
    assert durable.file_digest(path) == (hashlib.sha256(content).hexdigest(), 1000)


def test_a_failing_disk_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(PackageError, match="reading failed: Input/output error"):
        durable.file_digest(path)
    descriptor = durable.open_regular(path)
    with pytest.raises(PackageError, match="reading failed"):
        durable.read_exactly(descriptor, np.empty(5, np.uint8), 0, PackageError, "it")
    os.close(descriptor)


def test_file_digest_reports_progress(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(9 << 20))
    seen: list[int] = []
    digest, size = durable.file_digest(path, advance=seen.append)
    assert (digest, size) == (hashlib.sha256(bytes(9 << 20)).hexdigest(), 9 << 20)
    assert sum(seen) == size
    assert len(seen) >= 3


def test_allocate_takes_the_space_now(tmp_path: Path) -> None:
    path = tmp_path / "file"
    durable.allocate(path, 1 << 20)
    assert path.stat().st_size == 1 << 20
    durable.allocate(path, 100)
    assert path.stat().st_size == 100
    durable.allocate(tmp_path / "empty", 0)
    assert (tmp_path / "empty").stat().st_size == 0


def test_allocate_where_the_file_system_can_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    durable.allocate(tmp_path / "file", 5000)
    assert (tmp_path / "file").stat().st_size == 5000


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "file").symlink_to(victim)
    with pytest.raises(OSError):  # noqa: PT011 - which errno depends on the system
        durable.allocate(tmp_path / "file", 10)
    durable.write_file(tmp_path / "file", b"new")
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "file").is_symlink()


def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record what is forced to disk and renamed, in order, by file name."""
    calls: list[str] = []
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def record_fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        calls.append(
            f"sync {'folder' if is_folder else 'file'} {os.path.basename(os.readlink(f'/proc/self/fd/{descriptor}'))}"
        )
        fsync(descriptor)

    def record_rename(call: Callable[..., None]) -> Callable[..., None]:
        def renamed(old: Any, new: Any) -> None:
            calls.append(f"rename {os.path.basename(new)}")
            call(old, new)

        return renamed

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_rename(replace))
    monkeypatch.setattr(os, "rename", record_rename(rename))
    return calls


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="reads /proc")
def test_write_file_forces_content_then_name_then_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = traced(monkeypatch)
    durable.write_file(tmp_path / "file", b"content")
    temporary, renamed, folder = calls
    assert temporary.startswith("sync file .file.")
    assert renamed == "rename file"
    assert folder == f"sync folder {tmp_path.name}"


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="reads /proc")
def test_sync_tree_forces_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("x", "a/y", "a/b/z"):
        (tmp_path / name).write_bytes(b"")
    calls = traced(monkeypatch)
    durable.sync_tree(tmp_path)
    assert sorted(calls) == sorted(
        ["sync file x", "sync file y", "sync file z", "sync folder a", "sync folder b", f"sync folder {tmp_path.name}"]
    )


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_write_file_that_fails_leaves_the_old_content_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space"):
        durable.write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "free some space"), (errno.EDQUOT, "quota"), (errno.EROFS, "read-only"),
        (errno.EACCES, "permissions"), (errno.EIO, "I/O error"), (errno.EMFILE, "to resume"),
    ],
)  # fmt: skip
def test_io_errors_say_what_helps(number: int, words: str) -> None:
    with pytest.raises(StorageError, match="writing it failed") as caught, durable.io_errors("writing it"):
        raise OSError(number, os.strerror(number), "some/file")
    assert words in str(caught.value)
    assert caught.value.where == "some/file"
    assert isinstance(caught.value.__cause__, OSError)
