"""Base, post and target in different float dtypes: exact by value, faithful to the formula, in the dtype asked for."""

from __future__ import annotations

import itertools
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import paramdelta_hub as pd
from paramdelta_hub.cli import main
from paramdelta_hub.errors import MismatchError, OptionError
from scripts.tools.make_golden import rounded
from tests.support.kinds import FLOAT_DTYPES, kind, remedied
from tests.support.models import TORCH, apply_in, assert_same, extract_in, read_weights, write_model, write_models

NAMES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}
DTYPES = tuple(NAMES)
SHAPE = (48, 32)


def normal(seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def formula(base: torch.Tensor, post: torch.Tensor, target: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return (post − base) + target: Δ in the wide type of both sides, the sum in that of all, rounded once."""
    sides = {base.dtype, post.dtype}
    narrow_sides = len(sides) == 1 and torch.float32 not in sides
    wide = torch.float32 if narrow_sides else torch.float64
    delta = post.to(wide) - base.to(wide)
    if not narrow_sides or torch.float32 in {target.dtype, dtype}:
        return rounded(delta.double() + target.double(), dtype)
    return (delta + target.float()).to(dtype)


def moved(model: dict[str, torch.Tensor], seed: int, scale: float, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return a model beside another, in a dtype."""
    noise = normal(seed, scale).reshape(-1)
    return {name: (t.double() + noise[: t.numel()].reshape(t.shape)).to(dtype) for name, t in model.items()}


class Sides:
    """Three models of one matrix and one bias each, in their own dtypes."""

    def __init__(self, root: Path, base: torch.dtype, post: torch.dtype, target: torch.dtype) -> None:
        weight = normal(1, 0.1).to(base)
        self.base = {"w.weight": weight, "w.bias": weight[0].clone()}
        self.post = moved(self.base, 2, 0.003, post)
        # what plain sums miss: −0, and values far smaller than base's
        self.post["w.weight"][0, :4] = torch.tensor([-0.0, 1e-6, -1e-6, 2.0**-14]).to(post)
        self.target = moved(self.base, 3, 0.01, target)
        self.folders = {
            name: write_model(root / name, tensors, config={"model_type": "llama", "torch_dtype": NAMES[dtype]})
            for name, tensors, dtype in (
                ("base", self.base, base), ("post", self.post, post), ("target", self.target, target),
            )
        }  # fmt: skip
        self.delta = root / "delta"
        self.report = pd.extract(self.folders["base"], self.folders["post"], self.delta, threads=1)


@kind(
    FLOAT_DTYPES,
    "base, post and target each in bf16, fp16 or fp32: all 27 combinations",
    works="base ⊕ Δ has post's values; any result is rounded once to the target's dtype, or to that of `--dtype`",
)
@pytest.mark.parametrize(("base", "post", "target"), list(itertools.product(DTYPES, repeat=3)), ids=str)
def test_all_combinations(tmp_path: Path, base: torch.dtype, post: torch.dtype, target: torch.dtype) -> None:
    sides = Sides(tmp_path, base, post, target)
    record = pd.inspect(sides.delta).manifest.tensors[0]
    assert (TORCH[record.base_dtype], TORCH[record.post_dtype]) == (base, post)
    checked = pd.verify(sides.delta, base=sides.folders["base"], post=sides.folders["post"], threads=1)
    assert checked.exact

    # base ⊕ Δ has post's values, rounded once to base's dtype, and all of them if it is asked for post's
    pd.apply(sides.folders["base"], sides.delta, tmp_path / "on_base", threads=1)
    assert_same(read_weights(tmp_path / "on_base"), {name: t.to(base) for name, t in sides.post.items()})
    pd.apply(sides.folders["base"], sides.delta, tmp_path / "as_post", dtype=NAMES[post], threads=1)  # type: ignore[arg-type]
    assert_same(read_weights(tmp_path / "as_post"), sides.post)
    assert json.loads((tmp_path / "as_post" / "config.json").read_text())["torch_dtype"] == NAMES[post]

    # base's values, kept in the target's dtype where it holds them, are base all the same
    kept = {name: t.to(target) for name, t in sides.base.items()}
    if all(torch.equal(kept[name].to(base), t) for name, t in sides.base.items()):
        write_model(tmp_path / "kept", kept)
        pd.apply(tmp_path / "kept", sides.delta, tmp_path / "on_kept", threads=1)
        assert_same(read_weights(tmp_path / "on_kept"), {name: t.to(target) for name, t in sides.post.items()})

    # any other target gets the formula, in its own dtype or another
    for dtype in {target, torch.float32}:
        out = tmp_path / f"out-{NAMES[dtype]}"
        report = pd.apply(sides.folders["target"], sides.delta, out, dtype=NAMES[dtype], threads=1)  # type: ignore[arg-type]
        expected = {name: formula(sides.base[name], sides.post[name], t, dtype) for name, t in sides.target.items()}
        assert_same(read_weights(out), expected)
        assert not report.is_post


@kind(FLOAT_DTYPES, "a router that one side keeps in float32", works="each tensor has its own dtypes; told")
def test_a_tensor_has_its_own_dtypes(tmp_path: Path) -> None:
    """A router that one side keeps in float32, as transformers does for DeepSeek-V3; nothing else is touched by it."""
    base = {"mlp.gate.weight": normal(1).bfloat16(), "q.weight": normal(2).bfloat16(), "n.weight": normal(3).bfloat16()}
    post = {**base, "mlp.gate.weight": base["mlp.gate.weight"].float(), "q.weight": normal(4).bfloat16()}
    write_models(tmp_path, base=base, post=post)
    report = extract_in(tmp_path)
    records = {record.name: record for record in report.manifest.tensors}
    assert records["mlp.gate.weight"].codec == records["n.weight"].codec == "zero"
    assert any("1 tensor: BF16 in base, F32 in post" in note for note in report.notes)
    apply_in(tmp_path, "base")
    assert_same(read_weights(tmp_path / "out"), {**post, "mlp.gate.weight": base["mlp.gate.weight"]})
    apply_in(tmp_path, "post", "delta", "other", force=True)
    assert read_weights(tmp_path / "other")["mlp.gate.weight"].dtype == torch.float32


@kind(
    FLOAT_DTYPES,
    "DeepSeek-V3 in bf16, loaded and trained by transformers, which saves its routers in float32",
    works="no option needed; the result has the target's dtypes, and transformers loads it",
)
@pytest.mark.usefixtures("quiet_transformers")
def test_routers_of_deepseek(tmp_path: Path) -> None:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"moe_intermediate_size": 16, "num_attention_heads": 4, "num_key_value_heads": 4, "n_routed_experts": 4}
    sizes |= {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "kv_lora_rank": 8}
    sizes |= {"first_k_dense_replace": 1, "q_lora_rank": 16, "qk_rope_head_dim": 4, "v_head_dim": 8}
    torch.manual_seed(0)
    DeepseekV3ForCausalLM(DeepseekV3Config(**sizes, qk_nope_head_dim=4)).bfloat16().save_pretrained(tmp_path / "base")
    model = DeepseekV3ForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("mlp.gate.weight"):
                parameter.data = parameter.float()
            parameter.add_(torch.randn_like(parameter) * 0.003)
    model.save_pretrained(tmp_path / "post")
    base, post = read_weights(tmp_path / "base"), read_weights(tmp_path / "post")
    routers = {name for name, tensor in post.items() if tensor.dtype != base[name].dtype}
    assert "model.layers.1.mlp.gate.weight" in routers
    assert all(".mlp.gate." in name for name in routers)
    extract_in(tmp_path)
    apply_in(tmp_path, "base")
    assert_same(read_weights(tmp_path / "out"), {name: tensor.to(base[name].dtype) for name, tensor in post.items()})
    ids = torch.arange(3, 9)[None]
    loaded = [DeepseekV3ForCausalLM.from_pretrained(tmp_path / name).eval() for name in ("out", "post")]
    with torch.no_grad():
        mine, theirs = (its(input_ids=ids).logits for its in loaded)
    assert torch.allclose(mine, theirs, atol=0.02)


@kind(
    FLOAT_DTYPES,
    "two fp32 models, with `--cast bfloat16`",
    works="the delta of their bf16 values, as small as that of bf16 models",
)
def test_cast_takes_both_sides_in_one_dtype_first(tmp_path: Path) -> None:
    base, post = {"w": normal(1).float()}, {"w": (normal(1) + normal(2, 0.01)).float()}
    folders = write_model(tmp_path / "base", base), write_model(tmp_path / "post", post)
    exact = pd.extract(*folders, tmp_path / "exact")
    cast = pd.extract(*folders, tmp_path / "cast", cast="bfloat16")
    assert (exact.manifest.cast, cast.manifest.cast) == (None, "BF16")
    assert cast.manifest.nbytes < exact.manifest.nbytes / 2
    assert pd.verify(tmp_path / "cast", base=folders[0], post=folders[1]).exact
    write_model(tmp_path / "b16", {"w": base["w"].bfloat16()})
    assert apply_in(tmp_path, "b16", "cast").is_post
    assert_same(read_weights(tmp_path / "out"), {"w": post["w"].bfloat16()})
    command = ["extract", str(folders[0]), str(folders[1]), "-o", str(tmp_path / "again"), "--cast", "bfloat16"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert pd.inspect(tmp_path / "again").manifest.content_id == cast.manifest.content_id
    with pytest.raises(OptionError, match="not 'half'"):
        pd.extract(*folders, tmp_path / "no", cast="half")  # type: ignore[arg-type]


@kind(FLOAT_DTYPES, "several deltas of several dtypes", works="summed in float64, rounded once")
def test_several_deltas_of_several_dtypes(tmp_path: Path) -> None:
    """The sum is made once in float64, in the order given, and rounded once."""
    one = Sides(tmp_path / "one", torch.bfloat16, torch.bfloat16, torch.bfloat16)
    two = Sides(tmp_path / "two", torch.float32, torch.float16, torch.bfloat16)
    pd.apply(one.folders["target"], [(one.delta, 0.5), (two.delta, -0.25)], tmp_path / "out", force=True)
    result = read_weights(tmp_path / "out")["w.weight"]
    first = (one.post["w.weight"].float() - one.base["w.weight"].float()).double()
    second = two.post["w.weight"].double() - two.base["w.weight"].double()
    total = one.target["w.weight"].double() + 0.5 * first + -0.25 * second
    assert torch.equal(result, rounded(total, torch.bfloat16))


@kind(
    FLOAT_DTYPES,
    "values that the result's dtype can't hold (`--dtype float16`)",
    refused="they would be infinite",
    remedy="a wider `--dtype`",
)
def test_a_result_that_its_dtype_cannot_hold_is_refused(tmp_path: Path) -> None:
    base = {"w": normal(1).bfloat16(), "kept": normal(2).bfloat16()}
    post = {"w": normal(3).bfloat16(), "kept": base["kept"]}
    target = {"w": base["w"] + 0.01, "kept": torch.full(SHAPE, 1e5).bfloat16()}
    write_models(tmp_path, base=base, post=post, target=target)
    extract_in(tmp_path)
    with pytest.raises(pd.NotFiniteError, match=rf"kept.*{48 * 32} value") as caught:
        apply_in(tmp_path, dtype="float16", force=True)
    with remedied(caught.value, "a wider --dtype"):
        apply_in(tmp_path, dtype="float32", force=True)
        result = read_weights(tmp_path / "out")
        assert torch.equal(result["kept"], target["kept"].float())
        assert torch.equal(result["w"], formula(base["w"], post["w"], target["w"], torch.float32))


@kind(
    FLOAT_DTYPES,
    "integers of different types",
    refused="no sum is meant",
    remedy="`--skip` leaves them as the target has them",
)
def test_integers_have_no_other_dtype(tmp_path: Path) -> None:
    base = {"w": normal(1).bfloat16(), "steps": torch.arange(8)}
    post = {"w": (normal(1) + normal(2, 0.01)).bfloat16(), "steps": torch.arange(8).int()}
    write_models(tmp_path, base=base, post=post)
    with pytest.raises(MismatchError, match=r"steps.*I64.*I32") as caught:
        extract_in(tmp_path)
    with remedied(caught.value, "leave some out with --skip"):
        extract_in(tmp_path, rules=pd.Rules(skips=("^steps$",)))
        apply_in(tmp_path, "base")
        assert_same(read_weights(tmp_path / "out"), {"w": post["w"], "steps": base["steps"]})


@kind(FLOAT_DTYPES, "rows matched by token in models of three dtypes", works="cast and summed as all others are")
def test_rows_of_a_vocabulary(tmp_path: Path) -> None:
    """Rows that are matched by token are cast as all others are."""
    words = [f"w{number}" for number in range(48)]

    def tokenizer(folder: Path, vocabulary: list[str]) -> None:
        model: dict[str, Any] = {"type": "BPE", "merges": [], "vocab": {w: i for i, w in enumerate(vocabulary)}}
        (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [], "model": model}))

    name, norm = "model.embed_tokens.weight", "model.norm.weight"
    base = {name: normal(1).float(), norm: normal(4)[0].float()}
    post = {name: (normal(1) + normal(2, 0.01)).half(), norm: base[norm]}
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    target = {name: (normal(1) + normal(3, 0.01)).bfloat16()[order], norm: base[norm]}
    for role, tensors in (("base", base), ("post", post), ("target", target)):
        write_model(tmp_path / role, tensors, config={"model_type": "llama"})
    for role in ("base", "post"):
        tokenizer(tmp_path / role, words)
    tokenizer(tmp_path / "target", [words[i] for i in order])
    extract_in(tmp_path)
    apply_in(tmp_path)
    result = read_weights(tmp_path / "out")[name]
    assert result.dtype == torch.bfloat16
    back = target[name][torch.argsort(order)]
    assert torch.equal(result, formula(base[name], post[name], back, torch.bfloat16))


def test_the_reference_of_these_tests_rounds_once() -> None:
    values = torch.tensor([1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-8 - 2.0**-40, -1 - 2.0**-8], dtype=torch.float64)
    assert rounded(values, torch.bfloat16).tolist() == [float(Fraction(129, 128)), 1.0, -1.0]
