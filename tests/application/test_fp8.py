"""fp8 end to end: deltas of dequantized values, exact to the bit; results in bf16, or in fp8 with fresh scales."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import paramdelta_hub as pd
from paramdelta_hub import cli
from paramdelta_hub.limits import BLOCK_ELEMENTS, CHUNK_ELEMENTS
from paramdelta_hub.tasks import plan
from paramdelta_hub.tasks.models import Applied, ApplyTask
from tests.support.fp8_models import BLOCK, E4M3, E5M2, FP8, dequantized, quantize, spread
from tests.support.kinds import QUANTIZATION, kind
from tests.support.models import (
    apply_in,
    assert_same,
    extract_in,
    raw,
    read_weights,
    reference,
    write_model,
    write_models,
)

Tensors = dict[str, torch.Tensor]

QUANTIZED = {
    "model.layers.0.self_attn.q_a_proj.weight": (200, 300),
    "model.layers.0.mlp.experts.gate_up_proj": (3, 130, 150),
    "model.layers.1.mlp.experts.0.up_proj.weight": (129, 127),
    "model.layers.1.mlp.down_proj.weight": (1, 5),
}
PLAIN = {
    "model.embed_tokens.weight": (40, 16), "model.layers.0.mlp.gate.e_score_correction_bias": (8,),
    "model.norm.weight": (16,),
}  # fmt: skip
EMBEDDING = "model.embed_tokens.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"


@dataclass(frozen=True)
class Kind:
    """How the weights of a checkpoint are quantized."""

    name: str
    block: tuple[int, int]
    ending: str
    setting: Mapping[str, Any]
    scale: torch.dtype = torch.float32

    def store(self, values: Tensors) -> Tensors:
        """The stored tensors: each weight followed by its scales."""
        stored = {}
        for name, value in values.items():
            stored[name] = value
            if name in QUANTIZED:
                stored[name], stored[name + self.ending] = quantize(value.float(), self.block, self.scale)
        return stored

    def mean(self, stored: Tensors) -> Tensors:
        """What the stored tensors stand for."""
        return {
            name: dequantized(stored[name], stored[name + self.ending], self.block) if name in QUANTIZED else tensor
            for name, tensor in stored.items()
            if not name.endswith(self.ending)
        }


KINDS = [
    Kind("blocks", BLOCK, "_scale_inv", FP8 | {"activation_scheme": "dynamic", "fmt": "e4m3"}),
    Kind("tensors", (1 << 20, 1 << 20), "_scale", {"quant_method": "fp8"}, torch.bfloat16),
    Kind("rows", (1, 1 << 20), "_scale", {"quant_method": "fbgemm_fp8"}, torch.float16),
]
BLOCKS = KINDS[0]


def values(seed: int, near: Tensors | None = None, scale: float = 0.02) -> Tensors:
    """Wide values of every tensor: noise, or noise on top of another model's."""
    noise = torch.Generator().manual_seed(seed)
    shapes = {**QUANTIZED, **PLAIN}
    drawn = {name: torch.randn(*shape, generator=noise) * scale for name, shape in shapes.items()}
    if near:
        drawn = {name: near[name] + value for name, value in drawn.items()}
    return drawn


def narrowed(wide: Tensors) -> Tensors:
    return {name: value if name.endswith("bias") else value.bfloat16() for name, value in wide.items()}


def family() -> tuple[Tensors, Tensors, Tensors]:
    base = values(0)
    post, target = values(1, base, 0.002), values(2, base, 0.004)
    target[DOWN][0, 0] = 0.0
    return narrowed(base), narrowed(post), narrowed(target)


def write(path: Path, tensors: Tensors, kind: Kind | None = None, shards: int = 2, **more: Any) -> tuple[Path, Tensors]:
    """Write a model, quantized or not; return its folder, and what its values mean. In two shards, weights lie in the
    one and their scales in the other, wherever the order lets them."""
    config = {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "torch_dtype": "bfloat16"}
    if kind is None:
        write_model(path, tensors, shards, config | more)
        return path, tensors
    stored = kind.store(tensors)
    write_model(path, stored, shards, config | {"quantization_config": dict(kind.setting)} | more)
    return path, kind.mean(stored)


def expected_sums(base: Tensors, post: Tensors, target: Tensors) -> Tensors:
    return {name: reference(base[name], post[name], target[name]) for name in base}


def config_of(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((path / "config.json").read_text())
    return config


@kind(
    QUANTIZATION,
    "fp8 with scales by block, row, or tensor (DeepSeek-V3, compressed-tensors, ModelOpt), as base, post and target",
    works="read as code · scale, in bf16; base ⊕ Δ is post",
)
@pytest.mark.parametrize("sides", ["base", "post", "both"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_base_plus_delta_is_post_whatever_is_fp8(tmp_path: Path, kind: Kind, sides: str) -> None:
    base, post, target = family()
    base_path, base = write(tmp_path / "base", base, kind if sides in ("base", "both") else None)
    post_path, post = write(tmp_path / "post", post, kind if sides in ("post", "both") else None, shards=1)
    made = pd.extract(base_path, post_path, tmp_path / "delta")
    assert made.manifest.exactness.exact
    assert {record.name: record.dtype for record in made.manifest.tensors} == {
        name: "F32" if name.endswith("bias") else "BF16" for name in base
    }
    checked = pd.verify(tmp_path / "delta", base=base_path, post=post_path)
    assert checked.checked_base
    assert checked.checked_post

    again = pd.apply(base_path, tmp_path / "delta", tmp_path / "again")
    assert again.is_post
    assert again.requantization is None
    assert_same(read_weights(tmp_path / "again"), post)
    for name, its in (("bf16", None), ("fp8", kind)):
        target_path, means = write(tmp_path / f"target-{name}", target, its)
        pd.apply(target_path, tmp_path / "delta", tmp_path / f"out-{name}")
        assert_same(read_weights(tmp_path / f"out-{name}"), expected_sums(base, post, means))
        assert "quantization_config" not in config_of(tmp_path / f"out-{name}")


def test_verify_knows_another_fp8_model(tmp_path: Path) -> None:
    """One scale differs by a percent: so do the values of one block."""
    base, post, _ = family()
    base_path, _ = write(tmp_path / "base", base, BLOCKS, shards=1)
    post_path, _ = write(tmp_path / "post", post, BLOCKS, shards=1)
    pd.extract(base_path, post_path, tmp_path / "delta")
    stored = read_weights(base_path)
    stored["model.layers.0.self_attn.q_a_proj.weight_scale_inv"][1, 2] *= 1.01
    write_model(base_path, stored)
    with pytest.raises(pd.MismatchError, match="not the base") as caught:
        pd.verify(tmp_path / "delta", base=base_path)
    assert [mismatch.location for mismatch in caught.value.mismatches] == ["model.layers.0.self_attn.q_a_proj.weight"]


@pytest.fixture(scope="module")
def delta(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensors, Tensors]:
    """The package of a bf16 pair, and the pair."""
    root = tmp_path_factory.mktemp("pair")
    base, post, _ = family()
    write(root / "base", base)
    write(root / "post", post)
    extract_in(root)
    return root / "delta", base, post


Delta = tuple[Path, Tensors, Tensors]


def test_a_bf16_result_says_nothing_of_fp8(tmp_path: Path, delta: Delta) -> None:
    setting = dict(BLOCKS.setting)
    target, _ = write(
        tmp_path / "target",
        family()[2],
        BLOCKS,
        compression_config=setting,
        text_config={"quantization_config": setting, "hidden_size": 16},
    )
    (target / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    report = pd.apply(target, delta[0], tmp_path / "out", dtype="bfloat16")
    config = config_of(tmp_path / "out")
    assert config["text_config"] == {"hidden_size": 16}
    assert not {"quantization_config", "compression_config"} & config.keys()
    assert not (tmp_path / "out" / "hf_quant_config.json").exists()
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == {*QUANTIZED, *PLAIN}
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in read_weights(tmp_path / "out").values())
    for file in set(index["weight_map"].values()):
        with safe_open(tmp_path / "out" / file, "pt") as opened:
            assert {index["weight_map"][name] for name in opened.keys()} == {file}  # noqa: SIM118
    assert {omission.name for omission in report.omissions} == {name + "_scale_inv" for name in QUANTIZED}


@kind(
    QUANTIZATION,
    "an fp8 target, with `--dtype float8_e4m3fn`",
    works="fp8 again, with fresh scales, as torch makes them",
)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_an_fp8_result_is_torchs_with_fresh_scales(tmp_path: Path, kind: Kind, delta: Delta) -> None:
    package, base, post = delta
    target, means = write(tmp_path / "target", family()[2], kind)
    sums = expected_sums(base, post, means)
    report = pd.apply(target, package, tmp_path / "out", dtype="float8_e4m3fn")
    expected = kind.store(sums)
    if kind.scale is torch.float16:  # the one type whose smallest normal number real scales can fall below
        for name in QUANTIZED:
            scale = expected[name + kind.ending].clamp(min=2.0**-14)
            wide = spread(scale, kind.block, QUANTIZED[name])
            expected[name], expected[name + kind.ending] = (sums[name].float() / wide).to(E4M3), scale
    assert_same(read_weights(tmp_path / "out"), expected)
    for file in sorted(target.glob("model*")):
        ours = (tmp_path / "out" / file.name).read_bytes()
        length = int.from_bytes(ours[:8], "little") if file.suffix == ".safetensors" else len(ours)
        assert ours[: 8 + length] == file.read_bytes()[: 8 + length], "headers and index are the target's own"
    config = config_of(tmp_path / "out")
    assert config == config_of(target)
    assert not report.is_post
    assert report.changed_tensors == len(QUANTIZED) + len(PLAIN)
    assert (report.kept_tensors, report.omissions) == (0, ())

    told = report.requantization
    assert told is not None
    exact = torch.cat([sums[name].double().reshape(-1) for name in QUANTIZED])
    spreads = {name: spread(expected[name + kind.ending], kind.block, shape) for name, shape in QUANTIZED.items()}
    made = torch.cat([(expected[name].float() * spreads[name]).double().reshape(-1) for name in QUANTIZED])
    errors = made - exact
    assert told.tensors == len(QUANTIZED)
    assert told.rms_error == pytest.approx((errors.square().mean() / exact.square().mean()).sqrt().item(), rel=1e-6)
    assert told.largest_error == pytest.approx((errors.abs().max() / exact.abs().max()).item(), rel=1e-6)
    assert 0.02 < told.rms_error < 0.03
    provenance = json.loads((tmp_path / "out" / "paramdelta_provenance.json").read_text())
    assert provenance["requantization"] == report.to_json()["requantization"] == told.model_dump()
    assert provenance["tensors"].keys() == expected.keys()


def test_what_does_not_change_is_copied_with_its_scales(tmp_path: Path, delta: Delta) -> None:
    """Skipped weights, weights whose delta is zero, and the scales of activations."""
    _, base, post = delta
    experts, q_a = "model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.self_attn.q_a_proj.weight"
    write(tmp_path / "base", base)
    write(tmp_path / "post", {**post, experts: base[experts]})
    extract_in(tmp_path)
    target, _ = write(tmp_path / "target", family()[2], BLOCKS, shards=1)
    stored = read_weights(target)
    for name in QUANTIZED:
        stored[name + "_scale_inv"] = stored[name + "_scale_inv"] * 1.25  # not what fresh ones would be
    stored["model.layers.0.self_attn.q_a_proj.input_scale"] = torch.tensor(0.5)
    stored["model.layers.0.self_attn.k_scale"] = torch.ones(1)
    save_file(stored, target / "model.safetensors", metadata={"format": "pt"})
    (target / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    static = {**BLOCKS.setting} | {"activation_scheme": "static"}
    (target / "config.json").write_text(json.dumps(config_of(target) | {"quantization_config": static}))
    rules = pd.Rules(skips=("q_a_proj",))
    report = pd.apply(target, tmp_path / "delta", tmp_path / "out", rules=rules, dtype="float8_e4m3fn")
    out = read_weights(tmp_path / "out")
    assert out.keys() == stored.keys()
    same = {name for name in out if raw(out[name]) == raw(stored[name])}
    assert same == {
        experts, experts + "_scale_inv", q_a, q_a + "_scale_inv",
        "model.layers.0.self_attn.q_a_proj.input_scale", "model.layers.0.self_attn.k_scale",
    }  # fmt: skip
    assert report.requantization is not None
    assert report.requantization.tensors == 2
    assert (report.changed_tensors, report.kept_tensors) == (2 + len(PLAIN), 2)
    assert config_of(tmp_path / "out")["quantization_config"] == static
    assert (tmp_path / "out" / "hf_quant_config.json").read_bytes() == (target / "hf_quant_config.json").read_bytes()
    told = json.loads((tmp_path / "out" / "paramdelta_provenance.json").read_text())["companions"]["files"]
    assert {"hf_quant_config.json": "target"}.items() <= {file["path"]: file["source"] for file in told}.items()


def test_nothing_to_requantize_is_no_error_figure(tmp_path: Path, delta: Delta) -> None:
    target, _ = write(tmp_path / "target", family()[2], BLOCKS)
    rules = pd.Rules(skips=("proj",))
    report = pd.apply(target, delta[0], tmp_path / "out", rules=rules, dtype="float8_e4m3fn")
    assert report.requantization is None
    ours, theirs = read_weights(tmp_path / "out"), read_weights(target)
    assert {name for name in ours if raw(ours[name]) != raw(theirs[name])} == PLAIN.keys()


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", None])
def test_chunks_end_within_blocks_and_rows(tmp_path: Path, dtype: Any) -> None:
    """Scales that need the whole tensor, and blocks that lie across the ends of chunks."""
    shape = (2, 700, 1000)
    assert math.prod(shape) > CHUNK_ELEMENTS
    assert CHUNK_ELEMENTS % 1000
    assert BLOCK_ELEMENTS % 1000
    noise = torch.Generator().manual_seed(3)
    drawn = [torch.randn(*shape, generator=noise).cumsum(0) * 0.02 for _ in range(3)]
    base, post, target = (value.bfloat16() for value in (drawn[0], drawn[0] + drawn[1] / 9, drawn[0] + drawn[2] / 9))
    blocks = {"blocks_proj": BLOCK, "whole_proj": (1 << 20, 1 << 20), "rows_proj": (1, 1 << 20)}
    for name, value in {"base": base, "post": post}.items():
        write_model(tmp_path / name, dict.fromkeys(blocks, value))
    extract_in(tmp_path)
    stored, expected = {}, {}
    for name, block in blocks.items():
        stored[name], stored[name + "_scale"] = quantize(target.float(), block)
        sums = reference(base, post, dequantized(stored[name], stored[name + "_scale"], block))
        expected[name] = sums
        if dtype:
            expected[name], expected[name + "_scale"] = quantize(sums.float(), block)
    write_model(tmp_path / "target", stored, config={"quantization_config": FP8})
    apply_in(tmp_path, dtype=dtype)
    assert_same(read_weights(tmp_path / "out"), expected)


def test_a_tied_head_of_an_fp8_model(tmp_path: Path) -> None:
    """Vocabulary in fp8, a head that only the delta has: in an fp8 result it is bf16, and the embedding stays fp8."""
    base, post, target = family()
    embedding, head = EMBEDDING, "lm_head.weight"
    for name, model in {"base": base, "post": post}.items():
        write(tmp_path / name, {**model, head: model[embedding] * 2})
    extract_in(tmp_path)
    stored = BLOCKS.store(target)
    stored[embedding], stored[embedding + "_scale_inv"] = quantize(target[embedding].float(), BLOCK)
    write_model(tmp_path / "target", stored, config={"quantization_config": FP8, "tie_word_embeddings": True})
    apply_in(tmp_path, dtype="float8_e4m3fn")
    out = read_weights(tmp_path / "out")
    mean = dequantized(stored[embedding], stored[embedding + "_scale_inv"], BLOCK)
    sums = reference(base[embedding], post[embedding], mean)
    assert raw(out[embedding]) == raw(quantize(sums.float(), BLOCK)[0])
    assert_same({head: out[head]}, {head: reference(base[embedding] * 2, post[embedding] * 2, mean)})
    assert config_of(tmp_path / "out")["tie_word_embeddings"] is False


def write_vocabulary(path: Path, tokens: Sequence[str]) -> None:
    vocab = {token: row for row, token in enumerate(tokens)}
    (path / "tokenizer.json").write_text(json.dumps({"added_tokens": [], "model": {"vocab": vocab, "merges": []}}))


def with_another_vocabulary(root: Path, tokens: Sequence[str]) -> tuple[Path, Tensors, torch.Tensor]:
    """A target whose fp8 embedding has rows for these tokens, and a delta that leads from as many rows to 40; return
    what the target's rows mean, too."""
    base, post, target = family()
    for name, model in {"base": {**base, EMBEDDING: base[EMBEDDING][: len(tokens)]}, "post": post}.items():
        write_vocabulary(write(root / name, model)[0], [str(number) for number in range(len(model[EMBEDDING]))])
    extract_in(root)
    stored = BLOCKS.store(target)
    embedding = base[EMBEDDING][[int(token) for token in tokens]]
    stored[EMBEDDING], stored[EMBEDDING + "_scale_inv"] = quantize(embedding.float(), (8, 1 << 20))
    config = {"quantization_config": FP8 | {"weight_block_size": [8, 16]}}
    stored = {name: tensor for name, tensor in stored.items() if not name.startswith(tuple(QUANTIZED))}
    write_vocabulary(write_model(root / "target", stored, config=config), tokens)
    return root / "delta", stored, dequantized(stored[EMBEDDING], stored[EMBEDDING + "_scale_inv"], (8, 1 << 20))


@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_rows_of_fp8_in_another_order_get_other_scales(tmp_path: Path, weight: float) -> None:
    """The scales of eight rows each: in the order of post's tokens, also where nothing else changes."""
    tokens = [str(number) for number in reversed(range(40))]
    delta, stored, mean = with_another_vocabulary(tmp_path, tokens)
    base, post, _ = family()
    rules = pd.Rules(skips=("proj",))
    weights = pd.WeightMap(((EMBEDDING, weight),))
    report = pd.apply(
        tmp_path / "target", delta, tmp_path / "out", rules=rules, weight_map=weights, dtype="float8_e4m3fn"
    )
    sums = reference(base[EMBEDDING], post[EMBEDDING], mean.flip(0)) if weight else mean.flip(0)
    out = read_weights(tmp_path / "out")
    codes, scale = quantize(sums.float(), (8, 1 << 20))
    assert (raw(out[EMBEDDING]), raw(out[EMBEDDING + "_scale_inv"])) == (raw(codes), raw(scale))
    assert raw(scale) != raw(stored[EMBEDDING + "_scale_inv"])
    assert report.requantization is not None
    assert report.requantization.tensors == 1


def test_more_rows_than_there_are_scales_for(tmp_path: Path) -> None:
    delta, _, _ = with_another_vocabulary(tmp_path, [str(number) for number in range(30)])
    with pytest.raises(pd.MismatchError, match="remove --dtype") as caught:
        pd.apply(tmp_path / "target", delta, tmp_path / "out", rules=pd.Rules(skips=("proj",)), dtype="float8_e4m3fn")
    assert [(mismatch.location, mismatch.kind) for mismatch in caught.value.mismatches] == [(EMBEDDING, "fp8")]
    assert "40 rows in the result, but the target has scales for 30" in str(caught.value)


def test_a_tensor_brought_whole_finds_no_scales(tmp_path: Path) -> None:
    """It replaces the target's own: in a bf16 result, and in an fp8 result only where the target's is not fp8."""
    base, post, target = family()
    head = "score.weight"
    whole = torch.randn(4, 16, generator=torch.Generator().manual_seed(9)).bfloat16()
    write(tmp_path / "base", base)
    write(tmp_path / "post", {**post, head: whole})
    extract_in(tmp_path, rules=pd.Rules(carries=("score",)))
    plain, quantized = BLOCKS.store(target) | {head: whole * 2}, BLOCKS.store(target)
    quantized[head], quantized[head + "_scale_inv"] = quantize(whole.float(), BLOCK)
    for name, tensors in {"plain": plain, "quantized": quantized}.items():
        write_model(tmp_path / name, tensors, config={"quantization_config": FP8})
    for name, dtype in (("plain", None), ("plain", "float8_e4m3fn"), ("quantized", None)):
        out = tmp_path / f"{name}-{dtype}"
        pd.apply(tmp_path / name, tmp_path / "delta", out, dtype=dtype)  # type: ignore[arg-type]
        assert raw(read_weights(out)[head]) == raw(whole)
    with pytest.raises(pd.MismatchError, match="remove --dtype") as caught:
        apply_in(tmp_path, "quantized", dtype="float8_e4m3fn")
    assert [(mismatch.location, mismatch.kind) for mismatch in caught.value.mismatches] == [(head, "fp8")]


REFUSED: dict[str, tuple[Callable[[Path, Tensors], object], str, str]] = {
    "a bf16 target": (lambda path, tensors: write(path, tensors), "float8_e4m3fn", "weights are not fp8"),
    "another type": (
        lambda path, tensors: write(path, tensors, BLOCKS),
        "int8",
        "or 'float8_e4m3fn', not 'int8'",
    ),
    "an E5M2 target": (
        lambda path, tensors: write_model(
            path, {"a.weight": torch.ones(3, 3).to(E5M2), "a.weight_scale": torch.ones(1)}, config={}
        ),
        "float8_e4m3fn",
        "'a.weight' is F8_E5M2",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_dtype_that_can_not_be_is_refused_before_anything_is_written(tmp_path: Path, case: str, delta: Delta) -> None:
    make, dtype, words = REFUSED[case]
    make(tmp_path / "target", family()[2])
    with pytest.raises(pd.OptionError, match=words):
        pd.apply(tmp_path / "target", delta[0], tmp_path / "out", dtype=dtype)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("kind", KINDS[:2], ids=lambda kind: kind.name)
def test_what_is_not_finite_is_named(tmp_path: Path, delta: Delta, kind: Kind, dtype: Any) -> None:
    """One NaN of the target's, and one product with its scale that is beyond bf16."""
    target, _ = write(tmp_path / "target", family()[2], kind)
    for path in sorted(target.glob("*.safetensors")):
        stored = load_file(path)
        if DOWN in stored:
            stored[DOWN].view(torch.uint8)[0, 3] = 0x7F
        if "model.layers.0.mlp.experts.gate_up_proj" + kind.ending in stored:
            stored["model.layers.0.mlp.experts.gate_up_proj" + kind.ending][1, 0, 0] = 3e38
        save_file(stored, path, metadata={"format": "pt"})
    with pytest.raises(pd.NotFiniteError) as caught:
        pd.apply(target, delta[0], tmp_path / "out", dtype=dtype)
    assert {mismatch.location for mismatch in caught.value.mismatches} == {
        DOWN, "model.layers.0.mlp.experts.gate_up_proj",
    }  # fmt: skip
    assert not (tmp_path / "out").exists()


class Stops(pd.Progress):
    """Interrupts after so many bytes."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, nbytes: int) -> None:
        self.left -= nbytes
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("spoiled", ["nothing", "codes", "scales"])
def test_an_interrupted_run_goes_on_and_trusts_nothing_that_changed(
    tmp_path: Path, delta: Delta, monkeypatch: pytest.MonkeyPatch, spoiled: str
) -> None:
    monkeypatch.setattr(plan, "TASK_BYTES_MIN", 1)
    target, _ = write(tmp_path / "target", family()[2], BLOCKS)
    options: dict[str, Any] = {"dtype": "float8_e4m3fn", "threads": 1}
    whole = pd.apply(target, delta[0], tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        pd.apply(target, delta[0], tmp_path / "out", progress=Stops(2 * 200 * 300 + 2 * 3 * 130 * 150 + 100), **options)
    partial = tmp_path / "out.partial"
    receipts = [json.loads(path.read_text()) for path in sorted((partial / "receipts").glob("*.json"))]
    done = next(receipt["outcome"] for receipt in receipts if receipt["outcome"]["deviations"])
    codes, scales = done["digests"]
    assert scales == codes + "_scale_inv"
    assert len(done["files"]) == 2, "the weight lies in one file, its scales in the other"
    if spoiled != "nothing":
        name = codes if spoiled == "codes" else scales
        index = json.loads((target / "model.safetensors.index.json").read_text())["weight_map"]
        path = partial / "result" / index[name]
        content = bytearray(path.read_bytes())
        length = int.from_bytes(content[:8], "little")
        begin = 8 + length + json.loads(content[8 : 8 + length])[name]["data_offsets"][0]
        content[begin] ^= 1
        path.write_bytes(content)
    again = pd.apply(target, delta[0], tmp_path / "out", **options)
    assert again.resumed_tasks == len(receipts) - (spoiled != "nothing")
    assert again.requantization == whole.requantization
    for path in sorted((tmp_path / "whole").iterdir()):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name
    assert not partial.exists()


@pytest.mark.parametrize("block", [BLOCK, (1 << 20, 1 << 20)], ids=str)
def test_memory_does_not_grow_with_a_tensor(
    tmp_path: Path, block: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight of 64 MB as bf16, in one task: what is held is chunks."""
    monkeypatch.setattr(plan, "TASK_BYTES_MIN", 1 << 40)
    monkeypatch.setattr(plan, "TASK_BYTES_MAX", 1 << 40)
    base = torch.randn(4096, 4096 * 2, generator=torch.Generator().manual_seed(0)).bfloat16()
    post = base.clone()
    post[::64] *= 1.5  # few changes, quickly encoded
    codes, scale = quantize(base.float(), block)
    write_models(tmp_path, base={"up_proj.weight": base}, post={"up_proj.weight": post})
    stored = {"up_proj.weight": codes, "up_proj.weight_scale": scale}
    write_model(tmp_path / "target", stored, config={"quantization_config": FP8})
    assert base.nbytes == 64 << 20
    extract_in(tmp_path)
    del base, post, codes, scale, stored
    peaks = []

    run = ApplyTask.run

    def measured(*arguments: Any) -> Applied:
        tracemalloc.start()
        outcome = run(*arguments)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        return outcome

    monkeypatch.setattr(ApplyTask, "run", measured)
    for dtype in ("bfloat16", "float8_e4m3fn"):
        pd.apply(tmp_path / "target", tmp_path / "delta", tmp_path / dtype, dtype=dtype, threads=1)
    assert len(peaks) == 2
    assert max(peaks) < 40 << 20, peaks


def test_the_command_tells_what_it_costs(tmp_path: Path, delta: Delta) -> None:
    target, _ = write(tmp_path / "target", family()[2], BLOCKS)
    arguments = [str(target), str(delta[0]), "--dtype", "float8_e4m3fn", "--threads", "1"]
    told = CliRunner().invoke(cli.apply, [*arguments, "-o", str(tmp_path / "text")], catch_exceptions=False)
    assert told.exit_code == 0
    assert "fp8: root-mean-square error 2." in told.output
    assert "(4 tensors requantized)" in told.output
    assert "left out" not in told.output
    told = CliRunner().invoke(cli.apply, [*arguments, "--json", "-o", str(tmp_path / "json")], catch_exceptions=False)
    report = json.loads(told.output)["requantization"]
    assert report.keys() == {"dtype", "tensors", "rms_error", "largest_error"}
    assert 0.02 < report["rms_error"] < 0.03
