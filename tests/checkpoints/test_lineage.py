"""Lineage: which values of base are kept, and what they say about a target."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from paramdelta_hub.checkpoints.checkpoint import open_checkpoint
from paramdelta_hub.checkpoints.lineage import (
    LineageMatch,
    compare_samples,
    pack_samples,
    sample,
    sample_runs,
    unpack_samples,
)
from paramdelta_hub.checkpoints.logical import logical_model
from paramdelta_hub.errors import CheckpointError, PackageError
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.limits import (
    KIN_CORRELATION,
    LINEAGE_RUN_LENGTH,
    LINEAGE_RUNS,
    REMOTE_LINEAGE_RUNS,
    REMOTE_LINEAGE_TENSORS,
)
from tests.support.models import TORCH, raw, tuned, weights, write_model


@pytest.mark.parametrize("elements", [0, 1, 255, 256, 257, 271, 272, 273, 1000, 10**6, 2**40])
def test_runs_lie_inside(elements: int) -> None:
    for name in ("a", "model.layers.0.weight", "模型"):
        runs = sample_runs(name, elements)
        assert runs == sample_runs(name, elements)
        assert all(0 <= run.start <= run.stop <= elements for run in runs)
        total = sum(run.stop - run.start for run in runs)
        assert total == min(elements, LINEAGE_RUNS * LINEAGE_RUN_LENGTH)
        assert [run.start for run in runs] == sorted(run.start for run in runs)


def test_the_draw_is_part_of_the_format() -> None:
    """Written down, because a reader that draws otherwise compares apples with pears."""
    import hashlib

    draws = np.frombuffer(hashlib.shake_128(b"model.norm.weight").digest(128), "<u8").tolist()
    expected = sorted(draw % (5000 - 15) for draw in draws)
    assert [run.start for run in sample_runs("model.norm.weight", 5000)] == expected
    assert sample_runs("a", 5000) != sample_runs("b", 5000)


def samples(model: Path) -> dict[str, tuple[str, np.ndarray]]:
    with OpenFiles(CheckpointError) as files:
        return {
            name: (tensor.dtype, sample(name, tensor, files))
            for name, tensor in logical_model(open_checkpoint(model)).tensors.items()
            if tensor.dtype in TORCH and tensor.elements
        }


def lineage(base: Path, target: Path) -> LineageMatch:
    return compare_samples(samples(base), logical_model(open_checkpoint(target)).tensors)


def test_samples_are_the_tensors_values(tmp_path: Path) -> None:
    tensor = torch.arange(3000, dtype=torch.float32)
    taken = samples(write_model(tmp_path / "m", {"w": tensor}))["w"][1].view("<f4")
    assert taken.tolist() == [float(at) for run in sample_runs("w", 3000) for at in range(run.start, run.stop)]


def test_pack_and_unpack(tmp_path: Path) -> None:
    taken = samples(write_model(tmp_path / "m", weights(0)))
    packed = pack_samples(taken)
    found = unpack_samples(packed, "it")
    assert found.keys() == taken.keys()
    for name, (dtype, values) in taken.items():
        assert found[name][0] == dtype
        assert np.array_equal(found[name][1], values)
    assert unpack_samples(pack_samples({}), "it") == {}
    for end in range(len(packed)):
        with pytest.raises(PackageError):
            unpack_samples(packed[:end], "it")
    with pytest.raises(PackageError):
        unpack_samples(packed + b"x", "it")
    with pytest.raises(PackageError):
        unpack_samples(b"\xff" * 16, "it")


def test_samples_of_other_types_are_refused() -> None:
    from paramdelta_hub.fileio.safetensors import build_header

    with pytest.raises(PackageError, match="holds I64"):
        unpack_samples(build_header([("a", "I64", (1,), 8)], {}) + bytes(8), "it")


def test_kin_and_strangers(tmp_path: Path) -> None:
    base = weights(1)
    models = {
        "base": base, "tuned": tuned(base, 2), "far": tuned(base, 3, scale=0.03), "stranger": weights(2),
        "negative": {name: -t if t.is_floating_point() else t for name, t in base.items()},
    }  # fmt: skip
    for name, tensors in models.items():
        write_model(tmp_path / name, tensors)
    same = lineage(tmp_path / "base", tmp_path / "base")
    assert same.same_values
    assert same.correlation == pytest.approx(1.0)
    close, far = lineage(tmp_path / "base", tmp_path / "tuned"), lineage(tmp_path / "base", tmp_path / "far")
    assert close.is_related
    assert far.is_related
    assert not close.same_values
    assert close.correlation is not None
    assert far.correlation is not None
    assert 1 > close.correlation > 0.99 > far.correlation > KIN_CORRELATION
    for name in ("stranger", "negative"):
        assert not lineage(tmp_path / "base", tmp_path / name).is_related


def test_vectors_do_not_count_where_there_are_matrices(tmp_path: Path) -> None:
    """Norms of unrelated models resemble one another."""
    norm = torch.linspace(0.5, 1.5, 100)
    noise = [torch.randn(40, 40, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    for name, matrix in zip(("a", "b"), noise, strict=True):
        write_model(tmp_path / name, {"norm": norm, "w": matrix})
    found = lineage(tmp_path / "a", tmp_path / "b")
    assert not found.is_related
    assert found.tensors == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, 1.0])
def test_what_can_not_be_compared_is_not_kin(tmp_path: Path, value: float) -> None:
    write_model(tmp_path / "base", {"w": torch.randn(10, 10, generator=torch.Generator().manual_seed(0))})
    write_model(tmp_path / "target", {"w": torch.full((10, 10), value)})
    found = lineage(tmp_path / "base", tmp_path / "target")
    assert found.correlation is None
    assert not found.is_related
    assert str(found) == "nothing to compare"


def test_tiny_and_constant_models_are_kin_to_themselves_alone(tmp_path: Path) -> None:
    write_model(tmp_path / "base", {"w": torch.ones(3)})
    write_model(tmp_path / "other", {"w": torch.ones(3) * 2})
    assert lineage(tmp_path / "base", tmp_path / "base").is_related
    assert not lineage(tmp_path / "base", tmp_path / "other").is_related
    assert not compare_samples({}, logical_model(open_checkpoint(tmp_path / "base")).tensors).is_related


def test_where_every_run_is_a_request_few_are_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = {f"{number:03d}": torch.randn(40, 40) for number in range(100)} | {"small": torch.randn(4, 4, 4)}
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "tuned", {name: value + 0.1 * torch.randn(value.shape) for name, value in base.items()})
    taken, reads = samples(tmp_path / "base"), []

    class Counted(OpenFiles):
        def read(self, path: str, position: int, out: np.ndarray) -> None:
            reads.append((position, out.size))
            super().read(path, position, out)

    for name in ("base", "tuned"):
        tensors = logical_model(open_checkpoint(tmp_path / name)).tensors
        reads.clear()
        with Counted(CheckpointError) as files:
            found = compare_samples(taken, tensors, files)
        assert found.tensors == REMOTE_LINEAGE_TENSORS
        assert len(set(reads)) == len(reads) <= REMOTE_LINEAGE_TENSORS * REMOTE_LINEAGE_RUNS
        assert found.same_values == (name == "base")
        assert found.correlation == pytest.approx(1.0 if name == "base" else 1 / math.sqrt(1.01), abs=1e-3)
    unknown = {name: (dtype, values[:-4]) for name, (dtype, values) in taken.items()}
    with OpenFiles(CheckpointError) as files:
        assert compare_samples(unknown, tensors, files).correlation is None, "samples that no honest package has"


def test_correlation_is_pearsons(tmp_path: Path) -> None:
    a = torch.randn(20, 12, generator=torch.Generator().manual_seed(5))
    b = a + 0.7 * torch.randn(20, 12, generator=torch.Generator().manual_seed(6))
    write_model(tmp_path / "a", {"w": a})
    write_model(tmp_path / "b", {"w": b})
    expected = np.corrcoef(a.double().reshape(-1), b.double().reshape(-1))[0, 1]
    assert lineage(tmp_path / "a", tmp_path / "b").correlation == pytest.approx(expected, abs=1e-12)
    assert raw(a) != raw(b)
