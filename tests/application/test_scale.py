"""Plans at the scale of DeepSeek-V3: 91,000 tensors in 163 files, from headers alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paramdelta_hub.checkpoints.checkpoint import open_checkpoint
from tests.support import deepseek

pytestmark = pytest.mark.slow

MEGABYTES = 1000
"""Generous bounds, for slow and busy machines; what was measured is printed."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base, post, and the package of a delta between them; for the files' sizes see ``du --apparent-size``."""
    folder = tmp_path_factory.mktemp("deepseek")
    for name in ("base", "post"):
        deepseek.write_headers(folder / name, deepseek.tensors())
    deepseek.write_package(folder / "delta", deepseek.tensors(), folder)
    return folder


def plan(operation: str, *paths: Path) -> dict[str, Any]:
    """Plan in a process of its own, whose peak memory is therefore the plan's."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.deepseek", operation, *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    print(operation, done.stdout)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_the_published_layout_has_91991_tensors() -> None:
    """As many as DeepSeek-V3's own index lists: that the generator is true to it."""
    assert sum(1 for _ in deepseek.tensors(experts=256, fp8=True)) == 91_991
    assert 91_000 < sum(1 for _ in deepseek.tensors()) < 92_000


def test_the_files_take_no_disk(models: Path) -> None:
    files = list(models.glob("*/*.safetensors"))
    assert sum(file.stat().st_size for file in files) > 3e12
    assert sum(file.stat().st_blocks * 512 for file in files) < 500e6
    assert len(open_checkpoint(models / "base").files) == deepseek.FILES


def test_an_extraction_is_planned_in_little_memory(models: Path) -> None:
    report = plan("extract", models / "base", models / "post", models / "new")
    assert report["tensors"] == sum(1 for _ in deepseek.tensors())
    assert report["bytes"] > 2.6e12
    assert report["tasks"] > 100
    assert report["peak_mb"] < MEGABYTES


def fill_scales(model: Path) -> None:
    """Give the 8-bit weights scales of 1, where a sparse file holds zeros, which are no scales."""
    for name, (file, span) in open_checkpoint(model).tensors.items():
        if name.endswith("_scale_inv"):
            with file.path.open("r+b") as written:
                written.seek(span.start)
                written.write(np.ones(span.elements, "<f4").tobytes())


def test_the_published_fp8_weights_are_planned_in_little_memory(models: Path) -> None:
    """Base as it is published, post in bfloat16: a scale in another file than its weight is found, too."""
    layout = list(deepseek.tensors(experts=256, fp8=True))
    base = deepseek.write_headers(models / "fp8", layout, fp8=True)
    post = deepseek.write_headers(models / "bf16", deepseek.tensors(experts=256))
    fill_scales(base)
    places = {name: file for name, (file, _) in open_checkpoint(base).tensors.items()}
    scaled = [name for name, dtype, _ in layout if dtype == "F8_E4M3"]
    assert any(places[name] != places[f"{name}_scale_inv"] for name in scaled)
    report = plan("extract", base, post, models / "new")
    assert report["tensors"] == len(layout) - len(scaled)
    assert report["peak_mb"] < MEGABYTES


def test_an_apply_is_planned_in_little_memory(models: Path) -> None:
    report = plan("apply", models / "post", models / "delta", models / "out")
    assert report["tensors"] == sum(1 for _ in deepseek.tensors())
    assert report["bytes"] > 1.3e12
    assert report["peak_mb"] < MEGABYTES
    assert not os.path.lexists(models / "out")
