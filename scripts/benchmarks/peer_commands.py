"""The tools and scripts that the package is compared with, and the virtual environment they run in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from scripts.benchmarks.process import Command, durable

__all__ = ["add_up", "python", "versions"]

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(__file__).parent / "peers"
VENV = ROOT / ".venv-peers"
REQUIREMENTS = (ROOT / "scripts" / "constraints.txt", PEERS / "requirements.txt")
# torch gives fresh memory back to the system and asks for it again; with large pages that costs them least. It is a
# third of the naive script's time, and whoever knows of it sets it.
ENVIRONMENT = {"THP_MEM_ALLOC_ENABLE": "1", "HF_HUB_OFFLINE": "1", "BIGSMALL_DISABLE_VERSION_CHECK": "1"}


def python() -> str:
    """Return the peers' interpreter; make its environment if there is none, or the requirements are newer."""
    ready, executable = VENV / "ready", str(VENV / "bin" / "python")
    if not ready.exists() or any(path.stat().st_mtime > ready.stat().st_mtime for path in REQUIREMENTS):
        print(f"installing the peers into {VENV.name} (2 GB) …", file=sys.stderr)
        constraints, requirements = map(str, REQUIREMENTS)
        pip = [executable, "-m", "pip", "install", "--quiet", "-c", constraints]
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
        subprocess.run([*pip, "torch"], check=True)  # first and by itself: what comes after leaves it alone
        subprocess.run([*pip, "-r", requirements], check=True)
        ready.touch()
    return executable


def versions() -> dict[str, str]:
    """Return the versions of what is installed there."""
    listed = subprocess.run([python(), "-m", "pip", "list", "--format=json"], capture_output=True, check=True).stdout
    wanted = {"torch", "safetensors", "transformers", "numpy"}
    for line in (PEERS / "requirements.txt").read_text().splitlines():
        wanted.add(line.partition("==")[0])
    return {entry["name"]: entry["version"] for entry in json.loads(listed) if entry["name"] in wanted}


def add_up(models: Path, work: Path, model_bytes: int) -> list[Command]:
    """Return the commands of others that make target + post − base, of the three models in ``models``."""
    three = [models / role for role in ("base", "post", "target")]
    found = []
    for name, script, times in (("naive script", "naive.py", 5), ("careful script", "careful.py", 0)):
        out = work / "added"
        argv = [python(), str(PEERS / script), *map(str, three), str(out)]
        found.append(Command(name, argv, three, out, times * model_bytes, ENVIRONMENT, makes_model=True))
    for method in ("linear", "task_arithmetic"):
        out = work / "merged"
        config = work / f"mergekit-{method}.yml"
        config.write_text(_recipe(method, *three))
        argv = [
            str(VENV / "bin" / "mergekit-yaml"), str(config), str(out),
            # Everything that could make it faster. Shards of 2 GB are written while the next is computed.
            "--lazy-unpickle", "--async-write", "--write-threads", "2", "--num-threads", "2", "--out-shard-size", "1B",
            "--quiet", "--no-copy-tokenizer", "--no-write-model-card",
        ]  # fmt: skip
        found.append(Command(f"mergekit {method}", durable(argv), three, out, 0, ENVIRONMENT, makes_model=True))
    script, residuals, out = str(PEERS / "residual.py"), work / "residuals", work / "added"
    found.append(
        Command(
            "residuals, apply",
            durable([python(), script, "apply", str(models / "target"), str(residuals), str(out)]),
            [models / "target", residuals],
            out,
            5 * model_bytes,
            ENVIRONMENT,
            prepare=[python(), script, "extract", str(models / "base"), str(models / "post"), str(residuals)],
            prepared=residuals,
            makes_model=True,
        )
    )
    return found


def _recipe(method: str, base: Path, post: Path, target: Path) -> str:
    """Return mergekit's configuration for target + post − base."""
    linear = method == "linear"
    recipe = {
        "merge_method": method,
        "dtype": "bfloat16",
        "parameters": {"normalize": False},
        "models": [
            {"model": str(model), "parameters": {"weight": weight}}
            for model, weight in ((post, 1), (base, -1), (target, 1))
            if linear or model != base
        ],
        **({} if linear else {"base_model": str(base)}),
    }
    return json.dumps(recipe)  # which is YAML, too
