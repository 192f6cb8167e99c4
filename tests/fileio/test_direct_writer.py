"""Files are written past the page cache to the same bytes, wherever runs begin and end, and whatever fails."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_hub.fileio import direct_writer
from paramdelta_hub.fileio.direct_writer import DirectWriter
from paramdelta_hub.fileio.durable import allocate

SIZES = st.one_of(st.integers(1, 9000), st.sampled_from([4096, 8192, 12_288, 4095, 4097]))


@pytest.fixture(autouse=True)
def _every_file_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_writer, "DIRECT_FROM_BYTES", 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


def filled(path: Path, size: int) -> None:
    path.unlink(missing_ok=True)
    allocate(path, size)
    with path.open("r+b") as file:
        file.write(b"\xee" * size)


@settings(max_examples=150, deadline=None)
@given(
    runs=st.lists(st.tuples(st.integers(0, 9000), st.lists(SIZES, min_size=1, max_size=5)), min_size=1, max_size=4),
    order=st.randoms(use_true_random=False),
)
def test_runs_of_any_place_and_length(folder: Path, runs: list[tuple[int, list[int]]], order: Any) -> None:
    """Gaps between runs keep what was there; runs are written in any order."""
    position, placed = 0, []
    for gap, sizes in runs:
        ends = list(itertools.accumulate(sizes, initial=position + gap))
        placed.append(ends)
        position = ends[-1]
    path = folder / "x"
    filled(path, position + 100)
    expected = np.fromfile(path, np.uint8)
    values = np.random.default_rng(position).integers(0, 256, expected.size, np.uint8)
    order.shuffle(placed)
    with DirectWriter(path) as file:
        for ends in placed:
            expected[ends[0] : ends[-1]] = values[ends[0] : ends[-1]]
            for start, end in itertools.pairwise(ends):
                data = values[start:end].copy()
                file.write(data, start)
                data[:] = 0  # the caller's memory is its own again
    assert np.array_equal(np.fromfile(path, np.uint8), expected)


def test_two_writers_meet_within_a_page(folder: Path) -> None:
    filled(folder / "x", 40_000)
    values = np.arange(40_000).astype(np.uint8)
    with DirectWriter(folder / "x") as first, DirectWriter(folder / "x") as second:
        second.write(values[17_001:], 17_001)
        first.write(values[:17_001], 0)
    assert np.array_equal(np.fromfile(folder / "x", np.uint8), values)


def direct_call(make: Any) -> Any:
    """Return a ``pwrite`` that does something else where it is asked to write directly."""
    real = os.pwrite

    def call(descriptor: int, data: Any, offset: int) -> int:
        import fcntl

        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            result: int = make(real, descriptor, data, offset)
            return result
        return real(descriptor, data, offset)

    return call


def refused(*_: Any) -> int:
    raise OSError(errno.EINVAL, "Invalid argument")


def full(*_: Any) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def short(real: Any, descriptor: int, data: Any, offset: int) -> int:
    written: int = real(descriptor, data[:4096], offset)
    return written


needs_direct = pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system has no direct writes")


@needs_direct
@pytest.mark.parametrize("make", [refused, short])
def test_what_can_not_be_written_directly_is_written_the_usual_way(
    folder: Path, monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    filled(folder / "x", 50_000)
    monkeypatch.setattr(os, "pwrite", direct_call(make))
    values = np.arange(50_000).astype(np.uint8)
    with DirectWriter(folder / "x") as file:
        for start in range(0, 50_000, 10_000):
            file.write(values[start : start + 10_000], start)
    assert np.array_equal(np.fromfile(folder / "x", np.uint8), values)


@needs_direct
@pytest.mark.parametrize("pieces", [1, 7])
def test_a_full_disk_is_told_at_the_latest_at_the_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch, pieces: int
) -> None:
    filled(folder / "x", 8192 * pieces)
    monkeypatch.setattr(os, "pwrite", direct_call(full))

    def write() -> None:
        with DirectWriter(folder / "x") as file:
            for number in range(pieces):
                file.write(np.zeros(8192, np.uint8), 8192 * number)

    with pytest.raises(OSError, match="No space left"):
        write()


@needs_direct
def test_a_file_system_without_direct_writes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(folder / "x", 10_000)
    real = os.open

    def call(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", call)
    with DirectWriter(folder / "x") as file:
        file.write(np.ones(10_000, np.uint8), 0)
    assert (folder / "x").read_bytes() == b"\1" * 10_000


def test_an_error_leaves_no_descriptor_open(folder: Path) -> None:
    filled(folder / "x", 10_000)
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []

    def fail() -> None:
        with DirectWriter(folder / "x") as file:
            file.write(np.ones(9_000, np.uint8), 0)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert before == (os.listdir("/proc/self/fd") if before else [])
