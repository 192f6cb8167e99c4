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
from scripts.benchmarks import limits, report, speed
from scripts.benchmarks.models import tensors, unlike_the_formula
from scripts.benchmarks.package import anatomy
from scripts.benchmarks.process import Command, run
from scripts.benchmarks.speed import Size
from scripts.tools.generate import ROLES, Recipe, generate

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
    assert found["bytes"].keys() >= {"symbols", "raw fields", "tables of symbols"}
    assert found["entropy_bytes"] <= found["bound_bytes"] < sum(found["bytes"].values())


def test_the_entropy_is_that_of_the_exact_differences(triple: Path, tmp_path: Path) -> None:
    pd.extract(triple / "base", triple / "post", tmp_path / "delta")
    entropy = 0.0
    for _, delta in pd.tensors(tmp_path / "delta"):  # each is one chunk
        if delta.any():
            counts = np.unique(delta.view(torch.int32).numpy(), return_counts=True)[1]
            entropy -= (counts * np.log2(counts / delta.numel())).sum() / 8
    assert anatomy(tmp_path / "delta")["entropy_bytes"] == pytest.approx(entropy)


def test_every_kind_of_work_has_a_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ROUNDS", 1)
    monkeypatch.setattr(limits, "LARGE", 1 << 20)
    monkeypatch.setattr(limits, "_times", lambda count, step, nbytes: (step() and 0) or nbytes)
    rates = limits.measure(tmp_path)
    assert all(rate["one"] > 0 and rate["all"] > 0 for rate in rates.values())
    for work in limits.WORK.values():
        assert all(any(kind.startswith(known) for known in rates) for kind in work)


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
    together = [
        (list(ROLES), ["cp + sync", "extract", "floor of extract", "floor of apply", "apply", "verify", "peer"])
    ]
    apart = [
        (["base", "post"], ["cp + sync", "extract", "floor of extract"]),
        (["target"], ["cp + sync", "floor of apply", "apply", "verify"]),
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
    kinds = ("memcpy", "read", "BLAKE3", "sha256", "tANS, encode", "tANS, decode", "write")
    parts = {
        "speed": {"sizes": [size]},
        "sizes": {"pairs": [pair]},
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
