"""Weight maps, renames, skips, carried values, omissions, and the check that lists all misfits at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import paramdelta_hub as pd
from paramdelta_hub.checkpoints.matching.by_name import OmittedTensor
from paramdelta_hub.errors import SHOWN_MISMATCHES, MismatchError, OptionError
from tests.application.test_apply import extracted, summed
from tests.conftest import Family
from tests.support.kinds import BUFFERS, kind
from tests.support.models import (
    apply_in,
    assert_same,
    extract_in,
    read_weights,
    tuned,
    weights,
    write_model,
    write_models,
)

Tensors = dict[str, torch.Tensor]


def floats(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}


def test_the_last_matching_pattern_of_a_weight_map_decides() -> None:
    rules = pd.WeightMap((("layers", 0.5), (r"layers\.1", 0.0), ("bias$", 2.0)))
    assert [rules.factor(name) for name in ("embed", "layers.0.w", "layers.1.w", "layers.1.bias", "bias.x")] == [
        1,
        0.5,
        0,
        2,
        1,
    ]
    assert pd.WeightMap().factor("anything") == 1.0
    with pytest.raises(OptionError, match="not a regular expression"):
        pd.WeightMap((("(", 1.0),))


def test_a_weight_map_scales_each_tensors_delta(family: Family, tmp_path: Path) -> None:
    base, post, target = (read_weights(path) for path in (family.base, family.post, family.target))
    weight_map = pd.WeightMap((("layers", 0.5), (r"layers\.1\.mlp", 0.0), ("embed", -1.0)))
    pd.apply(family.target, pd.WeightedDelta(family.delta, 0.5), tmp_path / "out", weight_map=weight_map)
    result = read_weights(tmp_path / "out")
    for name in floats(base):
        weight = 0.5 * weight_map.factor(name)
        expected = summed(target[name], [(base[name], post[name], weight)]) if weight else target[name]
        assert_same({name: result[name]}, {name: expected})


def test_a_factor_of_one_is_the_plain_sum(family: Family, tmp_path: Path) -> None:
    """0.5 · 2 is 1: exceptions count again, and base becomes post."""
    report = pd.apply(
        family.base, pd.WeightedDelta(family.delta, 0.5), tmp_path / "out", weight_map=pd.WeightMap(((".", 2.0),))
    )
    assert report.is_post
    assert_same(read_weights(tmp_path / "out"), read_weights(family.post))


def test_a_weight_of_zero_leaves_everything(family: Family, tmp_path: Path) -> None:
    report = pd.apply(family.target, pd.WeightedDelta(family.delta, 0.0), tmp_path / "out")
    assert report.changed_tensors == 0
    assert_same(read_weights(tmp_path / "out"), read_weights(family.target))


@pytest.mark.parametrize(("weight", "carried"), [(1.0, True), (0.1, True), (7.0, True), (0.0, False), (-1.0, False)])
def test_integers_are_carried_whole_or_not_at_all(family: Family, tmp_path: Path, weight: float, carried: bool) -> None:
    pd.apply(family.target, pd.WeightedDelta(family.delta, weight), tmp_path / "out")
    expected = read_weights(family.post if carried else family.target)["model.steps"]
    assert torch.equal(read_weights(tmp_path / "out")["model.steps"], expected)


def test_two_deltas_that_carry_different_integers_are_refused(tmp_path: Path) -> None:
    base = weights(1)
    posts = [tuned(base, 2), tuned(base, 3), tuned(base, 4)]
    posts[1]["model.steps"] = torch.tensor([0, 0, 0])
    deltas = [extracted(tmp_path, f"delta{n}", base, post) for n, post in enumerate(posts)]
    write_model(tmp_path / "target", base)
    with pytest.raises(MismatchError) as caught:
        pd.apply(tmp_path / "target", deltas[:2], tmp_path / "out")
    assert [(m.location, m.kind) for m in caught.value.mismatches] == [("model.steps", "conflict")]
    pd.apply(tmp_path / "target", [deltas[0], deltas[2]], tmp_path / "out")
    assert torch.equal(read_weights(tmp_path / "out")["model.steps"], posts[0]["model.steps"])


def test_renames_at_extraction(tmp_path: Path) -> None:
    """post's names are made base's; verify knows post's own; base ⊕ Δ holds post's values under base's names."""
    base = weights(1)
    post = tuned(base, 2)
    write_models(tmp_path, base=base, post={f"language_{name}": tensor for name, tensor in post.items()})
    with pytest.raises(MismatchError) as caught:
        extract_in(tmp_path)
    assert len(caught.value.mismatches) == 2 * len(base)
    rules = pd.Rules(renames=((r"^language_", ""),))
    manifest = extract_in(tmp_path, rules=rules).manifest
    assert {record.post_name for record in manifest.tensors} == {f"language_{name}" for name in base}
    pd.verify(tmp_path / "delta", base=tmp_path / "base", post=tmp_path / "post")
    assert apply_in(tmp_path, "base").is_post
    assert_same(read_weights(tmp_path / "out"), post)


def test_renames_at_apply(family: Family, tmp_path: Path) -> None:
    prefixed = {f"vlm.{name}": tensor for name, tensor in read_weights(family.base).items()}
    write_model(tmp_path / "vlm", {**prefixed, "vision.weight": torch.ones(4)})
    rules = pd.Rules(renames=(("^", "vlm."),), skips=("^vision",))
    pd.apply(tmp_path / "vlm", family.delta, tmp_path / "out", rules=rules)
    expected = {f"vlm.{name}": tensor for name, tensor in read_weights(family.post).items()}
    assert_same(read_weights(tmp_path / "out"), {**expected, "vision.weight": torch.ones(4)})


def test_renames_in_order_and_groups() -> None:
    rules = pd.Rules(renames=((r"^h\.(\d+)\.", r"layers.\1."), ("layers", "blocks")))
    assert rules.rename("h.12.w") == "blocks.12.w"


def test_renames_that_give_two_tensors_one_name(tmp_path: Path) -> None:
    for name in ("base", "post"):
        write_model(tmp_path / name, weights(1))
    with pytest.raises(MismatchError) as caught:
        extract_in(
            tmp_path,
            rules=pd.Rules(renames=((r"layers\.\d", "layers.0"),)),
        )
    assert "rename" in {mismatch.kind for mismatch in caught.value.mismatches}


@pytest.mark.parametrize(
    "rules",
    [
        {"renames": (("(", ""),)}, {"skips": ("[",)}, {"renames": (("a", r"\1"),)}, {"renames": (("a", r"\g<x>"),)},
        {"renames": (("(a)|b", r"\2"),)}, {"skips": ("*",)}, {"renames": (("a", "x" * 2000),)},
    ],
    ids=str,
)  # fmt: skip
def test_rules_that_are_no_regular_expressions(rules: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        pd.Rules(**rules)  # type: ignore[arg-type]


def test_skips_at_apply(family: Family, tmp_path: Path) -> None:
    target = read_weights(family.base)
    report = pd.apply(family.base, family.delta, tmp_path / "out", rules=pd.Rules(skips=("embed",)))
    result = read_weights(tmp_path / "out")
    name = "model.embed_tokens.weight"
    assert_same({name: result[name]}, {name: target[name]})
    assert OmittedTensor(name, "both", "skipped by rule") in report.omissions
    assert not report.is_post, "one tensor is not post's"


@kind(BUFFERS, "buffers that only base or only the target has", works="left out and listed; the target's own stay")
def test_derived_buffers_may_be_missing_on_either_side(tmp_path: Path) -> None:
    base = weights(1)
    post = tuned(base, 2)
    with_buffer = {
        **base,
        "model.layers.0.rotary_emb.inv_freq": torch.ones(8),
        "embeddings.position_ids": torch.arange(5),
    }
    delta = extracted(tmp_path, "delta", with_buffer, post)
    write_model(tmp_path / "target", {**tuned(base, 3), "other.inv_freq": torch.ones(2)})
    report = pd.apply(tmp_path / "target", delta, tmp_path / "out")
    assert OmittedTensor("other.inv_freq", "the target", "a buffer that models compute themselves") in report.omissions
    assert torch.equal(read_weights(tmp_path / "out")["other.inv_freq"], torch.ones(2))


def test_every_misfit_of_every_delta_is_listed_before_anything_is_written(family: Family, tmp_path: Path) -> None:
    target = read_weights(family.target)
    target["model.embed_tokens.weight"] = torch.zeros(50, 16, dtype=torch.bfloat16)
    target["model.layers.0.mlp.weight"] = target["model.layers.0.mlp.weight"].short()
    target["model.steps"] = target["model.steps"].int()
    del target["model.layers.1.bias"]
    target["lm_head.weight"] = torch.zeros(48, 16, dtype=torch.bfloat16)
    write_model(tmp_path / "odd", target, config={"quantization_config": {"quant_method": "gptq"}})
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(MismatchError) as caught:
        pd.apply(tmp_path / "odd", [family.delta, family.delta], tmp_path / "out", force=True)
    expected = {
        ("target", "quantized"), ("model.embed_tokens.weight", "rows"), ("model.layers.0.mlp.weight", "dtype"),
        ("model.steps", "dtype"), ("model.layers.1.bias", "missing"), ("lm_head.weight", "missing"),
    }  # fmt: skip
    assert {(mismatch.location, mismatch.kind) for mismatch in caught.value.mismatches} == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_long_list_is_cut_in_the_text_but_not_in_the_error(tmp_path: Path) -> None:
    write_models(
        tmp_path,
        base={f"w{number}": torch.ones(3) for number in range(90)},
        post={f"w{number}": torch.ones(4 + number) for number in range(90)},
    )
    with pytest.raises(MismatchError) as caught:
        extract_in(tmp_path)
    assert len(caught.value.mismatches) == 90
    assert str(caught.value).count("\n  - ") == SHOWN_MISMATCHES + 1
    assert f"… and {90 - SHOWN_MISMATCHES} more" in str(caught.value)


def test_misfits_that_are_alike_are_counted_on_one_line(tmp_path: Path) -> None:
    write_models(
        tmp_path,
        base={f"w{number}": torch.ones(3) for number in range(90)},
        post={f"v{number}": torch.ones(3) for number in range(90)},
    )
    with pytest.raises(MismatchError) as caught:
        extract_in(tmp_path)
    assert len(caught.value.mismatches) == 180
    lines = [line for line in str(caught.value).splitlines() if line.startswith("  - ")]
    assert [line.partition(":")[0] for line in lines] == ["  - 90 times"] * 2
    assert "base has it, post does not: w0, w1, w10, w11, w12 and 85 more" in lines[0]
