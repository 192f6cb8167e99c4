"""Layouts end to end: base, post and target each with experts stacked or single, q/k/v fused or not, transposed."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import paramdelta_hub as pd
from paramdelta_hub.application.apply import Application
from paramdelta_hub.application.request import ApplyRequest
from paramdelta_hub.errors import MismatchError, OptionError
from paramdelta_hub.package.records import PARTIAL
from paramdelta_hub.tasks.models import TASK, ApplyTask
from tests.support.chunks import set_chunk_elements
from tests.support.kinds import CHANNELS, FLOAT_DTYPES, OTHER_LAYOUTS, kind, remedied, rules_of
from tests.support.models import (
    apply_in,
    assert_same,
    extract_in,
    read_weights,
    reference,
    tuned,
    write_model,
    write_models,
)
from tests.support.paramdelta import paramdelta

Tensors = dict[str, torch.Tensor]
E, INNER, HIDDEN = 3, 6, 8
QKV = (("q", 8), ("k", 4), ("v", 4))

CUT = (
    "unstack experts.gate_up_proj -> experts.*.gate_up_proj",
    "split experts.*.gate_up_proj -> experts.*.gate_proj.weight, experts.*.up_proj.weight",
    "unstack experts.down_proj -> experts.*.down_proj.weight",
    "split qkv_proj.weight -> q_proj.weight, k_proj.weight, v_proj.weight",
    "transpose c_fc.weight",
)
JOIN = (
    "concat experts.*.gate_proj.weight, experts.*.up_proj.weight -> experts.*.gate_up_proj",
    "stack experts.*.gate_up_proj -> experts.gate_up_proj",
    "stack experts.*.down_proj.weight -> experts.down_proj",
    "concat q_proj.weight, k_proj.weight, v_proj.weight -> qkv_proj.weight",
    "transpose c_fc.weight",
)
RULES = {("single", "fused"): JOIN, ("fused", "single"): CUT, ("single", "single"): (), ("fused", "fused"): ()}
"""By (the layout there is, the layout wanted)."""


def single(seed: int, dtype: torch.dtype = torch.bfloat16) -> Tensors:
    """Return a model of pieces, with values over many magnitudes: many sums need exceptions to be exact."""
    noise = torch.Generator().manual_seed(seed)

    low, high = (-12, 12) if dtype == torch.float32 else (-4, 3)

    def normal(*shape: int) -> torch.Tensor:
        values = torch.randn(*shape, generator=noise) * 10.0 ** torch.randint(low, high, shape, generator=noise)
        return values.to(dtype)

    tensors: Tensors = {"model.embed_tokens.weight": normal(20, HIDDEN)}
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        for name, rows in QKV:
            tensors[f"{prefix}self_attn.{name}_proj.weight"] = normal(rows, HIDDEN)
        for expert in range(E):
            for name, shape in (("gate", (INNER, HIDDEN)), ("up", (INNER, HIDDEN)), ("down", (HIDDEN, INNER))):
                tensors[f"{prefix}mlp.experts.{expert}.{name}_proj.weight"] = normal(*shape)
        tensors[f"{prefix}c_fc.weight"] = normal(5, 7)
        tensors[f"{prefix}bias"] = normal(HIDDEN)
    return tensors


def fused(tensors: Tensors) -> Tensors:
    """Return the same by torch's own operations: experts stacked, q, k and v joined, a matrix transposed."""
    result = {n: t for n, t in tensors.items() if not re.search(r"(self_attn|experts|c_fc)\.", n)}
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        qkv = [tensors[f"{prefix}self_attn.{name}_proj.weight"] for name, _ in QKV]
        result[f"{prefix}self_attn.qkv_proj.weight"] = torch.cat(qkv)
        one = f"{prefix}mlp.experts."
        experts = [torch.cat([tensors[f"{one}{n}.{name}_proj.weight"] for name in ("gate", "up")]) for n in range(E)]
        result[f"{one}gate_up_proj"] = torch.stack(experts)
        result[f"{one}down_proj"] = torch.stack([tensors[f"{one}{n}.down_proj.weight"] for n in range(E)])
        result[f"{prefix}c_fc.weight"] = tensors[f"{prefix}c_fc.weight"].T.contiguous()
    return result


LAYOUTS = {"single": single, "fused": lambda *args: fused(single(*args))}


def in_layout(layout: str, tensors: Tensors) -> Tensors:
    return fused(tensors) if layout == "fused" else tensors


def wild(tensors: Tensors, seed: int) -> Tensors:
    """Return a post whose differences are of all sizes, as base's values are."""
    noise = torch.Generator().manual_seed(seed)
    other = single(seed + 1, next(iter(tensors.values())).dtype)
    return {n: torch.where(torch.rand(t.shape, generator=noise) < 0.5, t, other[n]) for n, t in tensors.items()}


@pytest.fixture(params=[torch.bfloat16, torch.float32, torch.float16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    chosen = request.param
    assert isinstance(chosen, torch.dtype)
    return chosen


@kind(
    OTHER_LAYOUTS,
    "experts stacked or single, q/k/v fused or not, transposed, in base, post and target: each combination",
    works="`--layout` rules; base ⊕ Δ is post bit for bit, the result in the target's layout",
)
@pytest.mark.parametrize("base_layout", ["single", "fused"])
@pytest.mark.parametrize("post_layout", ["single", "fused"])
def test_all_combinations(
    base_layout: str, post_layout: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the layouts: base becomes post, bit for bit, and a target gets the formula's sum in its own layout."""
    set_chunk_elements(monkeypatch, 50)
    base, target = single(1, dtype), tuned(single(1, dtype), 7)
    post = wild(base, 3)
    write_model(tmp_path / "base", in_layout(base_layout, base), shards=3)
    write_model(tmp_path / "post", in_layout(post_layout, post), shards=2)
    rules = pd.Rules(layouts=RULES[post_layout, base_layout])
    report = extract_in(tmp_path, rules=rules, force=True)
    assert report.manifest.layouts == rules.layouts
    assert all(use.tensors for use in report.rules)
    assert report.manifest.exactness.exceptions > 0
    verified = pd.verify(tmp_path / "delta", base=tmp_path / "base", post=tmp_path / "post")
    assert (verified.exact, verified.checked_post) == (True, True)
    for layout in ("single", "fused"):
        rules = pd.Rules(layouts=RULES[base_layout, layout])
        write_model(tmp_path / f"base-{layout}", in_layout(layout, base), shards=3)
        write_model(tmp_path / f"target-{layout}", in_layout(layout, target), shards=3)
        out = tmp_path / f"post-{layout}"
        applied = pd.apply(tmp_path / f"base-{layout}", tmp_path / "delta", out, rules=rules)
        assert applied.is_post
        assert_same(read_weights(out), in_layout(layout, post))
        out = tmp_path / f"out-{layout}"
        applied = pd.apply(tmp_path / f"target-{layout}", tmp_path / "delta", out, rules=rules, force=True)
        assert not applied.is_post
        expected = {name: reference(base[name], post[name], target[name]) for name in target}
        assert_same(read_weights(out), in_layout(layout, expected))
        names = [
            sorted(p.name for p in folder.glob("*.safetensors")) for folder in (out, tmp_path / f"target-{layout}")
        ]
        assert names[0] == names[1]


@kind(OTHER_LAYOUTS, "two weighted deltas of different layouts", works="each is rearranged for the target")
def test_weights_and_two_deltas_of_different_layouts(tmp_path: Path) -> None:
    base = single(1)
    posts, target = [tuned(base, 2, 0.3), tuned(base, 3, 0.3)], tuned(base, 4)
    for number, layout in enumerate(("single", "fused")):
        write_model(tmp_path / f"b{number}", in_layout(layout, base))
        write_model(tmp_path / f"p{number}", in_layout(layout, posts[number]))
        pd.extract(tmp_path / f"b{number}", tmp_path / f"p{number}", tmp_path / f"d{number}")
    weights = (0.5, -0.25)
    expected = {}
    for name, values in target.items():
        total = values.float()
        for post, weight in zip(posts, weights, strict=True):
            total = total + weight * (post[name].float() - base[name].float())
        expected[name] = total.to(values.dtype)
    for layout in ("single", "fused"):
        write_model(tmp_path / layout, in_layout(layout, target))
        rules = pd.Rules(layouts=CUT[:-1] if layout == "single" else JOIN[:-1], skips=("c_fc",))
        deltas = [(tmp_path / f"d{number}", weight) for number, weight in enumerate(weights)]
        pd.apply(tmp_path / layout, deltas, tmp_path / f"out-{layout}", rules=rules)
        result, wanted = read_weights(tmp_path / f"out-{layout}"), in_layout(layout, expected)
        kept = in_layout(layout, target)
        assert_same(result, {name: kept[name] if "c_fc" in name else wanted[name] for name in wanted})


@kind(FLOAT_DTYPES, "a target of another dtype in another layout", works="the sum, rounded once to the target's dtype")
@pytest.mark.parametrize("layout", ["single", "fused"])
def test_a_target_of_another_dtype(layout: str, tmp_path: Path) -> None:
    """What is added in pieces is summed across dtypes as all else is; the result has the target's."""
    base = single(1)
    post, target = tuned(base, 2), {name: values.float() * 1.001 for name, values in tuned(base, 7).items()}
    other = "single" if layout == "fused" else "fused"
    for name, tensors in (("base", base), ("post", post)):
        write_model(tmp_path / name, in_layout(other, tensors))
    write_model(tmp_path / "target", in_layout(layout, target))
    extract_in(tmp_path)
    rules = pd.Rules(layouts=RULES[other, layout])
    report = apply_in(tmp_path, rules=rules)
    assert not report.is_post
    deltas = {name: post[name].float() - base[name].float() for name in base}
    expected = {name: (deltas[name].double() + values.double()).float() for name, values in target.items()}
    assert_same(read_weights(tmp_path / "out"), in_layout(layout, expected))


@kind(FLOAT_DTYPES, "post of another dtype in another layout", works="exact in the dtype that holds both sides")
@pytest.mark.parametrize("wider", ["base", "post"])
def test_post_of_another_dtype_in_another_layout(wider: str, tmp_path: Path) -> None:
    """The delta is exact in the dtype that holds both sides; --cast takes both in one, before they are put together."""
    base, post = single(1), tuned(single(1), 2)
    if wider == "base":
        base = {name: values.float() * 1.001 for name, values in base.items()}
    else:
        post = {name: values.float() * 1.001 for name, values in post.items()}
    write_models(tmp_path, base=base, post=fused(post))
    rules = pd.Rules(layouts=CUT)
    extract_in(tmp_path, rules=rules)
    extract_in(tmp_path, "base", "post", "cast", rules=rules, cast="bfloat16")
    for name in ("delta", "cast"):
        checked = pd.verify(tmp_path / name, base=tmp_path / "base", post=tmp_path / "post")
        assert (checked.exact, checked.checked_post) == (True, True)
    apply_in(tmp_path, "base", dtype="float32")
    assert_same(read_weights(tmp_path / "out"), {name: values.float() for name, values in post.items()})
    write_model(tmp_path / "cast-base", {name: values.bfloat16() for name, values in base.items()})
    apply_in(tmp_path, "cast-base", "cast", "rounded")
    assert_same(read_weights(tmp_path / "rounded"), {name: values.bfloat16() for name, values in post.items()})


@kind(OTHER_LAYOUTS, "integers in another layout that did not change", works="they stay the target's")
def test_integers_that_did_not_change_stay_the_targets(tmp_path: Path) -> None:
    base: Tensors = {**single(1), "table": torch.arange(24).reshape(6, 4)}
    post = {**tuned(single(1), 2), "table": base["table"]}
    write_models(tmp_path, base=base, post=post)
    extract_in(tmp_path)
    write_model(tmp_path / "target", {**base, "table": base["table"].T.contiguous()})
    rules = pd.Rules(layouts=("transpose table",))
    report = apply_in(tmp_path, rules=rules)
    assert report.is_post
    assert_same(read_weights(tmp_path / "out"), {**post, "table": post["table"].T.contiguous()})


@kind(
    OTHER_LAYOUTS,
    "integers in another layout that training changed",
    refused="they are replaced whole, as they lie",
    remedy="`--skip`: the target keeps its own",
)
def test_integers_that_changed_are_left_out_by_the_remedy(tmp_path: Path) -> None:
    base: Tensors = {**single(1), "table": torch.arange(24).reshape(6, 4)}
    post = {**tuned(single(1), 2), "table": base["table"] + 1}
    target = {**base, "table": base["table"].T.contiguous()}
    write_models(tmp_path, base=base, post=post, target=target)
    extract_in(tmp_path)
    rules = pd.Rules(layouts=("transpose table",))
    with pytest.raises(MismatchError) as caught:
        apply_in(tmp_path, rules=rules)
    with remedied(str(caught.value.mismatches[0]), "leave it out with --skip"):
        rules = pd.Rules(layouts=("transpose table",), skips=("^table$",))
        apply_in(tmp_path, rules=rules)
        assert_same(read_weights(tmp_path / "out"), {**post, "table": target["table"]})


@kind(
    FLOAT_DTYPES,
    "pieces of different dtypes that a layout rule joins",
    refused="one tensor has one dtype",
    remedy="`--cast bfloat16`",
)
def test_pieces_of_different_dtypes_are_refused_unless_they_are_cast(tmp_path: Path) -> None:
    base = single(1)
    post = tuned(base, 2)
    mixed = {name: values.float() if "q_proj" in name else values for name, values in post.items()}
    write_models(tmp_path, base=fused(base), post=mixed)
    rules = pd.Rules(layouts=JOIN)
    with pytest.raises(MismatchError, match="base and post differ") as refused:
        extract_in(tmp_path, rules=rules)
    assert any("different dtypes: BF16, F32" in each.message for each in refused.value.mismatches)
    with remedied(refused.value, "--cast"):
        extract_in(tmp_path, rules=rules, cast="bfloat16")
        apply_in(tmp_path, "base")
        assert_same(read_weights(tmp_path / "out"), fused(post))


def run(*words: str | Path) -> tuple[int, str]:
    done = paramdelta(words, env=os.environ)
    return done.returncode, done.stdout + done.stderr


def proposal(error: str) -> list[str]:
    """Return the options that an error proposes, as a shell would have them."""
    found = re.search(r"→ try (.*?) \(pairs", error) or re.search(r"give (--partial .*?); else", error)
    assert found, error
    return shlex.split(found[1])


def families() -> dict[str, Any]:
    """Return by name what makes a small model."""
    from transformers import (
        DeepseekV3Config,
        DeepseekV3ForCausalLM,
        MixtralConfig,
        MixtralForCausalLM,
        PhimoeConfig,
        PhimoeForCausalLM,
        Qwen2MoeConfig,
        Qwen2MoeForCausalLM,
        Qwen3MoeConfig,
        Qwen3MoeForCausalLM,
    )

    small: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    sparse = {**small, "moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}
    deepseek = {**small, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1}
    deepseek |= {"moe_intermediate_size": 24, "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 8}
    deepseek |= {"q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
    return {
        "qwen3": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**{**sparse, "head_dim": 8})),
        "qwen2": lambda: Qwen2MoeForCausalLM(Qwen2MoeConfig(**{**sparse, "shared_expert_intermediate_size": 24})),
        "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**small, num_local_experts=4)),
        "deepseek": lambda: DeepseekV3ForCausalLM(DeepseekV3Config(**deepseek)),
        "phimoe": lambda: PhimoeForCausalLM(PhimoeConfig(**small, num_local_experts=4)),
    }


@kind(
    OTHER_LAYOUTS,
    "Mixtral, Qwen2-MoE, Qwen3-MoE, DeepSeek-V3 and PhiMoE as on the Hub, and as transformers 5 has them",
    refused="names and shapes differ",
    remedy="the `--layout` rules that the error proposes",
)
@pytest.mark.parametrize("family", ["qwen3", "qwen2", "mixtral", "deepseek", "phimoe"])
def test_what_transformers_writes_in_two_layouts(family: str, tmp_path: Path) -> None:
    """One model, saved in the layout of the Hub and in that of transformers 5; the rules are those of the errors."""
    torch.manual_seed(0)
    model = families()[family]().to(torch.bfloat16)
    for who in ("base", "post", "target"):
        if who != "base":
            with torch.no_grad():
                for values in model.parameters():
                    values.add_(torch.randn_like(values) * 0.01)
        model.save_pretrained(tmp_path / f"{who}-hub")
        model.save_pretrained(tmp_path / f"{who}-five", save_original_format=False)
    one, other = "hub", "five"
    for mine, theirs in ((one, other), (other, one)):
        delta = tmp_path / f"delta-{mine}"
        words: list[str | Path] = ["extract", tmp_path / f"base-{mine}", tmp_path / f"post-{theirs}", "-o", delta]
        code, error = run(*words)
        assert code == 4, error
        code, text = run(*words, *proposal(error))
        assert code == 0, text
        words = ["apply", tmp_path / f"base-{theirs}", delta, "-o", tmp_path / f"out-{theirs}"]
        code, error = run(*words)
        assert code == 4, error
        with remedied(error, "try --layout"):
            code, text = run(*words, *proposal(error))
            assert code == 0, text
            assert "bit for bit" in text
            assert_same(read_weights(tmp_path / f"out-{theirs}"), read_weights(tmp_path / f"post-{theirs}"))
        same = pd.apply(tmp_path / f"target-{mine}", delta, tmp_path / f"same-{mine}")
        rules = [word for word in proposal(error) if not word.startswith("--")]
        pd.apply(
            tmp_path / f"target-{theirs}",
            delta,
            tmp_path / f"moved-{theirs}",
            rules=pd.Rules(
                layouts=[rule for rule in rules if "->" in rule],  # type: ignore[arg-type]
                renames=[rule.rpartition("=")[::2] for rule in rules if "->" not in rule],  # type: ignore[arg-type]
            ),
        )
        assert not same.is_post
        with torch.no_grad():
            loaded = [
                type(model).from_pretrained(tmp_path / folder).state_dict()
                for folder in (f"same-{mine}", f"moved-{theirs}")
            ]
        assert_same(loaded[0], loaded[1])


def inpainting(seed: int) -> tuple[Tensors, Tensors, Tensors]:
    """Return base, post and a target with more input channels."""
    noise = torch.Generator().manual_seed(seed)
    base = {
        "conv_in.weight": torch.randn(8, 4, 3, 3, generator=noise).bfloat16(),
        "w.weight": torch.randn(16, 16, generator=noise).bfloat16(),
    }
    target = tuned(base, seed + 1)
    more = torch.randn(8, 5, 3, 3, generator=noise).bfloat16()
    more[0, 0] = -0.0
    target["conv_in.weight"] = torch.cat([target["conv_in.weight"], more], 1)
    return base, tuned(base, seed + 2), target


@kind(
    CHANNELS,
    "an inpainting target with 9 input channels",
    refused="shapes differ",
    remedy="`--partial '^conv_in\\.weight$'`: Δ goes to the leading part; told",
)
@pytest.mark.parametrize("weight", [1.0, -1.0, 0.5])
def test_more_input_channels(weight: float, tmp_path: Path) -> None:
    base, post, target = inpainting(1)
    write_models(tmp_path, base=base, post=post, target=target)
    extract_in(tmp_path)
    code, error = run("apply", tmp_path / "target", tmp_path / "delta", "-o", tmp_path / "out")
    assert code == 4
    deltas = f"{tmp_path / 'delta'}={weight}"
    with remedied(error, r"give --partial '^conv_in\.weight$'"):
        code, text = run("apply", tmp_path / "target", deltas, "-o", tmp_path / "out", *proposal(error))
        assert code == 0, text
        assert "the leading [8, 4, 3, 3]" in text
        assert "bit for bit" not in text
        expected = dict(target)
        for name, values in base.items():
            old = target[name][:, : values.shape[1]]
            total = old.float() + weight * (post[name].float() - values.float())
            expected[name] = torch.cat([total.bfloat16(), target[name][:, values.shape[1] :]], 1)
        assert_same(read_weights(tmp_path / "out"), expected)


@kind(CHANNELS, "base itself with more channels", works="never said to be base, nor the result to be post")
def test_base_with_more_channels_is_not_said_to_be_base(tmp_path: Path) -> None:
    """Not even before the result is made: with the other channels it is not post."""
    base, post, target = inpainting(1)
    target = {**base, "conv_in.weight": torch.cat([base["conv_in.weight"], target["conv_in.weight"][:, 4:]], 1)}
    write_models(tmp_path, base=base, post=post, target=target)
    extract_in(tmp_path)
    words: list[str | Path] = ["apply", tmp_path / "target", tmp_path / "delta", "-o", tmp_path / "out"]
    for more in (["--dry-run"], []):
        code, text = run(*words, "--partial", "conv_in", *more)
        assert code == 0, text
        assert "is post" not in text
        assert "same values as base" not in text


@kind(CHANNELS, "a target with fewer channels than the delta, with `--partial`", works="it gets the part that it has")
def test_a_target_with_fewer_channels_gets_what_it_has(tmp_path: Path) -> None:
    _, small, large = inpainting(5)
    post = tuned(large, 9, 0.1)
    write_models(tmp_path, base=large, post=post, target=small)
    extract_in(tmp_path)
    report = apply_in(tmp_path, rules=pd.Rules(partials=("conv_in",)), force=True)
    assert not report.is_post
    expected = {n: reference(large[n][:, : t.shape[1]], post[n][:, : t.shape[1]], t) for n, t in small.items()}
    assert_same(read_weights(tmp_path / "out"), expected)


@kind(
    CHANNELS,
    "a post with more channels than base",
    refused="shapes differ",
    remedy="`--partial '^conv_in\\.weight$'`: the leading part of post's; never called post",
)
def test_a_part_of_post(tmp_path: Path) -> None:
    """Where post has more channels than base, the delta has base's, and says so; it never makes post."""
    base, _, post = inpainting(3)
    write_models(tmp_path, base=base, post=post)
    with pytest.raises(MismatchError) as refused:
        extract_in(tmp_path)
    rules = rules_of(refused.value)
    report = extract_in(tmp_path, rules=rules)
    assert [(o.name, o.side) for o in report.omissions] == [("conv_in.weight", "post")]
    assert report.omissions[0].reason.startswith(PARTIAL)
    verified = pd.verify(tmp_path / "delta", base=tmp_path / "base", post=tmp_path / "post")
    assert verified.checked_post
    assert verified.left_out == 1
    with remedied(refused.value, r"give --partial '^conv_in\.weight$'"):
        applied = apply_in(tmp_path, "base")
        assert not applied.is_post
        parts = {name: post[name][:, : tensor.shape[1]].contiguous() for name, tensor in base.items()}
        assert_same(read_weights(tmp_path / "out"), parts)
    with pytest.raises(MismatchError, match="does not hold base's"):
        extract_in(tmp_path, "post", "base", "delta2", rules=rules)


def test_tasks_are_the_same_from_a_plan_on_disk(tmp_path: Path) -> None:
    """A delta that several tensors share is decoded by one task, whichever files they lie in."""
    base = single(1)
    write_models(tmp_path, base=fused(base), post=fused(tuned(base, 2)))
    write_model(tmp_path / "target", base, shards=3)
    extract_in(tmp_path)
    request = ApplyRequest(str(tmp_path / "target"), ((str(tmp_path / "delta"), 1.0),), layouts=CUT)
    tasks = Application(request, tmp_path / "out").plan.tasks
    assert [TASK.validate_json(TASK.dump_json(task)) for task in tasks] == list(tasks)
    keys = [each.key for task in tasks if isinstance(task, ApplyTask) for each in task.spilled]
    assert len(keys) == len(set(keys)) == 8
    assert max(len(task.writes) for task in tasks) == 3


def test_rules_that_match_nothing_are_refused(tmp_path: Path) -> None:
    write_models(tmp_path, base=single(1), post=tuned(single(1), 2))
    for rules in (pd.Rules(layouts=("transpose c_fx.weight",)), pd.Rules(partials=("c_fc",))):
        with pytest.raises(OptionError, match="matches no tensor"):
            extract_in(tmp_path, rules=rules)
    with pytest.raises(OptionError, match=r"the nearest are model\.layers\.0\.c_fc\.weight"):
        extract_in(tmp_path, "base", "post", "d", rules=pd.Rules(layouts=("transpose c_fx.weight",)))


def test_rules_in_a_file(tmp_path: Path) -> None:
    write_models(tmp_path, base=single(1), post=fused(tuned(single(1), 2)))
    (tmp_path / "rules").write_text("# experts\n" + "\n".join(CUT) + "\n")
    code, text = run(
        "extract", tmp_path / "base", tmp_path / "post", "-o", tmp_path / "d", "--rules", tmp_path / "rules"
    )
    assert code == 0, text
    (tmp_path / "rules").write_text("transpose a b -> c\n")
    code, text = run(
        "extract", tmp_path / "base", tmp_path / "post", "-o", tmp_path / "e", "--rules", tmp_path / "rules"
    )
    assert code == 2
    assert f"{tmp_path / 'rules'}:1" in text


def test_q_k_and_v_by_head_between_two_types_of_models(tmp_path: Path) -> None:
    """InternLM2 has a group's rows of q, k and v together. Its config stays one of InternLM2, whatever post's is."""
    base = single(1)
    groups = 2

    def by_head(tensors: Tensors) -> Tensors:
        result = {n: t for n, t in tensors.items() if "self_attn" not in n}
        for layer in range(2):
            attention = [tensors[f"model.layers.{layer}.self_attn.{name}_proj.weight"] for name, _ in QKV]
            pieces = zip(*(tensor.chunk(groups) for tensor in attention), strict=True)
            name = f"model.layers.{layer}.attention.wqkv.weight"
            result[name] = torch.cat([piece for group in pieces for piece in group])
        return result

    post, target = tuned(base, 2), tuned(base, 3)
    heads = {"num_attention_heads": 4, "num_key_value_heads": groups}
    write_model(tmp_path / "base", by_head(base), config={"model_type": "internlm2", **heads})
    write_model(tmp_path / "post", post, config={"model_type": "llama", "attention_bias": False, **heads})
    write_model(tmp_path / "target", target, config={"model_type": "llama", **heads})
    code, text = run("extract", tmp_path / "base", tmp_path / "post", "-o", tmp_path / "d")
    assert code == 4
    code, text = run("extract", tmp_path / "base", tmp_path / "post", "-o", tmp_path / "d", *proposal(text))
    assert code == 0, text
    report = apply_in(tmp_path, "base", "d")
    assert report.is_post
    assert_same(read_weights(tmp_path / "out"), by_head(post))
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["model_type"], config["attention_bias"]) == ("internlm2", False)
    (tmp_path / "rules").write_text(
        "split/2 attention.wqkv.weight -> self_attn.q_proj.weight, self_attn.k_proj.weight, self_attn.v_proj.weight\n"
    )
    code, text = run("apply", tmp_path / "target", tmp_path / "d", "-o", tmp_path / "o", "--rules", tmp_path / "rules")
    assert code == 0, text
    assert_same(read_weights(tmp_path / "o"), {name: reference(base[name], post[name], target[name]) for name in base})


def test_skipped_tensors_of_another_layout_are_said_to_be_trained(tmp_path: Path) -> None:
    base = single(1)
    write_models(tmp_path, base=base, post=tuned(base, 2), target=fused(tuned(base, 3)))
    extract_in(tmp_path)
    rules = pd.Rules(layouts=JOIN, skips=("experts.down_proj",))
    report = apply_in(tmp_path, rules=rules)
    [use] = [use for use in report.rules if use.rule == "skip"]
    assert set(use.trained) == {f"model.layers.{n}.mlp.experts.down_proj" for n in range(2)}


@kind(OTHER_LAYOUTS, "any chain of `stack`, `unstack`, `concat`, `split`, `transpose`", works="as torch does it")
@given(st.integers(0, 2**32 - 1), st.data())
@settings(max_examples=8, deadline=None)
def test_random_rules(tmp_path_factory: pytest.TempPathFactory, seed: int, data: st.DataObject) -> None:
    """Any chain of rules: post rearranged by torch, and back by the rules; then a target as post is."""
    folder = tmp_path_factory.mktemp("random")
    noise = torch.Generator().manual_seed(seed)
    groups, count = (data.draw(st.integers(1, 3)) for _ in range(2))
    rows, columns = (groups * data.draw(st.integers(1, 3)) for _ in range(2))
    base = {f"e.{n}.{w}": torch.randn(rows, columns, generator=noise).bfloat16() for n in range(count) for w in "ab"}
    base["other"] = torch.randn(9, 3, generator=noise).bfloat16()
    post = {name: values + torch.randn(values.shape, generator=noise).bfloat16() for name, values in base.items()}
    turned, axis, first = data.draw(st.booleans()), data.draw(st.integers(0, 1)), data.draw(st.integers(0, 2))

    def joined(tensors: Tensors) -> Tensors:
        parts = [[tensors[f"e.{n}.{w}"] for w in "ab"] for n in range(count)]
        pieces = [[(t.T if turned else t).chunk(groups, axis) for t in pair] for pair in parts]
        alternating = [
            torch.cat([piece for group in zip(*pair, strict=True) for piece in group], axis) for pair in pieces
        ]
        whole = torch.stack(alternating, first)
        return {"other": tensors["other"], "e.ab": whole.contiguous()}

    turns = ("transpose e.*.a", "transpose e.*.b") if turned else ()
    join = (*turns, f"concat@{axis}/{groups} e.*.a, e.*.b -> e.*.ab", f"stack@{first} e.*.ab -> e.ab")
    cut = (f"unstack@{first} e.ab -> e.*.ab", f"split@{axis}/{groups} e.*.ab -> e.*.a, e.*.b", *turns)
    write_model(folder / "base", base)
    write_model(folder / "base-joined", joined(base))
    write_model(folder / "post-joined", joined(post))
    extract_in(folder, "base", "post-joined", rules=pd.Rules(layouts=cut))
    report = apply_in(folder, "base-joined", rules=pd.Rules(layouts=join))
    assert report.is_post
    assert_same(read_weights(folder / "out"), joined(post))
    extract_in(folder, "base-joined", "post-joined", "delta2")
    report = apply_in(folder, "base", "delta2", "out2", rules=pd.Rules(layouts=cut))
    assert report.is_post
    assert_same(read_weights(folder / "out2"), post)
