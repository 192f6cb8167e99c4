"""The place of the result: one holder at a time, one rename at the end, in the order that a power cut can't hurt."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paramdelta_hub.errors import DestinationError, StorageError
from paramdelta_hub.tasks import workspace as workspace_module
from paramdelta_hub.tasks.models import Digested, DigestTask
from paramdelta_hub.tasks.plan import Plan, Receipt
from paramdelta_hub.tasks.workspace import MayReplace, Workspace, anything
from tests.registry.packages import tree

PLAN = Plan("extract", ("a",), {}, (DigestTask("a", 1), DigestTask("a", 2)))
OTHER = Plan("extract", ("b",), {}, (DigestTask("b", 1),))
DONE = Digested("a", "0" * 64)


def test_the_way_of_a_result(tmp_path: Path) -> None:
    with Workspace(tmp_path / "out") as workspace:
        assert workspace.resume(PLAN) == {}
        (workspace.result / "sub").mkdir()
        (workspace.result / "sub" / "file").write_text("x")
        assert not (tmp_path / "out").exists()
        workspace.commit()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "sub" / "file").read_text() == "x"


def test_folders_above_are_made(tmp_path: Path) -> None:
    with Workspace(tmp_path / "a" / "b" / "out") as workspace:
        workspace.resume(PLAN)
        workspace.commit()
    assert (tmp_path / "a" / "b" / "out").is_dir()


def test_receipts_are_kept_for_the_same_plan_alone(tmp_path: Path) -> None:
    with Workspace(tmp_path / "out") as workspace:
        workspace.resume(PLAN)
        for task in (0, 1):
            workspace.keep(Receipt(PLAN.digest, task, DONE))
        (workspace.pieces / "piece").write_text("x")
    with Workspace(tmp_path / "out") as workspace:
        assert workspace.resume(PLAN) == {task: Receipt(PLAN.digest, task, DONE) for task in (0, 1)}
        assert (workspace.pieces / "piece").exists()
    with Workspace(tmp_path / "out") as workspace:
        assert workspace.resume(OTHER) == {}
        assert list(workspace.pieces.iterdir()) == []
        workspace.keep(Receipt(PLAN.digest, 0, DONE))
    with Workspace(tmp_path / "out") as workspace:
        assert workspace.resume(OTHER) == {}, "a receipt of another plan does not count"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"plan": 1}', b"\xff", b'{"plan":"x","task":0,"outcome":{}}', bytes(100)]
)
def test_a_torn_receipt_does_not_count(tmp_path: Path, content: bytes) -> None:
    with Workspace(tmp_path / "out") as workspace:
        workspace.resume(PLAN)
        workspace.keep(Receipt(PLAN.digest, 0, DONE))
        (tmp_path / "out.partial" / "receipts" / "000001.json").write_bytes(content)
    with Workspace(tmp_path / "out") as workspace:
        assert list(workspace.resume(PLAN)) == [0]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk/out")
    with pytest.raises(DestinationError, match="a link to"), Workspace(tmp_path / "out"):
        pytest.fail("it leads nowhere")
    (tmp_path / "disk" / "out").mkdir()
    with pytest.raises(DestinationError, match="exists already"), Workspace(tmp_path / "out"):
        pytest.fail("it is taken")
    with Workspace(tmp_path / "out", may_replace=anything) as workspace:
        workspace.resume(PLAN)
        (workspace.result / "new").write_text("new")
        workspace.commit()
    assert (tmp_path / "out").is_symlink()
    assert tree(tmp_path / "disk") == {"out/new": b"new"}


@pytest.mark.parametrize("make", [os.mkdir, lambda path: Path(path).write_text("x")])
def test_a_taken_place(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "out")
    with pytest.raises(DestinationError, match="exists already"), Workspace(tmp_path / "out"):
        pytest.fail("it is taken")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_one_at_a_time(tmp_path: Path) -> None:
    with Workspace(tmp_path / "out"):
        for may_replace in (None, anything):
            with (
                pytest.raises(DestinationError, match="another process"),
                Workspace(tmp_path / "out", may_replace=may_replace),
            ):
                pytest.fail("it is taken")
        with Workspace(tmp_path / "other"):
            pass
    with Workspace(tmp_path / "out"):
        pass


def test_the_lock_ends_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="any"), Workspace(tmp_path / "out"):
        raise ValueError("any")
    with Workspace(tmp_path / "out"):
        pass


def test_the_books_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError), Workspace(tmp_path / "file" / "out"):
        pytest.fail("there is no place")
    (tmp_path / "out.partial").write_text("")
    with pytest.raises(StorageError), Workspace(tmp_path / "out"):
        pytest.fail("there is no place")
    with pytest.raises(StorageError), Workspace(tmp_path / ("x" * 250)):
        pytest.fail("there is no name")


FOREIGN = {
    "files of another program": ["weights.download", "progress.json"],
    "names as ours, and no lock": ["result", "plan.json"],
    "one more file beside ours": ["lock", "result", "notes.txt"],
}


@pytest.mark.parametrize("names", FOREIGN.values(), ids=FOREIGN)
def test_a_partial_folder_of_somebody_elses_is_not_touched(tmp_path: Path, names: list[str]) -> None:
    """All that lies in OUT.partial is deleted at the end: it must be ours from the beginning."""
    for name in names:
        file = tmp_path / "out.partial" / (f"{name}/model.safetensors" if name == "result" else name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"precious")
    before = tree(tmp_path)
    with pytest.raises(DestinationError, match=r"not from an interrupted run") as caught, Workspace(tmp_path / "out"):
        pytest.fail("not ours")
    assert names[-1] in str(caught.value)
    assert tree(tmp_path) == before


def test_a_partial_folder_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "lock").write_text("precious")
    (tmp_path / "out.partial").symlink_to("elsewhere")
    with pytest.raises(DestinationError, match="a link"), Workspace(tmp_path / "out"):
        pytest.fail("a link")
    assert (tmp_path / "elsewhere" / "lock").read_text() == "precious"


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "out.partial" / "lock").symlink_to(tmp_path / "victim")
    with pytest.raises(DestinationError, match="lock"), Workspace(tmp_path / "out"):
        pytest.fail("a link")
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.fixture(params=[True, False], ids=["exchanged", "moved aside"])
def _exchange(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the file system be one that can exchange two folders, or one that can't."""
    if not request.param:
        monkeypatch.setattr(workspace_module, "exchange", lambda *_: False)


def with_old(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    return tmp_path / "out"


def replace(out: Path) -> None:
    with Workspace(out, may_replace=anything) as workspace:
        workspace.resume(PLAN)
        (workspace.result / "new").write_text("new")
        assert tree(out) == {"old": b"old"}
        workspace.commit()


@pytest.mark.usefixtures("_exchange")
def test_overwriting_replaces_at_the_commit(tmp_path: Path) -> None:
    replace(with_old(tmp_path))
    assert tree(tmp_path) == {"out/new": b"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


class DeadError(BaseException):
    """As if the process had been killed here."""


@pytest.mark.usefixtures("_exchange")
@pytest.mark.parametrize("again", [None, anything], ids=["without overwrite", "with overwrite"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("call", ["rename", "exchange", "sync_folder", "clear"])
def test_a_crash_in_the_exchange_loses_neither(
    tmp_path: Path, call: str, number: int, when: str, again: MayReplace | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was the last thing done: the old one stands, or the new one, when the next run has looked."""
    out = with_old(tmp_path)
    with monkeypatch.context() as patch, contextlib.suppress(DeadError):
        die_at(call, number, when, patch)
        replace(out)
    with contextlib.suppress(DestinationError), Workspace(out, may_replace=again):
        pass
    assert tree(out) in ({"old": b"old"}, {"new": b"new"})
    with pytest.raises(DestinationError, match="exists already"), Workspace(out):
        pytest.fail("it is taken")


def die_at(call: str, number: int, when: str, patch: pytest.MonkeyPatch) -> None:
    """Let the call of this name and number in a commit be the last thing a process does, or the first it does not."""
    owner: Any = {"rename": os, "clear": Workspace}.get(call, workspace_module)
    real = getattr(owner, call)
    calls = []

    def dying(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == number and when == "before":
            raise DeadError
        result = real(*arguments)
        if len(calls) == number:
            raise DeadError
        return result

    patch.setattr(owner, call, dying)


@pytest.mark.usefixtures("_exchange")
def test_what_a_dead_exchange_left_is_not_taken_for_new_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it, ``result`` may be the old output: its files must not get into the next one."""
    out = with_old(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "clear", lambda _: None)
        replace(out)
    assert (tmp_path / "out.partial").exists()
    with Workspace(out, may_replace=anything) as workspace:
        workspace.resume(PLAN)
        assert list(workspace.result.iterdir()) == []
        (workspace.result / "newer").write_text("newer")
        workspace.commit()
    assert tree(tmp_path) == {"out/newer": b"newer"}


def test_a_new_output_that_was_taken_elsewhere_leaves_no_old_one_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dead after the exchange, the new output moved away: what lies under ``result`` is the old one, and no work."""
    out = with_old(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "clear", lambda _: None)
        replace(out)
    out.rename(tmp_path / "elsewhere")
    with Workspace(out) as workspace:
        workspace.resume(PLAN)
        assert list(workspace.result.iterdir()) == []
        (workspace.result / "newer").write_text("newer")
        workspace.commit()
    assert tree(out) == {"newer": b"newer"}
    assert tree(tmp_path / "elsewhere") == {"new": b"new"}


@pytest.mark.parametrize("what", ["a link in it", "a lock that says something", "a folder by a temporary name"])
def test_a_partial_folder_that_only_looks_like_ours(tmp_path: Path, what: str) -> None:
    work_dir = tmp_path / "out.partial"
    work_dir.mkdir()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "index.html").write_text("precious")
    (work_dir / "lock").write_text("" if what != "a lock that says something" else "pid 1")
    if what == "a link in it":
        (work_dir / "result").symlink_to("../thesis")
    elif what == "a folder by a temporary name":
        (work_dir / "tmp_result").mkdir()
        (work_dir / "tmp_result" / "x").write_text("precious")
    before = tree(tmp_path)
    with pytest.raises(DestinationError, match="not from an interrupted run"), Workspace(tmp_path / "out"):
        pytest.fail("not ours")
    assert tree(tmp_path) == before


def test_work_of_another_command_is_not_thrown_away(tmp_path: Path) -> None:
    with Workspace(tmp_path / "out", shared=True) as workspace:
        workspace.resume(PLAN)
        workspace.enlist(0, 2)
    with Workspace(tmp_path / "out") as workspace:
        with pytest.raises(DestinationError, match="another command"):
            workspace.start_afresh()
        with pytest.raises(DestinationError, match="ranks have started another plan"):
            workspace.resume(OTHER)
        assert workspace.resume(PLAN) == {}


def test_what_appears_while_we_work_is_not_replaced(tmp_path: Path) -> None:
    with Workspace(tmp_path / "out") as workspace:
        workspace.resume(PLAN)
        with_old(tmp_path)
        with pytest.raises(DestinationError, match="appeared"):
            workspace.commit()
    assert tree(tmp_path / "out") == {"old": b"old"}


def test_space_counts_what_is_there_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    with Workspace(tmp_path / "out") as workspace:
        workspace.resume(PLAN)
        (workspace.pieces / "piece").write_bytes(b"x" * 300_000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 50_000, 50_000))  # type: ignore[attr-defined]
        workspace.check_space(340_000)
        with pytest.raises(StorageError, match="are free"):
            workspace.check_space(500_000)


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

    with Workspace(tmp_path / "out") as workspace:
        workspace.resume(PLAN)
        (workspace.result / "sub").mkdir()
        for name in ("a", "sub/b"):
            (workspace.result / name).write_text(name)
        monkeypatch.setattr(os, "fsync", traced_fsync)
        monkeypatch.setattr(os, "rename", traced_rename)
        workspace.commit()
    at = calls.index("rename out.partial/result out")
    result = "out.partial/result"
    assert set(calls[:at]) >= {f"file {result}/a", f"file {result}/sub/b", f"folder {result}", f"folder {result}/sub"}
    assert "folder ." in calls[at + 1 :]
    assert [call for call in calls if call.startswith("rename")] == ["rename out.partial/result out"]
