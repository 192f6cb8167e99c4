"""Models named by Hub id: the real client in a real process, over real sockets, against a Hub on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.support.hub import LoopbackHub
from tests.support.paramdelta import paramdelta


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
    return paramdelta(arguments, env=hub.environment(tmp_path / "hf", **extra), cwd=tmp_path)


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


_FAILING_DISK = """
import errno, sys
import huggingface_hub.file_download as downloads

def http_get(*arguments, **options):  # what brings the bytes of a file, in the real client
    raise OSError(getattr(errno, sys.argv[1]), "the disk")

downloads.http_get = http_get
from paramdelta_hub.cli import main

main(sys.argv[2:])
"""


@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EROFS", "EIO"])
def test_a_failing_disk_is_not_blamed_on_the_model(hub: LoopbackHub, tmp_path: Path, code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FAILING_DISK, code, "extract", "org/base", "org/post", "-o", "delta", "--json"],
        env=hub.environment(tmp_path / "hf"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 7, done.stderr
    error = json.loads(done.stdout)["error"]
    assert error["kind"] == "storage"
    assert "HF_HOME" in error["remedy"]


def test_a_file_that_may_not_grow_so_far(hub: LoopbackHub, tmp_path: Path) -> None:
    """The system itself refuses the bytes, in the middle of a download."""
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
    code = f"{limited}from paramdelta_hub.cli import main\nmain(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, "extract", "org/base", "org/post", "-o", "delta"],
        env=hub.environment(tmp_path / "hf"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 7, done.stderr
    assert "storing a download from the Hub failed" in done.stderr
    assert "Traceback" not in done.stderr


_AS_NOBODY = """
import os, sys
import paramdelta_hub.application.apply, paramdelta_hub.registry.hub.registry, huggingface_hub, torch
from paramdelta_hub.cli import main

child = os.fork()
if not child:
    os.seteuid(65534)
    try:
        main(sys.argv[1:])
    except SystemExit as end:
        os._exit(end.code or 0)
    os._exit(99)
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("model", ["locked/org/base", "org/base"], ids=["a path", "like an id"])
def test_a_folder_that_may_not_be_read_is_not_blamed_on_the_hub(hub: LoopbackHub, tmp_path: Path, model: str) -> None:
    shutil.copytree(tmp_path / "repos/base", tmp_path / "locked/org/base")
    (tmp_path / "locked/org").chmod(0o700)
    for folder in (tmp_path, *tmp_path.parents):  # which pytest keeps from other users
        if folder.stat().st_mode & 0o005 != 0o005:
            folder.chmod(0o755)
    cwd = tmp_path / ("locked" if model.startswith("org/") else ".")
    done = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, "extract", model, "org/post", "-o", str(tmp_path / "delta")],
        env=hub.environment(tmp_path / "hf", PYTHONPATH=os.getcwd()),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 3, done.stderr
    assert f"{model}: can't be read: Permission denied" in done.stderr
    assert not [path for _, path in hub.requests if "/resolve/" in path]
