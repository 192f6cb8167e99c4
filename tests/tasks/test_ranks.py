"""Ranks: one plan, many processes in any order, killed and run again; one commit, which believes nothing."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import paramdelta_hub as pd
from paramdelta_hub import cli
from paramdelta_hub.errors import DestinationError, OptionError, SourceError
from paramdelta_hub.tasks import plan
from paramdelta_hub.tasks.workspace import Workspace
from tests.conftest import Family, make_family
from tests.support.models import tuned, weights, write_model
from tests.tasks.forking import Forks, inputs, make_older, tree

pytestmark = pytest.mark.usefixtures("no_fsync")

WORLD = 3


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Models of three files, so that there is something to share."""
    return make_family(tmp_path_factory.mktemp("ranks"), seed=5, shards=3)


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "TASK_BYTES_MIN", 1)


@pytest.fixture
def expected(operation: str, models: Family, tmp_path: Path) -> dict[str, str]:
    getattr(pd, operation)(*inputs(operation, models), tmp_path / "undisturbed" / "out")
    return tree(tmp_path / "undisturbed" / "out")


@pytest.fixture
def request_of(operation: str, models: Family) -> pd.ExtractRequest | pd.ApplyRequest:
    return asked(operation, models)


def asked(operation: str, models: Family, **options: Any) -> pd.ExtractRequest | pd.ApplyRequest:
    if operation == "extract":
        return pd.ExtractRequest(str(models.base), str(models.post), **options)
    return pd.ApplyRequest(str(models.target), ((str(models.delta), 1.0),), **options)


def test_ranks_in_random_order_make_the_same(
    request_of: pd.ExtractRequest, tmp_path: Path, expected: dict[str, str]
) -> None:
    """Any order, any number of ranks (more than there are tasks, too), some of them twice."""
    source = random.Random(0)
    for world in (1, 2, WORLD, 8, 40):
        out = tmp_path / f"out{world}"
        order = source.sample(range(world), world) + source.choices(range(world), k=2)
        reports = [pd.run_rank(request_of, out, rank, world, config=pd.ExecutorConfig(threads=2)) for rank in order]
        first = {report.rank: report for report in reports[:world]}
        assert not out.exists()
        assert all(report.resumed_tasks == report.tasks for report in reports[world:]), "done once is done"
        assert sum(report.tasks for report in first.values()) == len(
            list((tmp_path / f"out{world}.partial" / "receipts").iterdir())
        )
        assert all(first[rank].tasks for rank in range(min(world, WORLD))), "the first ranks have something to do"
        pd.commit(out)
        assert tree(out) == expected
        assert [path.name for path in tmp_path.glob("*.partial")] == []


def test_ranks_at_the_same_time(
    operation: str, models: Family, forks: Forks, tmp_path: Path, expected: dict[str, str]
) -> None:
    """Ten races of three processes: nobody is refused, and nobody spoils what another prepares."""
    for number in range(10):
        out = tmp_path / f"race{number}"
        options = {"rank": "racer", "world": WORLD}
        assert (
            forks.ask("share", Path(operation), *inputs(operation, models), out, options=options, race=WORLD)
            == [0] * WORLD
        )
        pd.commit(out)
        assert tree(out) == expected, number
        shutil.rmtree(out)


@pytest.mark.parametrize("half", [False, True], ids=["before", "half-way"])
def test_a_rank_killed_at_every_call(
    operation: str, models: Family, forks: Forks, tmp_path: Path, expected: dict[str, str], half: bool
) -> None:
    """``kill -9`` of one rank, beside others that are done or have not begun; then it is run again."""
    report, paths = tmp_path / "calls", inputs(operation, models)

    def rank(number: int, out: Path, **more: Any) -> list[int]:
        return forks.ask("share", Path(operation), *paths, out, options={"rank": number, "world": 2}, **more)

    for killed in (0, 1):
        counted, out = tmp_path / f"counted{killed}", tmp_path / "out"
        if killed:
            assert rank(0, counted) == [0]
        assert rank(killed, counted, report=str(report)) == [0]
        total = int(report.read_text())
        assert total > 8
        for at in range(1 + half, total + 1):
            if killed:
                assert rank(0, out) == [0]
            ended = rank(killed, out, report=str(tmp_path / "x"), kill_at=at, half=half)
            assert ended == [-signal.SIGKILL], at
            assert not out.exists()
            if not killed:
                assert rank(1, out) == [0]
            assert rank(killed, out) == [0]
            pd.commit(out)
            assert tree(out) == expected, (killed, at)
            shutil.rmtree(out)


def test_a_commit_killed_at_every_call(
    operation: str, models: Family, forks: Forks, tmp_path: Path, expected: dict[str, str]
) -> None:
    """A commit is run again, not the ranks: what it had renamed is found again."""

    def ready(out: Path) -> None:
        for rank in range(2):
            pd.run_rank(asked(operation, models), out, rank, 2)

    ready(tmp_path / "counted")
    assert forks.ask("commit", tmp_path / "counted", report=str(tmp_path / "calls")) == [0]
    total = int((tmp_path / "calls").read_text())
    out, seen = tmp_path / "out", set()
    for at in range(1, total + 1):
        ready(out)
        forks.ask("commit", out, report=str(tmp_path / "x"), kill_at=at)
        seen.add(out.exists())
        if not out.exists():
            pd.commit(out)
        assert tree(out) == expected, at
        shutil.rmtree(out)
        shutil.rmtree(tmp_path / "out.partial", ignore_errors=True)
    assert False in seen


def test_a_commit_says_what_is_missing_and_whom_to_run_again(
    request_of: pd.ExtractRequest, tmp_path: Path, expected: dict[str, str]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(DestinationError, match="nothing to commit"):
        pd.commit(out)
    assert not list(tmp_path.glob("out*")), "and it leaves nothing behind"
    pd.run_rank(request_of, out, 1, WORLD)
    before = tree(tmp_path / "out.partial")
    with pytest.raises(DestinationError) as caught:
        pd.commit(out)
    assert "--rank 0 --world 3, which has not started: tasks " in caught.value.what
    assert "--rank 2 --world 3, which has not started: tasks " in caught.value.what
    assert "--rank 1" not in caught.value.what
    assert "run these ranks again" in (caught.value.remedy or "")
    assert tree(tmp_path / "out.partial") == before
    pd.run_rank(request_of, out, 0, WORLD)
    pd.run_rank(request_of, out, 2, WORLD)
    receipt = sorted((tmp_path / "out.partial" / "receipts").iterdir())[0]
    receipt.write_text(receipt.read_text()[:-20])
    with pytest.raises(DestinationError, match=r"1 of \d+ tasks") as caught:
        pd.commit(out)
    [named] = [line for line in caught.value.what.splitlines() if "--rank" in line]
    assert "has not started" not in named
    pd.run_rank(request_of, out, int(named.split()[2]), WORLD)
    pd.commit(out)
    assert tree(out) == expected


def test_what_a_single_run_left_is_committed_too(
    request_of: pd.ExtractRequest, operation: str, models: Family, tmp_path: Path, expected: dict[str, str]
) -> None:
    class Stops(pd.Progress):
        calls = 0

        def advance(self, nbytes: int) -> None:
            self.calls += nbytes > 0
            if self.calls == 3:
                raise pd.StorageError("stop")

    out = tmp_path / "out"
    with pytest.raises(pd.StorageError):
        getattr(pd, operation)(*inputs(operation, models), out, threads=1, progress=Stops())
    with pytest.raises(DestinationError, match="run the same command again"):
        pd.commit(out)
    for rank in range(2):
        pd.run_rank(request_of, out, rank, 2)
    pd.commit(out)
    assert tree(out) == expected


def test_a_run_alone_finishes_what_ranks_began(
    request_of: pd.ExtractRequest, operation: str, models: Family, tmp_path: Path, expected: dict[str, str]
) -> None:
    out = tmp_path / "out"
    done = pd.run_rank(request_of, out, 0, 2).tasks
    assert getattr(pd, operation)(*inputs(operation, models), out).resumed_tasks == done
    assert tree(out) == expected


def test_a_changed_byte_is_found(operation: str, models: Family, tmp_path: Path, expected: dict[str, str]) -> None:
    """On whatever disk it was changed: a receipt is a claim, and a commit reads the bytes."""
    out, request = tmp_path / "out", asked(operation, models)
    for rank in range(2):
        pd.run_rank(request, out, rank, 2)
    where = tmp_path / "out.partial" / ("pieces" if operation == "extract" else "result")
    file = sorted(where.glob("*.safetensors"))[-1]
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DestinationError, match="their files have changed") as caught:
        pd.commit(out)
    rank = int(caught.value.what.split("--rank ")[1].split()[0])
    assert pd.run_rank(request, out, rank, 2).resumed_tasks < pd.run_rank(request, out, rank, 2).resumed_tasks
    pd.commit(out)
    assert tree(out) == expected


def test_a_rank_with_another_plan_is_refused(
    operation: str, models: Family, tmp_path: Path, expected: dict[str, str]
) -> None:
    """All that shapes the result is in the plan, be it done by tasks or by the commit."""
    out, request = tmp_path / "out", asked(operation, models)
    pd.run_rank(request, out, 0, 2)
    before = tree(tmp_path / "out.partial")
    changes: list[dict[str, Any]] = [{"skips": ("norm",)}, {"renames": (("norm", "layer_norm"),), "skips": ("norm",)}]
    changes += (
        [{"name": "other"}, {"version": "1.0.1"}, {"license": "mit"}]
        if operation == "extract"
        else [{"companions": "none"}, {"prefer": "post"}, {"force": True}, {"weight_map": (("norm", 0.0),)}]
    )
    for change in changes:
        with pytest.raises(DestinationError, match="another plan"):
            pd.run_rank(asked(operation, models, **change), out, 1, 2)
    assert tree(tmp_path / "out.partial") == before
    pd.run_rank(request, out, 1, 2)
    pd.commit(out)
    assert tree(out) == expected


def test_what_was_done_serves_a_run_alone_that_asks_for_something_else_beside_the_weights(
    operation: str, models: Family, tmp_path: Path
) -> None:
    """``pd-extract`` with another version number, or ``pd-apply`` with other companions: no task is done again."""
    out = tmp_path / "out"
    done = pd.run_rank(asked(operation, models), out, 0, 1).tasks
    other = {"version": "2.0.0"} if operation == "extract" else {"companions": "none"}
    assert getattr(pd, operation)(*inputs(operation, models), out, **other).resumed_tasks == done
    getattr(pd, operation)(*inputs(operation, models), tmp_path / "undisturbed", **other)
    assert tree(out) == tree(tmp_path / "undisturbed")


def test_inputs_that_change_between_ranks_are_found(operation: str, models: Family, tmp_path: Path) -> None:
    shutil.copytree(models.base.parent, tmp_path / "models")
    own = Family(*(tmp_path / "models" / name for name in ("base", "post", "target", "delta")))
    out, request = tmp_path / "out", asked(operation, own)
    for rank in range(2):
        pd.run_rank(request, out, rank, 2)
    changed = own.post if operation == "extract" else own.target
    write_model(changed, tuned(weights(5), 99), 3, json.loads((changed / "config.json").read_bytes()))
    with pytest.raises(DestinationError, match="another plan"):
        pd.run_rank(request, out, 0, 2)
    with pytest.raises(DestinationError, match="have changed since the plan was made"):
        pd.commit(out)
    assert not out.exists()


def test_ranks_and_others_keep_out_of_each_others_way(
    request_of: pd.ExtractRequest, operation: str, models: Family, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with Workspace(out, shared=True), Workspace(out, shared=True):
        for other in (
            lambda: getattr(pd, operation)(*inputs(operation, models), out),
            lambda: Workspace(out).__enter__(),
        ):
            with pytest.raises(DestinationError, match="another process"):
                other()
        pd.run_rank(request_of, out, 0, 2)
        with pytest.raises(DestinationError, match="another process"):
            pd.commit(out)
    with Workspace(out), pytest.raises(DestinationError, match="another process"):
        pd.run_rank(request_of, out, 1, 2)
    pd.run_rank(request_of, out, 1, 2)
    pd.commit(out)
    with pytest.raises(DestinationError, match="exists already"):
        pd.run_rank(request_of, out, 1, 2)
    assert not (tmp_path / "out.partial").exists()


def test_overwriting(
    request_of: pd.ExtractRequest, operation: str, models: Family, tmp_path: Path, expected: dict[str, str]
) -> None:
    out = make_older(operation, models, tmp_path / "out")
    old = tree(out)
    for rank in range(2):
        with pytest.raises(DestinationError, match="exists already"):
            pd.run_rank(request_of, out, rank, 2)
        pd.run_rank(request_of, out, rank, 2, overwrite=True)
    with pytest.raises(DestinationError, match="exists already"):
        pd.commit(out)
    assert tree(out) == old
    pd.commit(out, overwrite=True)
    assert tree(out) == expected


def test_ranks_replace_nothing_that_is_not_ours(request_of: pd.ExtractRequest, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("old")
    with pytest.raises(DestinationError, match="precious"):
        pd.run_rank(request_of, out, 0, 1, overwrite=True)
    assert not (tmp_path / "out.partial").exists()
    (out / "precious").rename(tmp_path / "precious")
    pd.run_rank(request_of, out, 0, 1, overwrite=True)
    (tmp_path / "precious").rename(out / "precious")
    with pytest.raises(DestinationError, match="precious"):
        pd.commit(out, overwrite=True)
    assert (out / "precious").read_text() == "old"


def test_no_such_rank(request_of: pd.ExtractRequest, models: Family, tmp_path: Path) -> None:
    for rank, world in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(OptionError, match="no rank"):
            pd.run_rank(request_of, tmp_path / "out", rank, world)
    with pytest.raises(OptionError, match="streamed"):
        pd.run_rank(asked("apply", models, stream=True), tmp_path / "out", 0, 2)
    with pytest.raises(OptionError, match="--stream"):
        pd.apply(models.target, models.delta, tmp_path / "out", stream=True, executor="ray")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: b"{" + text,
        lambda text: text[: len(text) // 2],
        lambda text: b"[]\n]}",
        lambda text: text.replace(b'"kind":"', b'"kind":"un', 1),
        lambda text: text.replace(b"{", b'{"unheard":1,', 1),
        lambda text: text.replace(b'"request":{', b'"request":{"unheard":1,', 1) + b" ",
        lambda text: b"",
    ],
    ids=["torn", "cut", "no object", "no kind", "unheard", "no option", "empty"],
)
@pytest.mark.parametrize("file", ["plan.json", "request.json"])
def test_a_plan_that_is_none(
    request_of: pd.ExtractRequest, tmp_path: Path, spoil: Callable[[bytes], bytes], file: str
) -> None:
    out = tmp_path / "out"
    pd.run_rank(request_of, out, 0, 1)
    path = tmp_path / "out.partial" / file
    path.write_bytes(spoil(path.read_bytes()))
    before = tree(tmp_path / "out.partial")
    with pytest.raises((SourceError, DestinationError)):
        pd.commit(out)
    with pytest.raises(DestinationError, match="another plan"):
        pd.run_rank(request_of, out, 0, 1)
    assert not out.exists()
    assert tree(tmp_path / "out.partial") == before, "what is there is somebody's work"


def test_the_commands(operation: str, models: Family, tmp_path: Path, expected: dict[str, str]) -> None:
    """As a SLURM array calls them, from another folder, and with paths that are relative there."""
    out = tmp_path / "out"
    paths = [os.path.relpath(path) for path in inputs(operation, models)]
    command, run = [operation, *paths, "-o", str(out)], CliRunner().invoke
    for wrong in (["--rank", "0"], ["--world", "2"]):
        done = run(cli.main, [*command, *wrong])
        assert done.exit_code == 2
        assert "go together" in done.output
    assert run(cli.main, [*command, "--rank", "2", "--world", "2"]).exit_code == 2
    first = run(cli.main, [*command, "--rank", "0", "--world", "2"])
    assert first.exit_code == 0, first.output
    assert "rank 0 of 2" in first.output
    assert f"paramdelta commit {out}" in first.output
    missing = run(cli.main, ["commit", str(out)])
    assert missing.exit_code == DestinationError.exit_code
    assert "--rank 1 --world 2" in missing.output
    second = run(cli.main, [*command, "--rank", "1", "--world", "2", "--threads", "1", "--json"])
    assert json.loads(second.output) | {"nbytes": 0} == {
        "path": str(out), "rank": 1, "world": 2, "tasks": json.loads(second.output)["tasks"], "resumed_tasks": 0,
        "nbytes": 0,
    }  # fmt: skip
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        committed = run(cli.main, ["commit", "out"])
    finally:
        os.chdir(here)
    assert committed.exit_code == 0, committed.output
    assert "out" in committed.output
    assert tree(out) == expected


def test_a_rank_does_not_publish(models: Family, tmp_path: Path) -> None:
    command = [
        "extract",
        str(models.base),
        str(models.post),
        "-o",
        str(tmp_path / "out"),
        "--rank",
        "0",
        "--world",
        "1",
    ]
    done = CliRunner().invoke(cli.main, [*command, "--publish", str(tmp_path / "registry" / "org" / "name")])
    assert done.exit_code == 2
    assert "pd-publish" in done.output
