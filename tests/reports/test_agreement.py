"""Comparing deltas: sums are those of the dense tensors, whatever the threads; what can't be compared is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import paramdelta_hub as pd
from paramdelta_hub.errors import OptionError, PackageError
from paramdelta_hub.package.package import Package, open_package
from paramdelta_hub.reports.agreement import compare_packages
from scripts.weights import fetch
from tests.conftest import Family
from tests.reports.conftest import damaged, dense
from tests.support.models import read_weights, write_model


@pytest.mark.parametrize("threads", [1, 3])
def test_the_sums_are_those_of_the_dense_tensors(known: dict[str, Package], threads: int) -> None:
    packages = [known[label] for label in ("noise", "low", "both")]
    found = compare_packages(packages, threads=threads)
    tensors = [dense(package) for package in packages]
    assert tuple(pair.deltas for pair in found.pairs) == ((0, 1), (0, 2), (1, 2))
    assert found.tensors == len(tensors[0]) == found.same_base_tensors
    assert found.elements == sum(tensor.numel() for tensor in tensors[0].values())
    for total in found.pairs:
        a, b = total.deltas
        left, right = (torch.cat([tensor.flatten() for tensor in tensors[side].values()]) for side in (a, b))
        assert total.cosine == pytest.approx(float(torch.cosine_similarity(left, right, dim=0)), abs=1e-10)
        both = (left != 0) & (right != 0)
        assert total.moved_by_both == int(both.sum())
        opposed = int((both & (left.sign() != right.sign())).sum())
        assert total.opposite_signs == opposed / total.moved_by_both
    for layer in found.layers[:3]:
        name = f"model.layers.{layer.layer}.mlp.weight"
        a, b = (tensors[side][name].flatten() for side in found.pairs[1].deltas)
        expected = float(torch.cosine_similarity(a, b, dim=0)) if a.any() and b.any() else None
        assert layer.pairs[1].cosine == (None if expected is None else pytest.approx(expected, abs=1e-10))
    assert [layer.layer for layer in found.layers] == ["0", "1", "2", "outside the layers"]


def test_threads_make_no_difference(known: dict[str, Package]) -> None:
    packages = [known["noise"], known["both"]]
    one, three = (compare_packages(packages, threads=threads).to_json() for threads in (1, 3))
    assert json.dumps(one) == json.dumps(three)


def test_a_delta_against_itself_and_its_opposite(known: dict[str, Package]) -> None:
    found = compare_packages([known["noise"], known["noise"], known["opposite"]])
    same, opposite, _ = found.pairs
    assert same.cosine == pytest.approx(1.0, abs=1e-10)
    assert same.opposite_signs == 0.0
    assert opposite.cosine == pytest.approx(-1.0, abs=1e-5), "rounding differs"
    assert opposite.opposite_signs == pytest.approx(1.0, abs=1e-5)


def test_what_can_not_be_compared_is_told(family: Family, tmp_path: Path) -> None:
    base = read_weights(family.base)
    for side, shift in (("base", 0.0), ("post", 0.5)):
        tensors = {name: value + shift if value.is_floating_point() else value for name, value in base.items()}
        del tensors["model.layers.1.bias"]
        tensors["model.layers.0.mlp.weight"] = tensors["model.layers.0.mlp.weight"][:, :8]
        write_model(tmp_path / side, tensors)
    pd.extract(tmp_path / "base", tmp_path / "post", tmp_path / "delta", threads=1)
    found = compare_packages([open_package(family.delta), open_package(tmp_path / "delta")])
    assert {omission.name: omission.reason for omission in found.omissions} == {
        "model.layers.1.bias": "not in all of them",
        "model.layers.0.mlp.weight": "of different shapes",
        "model.steps": "replaced, not added",
        "model.mask": "replaced, not added",
    }
    assert found.tensors == 3


def test_strangers_have_nothing_in_common(family: Family, tmp_path: Path) -> None:
    for side in ("base", "post"):
        write_model(tmp_path / side, {"other": torch.ones(4) * (2 if side == "post" else 1)})
    pd.extract(tmp_path / "base", tmp_path / "post", tmp_path / "delta", threads=1)
    with pytest.raises(OptionError, match="no tensor in common"):
        compare_packages([open_package(family.delta), open_package(tmp_path / "delta")])


@pytest.mark.parametrize("number", [0, 1, 7])
def test_two_to_six_are_compared(known: dict[str, Package], number: int) -> None:
    with pytest.raises(OptionError, match="can't be compared"):
        compare_packages([known["low"]] * number)


def test_a_damaged_package_gives_no_figures(known: dict[str, Package], tmp_path: Path) -> None:
    broken = damaged(known["noise"], tmp_path / "broken")
    with pytest.raises(PackageError):
        compare_packages([known["noise"], broken])


def test_the_report_is_json(known: dict[str, Package]) -> None:
    report = json.loads(json.dumps(compare_packages([known["low"], known["both"]]).to_json(), allow_nan=False))
    assert [delta["name"] for delta in report["deltas"]] == ["low", "both"]
    assert [layer["layer"] for layer in report["layers"]] == ["0", "1", "2", "outside the layers"]
    assert report["layers"][1]["pairs"] == [
        {"deltas": [0, 1], "cosine": None, "moved_by_both": 0, "opposite_signs": None}
    ]


@pytest.mark.weights
def test_two_fine_tunes_that_others_trained(tmp_path: Path) -> None:
    base = fetch("minilm-base")
    for name in ("minilm-sre", "minilm-rohan"):
        pd.extract(base, fetch(name), tmp_path / name)
    found = pd.compare([tmp_path / "minilm-sre", tmp_path / "minilm-rohan"])
    assert (found.tensors, found.same_base_tensors, found.elements) == (103, 103, 22_713_216)
    *layers, outside = found.layers
    (rest,) = outside.pairs
    # In the layers as if they were unrelated; nearly every embedding drifted towards zero in both, a little.
    assert len(layers) == 6
    assert all(abs(agreement.cosine or 1.0) < 0.02 for layer in layers for agreement in layer.pairs)
    assert all(
        agreement.opposite_signs == pytest.approx(0.5, abs=0.01) for layer in layers for agreement in layer.pairs
    )
    assert outside.layer == "outside the layers"
    assert rest.opposite_signs == pytest.approx(0.035, abs=0.005)
    assert pd.inspect(tmp_path / "minilm-sre", samples=4).spectra
