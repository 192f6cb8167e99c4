"""The demo: move what one fine-tune learnt to a model that never saw it, by the commands a user would type.

Run by ``scripts/demo``, which makes the environment. all-MiniLM-L6-v2 was fine-tuned by two people who don't know of
each other: once on the vocabulary of site reliability engineering (SRE), once on résumés. We extract the first
fine-tune as a delta, and apply it to the second.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

# What is needed is on this machine: nothing is asked of the Hub. Both are read when the libraries are imported.
os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from scripts.weights import fetch

ROOT = Path(__file__).resolve().parents[2]
DEMO = Path("demo")
# The commands of this environment, by the names a user types.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def run(*command: str | Path) -> float:
    """Show a command line, run it, and return its seconds; stop the demo if it fails."""
    print(f"\n$ {shlex.join(map(str, command))}", flush=True)
    started = time.perf_counter()
    code = subprocess.run([str(part) for part in command]).returncode
    if code:
        sys.exit(code)
    return time.perf_counter() - started


def cosines(model: Path, pairs: list[list[str]]) -> torch.Tensor:
    """Return how close each pair's first sentence (row) is to each pair's second (column).

    Sentences become vectors as the models' cards say: the mean of the last layer over the tokens, normalised.
    """
    sentences = [sentence for pair in pairs for sentence in pair]
    tokens = AutoTokenizer.from_pretrained(model)(sentences, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = AutoModel.from_pretrained(model)(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    vectors = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    return vectors[0::2] @ vectors[1::2].T


def compare(models: dict[str, Path], pairs: list[list[str]]) -> None:
    """Print a row for each model; the last one is the fine-tune that the others are held against."""
    found = {name: cosines(path, pairs) for name, path in models.items()}
    *_, wanted = found.values()
    same = torch.eye(len(pairs), dtype=torch.bool)
    print(f"  {'mean cosine of':<18}{'pairs':>8}{'others':>9}{'nearest is the pair':>22}{'like the fine-tune':>21}")
    for name, matrix in found.items():
        nearest = (matrix.argmax(1) == torch.arange(len(pairs))).float().mean()
        alike = torch.corrcoef(torch.stack([matrix.flatten(), wanted.flatten()]))[0, 1]
        print(f"  {name:<18}{matrix[same].mean():>8.2f}{matrix[~same].mean():>9.2f}{nearest:>22.0%}{alike:>21.3f}")


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> None:
    os.chdir(ROOT)
    logging.disable_progress_bar()
    print("fetching three checkpoints (about 250 MB, once) …", flush=True)
    base, sre, rohan = (_short(fetch(name)) for name in ("minilm-base", "minilm-sre", "minilm-rohan"))
    delta, registry, result = DEMO / "sre-delta", DEMO / "registry", DEMO / "rohan-sre"
    published = f"{registry}/demo/minilm-sre@1.0.0"
    for old in (delta, registry, result):  # of an earlier run of this demo
        shutil.rmtree(old, ignore_errors=True)

    extracting = run("pd-extract", base, sre, "-o", delta, "--name", "minilm-sre", "--version", "1.0.0")
    verifying = run("pd-verify", delta, "--base", base, "--post", sre)
    run("pd-publish", delta, registry / "demo/minilm-sre")
    run("pd-search", "--base", rohan, "--registry", registry)
    run("pd-inspect", published, "--top", "5")
    applying = run("pd-apply", rohan, published, "-o", result)

    models = {"minilm-rohan": rohan, "minilm-rohan + Δ": result, "minilm-sre": sre}
    pairs = json.loads(Path(__file__).with_name("sre_pairs.json").read_text(encoding="utf-8"))
    print("\nWhat was gained: SRE phrases of one meaning lie close, as in the fine-tune that the delta was taken from.")
    print(f"\n  {len(pairs['published'])} pairs that the fine-tune's author publishes:")
    compare(models, pairs["published"])
    print(f"\n  {len(pairs['ours'])} pairs written for this demo, which the fine-tune never saw:")
    compare(models, pairs["ours"])
    print(
        "\n  The last column is the correlation with minilm-sre's cosines. A delta carries over what the fine-tune"
        "\n  does, its faults too: this one moves all SRE phrases together, pairs or not."
    )
    whole, package = (sre / "model.safetensors").stat().st_size, size(delta)
    print("\nWhat it cost:")
    print(f"  the delta is {package / 1e6:.1f} MB, the model {whole / 1e6:.1f} MB ({package / whole:.0%})")
    print(f"  extract {extracting:.1f} s, verify {verifying:.1f} s, apply {applying:.1f} s, and no training")


def _short(path: Path) -> Path:
    """Return a path below this repository as one would type it there."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


if __name__ == "__main__":
    main()
