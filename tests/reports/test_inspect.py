"""Inspect and compare as functions: what is read, what is fetched, and the file that is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import paramdelta_hub as pd
from paramdelta_hub.fileio.digests import is_sealed
from tests.conftest import Family


@pytest.fixture
def registry(family: Family, tmp_path: Path) -> Path:
    pd.publish(family.delta, "org/delta", registry=tmp_path / "registry")
    return tmp_path / "registry"


def test_weights_are_read_only_when_asked_for(family: Family) -> None:
    for shard in family.delta.glob("delta-*.safetensors"):
        shard.unlink()
    assert pd.inspect(family.delta).spectra is None
    assert pd.inspect(family.delta, samples=None).spectra is None, "they are not here"
    with pytest.raises(pd.PackageError):
        pd.inspect(family.delta, samples=2)


def test_sampled_matrices_are_in_the_report(family: Family) -> None:
    report = pd.inspect(family.delta, samples=None)
    names = ["model.embed_tokens.weight", "model.layers.0.mlp.weight", "model.layers.1.mlp.weight"]
    assert report.spectra is not None
    assert [spectrum.name for spectrum in report.spectra] == names
    assert len(pd.inspect(family.delta, samples=1).spectra or ()) == 1
    told = json.loads(json.dumps(report.to_json()))["spectra"]
    assert told[0]["shape"] == [48, 16]
    assert 8 < told[0]["effective_rank"] < 16
    with pytest.raises(pd.OptionError):
        pd.inspect(family.delta, samples=65)


def test_deltas_of_a_registry(registry: Path) -> None:
    assert pd.inspect("org/delta", registry=registry, samples=1).spectra
    found = pd.compare(["org/delta", "org/delta@1.0.0"], registry=registry)
    assert found.pairs[0].cosine == pytest.approx(1.0)


def test_a_report_is_written_whole_and_never_over_another_unasked(family: Family, tmp_path: Path) -> None:
    report = pd.inspect(family.delta)
    file = pd.write_report(report, tmp_path / "report.html", reference="org/delta")
    content = file.read_bytes()
    assert content.startswith(b"<!doctype html>")
    assert content.splitlines()[-2].endswith(b"</html>")
    assert is_sealed(content)
    with pytest.raises(pd.DestinationError):
        pd.write_report(report, file)
    pd.write_report(pd.compare([family.delta, family.delta]), file, overwrite=True)
    assert b"2 deltas compared" in file.read_bytes()
    with pytest.raises(pd.StorageError):
        pd.write_report(report, tmp_path / "missing/report.html")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["report.html"]


def test_a_copy_elsewhere_has_the_same_report(family: Family, tmp_path: Path) -> None:
    shutil.copytree(family.delta, tmp_path / "copy")
    for name, delta in (("a", family.delta), ("b", tmp_path / "copy")):
        pd.write_report(pd.inspect(delta, samples=None), tmp_path / name, reference="org/delta")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
