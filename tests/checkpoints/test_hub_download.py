"""Models named by Hub id: the real client in a real process, over real sockets, against a Hub on loopback."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.hub import LoopbackHub


def model(folder: Path, seed: int) -> Path:
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 32, generator=generator)
    noise = 0.01 * torch.randn(64, 32, generator=torch.Generator().manual_seed(seed))
    save_file({"layer.weight": (weight + noise).bfloat16()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text('{"model_type": "toy"}')
    (folder / "modeling_toy.py").write_text("raise SystemExit('never run, never fetched')")
    (folder / "pytorch_model.bin").write_bytes(b"never fetched")
    return folder


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    hub = LoopbackHub()
    for seed, name in enumerate(("base", "post", "gated", "secret"), 1):
        folder = model(tmp_path / "repos" / name, seed)
        hub.add(f"org/{name}", folder, gated=name == "gated", private=name == "secret")
    with hub.running():
        yield hub


def run(hub: LoopbackHub, tmp_path: Path, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "paramdelta_hub", *arguments],
        env=hub.environment(tmp_path / "hf", **extra),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_extract_by_id_records_commits_and_takes_digests_from_the_cache(hub: LoopbackHub, tmp_path: Path) -> None:
    commit = hub.repositories["org/base"].head.id
    done = run(hub, tmp_path, "extract", f"org/base@{commit}", "org/post", "-o", "delta", "--json")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "delta" / "manifest.json").read_text())
    assert manifest["base"]["name"] == "org/base"
    assert manifest["base"]["commit"] == commit
    assert manifest["post"]["commit"] == hub.repositories["org/post"].head.id
    [file] = manifest["post"]["files"]
    weights = hub.repositories["org/post"].head.files["model.safetensors"].content
    assert file["sha256"] == hashlib.sha256(weights).hexdigest()
    fetched = [path for command, path in hub.requests if command == "GET" and "/resolve/" in path]
    assert fetched
    assert not [path for path in fetched if path.endswith((".py", ".bin"))]

    # What is cached is used offline, and the result is post itself.
    done = run(hub, tmp_path, "apply", f"org/base@{commit}", "delta", "-o", "out", "--json", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["is_post"] is True


@pytest.mark.parametrize(
    ("identifier", "words"),
    [
        ("org/absent", "no such repository"),
        ("org/base@v9", "no such revision"),
        ("org/gated", "gated"),
        ("org/secret", "HF_TOKEN"),
        ("org/base@", "no such file or folder"),
        ("../etc/passwd", "no such file or folder"),
    ],
)
def test_what_the_hub_does_not_have_is_one_clear_error(
    hub: LoopbackHub, tmp_path: Path, identifier: str, words: str
) -> None:
    done = run(hub, tmp_path, "extract", identifier, "org/post", "-o", "delta")
    assert done.returncode == 3, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "delta").exists()


def test_offline_and_not_cached_says_so(hub: LoopbackHub, tmp_path: Path) -> None:
    done = run(hub, tmp_path, "extract", "org/base", "org/post", "-o", "delta", HF_HUB_OFFLINE="1")
    assert done.returncode == 3, done.stderr
    assert "HF_HUB_OFFLINE" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("more", [(), ("--stream",)], ids=["whole", "streamed"])
def test_code_comes_only_when_asked_for(hub: LoopbackHub, tmp_path: Path, more: tuple[str, ...]) -> None:
    config = b'{"model_type": "toy", "auto_map": {"AutoModel": "modeling_toy.ToyModel"}}'
    hub.repositories["org/base"].add({"config.json": config})
    done = run(hub, tmp_path, "extract", "org/base", "org/post", "-o", "delta")
    assert done.returncode == 0, done.stderr
    done = run(hub, tmp_path, "apply", "org/base", "delta", "-o", "out", *more)
    assert done.returncode == 3, done.stderr
    assert "--keep-remote-code-of-target" in done.stderr
    assert not [path for _, path in hub.requests if path.endswith(".py")]
    done = run(hub, tmp_path, "apply", "org/base", "delta", "-o", "out", "--keep-remote-code-of-target", *more)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "modeling_toy.py").read_text().startswith("raise SystemExit")
