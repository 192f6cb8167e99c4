"""--stream: a target whose files come one by one: the real client, in a process of its own, and a Hub on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import paramdelta_hub as pd
from tests.support.hub import Fault, LoopbackHub
from tests.support.models import apply_in, assert_same, extract_in, read_weights, write_model

SHARDS = 8
ELEMENTS = 1 << 20


def weights(seed: int, scale: float = 0.0) -> dict[str, torch.Tensor]:
    base, noise = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    found = {}
    for number in range(SHARDS):
        value = torch.randn(ELEMENTS // 64, 64, generator=base)
        found[f"layers.{number}.weight"] = (value + scale * torch.randn(value.shape, generator=noise)).bfloat16()
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name, scale in (("base", 0.0), ("post", 0.02), ("target", 0.05)):
        write_model(root / name, weights(len(name), scale), SHARDS, {"model_type": "toy"})
    noise = torch.Generator().manual_seed(7)
    stranger = {name: torch.randn(tensor.shape, generator=noise).bfloat16() for name, tensor in weights(1).items()}
    write_model(root / "stranger", stranger, SHARDS, {"model_type": "toy"})
    extract_in(root)
    apply_in(root, "target", "delta", "expected")
    return root


@pytest.fixture
def hub(models: Path) -> Iterator[LoopbackHub]:
    hub = LoopbackHub()
    hub.add("org/target", models / "target")
    hub.add("org/stranger", models / "stranger")
    with hub.running():
        yield hub


def command(hub: LoopbackHub, models: Path, here: Path, *more: str) -> subprocess.Popen[str]:
    arguments = [*more[:1], str(models / "delta"), "-o", str(here / "out"), "--stream", "--json", *more[1:]]
    return subprocess.Popen(
        [sys.executable, "-m", "paramdelta_hub", "apply", *arguments],
        env=hub.environment(here / "hf"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_files_come_and_go(hub: LoopbackHub, models: Path, tmp_path: Path) -> None:
    most, done = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            with contextlib.suppress(FileNotFoundError):
                names = os.listdir(tmp_path / "out.partial" / "pieces")
                most = max(most, sum(name.endswith(".safetensors") for name in names))
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    process = command(hub, models, tmp_path, "org/target", "--threads", "1")
    out, error = process.communicate(timeout=120)
    done.set()
    watcher.join()
    assert process.returncode == 0, error
    report = json.loads(out)
    assert report["deltas"][0]["lineage"]["tensors"] == SHARDS, (
        "judged by a few values of every file, before one is fetched"
    )
    assert_same(read_weights(tmp_path / "out"), read_weights(models / "expected"))
    assert (tmp_path / "out" / "config.json").exists()
    assert 1 <= most <= 3, "one in use, one coming"
    assert not list((tmp_path / "hf").rglob("*.safetensors")), "nothing of it stays in the cache"
    assert not (tmp_path / "out.partial").exists()


def test_a_killed_run_goes_on_and_fetches_nothing_twice_that_is_done(
    hub: LoopbackHub, models: Path, tmp_path: Path
) -> None:
    gate = threading.Event()  # the sixth file does not come before we say so: five tasks can end
    receipts = tmp_path / "out.partial" / "receipts"

    def wait() -> None:
        """Let pass what is read of the file before the work begins: its header and a few values."""
        if len(list(receipts.glob("*.json"))) >= 4:
            gate.wait(60)

    hub.faults = [Fault("intrude", rf"^GET .*/model-00006-of-0000{SHARDS}", act=wait, times=1000)]
    process = command(hub, models, tmp_path, "org/target", "--threads", "1")
    while process.poll() is None and len(list(receipts.glob("*.json"))) < 5:
        time.sleep(0.001)
    process.kill()
    process.communicate()
    gate.set()
    assert not (tmp_path / "out").exists()
    kept = len(list(receipts.glob("0*.json")))
    hub.faults, hub.requests = [], []
    process = command(hub, models, tmp_path, "org/target", "--threads", "1")
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert json.loads(out)["resumed_tasks"] == kept == 5
    assert_same(read_weights(tmp_path / "out"), read_weights(models / "expected"))


def test_strangers_are_refused_before_any_file_is_fetched(hub: LoopbackHub, models: Path, tmp_path: Path) -> None:
    process = command(hub, models, tmp_path, "org/stranger")
    _, error = process.communicate(timeout=120)
    assert process.returncode == 4, error
    assert "not kin" in error
    assert not (tmp_path / "out").exists()
    assert hub.sent < SHARDS * ELEMENTS * 2 / 8


def test_a_dry_run_fetches_a_few_values(hub: LoopbackHub, models: Path, tmp_path: Path) -> None:
    out, error = command(hub, models, tmp_path, "org/target", "--dry-run").communicate(timeout=120)
    told = json.loads(out)
    assert told["dry_run"], error
    (delta,) = told["deltas"]
    whole = pd.preview(pd.ApplyRequest(str(models / "target"), ((str(models / "delta"), 1.0),)), tmp_path / "out")
    assert delta["prediction"]["measured"] == whole.deltas[0].prediction.to_json()["measured"]
    assert delta["prediction"]["distance"] == pytest.approx(whole.deltas[0].prediction.distance, rel=0.3)
    assert hub.sent < SHARDS * ELEMENTS * 2 / 8
    assert {path.name for path in tmp_path.iterdir()} == {"hf"}


def test_only_the_hub_streams(models: Path, tmp_path: Path) -> None:
    with pytest.raises(pd.CheckpointError, match="not a Hub id"):
        pd.apply(models / "target", models / "delta", tmp_path / "out", stream=True)


@pytest.mark.parametrize("options", [["--stream"], []], ids=["streamed", "downloaded"])
def test_components(tmp_path: Path, options: list[str]) -> None:
    """A component's files come from the Hub as the others do, and its config with them."""
    for number, name in enumerate(("base", "post", "target")):
        for folder, shards in ((".", 1), ("2_Dense", 2)):
            tensors = {f"{part}.weight": torch.full((8, 4), 1.0 + number) for part in "ab"}
            write_model(tmp_path / name / folder, tensors, shards, {"in_features": 4})
        modules = [{"path": "", "type": "x.Transformer"}, {"path": "2_Dense", "type": "x.Dense"}]
        (tmp_path / name / "modules.json").write_text(json.dumps(modules))
    extract_in(tmp_path)
    hub = LoopbackHub()
    hub.add("org/target", tmp_path / "target")
    arguments = ["org/target", str(tmp_path / "delta"), "-o", str(tmp_path / "out"), "--force", *options]
    with hub.running():
        subprocess.run(
            [sys.executable, "-m", "paramdelta_hub", "apply", *arguments],
            env=hub.environment(tmp_path / "hf"),
            check=True,
        )
    for folder in (".", "2_Dense"):
        out = read_weights(tmp_path / "out" / folder)
        assert_same(out, {f"{part}.weight": torch.full((8, 4), 4.0) for part in "ab"})
    kept = ("2_Dense/config.json", "2_Dense/model.safetensors.index.json", "modules.json")
    for name in kept:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "target" / name).read_bytes()
