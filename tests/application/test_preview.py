"""Dry runs: they refuse what an apply refuses, fetch no weights of a delta, and write nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import paramdelta_hub as pd
from paramdelta_hub import cli
from tests.conftest import Family
from tests.support.models import weights, write_model


def asked(family: Family, delta: str | None = None) -> pd.ApplyRequest:
    return pd.ApplyRequest(str(family.target), ((delta or str(family.delta), 1.0),))


def test_a_preview_says_what_the_apply_then_does(family: Family, tmp_path: Path) -> None:
    found = pd.preview(asked(family), tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == [family.base.parent]
    made = pd.apply(family.target, family.delta, tmp_path / "out", threads=1)
    assert found.nbytes == made.nbytes
    assert found.paired_tensors >= made.changed_tensors
    assert found.paired_tensors + found.kept_tensors == made.changed_tensors + made.kept_tensors
    assert found.to_json()["deltas"] == made.to_json()["deltas"]
    assert found.omissions == made.omissions


def test_of_a_delta_in_a_registry_no_weights_are_fetched(family: Family, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    pd.publish(family.delta, "org/delta", registry=registry)
    for shard in (registry / "org/delta/1.0.0").glob("delta-*.safetensors"):
        shard.unlink()
    found = pd.preview(asked(family, "org/delta"), tmp_path / "out", registry=registry)
    assert found.deltas[0].prediction.measured is not None
    with pytest.raises(pd.ParamdeltaError):
        pd.apply(family.target, "org/delta", tmp_path / "out", registry=registry)


def test_it_refuses_what_an_apply_refuses(family: Family, tmp_path: Path) -> None:
    stranger = write_model(tmp_path / "stranger", weights(99))
    with pytest.raises(pd.LineageError):
        pd.preview(replace(asked(family), target=str(stranger)), tmp_path / "out")
    with pytest.raises(pd.OptionError, match="no delta"):
        pd.preview(replace(asked(family), deltas=()), tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(pd.DestinationError, match="exists already"):
        pd.preview(asked(family), tmp_path / "out")
    assert pd.preview(asked(family), tmp_path / "out", overwrite=True).nbytes


def test_the_command(family: Family, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [
        "apply",
        str(family.target),
        str(family.delta),
        f"{family.delta}=0.5",
        "-o",
        str(out),
        "--dry-run",
        "--force",
    ]
    done = CliRunner().invoke(cli.main, command)
    assert done.exit_code == 0, done.output
    assert "nothing is written" in done.output
    assert done.output.count("expected transfer: about ") == 2
    assert "other weights and sums transferred less" in done.output
    told = json.loads(CliRunner().invoke(cli.main, [*command, "--json"]).stdout)
    assert told["dry_run"] is True
    assert told["deltas"][0]["prediction"]["measured"]["trainings"] > 0
    assert not out.exists()
    assert (
        CliRunner()
        .invoke(cli.main, ["apply", str(family.base), str(family.delta), "-o", str(out), "--dry-run"])
        .output.count("the target is base")
        == 1
    )


def test_a_search_predicts_for_models_on_this_machine(family: Family, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    pd.publish(family.delta, "org/delta", registry=registry)
    (hit,) = pd.search(base=str(family.target), registry=registry)
    assert hit.prediction is not None
    assert str(hit.prediction) == str(pd.preview(asked(family), tmp_path / "out").deltas[0].prediction)
    assert hit.prediction.to_json()["text"] == str(hit.prediction)
    (registry / "org/delta/1.0.0/lineage.safetensors").write_bytes(b"x")
    (hit,) = pd.search(base=str(family.target), registry=registry)
    assert hit.prediction is None
    (hit,) = pd.search(registry=registry)
    assert hit.prediction is None
