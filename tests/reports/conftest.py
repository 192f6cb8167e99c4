"""Packages whose deltas are known: low-rank, noise, and two that agree as far as they were made to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import paramdelta_hub as pd
from paramdelta_hub.package.manifest import Manifest
from paramdelta_hub.package.package import Package, open_package
from tests.attacks.outcomes import reseal_files, shard_of
from tests.conftest import Family
from tests.registry.packages import labelled
from tests.support.models import write_model

ROWS, COLUMNS = 1800, 600
"""More elements than a chunk has: 2**20."""


@pytest.fixture(scope="session")
def manifest(shared_family: Family) -> Manifest:
    return open_package(shared_family.delta).manifest


@pytest.fixture(scope="session")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Package]:
    """Deltas of one base in float32, by what they are."""
    root = tmp_path_factory.mktemp("known")
    noise = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=noise)

    names = [f"model.layers.{layer}.mlp.weight" for layer in range(3)]
    base = {name: normal(ROWS, COLUMNS) for name in names} | {"model.norm.weight": torch.ones(16)}
    first = {name: 0.01 * normal(ROWS, COLUMNS) for name in names[:2]} | {"model.norm.weight": 0.1 * normal(16)}
    low = {names[0]: 0.01 * normal(ROWS, 4) @ normal(4, COLUMNS)}
    deltas = {
        "noise": first,
        "opposite": {name: -delta for name, delta in first.items()},
        "low": low,
        "both": {names[0]: first[names[0]] + low[names[0]], names[2]: 0.01 * normal(ROWS, COLUMNS)},
    }
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    write_model(root / "base", base, config=config)
    packages = {}
    for label, delta in deltas.items():
        post = {name: value + delta.get(name, 0.0) for name, value in base.items()}
        write_model(root / f"post-{label}", post, config=config)
        pd.extract(root / "base", root / f"post-{label}", root / label, name=label, threads=2)
        packages[label] = open_package(root / label)
    return packages


def damaged(package: Package, to: Path) -> Package:
    """Return a copy with one bit of a payload turned over, in a shard that is as promised: only that payload is not."""
    broken = labelled(package.path, to)
    shard = shard_of(broken)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    reseal_files(broken)
    return open_package(broken)


def dense(package: Package) -> dict[str, torch.Tensor]:
    """Return every Δ of a package, whole: what the measures must agree with."""
    return {name: delta.double() for name, delta in pd.tensors(Path(package.path))}
