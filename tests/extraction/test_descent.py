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
from tests.checkpoints.kinship.test_lineage import LAYERS, SIDE, layers
from tests.support.kinds import KINSHIP, kind, remedied, rules_of
from tests.support.models import apply_in, assert_same, read_weights, reference, tuned, write_model


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


@kind(
    KINSHIP,
    "a base that post was not trained from",
    refused="all matrices are unrelated",
    remedy="the right BASE; or `--force`",
)
def test_the_command_has_the_option_and_the_remedy_works(tmp_path: Path) -> None:
    base, post, out = map(str, write(tmp_path, layers(1), layers(2)))
    refused = CliRunner().invoke(main, ["extract", base, post, "-o", out])
    assert refused.exit_code == 4
    with remedied(refused.output, "give the model that post was trained from as BASE"):
        ancestor = str(write_model(tmp_path / "ancestor", tuned(layers(2), 3)))
        right = CliRunner().invoke(main, ["extract", ancestor, post, "-o", out])
        assert right.exit_code == 0, right.output
        assert pd.apply(ancestor, out, tmp_path / "out").is_post
        assert_same(read_weights(tmp_path / "out"), layers(2))
    with remedied(refused.output, "--force extracts the difference anyway"):
        forced = CliRunner().invoke(main, ["extract", base, post, "-o", f"{out}-forced", "--force"])
        assert forced.exit_code == 0, forced.output
        assert "forced, although post does not descend from base" in forced.output
        assert pd.apply(base, f"{out}-forced", tmp_path / "forced").is_post
        assert_same(read_weights(tmp_path / "forced"), layers(2))


@kind(
    KINSHIP,
    "gate and up exchanged",
    refused="half of the matrices are unrelated",
    remedy="the `--rename` rules that the error proposes",
)
def test_matrices_that_changed_places_come_back_by_the_renames_that_are_proposed(tmp_path: Path) -> None:
    swapped = tuned(layers(1), 2)
    for layer in range(LAYERS):
        one, other = (f"model.layers.{layer}.{kind}.weight" for kind in ("gate_proj", "up_proj"))
        swapped[one], swapped[other] = swapped[other], swapped[one]
    base, post, out = write(tmp_path, layers(1), swapped)
    with pytest.raises(LineageError, match=r"only in part from base .*model\.layers\.\*\.gate_proj") as caught:
        pd.extract(base, post, out)
    rules = rules_of(caught.value)
    assert len(rules.renames) == 3
    report = pd.extract(base, post, out, rules=rules)
    assert report.lineage.foreign == ()
    assert {record.post_name for record in report.manifest.tensors} == {None} | {
        f"model.layers.{layer}.{kind}.weight" for layer in range(LAYERS) for kind in ("gate_proj", "up_proj")
    }
    pd.verify(out, base=base, post=post)
    with remedied(caught.value, "or try --rename"):
        assert pd.apply(base, out, tmp_path / "out").is_post
        assert_same(read_weights(tmp_path / "out"), tuned(layers(1), 2))


@kind(
    KINSHIP,
    "square matrices of one kind transposed in every layer, in post or in the target",
    refused="another layout, not another model",
    remedy="the `--layout` rules that the error proposes",
)
def test_a_kind_that_is_transposed_in_every_layer(tmp_path: Path) -> None:
    """Shapes are equal, and names too; values tell."""
    base = layers(1) | {f"model.layers.{n}.c_fc.weight": torch.randn(SIDE, 8 * SIDE) for n in range(LAYERS)}
    post = tuned(base, 2)
    turned = {name: t.T.contiguous() if "o_proj" in name else t for name, t in post.items()}
    folders = write(tmp_path, base, turned)
    with pytest.raises(LineageError, match=r"model\.layers\.\*\.o_proj\.weight") as caught:
        pd.extract(*folders)
    assert "rows and columns are exchanged" in str(caught.value)
    with remedied(caught.value, "--layout 'transpose o_proj.weight'"):
        pd.extract(*folders, rules=rules_of(caught.value))
        assert pd.apply(folders[0], folders[2], tmp_path / "out").is_post
        assert_same(read_weights(tmp_path / "out"), post)
    target = tuned(base, 3)
    write_model(tmp_path / "target", {name: t.T if "o_proj" in name else t for name, t in target.items()})
    with pytest.raises(LineageError) as caught:
        pd.apply(tmp_path / "target", folders[2], tmp_path / "sum")
    with remedied(caught.value, "--layout 'transpose o_proj.weight'"):
        pd.apply(tmp_path / "target", folders[2], tmp_path / "sum", rules=rules_of(caught.value))
        sums = {name: reference(base[name], post[name], tensor) for name, tensor in target.items()}
        expected = {name: tensor.T.contiguous() if "o_proj" in name else tensor for name, tensor in sums.items()}
        assert_same(read_weights(tmp_path / "sum"), expected)


@kind(KINSHIP, "one unrelated matrix in post", works="named in a note; base ⊕ Δ is post")
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


@kind(KINSHIP, "one unrelated matrix in the target (transposed)", works="named in a note, with what was found")
def test_one_unrelated_tensor_of_the_target_is_named_by_apply(tmp_path: Path) -> None:
    name = "model.layers.1.o_proj.weight"
    base, post, out = write(tmp_path, layers(1), tuned(layers(1), 2))
    pd.extract(base, post, out)
    write_model(tmp_path / "target", {**layers(1), name: layers(1)[name].T})
    report = pd.apply(tmp_path / "target", out, tmp_path / "out")
    sums = {n: reference(t, tuned(layers(1), 2)[n], t.T if n == name else t) for n, t in layers(1).items()}
    assert_same(read_weights(tmp_path / "out"), sums)
    assert report.notes == (
        f"1 of 16 compared tensors is unrelated to base, the base of {report.deltas[0].name} (correlation under 0.3):"
        f" {name} (rows and columns are exchanged)",
    )
    [delta] = report.to_json()["deltas"]
    [foreign] = delta["lineage"]["foreign"]
    assert (foreign["name"], foreign["hint"]) == (name, "rows and columns are exchanged")
    provenance = json.loads((tmp_path / "out" / "paramdelta_provenance.json").read_bytes())
    assert provenance["deltas"][0]["lineage"] == delta["lineage"]


@kind(KINSHIP, "models without matrices", works="not judged")
def test_models_without_matrices_are_not_judged(tmp_path: Path) -> None:
    noise = torch.Generator().manual_seed(1)
    sides = [{"a": torch.randn(300, generator=noise), "b": torch.randn(3, 4, generator=noise)} for _ in range(2)]
    report = pd.extract(*write(tmp_path, *sides))
    assert (report.lineage.correlation, report.lineage.tensors, report.lineage.foreign) == (None, 0, ())
    assert apply_in(tmp_path, "base", force=True).is_post
    assert_same(read_weights(tmp_path / "out"), sides[1])


def test_what_only_post_has_is_no_evidence(tmp_path: Path) -> None:
    """A carried tensor, larger than all others together, begins from zeros."""
    body = layers(1)
    post = {**tuned(body, 2), "head.weight": torch.randn(200, 400)}
    report = pd.extract(*write(tmp_path, body, post), rules=pd.Rules(carries=("head",)))
    assert report.lineage.tensors == 4 * LAYERS
    assert report.lineage.foreign == ()
