"""Fixtures: three related tiny models, and the package of their delta."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import paramdelta_hub as pd
from tests.support.models import TORCH, tuned, weights, write_model


def pytest_configure() -> None:
    """Let processes that the tests start be interrupted, as from a terminal.

    A shell makes what it starts with `&` ignore SIGINT, and every process below inherits that. One that *handles* a
    signal hands the default on.

    And let no test fail for the time that it takes: the machine may be busy.
    """
    settings.register_profile("busy", deadline=None)
    settings.load_profile("busy")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow tests, so that none of them is left over when all other processes have nothing more to do."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@dataclass(frozen=True)
class Family:
    """Base, its fine-tune, another model of the same ancestry, and the delta's package."""

    base: Path
    post: Path
    target: Path
    delta: Path


def make_family(root: Path, seed: int = 0, dtype: torch.dtype = torch.bfloat16, shards: int = 1) -> Family:
    """Write the models and extract the delta."""
    base = weights(seed, dtype)
    models = {"base": base, "post": tuned(base, seed + 1), "target": tuned(base, seed + 2, scale=0.01)}
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16}
    for name, tensors in models.items():
        write_model(root / name, tensors, shards, config)
    pd.extract(root / "base", root / "post", root / "delta", threads=1)
    return Family(root / "base", root / "post", root / "target", root / "delta")


@pytest.fixture(scope="session")
def shared_family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A family in bfloat16 that no test may change."""
    return make_family(tmp_path_factory.mktemp("family"))


@pytest.fixture
def family(shared_family: Family, tmp_path: Path) -> Family:
    """A family in bfloat16, this test's own."""
    root = tmp_path / "family"
    shutil.copytree(shared_family.base.parent, root)
    return Family(root / "base", root / "post", root / "target", root / "delta")


@pytest.fixture(scope="session")
def memory() -> Iterator[Path]:
    """A folder in memory, where there is one: hundreds of runs would wait for a disk that they have no need of."""
    shared = "/dev/shm"
    made = Path(tempfile.mkdtemp(prefix="paramdelta-", dir=shared if os.access(shared, os.W_OK) else None))
    yield made
    shutil.rmtree(made)


@pytest.fixture(params=sorted(TORCH))
def dtype_name(request: pytest.FixtureRequest) -> str:
    """Each of the weight dtypes, by its safetensors name."""
    name: str = request.param
    return name


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what only a power cut could need, for tests that make thousands of small files."""
    for name in ("fsync", "fdatasync"):
        if hasattr(os, name):
            monkeypatch.setattr(os, name, lambda _: None)


@pytest.fixture
def outside(tmp_path: Path) -> Callable[[], set[str]]:
    """Return a function that lists every file below the test's folder."""
    return lambda: {os.path.relpath(os.path.join(at, f), tmp_path) for at, _, fs in os.walk(tmp_path) for f in fs}
