"""How large packages are: on real and generated pairs, stream by stream, beside their bound and beside other formats.

Every pair is two folders with the same bfloat16 tensors and nothing else, made once: what one format is given, all are.
A package is counted with everything in it: manifest, lineage samples, headers and tables.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.benchmarks import peer_commands
from scripts.benchmarks.package import anatomy
from scripts.tools.generate import Recipe, generate
from scripts.weights import fetch

__all__ = ["PAIRS", "measure"]

# 24 million parameters, as many as MiniLM: xdelta3 and zstd-19 take their time.
SMALL = {"layers": 2, "shards": 1, "vocab": 8192, "hidden": 768, "intermediate": 3072, "heads": 12, "kv_heads": 4}


@dataclass(frozen=True)
class Pair:
    """A base and a post; generated, or fetched and cast to bfloat16."""

    key: str
    title: str
    base: str = ""
    post: str = ""
    rename: str = ""
    """What to put before post's names to make them base's."""
    delta: float = 0.0
    """For a generated pair: spread of the delta, as a share of the weights'."""

    def make(self, work: Path) -> Path:
        """Return the folder with ``base`` and ``post``; make it if it is not there."""
        home = work / "pairs" / self.key
        if self.delta:
            generate(home, Recipe(**SMALL, delta=self.delta), roles=("base", "post"))
        elif not home.is_dir():
            partial = home.with_name(f"{self.key}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            _cast(fetch(self.base), fetch(self.post), self.rename, partial)
            partial.rename(home)
        return home


PAIRS = (
    Pair("sre", "MiniLM-L6 → SRE fine-tune", "minilm-base", "minilm-sre"),
    Pair("resume", "MiniLM-L6 → résumé fine-tune", "minilm-base", "minilm-rohan"),
    Pair("rxnfp-10k", "rxnfp BERT → fine-tune on 10,000", "rxnfp-pretrained", "rxnfp-10k"),
    Pair("rxnfp-ft", "rxnfp BERT → fine-tune on all", "rxnfp-pretrained", "rxnfp-ft", rename="bert."),
    Pair("gaussian-0.1", "Gaussian, 0.1 %", delta=0.001),
    Pair("gaussian-1.2", "Gaussian, 1.2 %", delta=0.012),
    Pair("gaussian-3", "Gaussian, 3 %", delta=0.03),
    Pair("gaussian-8", "Gaussian, 8 %", delta=0.08),
    Pair("gaussian-15", "Gaussian, 15 %", delta=0.15),
)


def _cast(base: Path, post: Path, rename: str, home: Path) -> None:
    """Write the float tensors that both have, in bfloat16."""
    import torch
    from safetensors.torch import load_file, save_file

    ours, theirs = (load_file(folder / "model.safetensors") for folder in (base, post))
    theirs = {name if name in ours else rename + name: tensor for name, tensor in theirs.items()}
    both = [name for name in ours if name in theirs and ours[name].is_floating_point()]
    for role, model in (("base", ours), ("post", theirs)):
        (home / role).mkdir(parents=True)
        cast = {name: model[name].to(torch.bfloat16).contiguous() for name in both}
        save_file(cast, home / role / "model.safetensors", {"format": "pt"})


def measure(work: Path, peers: bool) -> list[dict[str, Any]]:
    """Return, for every pair, what our package and every other format take."""
    return [_measure(pair, work, peers) for pair in PAIRS]


def _measure(pair: Pair, work: Path, peers: bool) -> dict[str, Any]:
    home = pair.make(work)
    base, post, delta, scratch = (home / name for name in ("base", "post", "delta", "scratch"))
    shutil.rmtree(delta, ignore_errors=True)
    ours = [sys.executable, "-m", "paramdelta_hub"]
    subprocess.run([*ours, "extract", str(base), str(post), "-o", str(delta), "-q"], check=True)
    # base ⊕ Δ == post, bit for bit, or this ends with an error.
    subprocess.run([*ours, "verify", str(delta), "--base", str(base), "--post", str(post), "-q"], check=True)
    result = {"key": pair.key, "title": pair.title, "real": not pair.delta, **anatomy(delta), "peers": []}
    shutil.rmtree(delta)
    print(f"  {pair.title}: {8 * sum(result['bytes'].values()) / result['elements']:.3f} bits", file=sys.stderr)
    if peers:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        command = [peer_commands.python(), "-W", "ignore", str(peer_commands.PEERS / "formats.py")]
        process = subprocess.Popen(
            [*command, str(base), str(post), str(scratch)],
            stdout=subprocess.PIPE, text=True, env={**os.environ, **peer_commands.ENVIRONMENT},
        )  # fmt: skip
        assert process.stdout
        for line in process.stdout:
            result["peers"].append(peer := json.loads(line))
            print(f"    {peer['name']:<28} {8 * peer['bytes'] / result['elements']:6.3f} bits", file=sys.stderr)
        if process.wait():
            sys.exit(f"{' '.join(command)} ended with {process.returncode}")
        shutil.rmtree(scratch)
    return result
