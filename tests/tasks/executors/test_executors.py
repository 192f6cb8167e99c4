"""Whatever does the tasks, and however many at a time: the same bytes."""

from __future__ import annotations

import gc
import importlib.util
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import paramdelta_hub as pd
from paramdelta_hub import __about__, cli
from paramdelta_hub.errors import DestinationError, OptionError, PackageError, SourceError
from paramdelta_hub.extraction.extract import Extraction
from paramdelta_hub.fileio.durable import write_file
from paramdelta_hub.tasks import plan
from paramdelta_hub.tasks.executors import ray as cluster
from paramdelta_hub.tasks.models import TASK, Digested
from paramdelta_hub.tasks.plan import Plan, read_request, read_task
from tests.conftest import Family
from tests.support.models import tuned, write_model
from tests.tasks.forking import inputs, tree

ROOT = Path(__file__).parents[3]
OPERATIONS: dict[str, Callable[..., object]] = {"extract": pd.extract, "apply": pd.apply}


def make(root: Path, layers: int, rows: int, columns: int, shards: int) -> Family:
    """Models with vocabularies: rows that move, rows that are new, tensors that wait in temporary files."""
    noise = torch.Generator().manual_seed(0)
    words = [f"w{number}" for number in range(rows)]
    base = {"model.embed_tokens.weight": torch.randn(rows, columns, generator=noise).bfloat16()}
    base |= {f"layers.{n}.weight": torch.randn(rows, columns, generator=noise).bfloat16() for n in range(layers)}
    post, target = tuned(base, 1), tuned(base, 2)
    embedding = post["model.embed_tokens.weight"]
    post["model.embed_tokens.weight"] = torch.cat([embedding[1:], embedding[:1], embedding[5:9] + 1])
    tokens = {"base": words, "post": [*words[1:], words[0], "a", "b", "c", "d"], "target": words}
    for name, tensors in {"base": base, "post": post, "target": target}.items():
        write_model(root / name, tensors, shards, {"model_type": "llama"})
        vocabulary = {token: row for row, token in enumerate(tokens[name])}
        text = json.dumps({"model": {"type": "WordLevel", "vocab": vocabulary}})
        (root / name / "tokenizer.json").write_text(text)
    pd.extract(root / "base", root / "post", root / "delta")
    return Family(root / "base", root / "post", root / "target", root / "delta")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return make(tmp_path_factory.mktemp("executors"), layers=6, rows=96, columns=24, shards=3)


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "TASK_BYTES_MIN", 1)


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
def test_threads_and_ranks_make_the_same(operation: str, models: Family, tmp_path: Path) -> None:
    run, paths = OPERATIONS[operation], inputs(operation, models)
    for number in (1, 2, 8):
        run(*paths, tmp_path / f"{number} threads", threads=number)
    first, second = map(str, paths)
    request = pd.ExtractRequest(first, second) if operation == "extract" else pd.ApplyRequest(first, ((second, 1.0),))
    for rank in random.Random(1).sample(range(5), 5):
        pd.run_rank(request, tmp_path / "ranks", rank, 5, config=pd.ExecutorConfig(threads=1 + rank))
    pd.commit(tmp_path / "ranks")
    trees = [tree(folder) for folder in tmp_path.iterdir()]
    assert len(trees) == 4
    assert all(found == trees[0] for found in trees)
    assert len(trees[0]) > 3


def test_what_a_thread_finds_is_told(models: Family, tmp_path: Path) -> None:
    """A damaged delta; what a worker of a cluster finds is told in on_ray.py."""
    damaged = shutil.copytree(models.delta, tmp_path / "delta")
    file = sorted(damaged.glob("delta-*.safetensors"))[-1]
    content = bytearray(file.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    file.write_bytes(content)
    with pytest.raises(PackageError, match="get the package again"):
        pd.apply(models.target, damaged, tmp_path / "out", threads=1)
    assert not (tmp_path / "out").exists()


def test_no_such_executor(models: Family, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="threads or ray"):
        pd.apply(models.target, models.delta, tmp_path / "out", executor="dask")  # type: ignore[arg-type]
    for executor in ("threads", "ray"):
        with pytest.raises(OptionError):
            pd.ExecutorConfig(executor, threads=0)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_without_ray_it_says_what_to_install(models: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    command = ["apply", str(models.target), str(models.delta), "-o", str(tmp_path / "out"), "--executor", "ray"]
    done = CliRunner().invoke(cli.main, command)
    assert done.exit_code == 2
    assert "pip install 'paramdelta-hub[ray]'" in done.output
    assert not (tmp_path / "out").exists()


def test_a_task_is_read_as_it_was_planned(models: Family, tmp_path: Path) -> None:
    """A worker parses its own line alone, of the plan whose digest it was told."""
    made = Extraction(pd.ExtractRequest(str(models.base), str(models.post), hash_files=True)).plan
    assert len(made.tasks) > 7
    path = tmp_path / "plan.json"
    write_file(path, made.text)
    whole = json.loads(path.read_bytes())
    asked = tmp_path / "request.json"
    write_file(asked, made.request_text)
    assert read_request(asked) == ("extract", json.loads(made.request_text)["request"])
    for number, task in enumerate(whole["tasks"]):
        assert read_task(path, made.digest, number) == (made.nbytes, made.tasks[number])
        assert TASK.dump_python(made.tasks[number], mode="json") == task
    with pytest.raises(DestinationError, match="was replaced during the run"):
        read_task(path, "0" * 64, 0)
    write_file(asked, Plan("apply", (), {"x": 1}, ()).request_text)
    assert read_request(asked) == ("apply", {"x": 1})
    for text in (b"]", b"[]", b"{}", b'{"kind":"other","request":{}}', b'{"kind":"apply","request":[]}'):
        asked.write_bytes(text)
        with pytest.raises(SourceError):
            read_request(asked)


def test_a_worker_of_another_version_takes_no_part(
    models: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Extraction(pd.ExtractRequest(str(models.base), str(models.post))).plan
    write_file(tmp_path / "plan.json", made.text)
    monkeypatch.setattr(__about__, "CREATED_BY", "paramdelta-hub 9.9.9")
    with pytest.raises(DestinationError, match="the same version on all machines"):
        read_task(tmp_path / "plan.json", made.digest, 0)


def test_planning_leaves_the_collector_as_it_was(models: Family) -> None:
    request = pd.ExtractRequest(str(models.base), str(models.base / "nothing"))
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            with pytest.raises(SourceError):
                Extraction(request)
            assert gc.isenabled() is enabled
        finally:
            gc.enable()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray has no wheels for this Python or system")
def test_a_ray_cluster_two_workers_and_one_that_dies(tmp_path: Path) -> None:
    """Two machines' worth of Ray here; in the middle, a worker is killed, a command is, and a whole machine is gone."""
    models = make(tmp_path, layers=5, rows=3000, columns=2000, shards=3)
    expected = {operation: tmp_path / f"{operation} by threads" for operation in OPERATIONS}
    for operation, run in OPERATIONS.items():
        run(*inputs(operation, models), expected[operation], threads=2)
    done = subprocess.run(
        [sys.executable, "-m", "tests.tasks.on_ray", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    print(done.stderr)  # what Ray aborted, and why
    assert done.returncode == 0
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "machines": 2,
        "initialized": True,
        "killed": True,
        "aborted": True,
        "kept": True,
        "command": "",
        "removed": True,
        "faults": {"refused": 7, "damaged": 3, "lost": [], "aborts": 0},
    }
    for made in ("extracted", "extracted, one killed", "extracted, aborted"):
        assert tree(tmp_path / made) == tree(expected["extract"])
    for made in ("applied", "applied, one removed"):
        assert tree(tmp_path / made) == tree(expected["apply"])
    assert not (tmp_path / "damaged").exists()


def test_a_group_ends_with_its_first_failure() -> None:
    """What a machine of a cluster does: the tasks of a group in turn, until one fails."""
    done: list[int] = []

    def perform(work_dir: str, digest: str, number: int) -> Digested:
        done.append(number)
        if number == 2:
            raise PackageError("broken")
        return Digested(str(number), "0" * 64)

    answers = cluster._run(perform, "", "", [1, 2, 3], "no such file")
    assert done == [1, 2]
    assert [sorted(answer) for answer in answers] == [["outcome"], ["error", "told"]]


def test_what_waits_when_a_run_is_stopped_is_not_begun(tmp_path: Path) -> None:
    stopped, done = tmp_path / "stopped", []

    def perform(work_dir: str, digest: str, number: int) -> Digested:
        done.append(number)
        if number == 2:
            stopped.touch()
        return Digested(str(number), "0" * 64)

    assert len(cluster._run(perform, "", "", [1, 2, 3], str(stopped))) == 2
    assert cluster._run(perform, "", "", [4], str(stopped)) == []
    assert done == [1, 2]
