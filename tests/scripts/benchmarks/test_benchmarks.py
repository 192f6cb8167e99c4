"""What the benchmark says must be true before it is fast: small models, the real commands, no clock."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import paramdelta_hub as pd
from scripts.benchmarks import ideas, report, speed
from scripts.benchmarks.ideas import IDEAS
from scripts.benchmarks.models import tensors, unlike_the_formula
from scripts.benchmarks.package import anatomy
from scripts.benchmarks.process import Command, run
from scripts.benchmarks.sizes import Pair
from scripts.benchmarks.speed import Size
from scripts.tools.generate import ROLES, Recipe, generate
from tests.support.models import write_model

PEERS = Path(speed.__file__).parent / "peers"
BLOCK = "<!-- bench: made by python -m scripts.benchmarks -->\n"
TINY = Recipe(layers=1, shards=2, vocab=512, hidden=64, intermediate=256, heads=4, kv_heads=2, head_dim=16, delta=0.03)


@pytest.fixture(scope="module")
def triple(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated") / "triple"
    assert generate(folder, TINY)
    return folder


@pytest.mark.parametrize("role", ROLES)
def test_a_model_made_alone_is_the_one_made_with_the_others(role: str, triple: Path, tmp_path: Path) -> None:
    assert generate(tmp_path / "alone", TINY, roles=[role])
    ours, theirs = tmp_path / "alone" / role, triple / role
    assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
    assert all((ours / path.name).read_bytes() == path.read_bytes() for path in theirs.iterdir())


def test_models_that_are_there_are_left_alone_and_missing_ones_made(triple: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(triple, folder)
    assert not generate(folder, TINY)
    (folder / "base" / "config.json").write_text("mine")
    shutil.rmtree(folder / "post")
    assert generate(folder, TINY)
    assert (folder / "base" / "config.json").read_text() == "mine"
    assert (folder / "post" / "config.json").read_bytes() == (triple / "post" / "config.json").read_bytes()


@pytest.mark.parametrize("script", ["naive.py", "careful.py"])
def test_the_scripts_compared_with_compute_the_formula(script: str, triple: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    models = [str(triple / role) for role in ROLES]
    subprocess.run([sys.executable, str(PEERS / script), *models, str(out)], check=True)
    assert unlike_the_formula(out, triple) == 0
    pd.extract(triple / "base", triple / "post", tmp_path / "delta")
    pd.apply(triple / "target", tmp_path / "delta", tmp_path / "ours")
    assert unlike_the_formula(tmp_path / "ours", triple) == 0


def test_elements_unlike_the_formula_are_counted(triple: Path) -> None:
    # target itself is what post − base = 0 would give
    values = tensors(triple / "target")
    share = unlike_the_formula(triple / "target", triple)
    wide = {role: {n: v.astype(np.uint32) << 16 for n, v in tensors(triple / role).items()} for role in ROLES}
    floats = {role: {n: v.view(np.float32).astype(np.float64) for n, v in wide[role].items()} for role in ROLES}
    moved = sum(
        # Anything that moves target by more than half a unit in the last place must be among them.
        int((np.abs(floats["post"][n] - floats["base"][n]) > np.abs(floats["target"][n]) / 128).sum())
        for n in values
    )
    assert moved / sum(v.size for v in values.values()) <= share < 1


def test_the_floor_writes_as_much_as_it_is_told(triple: Path, tmp_path: Path) -> None:
    argv = [sys.executable, str(PEERS / "floor.py"), *(str(path) for path in (tmp_path / "out", triple / "target"))]
    subprocess.run([*argv, str(triple / "base"), str(triple / "post")], check=True)
    expected = sum(path.stat().st_size for path in (triple / "target").glob("*.safetensors"))
    assert (tmp_path / "out" / "floor.bin").stat().st_size == expected


def test_every_byte_of_a_package_has_a_name(triple: Path, tmp_path: Path) -> None:
    pd.extract(triple / "base", triple / "post", tmp_path / "delta")
    files = [path for path in (tmp_path / "delta").rglob("*") if path.is_file()]
    found = anatomy(tmp_path / "delta")
    assert sum(found["bytes"].values()) == sum(path.stat().st_size for path in files)
    assert all(nbytes > 0 for nbytes in found["bytes"].values())
    # What is left of the shards when all streams and tables are counted are their headers.
    starts = [path.read_bytes()[:8] for path in files if path.name.startswith("delta-")]
    assert found["bytes"]["shard headers"] == sum(8 + int.from_bytes(start, "little") for start in starts)
    assert found["entropy_bytes"] < found["bound_bytes"] < sum(found["bytes"].values())


def test_the_peak_memory_of_a_command_is_not_its_parents() -> None:
    ours = np.ones(64 << 20, np.uint8)
    assert run(["true"]).peak_mb < 50 < run([sys.executable, "-S", "-c", "print(len(b'x' * 50_000_000))"]).peak_mb
    assert ours.size


def test_a_command_that_fails_ends_the_benchmark() -> None:
    with pytest.raises(SystemExit, match="ended with 3"):
        run(["sh", "-c", "exit 3"])


@pytest.mark.parametrize("free", [10**12, speed.SPARE + 1])
def test_models_are_made_one_after_another_where_the_disk_is_small(
    free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(free))
    size = Size(tmp_path / "models", TINY, tmp_path)
    peer = Command("peer", [str(size.models / role) for role in ROLES], [], tmp_path / "added")
    phases = [(roles, [command.name for command in part]) for roles, part in size.phases([*speed._ours(size), peer])]
    together = [(list(ROLES), ["cp + sync", "extract", "floor of extract", "floor of apply", "apply", "peer"])]
    apart = [
        (["base", "post"], ["cp + sync", "extract", "floor of extract"]),
        (["target"], ["cp + sync", "floor of apply", "apply"]),
        (list(ROLES), ["cp + sync", "peer"]),
    ]
    assert phases == (together if free == 10**12 else apart)


def test_speed_is_measured_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "Recipe", lambda layers: TINY)
    size = speed.measure(1, 1, tmp_path / "work", peers=False)
    (phase,) = size["phases"]
    assert all(len(rounds) == 1 for rounds in phase["commands"].values())
    assert phase["unlike_the_formula"] == {"apply": 0}
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"layers-1"}
    phase["commands"]["a script"], phase["unlike_the_formula"]["a script"] = phase["commands"]["apply"], 0.25
    results = tmp_path / "results"
    results.mkdir()
    place = {"machine": {"processor": "p", "cpus": 2, "memory_gb": 1, "system": "s", "python": "3"}, "versions": {}}
    peer = {"name": "other", "group": "rebuild", "version": "1", "bytes": 10, "exact": True, "seconds": 1}
    pair: dict[str, Any] = {"key": "k", "title": "a <pair>", "real": True, "peers": [peer], **phase["package"]}
    kinds = ("memcpy", "read", "BLAKE3", "sha256", "zstd, encode", "zstd, decode", "write")
    parts = {
        "speed": {"sizes": [size]},
        "sizes": {"pairs": [pair]},
        "ideas": {"pairs": [{"key": "k", "title": "a <pair>", "elements": 8, "bytes": dict.fromkeys(IDEAS, 3)}]},
        "limits": {"rates": {kind: {"one": 1e9, "all": 2e9} for kind in kinds}},
    }
    for name, part in parts.items():
        (results / f"{name}.json").write_text(json.dumps({**place, **part}))
    docs = tmp_path / "docs" / "benchmarks.md"
    report.write_docs(results, docs)
    text = docs.read_text()
    assert "| other | 0." in text
    assert "‡ smaller than this package." in text
    assert all(f"## {title}" in text for title in ("Speed", "How far from the limits", "Size"))
    assert "| **3.000** |" in text
    for picture in ("speed.svg", "sizes.svg"):
        assert ElementTree.parse(docs.parent / picture).getroot().tag.endswith("svg")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BLOCK}old\n<!-- end -->\nafter\n")
    report.write_readme(results, readme)
    assert readme.read_text().startswith(f"before\n{BLOCK}| parameters |")
    assert readme.read_text().endswith("|\n<!-- end -->\nafter\n")
    assert "old" not in readme.read_text()
    assert "a <pair>" in readme.read_text()
    assert re.search(r"\| a script \| [\d.]+ × \| \d+ MB \| 25.00% \|", readme.read_text())


def test_a_code_that_knows_the_row_takes_less_where_rows_differ_and_nothing_takes_less_than_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0)
    levels = np.repeat(2.0 ** np.arange(8), 64)[noise.permutation(512), None]  # 8 spreads of rows, in any order
    base = torch.from_numpy(noise.normal(0, 1, (512, 512))).bfloat16()
    post = (base.float() + torch.from_numpy(levels * noise.integers(0, 4, (512, 512)) / 64).float()).bfloat16()
    for role, values in (("base", base), ("post", post)):
        write_model(tmp_path / role, {"weight": values, "same": base})
    monkeypatch.setattr(ideas, "PAIRS", [Pair("k", "a pair")])
    monkeypatch.setattr(Pair, "make", lambda pair, work: work)
    (found,) = ideas.measure(tmp_path)
    taken = {name: 8 * count / found["elements"] for name, count in found["bytes"].items()}
    assert found["elements"] == base.numel()  # what is the same in both takes nothing
    assert taken["rows"] < 0.9 * taken["order0"]
    assert taken["order0"] <= taken["palette"]
    assert taken["two_level"] <= taken["palette"]
    delta = post.float() - base.float()
    symbols = delta.bfloat16().view(torch.uint16).numpy()
    counts = np.unique(symbols, return_counts=True)[1]
    assert taken["order0"] >= -(counts / counts.sum() * np.log2(counts / counts.sum())).sum()
