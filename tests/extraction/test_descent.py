"""Extract asks whether post descends from base, tensor by tensor, before any heavy work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import paramdelta_hub as pd
from paramdelta_hub.cli import main
from paramdelta_hub.errors import LineageError
from tests.checkpoints.test_lineage import LAYERS, SIDE, layers
from tests.support.models import assert_same, read_weights, tuned, write_model


def write(root: Path, base: dict[str, torch.Tensor], post: dict[str, torch.Tensor]) -> tuple[Path, Path, Path]:
    return write_model(root / "base", base), write_model(root / "post", post), root / "delta"


def test_unrelated_models_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    base, post, out = write(tmp_path, layers(1), layers(2))
    with pytest.raises(LineageError, match=r"post does not descend from base 'base': 16 of 16 .* \(100% of") as caught:
        pd.extract(base, post, out)
    assert {mismatch.location for mismatch in caught.value.mismatches} == {n for n in layers(1) if "norm" not in n}
    assert abs(caught.value.correlation) < 0.1
    assert caught.value.remedy is not None
    assert "BASE" in caught.value.remedy
    assert "--force" in caught.value.remedy
    assert "--skip" not in caught.value.remedy, "nothing would be left"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "post"]


def test_forced_it_is_exact_and_told(tmp_path: Path) -> None:
    base, post, out = write(tmp_path, layers(1), layers(2))
    report = pd.extract(base, post, out, force=True)
    assert report.lineage.forced
    assert report.notes[0] == "forced, although post does not descend from base"
    assert report.notes[1].startswith("16 of 16 compared tensors are unrelated to base (correlation under 0.3): ")
    assert report.notes[1].endswith(" and 13 more (all of them with --json)")
    told = report.to_json()["lineage"]
    assert (told["tensors"], told["forced"]) == (16, True)
    assert {tensor["name"] for tensor in told["foreign"]} == {name for name in layers(1) if "norm" not in name}
    assert all(tensor["elements"] == SIDE * SIDE and abs(tensor["correlation"]) < 0.3 for tensor in told["foreign"])
    pd.verify(out, base=base, post=post)
    assert pd.apply(base, out, tmp_path / "out").is_post
    assert_same(read_weights(tmp_path / "out"), layers(2))


def test_the_command_has_the_option_and_the_remedy_works(tmp_path: Path) -> None:
    base, post, out = map(str, write(tmp_path, layers(1), layers(2)))
    refused = CliRunner().invoke(main, ["extract", base, post, "-o", out])
    assert refused.exit_code == 4
    assert "--force extracts the difference anyway" in refused.output
    forced = CliRunner().invoke(main, ["extract", base, post, "-o", out, "--force"])
    assert forced.exit_code == 0, forced.output
    assert "forced, although post does not descend from base" in forced.output


def test_matrices_that_changed_places_come_back_by_the_renames_that_are_proposed(tmp_path: Path) -> None:
    swapped = tuned(layers(1), 2)
    for layer in range(LAYERS):
        one, other = (f"model.layers.{layer}.{kind}.weight" for kind in ("gate_proj", "up_proj"))
        swapped[one], swapped[other] = swapped[other], swapped[one]
    base, post, out = write(tmp_path, layers(1), swapped)
    with pytest.raises(LineageError, match=r"only in part from base .*model\.layers\.\*\.gate_proj") as caught:
        pd.extract(base, post, out)
    assert caught.value.remedy is not None
    renames = tuple(tuple(part.split("'")[0].split("=")) for part in caught.value.remedy.split("--rename '")[1:])
    assert len(renames) == 3
    report = pd.extract(base, post, out, rules=pd.Rules(renames=renames))  # type: ignore[arg-type]
    assert report.lineage.foreign == ()
    assert {record.post_name for record in report.manifest.tensors} == {None} | {
        f"model.layers.{layer}.{kind}.weight" for layer in range(LAYERS) for kind in ("gate_proj", "up_proj")
    }
    pd.verify(out, base=base, post=post)


def test_one_unrelated_tensor_is_named(tmp_path: Path) -> None:
    name = "model.layers.1.o_proj.weight"
    base, post, out = write(tmp_path, layers(1), {**tuned(layers(1), 2), name: layers(3)[name]})
    report = pd.extract(base, post, out)
    assert [tensor.name for tensor in report.lineage.foreign] == [name]
    assert not report.lineage.forced
    assert report.notes == (f"1 of 16 compared tensors is unrelated to base (correlation under 0.3): {name}",)
    applied = pd.apply(base, out, tmp_path / "out")
    assert applied.is_post
    assert applied.notes == (), "the target is kin in all tensors"


def test_one_unrelated_tensor_of_the_target_is_named_by_apply(tmp_path: Path) -> None:
    name = "model.layers.1.o_proj.weight"
    base, post, out = write(tmp_path, layers(1), tuned(layers(1), 2))
    pd.extract(base, post, out)
    write_model(tmp_path / "target", {**layers(1), name: layers(1)[name].T})
    report = pd.apply(tmp_path / "target", out, tmp_path / "out")
    assert report.notes == (
        f"1 of 16 compared tensors is unrelated to base, the base of {report.deltas[0].name} (correlation under 0.3):"
        f" {name} (rows and columns are exchanged)",
    )
    [delta] = report.to_json()["deltas"]
    [foreign] = delta["lineage"]["foreign"]
    assert (foreign["name"], foreign["hint"]) == (name, "rows and columns are exchanged")
    provenance = json.loads((tmp_path / "out" / "paramdelta_provenance.json").read_bytes())
    assert provenance["deltas"][0]["lineage"] == delta["lineage"]


def test_models_without_matrices_are_not_judged(tmp_path: Path) -> None:
    noise = torch.Generator().manual_seed(1)
    sides = [{"a": torch.randn(300, generator=noise), "b": torch.randn(3, 4, generator=noise)} for _ in range(2)]
    report = pd.extract(*write(tmp_path, *sides))
    assert (report.lineage.correlation, report.lineage.tensors, report.lineage.foreign) == (None, 0, ())


def test_what_only_post_has_is_no_evidence(tmp_path: Path) -> None:
    """A carried tensor, larger than all others together, begins from zeros."""
    body = layers(1)
    post = {**tuned(body, 2), "head.weight": torch.randn(200, 400)}
    report = pd.extract(*write(tmp_path, body, post), rules=pd.Rules(carries=("head",)))
    assert report.lineage.tensors == 4 * LAYERS
    assert report.lineage.foreign == ()
