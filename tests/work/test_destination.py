"""The place of the result: one holder at a time, one rename at the end, in the order that a power cut can't hurt."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paramdelta_hub.errors import DestinationError, StorageError
from paramdelta_hub.work.destination import Destination
from paramdelta_hub.work.plan import Plan, Receipt

PLAN = Plan("extract", ("a",), {}, ({"bytes": 1}, {"bytes": 2}))
OTHER = Plan("extract", ("b",), {}, ({"bytes": 1},))


def test_the_way_of_a_result(tmp_path: Path) -> None:
    with Destination(tmp_path / "out") as destination:
        assert destination.resume(PLAN) == {}
        (destination.result / "sub").mkdir()
        (destination.result / "sub" / "file").write_text("x")
        assert not (tmp_path / "out").exists()
        destination.commit()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "sub" / "file").read_text() == "x"


def test_folders_above_are_made(tmp_path: Path) -> None:
    with Destination(tmp_path / "a" / "b" / "out") as destination:
        destination.resume(PLAN)
        destination.commit()
    assert (tmp_path / "a" / "b" / "out").is_dir()


def test_receipts_are_kept_for_the_same_plan_alone(tmp_path: Path) -> None:
    with Destination(tmp_path / "out") as destination:
        destination.resume(PLAN)
        for task in (0, 1):
            destination.keep(Receipt(PLAN.digest, task, {"n": task}))
        (destination.pieces / "piece").write_text("x")
    with Destination(tmp_path / "out") as destination:
        assert destination.resume(PLAN) == {task: Receipt(PLAN.digest, task, {"n": task}) for task in (0, 1)}
        assert (destination.pieces / "piece").exists()
    with Destination(tmp_path / "out") as destination:
        assert destination.resume(OTHER) == {}
        assert list(destination.pieces.iterdir()) == []
        destination.keep(Receipt(PLAN.digest, 0, {}))
    with Destination(tmp_path / "out") as destination:
        assert destination.resume(OTHER) == {}, "a receipt of another plan does not count"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"plan": 1}', b"\xff", b'{"plan":"x","task":0,"outcome":{}}', bytes(100)]
)
def test_a_torn_receipt_does_not_count(tmp_path: Path, content: bytes) -> None:
    with Destination(tmp_path / "out") as destination:
        destination.resume(PLAN)
        destination.keep(Receipt(PLAN.digest, 0, {}))
        (tmp_path / "out.partial" / "receipts" / "000001.json").write_bytes(content)
    with Destination(tmp_path / "out") as destination:
        assert list(destination.resume(PLAN)) == [0]


@pytest.mark.parametrize(
    "make", [os.mkdir, lambda path: Path(path).write_text("x"), lambda path: Path(path).symlink_to("nowhere")]
)
def test_a_taken_place(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "out")
    with pytest.raises(DestinationError, match="exists already"), Destination(tmp_path / "out"):
        pytest.fail("it is taken")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_one_at_a_time(tmp_path: Path) -> None:
    with Destination(tmp_path / "out"):
        for overwrite in (False, True):
            with (
                pytest.raises(DestinationError, match="another process"),
                Destination(tmp_path / "out", overwrite=overwrite),
            ):
                pytest.fail("it is taken")
        with Destination(tmp_path / "other"):
            pass
    with Destination(tmp_path / "out"):
        pass


def test_the_lock_ends_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="any"), Destination(tmp_path / "out"):
        raise ValueError("any")
    with Destination(tmp_path / "out"):
        pass


def test_the_books_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError), Destination(tmp_path / "file" / "out"):
        pytest.fail("there is no place")
    (tmp_path / "out.partial").write_text("")
    with pytest.raises(StorageError), Destination(tmp_path / "out"):
        pytest.fail("there is no place")
    with pytest.raises(StorageError), Destination(tmp_path / ("x" * 250)):
        pytest.fail("there is no name")


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "out.partial" / "lock").symlink_to(tmp_path / "victim")
    with pytest.raises(StorageError), Destination(tmp_path / "out"):
        pytest.fail("a link")
    assert (tmp_path / "victim").read_text() == "precious"


def test_overwriting_replaces_at_the_commit(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with Destination(tmp_path / "out", overwrite=True) as destination:
        destination.resume(PLAN)
        (destination.result / "new").write_text("new")
        assert (tmp_path / "out" / "old").exists()
        destination.commit()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_space_counts_what_is_there_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    with Destination(tmp_path / "out") as destination:
        destination.resume(PLAN)
        (destination.pieces / "piece").write_bytes(b"x" * 300_000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 50_000, 50_000))  # type: ignore[attr-defined]
        destination.check_space(340_000)
        with pytest.raises(StorageError, match="GiB free"):
            destination.check_space(500_000)


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="reads /proc")
def test_power_loss_everything_is_forced_to_disk_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of calls at the commit: all files, all folders, the rename, the folders that hold the names."""
    calls: list[str] = []
    fsync, rename = os.fsync, os.rename

    def traced_fsync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        calls.append(f"{kind} {os.path.relpath(path, tmp_path)}")
        fsync(descriptor)

    def traced_rename(old: Any, new: Any) -> None:
        calls.append(f"rename {os.path.relpath(old, tmp_path)} {os.path.relpath(new, tmp_path)}")
        rename(old, new)

    with Destination(tmp_path / "out") as destination:
        destination.resume(PLAN)
        (destination.result / "sub").mkdir()
        for name in ("a", "sub/b"):
            (destination.result / name).write_text(name)
        monkeypatch.setattr(os, "fsync", traced_fsync)
        monkeypatch.setattr(os, "rename", traced_rename)
        destination.commit()
    at = calls.index("rename out.partial/result out")
    result = "out.partial/result"
    assert set(calls[:at]) >= {f"file {result}/a", f"file {result}/sub/b", f"folder {result}", f"folder {result}/sub"}
    assert "folder ." in calls[at + 1 :]
    assert [call for call in calls if call.startswith("rename")] == ["rename out.partial/result out"]
