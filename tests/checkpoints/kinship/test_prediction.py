"""Predictions from samples: distances are the models' own, and the nearer target is promised more."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from paramdelta_hub.checkpoints.checkpoint import open_checkpoint
from paramdelta_hub.checkpoints.kinship.lineage import compare_samples, unpack_samples
from paramdelta_hub.checkpoints.kinship.prediction import BANDS, Prediction, predict
from paramdelta_hub.checkpoints.logical import logical_model
from paramdelta_hub.package.package import Package, open_package
from tests.support.models import extract_in, write_model, write_models

SHAPE = (12, 20)
"""Small enough that every value is a sample, so that what follows from samples can be had from all."""


@pytest.fixture
def package(tmp_path: Path) -> Package:
    noise = torch.Generator().manual_seed(3)
    base = {name: torch.randn(SHAPE, generator=noise) for name in ("a", "b")}
    write_models(tmp_path, base=base, post={name: 1.01 * value for name, value in base.items()})
    extract_in(tmp_path, threads=1)
    return open_package(tmp_path / "delta")


def foreseen(package: Package, share: float) -> Prediction:
    """Predict for a target that lies this share of base's norm away, at right angles to base."""
    base = package.path.parent / "base"
    tensors = {}
    for name, tensor in {n: torch.tensor(v) for n, v in values(base).items()}.items():
        away = torch.randn(SHAPE, generator=torch.Generator().manual_seed(9))
        away -= tensor * (away * tensor).sum() / (tensor * tensor).sum()
        tensors[name] = tensor + away * (share * tensor.norm() / away.norm())
    target = write_model(package.path.parent / f"target-{share}", tensors)
    samples = unpack_samples(package.read_lineage(), "it")
    return predict(compare_samples(samples, logical_model(open_checkpoint(target)).tensors), package.manifest.tensors)


def values(model: Path) -> dict[str, list[list[float]]]:
    from safetensors.torch import load_file

    return {name: tensor.tolist() for name, tensor in load_file(model / "model.safetensors").items()}


@pytest.mark.parametrize("share", [0.001, 0.05, 0.2, 3.0])
def test_distance_and_ratio_are_the_models_own(package: Package, share: float) -> None:
    found = foreseen(package, share)
    assert found.distance == pytest.approx(share, rel=1e-3)
    assert found.delta_to_distance == pytest.approx(0.01 / share, rel=1e-3)
    assert not found.is_base


def test_farther_away_less_is_promised(package: Package) -> None:
    bands = [foreseen(package, share).measured for share in (0.001, 0.05, 0.2, 3.0)]
    assert bands == list(BANDS)
    text = str(foreseen(package, 0.05))
    assert "about 80 % of post's gain (range 46–98 %, 12 small trainings)" in text
    assert text.endswith("; distance to base: 5 % of base's norm, and Δ is 0.2 × as large")
    assert "about 0 % of post's gain (18 small trainings)" in str(foreseen(package, 3.0))


def test_base_itself_needs_no_prediction(package: Package) -> None:
    found = foreseen(package, 0.0)
    assert found.is_base
    assert found.measured is None
    assert found.to_json()["text"] == "the target is base: with weight 1 the result is post"


def test_what_can_not_be_compared_is_not_predicted(package: Package, tmp_path: Path) -> None:
    target = write_model(tmp_path / "odd", {name: torch.full(SHAPE, math.nan) for name in ("a", "b")})
    samples = unpack_samples(package.read_lineage(), "it")
    found = predict(compare_samples(samples, logical_model(open_checkpoint(target)).tensors), package.manifest.tensors)
    assert (found.measured, found.distance, found.delta_to_distance) == (None, None, None)
    assert str(found).startswith("no prediction")


def test_one_unrelated_tensor_does_not_change_what_is_promised_and_half_of_them_promise_nothing(tmp_path: Path) -> None:
    noise = torch.Generator().manual_seed(4)
    base = {f"layers.{number}.a": torch.randn(SHAPE, generator=noise) for number in range(6)}
    write_models(tmp_path, base=base, post={name: 1.01 * value for name, value in base.items()})
    extract_in(tmp_path, threads=1)
    package, found = open_package(tmp_path / "delta"), []
    for count in (0, 1, 3):
        near = {name: value + 0.001 * torch.randn(SHAPE, generator=noise) for name, value in base.items()}
        strange = {name: torch.randn(SHAPE, generator=noise) for name in list(base)[:count]}
        target = logical_model(open_checkpoint(write_model(tmp_path / str(count), {**near, **strange}))).tensors
        match = compare_samples(unpack_samples(package.read_lineage(), "it"), target)
        found.append(predict(match, package.manifest.tensors))
    assert [each.measured for each in found] == [BANDS[0], BANDS[0], BANDS[-1]]
    assert found[1].distance == pytest.approx(0.001, rel=0.1)
