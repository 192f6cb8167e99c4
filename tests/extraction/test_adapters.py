"""LoRA adapters as post, against torch's own product, and against PEFT."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import paramdelta_hub as pd
from paramdelta_hub.checkpoints.checkpoint import open_checkpoint
from paramdelta_hub.errors import CheckpointError, MismatchError
from tests.support.chunks import set_chunk_elements
from tests.support.fp8_models import FP8, dequantized, quantized
from tests.support.kinds import ADAPTERS, kind, remedied, rules_of
from tests.support.models import assert_same, read_weights, write_model

BF16 = torch.bfloat16
ATTENTION = "model.layers.{}.self_attn.{}_proj"
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "base_model_name_or_path": "org/base"}
PREFIX = "base_model.model."
Tensors = dict[str, torch.Tensor]


def noise(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(*shape, generator=noise(seed)) * 0.1).to(dtype)


def small(dtype: torch.dtype = BF16, prefix: str = "model.") -> Tensors:
    tensors = {
        "model.embed_tokens.weight": normal(1, 48, 16, dtype=dtype),
        "model.norm.weight": torch.ones(16, dtype=dtype),
        "lm_head.weight": normal(2, 48, 16, dtype=dtype),
    }
    for layer in range(2):
        tensors[f"{ATTENTION.format(layer, 'q')}.weight"] = normal(10 + layer, 16, 16, dtype=dtype)
        tensors[f"{ATTENTION.format(layer, 'q')}.bias"] = normal(20 + layer, 16, dtype=dtype)
        tensors[f"{ATTENTION.format(layer, 'v')}.weight"] = normal(30 + layer, 8, 16, dtype=dtype)
    return {name.replace("model.", prefix, 1) if name.startswith("model.") else name: t for name, t in tensors.items()}


def factors(module: str, outputs: int, inputs: int, rank: int = 4, seed: int = 50, **kinds: str) -> Tensors:
    down, up = kinds.get("down", "lora_A.weight"), kinds.get("up", "lora_B.weight")
    return {f"{module}.{down}": normal(seed, rank, inputs), f"{module}.{up}": normal(seed + 1, outputs, rank)}


def product(a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
    """In float64, then float32, as it is defined; the order of sums in float64 is torch's."""
    return (b.double().flatten(1) @ a.double().flatten(1) * scale).float()


def plus(base: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
    return (base.float() + update.reshape(base.shape)).to(base.dtype)


def write_adapter(path: Path, tensors: Tensors, config: dict[str, Any] | None = CONFIG) -> Path:
    path.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "adapter_model.safetensors")
    if config is not None:
        (path / "adapter_config.json").write_text(json.dumps(config))
    return path


def assert_post(root: Path, base: Tensors, adapter: Path, expected: Tensors, **options: Any) -> pd.ExtractReport:
    """Extract, verify and apply: the result has the expected tensors; others are base's."""
    write_model(root / "base", base)
    report = pd.extract(root / "base", adapter, root / "delta", **options)
    pd.verify(root / "delta", base=root / "base", post=adapter)
    assert pd.apply(root / "base", root / "delta", root / "out").is_post
    assert_same(read_weights(root / "out"), {**base, **expected})
    return report


@kind(
    ADAPTERS,
    "an adapter's folder or its file, on a base in bf16, fp16 or fp32",
    works="base + scale · B · A, rounded once",
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("as_file", [False, True])
def test_base_plus_the_scaled_product(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, as_file: bool
) -> None:
    set_chunk_elements(monkeypatch, 37)
    base, q, v = small(dtype), f"{ATTENTION.format(0, 'q')}", f"{ATTENTION.format(1, 'v')}"
    tensors = {**factors(PREFIX + q, 16, 16), **factors(PREFIX + v, 8, 16, seed=60)}
    tensors = {
        name: tensor.to(BF16 if ATTENTION.format(1, "v") in name else torch.float32) for name, tensor in tensors.items()
    }
    adapter = write_adapter(tmp_path / "lora", tensors)
    expected = {
        f"{module}.weight": plus(
            base[f"{module}.weight"],
            product(tensors[f"{PREFIX}{module}.lora_A.weight"], tensors[f"{PREFIX}{module}.lora_B.weight"], 1.5),
        )
        for module in (q, v)
    }
    given = adapter / "adapter_model.safetensors" if as_file else adapter
    report = assert_post(tmp_path, base, given, expected)
    assert report.notes == ("post is an adapter: base + scale·B·A, rank 4, 2 tensors",)
    assert report.model_nbytes == sum(tensor.nbytes for tensor in base.values())


@kind(ADAPTERS, "rslora, `rank_pattern`, `alpha_pattern`", works="each module has its own scale")
def test_scales_and_ranks_by_pattern(tmp_path: Path) -> None:
    base, q, v = small(), ATTENTION.format(0, "q"), ATTENTION.format(1, "v")
    tensors = {**factors(PREFIX + q, 16, 16, 2), **factors(PREFIX + v, 8, 16, 4, seed=60)}
    config = {
        **CONFIG,
        "use_rslora": True,
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"^model.layers.1.*v_proj": 9},
    }
    expected = {
        f"{q}.weight": plus(base[f"{q}.weight"], product(*list(tensors.values())[:2], 6 / math.sqrt(2))),
        f"{v}.weight": plus(base[f"{v}.weight"], product(*list(tensors.values())[2:], 9 / 2)),
    }
    report = assert_post(tmp_path, base, write_adapter(tmp_path / "lora", tensors, config), expected)
    assert "ranks 2 to 4" in report.notes[0]


@kind(ADAPTERS, "`modules_to_save`, `bias`, `lora_bias`, LoRA of embeddings", works="replaced whole, added, transposed")
def test_whole_tensors_biases_and_embeddings(tmp_path: Path) -> None:
    base, q = small(), ATTENTION.format(0, "q")
    tensors = {
        **factors(PREFIX + q, 16, 16),
        f"{PREFIX}{q}.lora_B.bias": normal(70, 16),
        f"{PREFIX}model.embed_tokens.lora_embedding_A": normal(71, 4, 48),
        f"{PREFIX}model.embed_tokens.lora_embedding_B": normal(72, 16, 4),
        f"{PREFIX}lm_head.weight": normal(73, 48, 16),
        f"{PREFIX}{ATTENTION.format(1, 'q')}.base_layer.bias": normal(74, 16, dtype=BF16),
    }
    embedding = product(*(tensors[f"{PREFIX}model.embed_tokens.lora_embedding_{side}"] for side in "AB"), 1.5).T
    expected = {
        f"{q}.weight": plus(base[f"{q}.weight"], product(*list(tensors.values())[:2], 1.5)),
        f"{q}.bias": plus(base[f"{q}.bias"], (normal(70, 16).double() * 1.5).float()),
        "model.embed_tokens.weight": plus(base["model.embed_tokens.weight"], embedding),
        "lm_head.weight": normal(73, 48, 16).to(BF16),
        f"{ATTENTION.format(1, 'q')}.bias": normal(74, 16, dtype=BF16),
    }
    adapter = write_adapter(tmp_path / "lora", tensors, {**CONFIG, "modules_to_save": ["lm_head"]})
    report = assert_post(tmp_path, base, adapter, expected)
    assert report.notes[0].endswith("rank 4, 2 tensors; 1 vector added to biases; 2 tensors replaced whole")


@kind(ADAPTERS, "`trainable_token_indices`", works="these rows are replaced")
@pytest.mark.parametrize("indices", [[47, 3], {"embed_tokens": [47, 3]}])
def test_rows_of_trained_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, indices: Any) -> None:
    set_chunk_elements(monkeypatch, 37)
    base, q = small(), ATTENTION.format(0, "q")
    rows = normal(9, 2, 16)
    tensors = {**factors(PREFIX + q, 16, 16), TOKENS: rows}
    embedding = base["model.embed_tokens.weight"].clone()
    embedding[[47, 3]] = rows.to(BF16)
    update = product(*list(tensors.values())[:2], 1.5)
    expected = {f"{q}.weight": plus(base[f"{q}.weight"], update), "model.embed_tokens.weight": embedding}
    adapter = write_adapter(tmp_path / "lora", tensors, {**CONFIG, "trainable_token_indices": indices})
    report = assert_post(tmp_path, base, adapter, expected)
    assert report.notes[0].endswith("1 tensor; 2 rows of tokens replaced")


@kind(ADAPTERS, "`fan_in_fan_out` (GPT-2), whatever the config says", works="transposed, by the shapes")
@pytest.mark.parametrize("said", [True, False])
def test_layers_that_hold_inputs_first(tmp_path: Path, said: bool) -> None:
    """GPT-2's, whatever the config says; the square one is like the others."""
    base = {
        "h.0.attn.c_attn.weight": normal(1, 16, 48, dtype=BF16),
        "h.0.attn.c_proj.weight": normal(2, 16, 16, dtype=BF16),
    }
    tensors = {
        **factors(f"{PREFIX}transformer.h.0.attn.c_attn", 48, 16),
        **factors(f"{PREFIX}transformer.h.0.attn.c_proj", 16, 16, seed=80),
    }
    a, b, c, d = tensors.values()
    expected = {
        "h.0.attn.c_attn.weight": plus(base["h.0.attn.c_attn.weight"], product(a, b, 1.5).T),
        "h.0.attn.c_proj.weight": plus(base["h.0.attn.c_proj.weight"], product(c, d, 1.5).T),
    }
    adapter = write_adapter(tmp_path / "lora", tensors, {**CONFIG, "fan_in_fan_out": said})
    report = assert_post(tmp_path, base, adapter, expected)
    assert "transformer.h.0.attn.c_attn.weight is base's h.0.attn.c_attn.weight" in report.notes[1]


@kind(ADAPTERS, "a base whose names have another prefix", works="found, if only one fits")
@pytest.mark.parametrize("prefix", ["", "model.language_model.", "language_model.model."])
def test_base_may_have_another_prefix(tmp_path: Path, prefix: str) -> None:
    base, q = small(prefix=prefix), ATTENTION.format(0, "q")
    name = f"{q}.weight".replace("model.", prefix, 1)
    tensors = {**factors(PREFIX + q, 16, 16), f"{PREFIX}model.norm.weight": normal(3, 16)}
    expected = {
        name: plus(base[name], product(*list(tensors.values())[:2], 1.5)),
        f"{prefix}norm.weight": normal(3, 16).to(BF16),
    }
    assert_post(tmp_path, base, write_adapter(tmp_path / "lora", tensors), expected)


@kind(ADAPTERS, "names that may mean two tensors of base", refused="nothing says which", remedy="`--rename '^OLD=NEW'`")
def test_a_name_that_can_mean_two_tensors_is_refused_until_renamed(tmp_path: Path) -> None:
    base = {f"{tower}.layers.0.attn.q_proj.weight": normal(5, 16, 16, dtype=BF16) for tower in ("vision", "text")}
    write_model(tmp_path / "base", base)
    tensors = factors(f"{PREFIX}layers.0.attn.q_proj", 16, 16)
    adapter = write_adapter(tmp_path / "lora", tensors)
    with pytest.raises(CheckpointError, match=r"may be any of base's '(text|vision)\..* '(text|vision)\.") as caught:
        pd.extract(tmp_path / "base", adapter, tmp_path / "delta")
    with remedied(caught.value, "--rename '^OLD=NEW'"):
        name = "text.layers.0.attn.q_proj.weight"
        expected = {name: plus(base[name], product(*tensors.values(), 1.5))}
        report = assert_post(tmp_path, base, adapter, expected, rules=pd.Rules(renames=[("^layers", "text.layers")]))
        assert report.rules[0].tensors == 1


@kind(
    ADAPTERS,
    "an adapter of tensors that base lacks",
    refused="each is listed",
    remedy="`--skip REGEX`; `--carry REGEX` for a whole tensor",
)
def test_what_base_does_not_have_is_listed_or_skipped(tmp_path: Path) -> None:
    base, q = small(), ATTENTION.format(0, "q")
    write_model(tmp_path / "base", base)
    tensors = {
        **factors(PREFIX + q, 16, 16),
        **factors(f"{PREFIX}vision.proj", 9, 7),
        f"{PREFIX}score.weight": normal(4, 2, 16),
    }
    adapter = write_adapter(tmp_path / "lora", tensors)
    with pytest.raises(MismatchError) as caught:
        pd.extract(tmp_path / "base", adapter, tmp_path / "delta")
    assert {problem.location for problem in caught.value.mismatches} == {"vision.proj.weight", "score.weight"}
    with remedied(caught.value, "leave some out with --skip", "store whole tensors with --carry"):
        rules = pd.Rules(skips=[r"^vision\."], carries=[r"^score\."])
        report = pd.extract(tmp_path / "base", adapter, tmp_path / "delta", rules=rules)
        assert [(item.name, item.side) for item in report.omissions] == [("vision.proj.weight", "post")]
        pd.apply(tmp_path / "base", tmp_path / "delta", tmp_path / "out")
        update = plus(base[f"{q}.weight"], product(*list(tensors.values())[:2], 1.5))
        assert_same(read_weights(tmp_path / "out"), {**base, f"{q}.weight": update, "score.weight": normal(4, 2, 16)})


@kind(ADAPTERS, "an adapter of a quantized base", works="added to base's bf16 values; told")
def test_a_quantized_base_is_said(tmp_path: Path) -> None:
    q = ATTENTION.format(0, "q")
    base = {**quantized(f"{q}.weight", (16, 16)), "model.norm.weight": torch.ones(16).bfloat16()}
    write_model(tmp_path / "base", base, config={"quantization_config": FP8})
    tensors = factors(PREFIX + q, 16, 16)
    report = pd.extract(tmp_path / "base", write_adapter(tmp_path / "lora", tensors), tmp_path / "delta")
    assert "1 of these tensors are quantized in base: the adapter is added to their bf16 values" in report.notes
    pd.apply(tmp_path / "base", tmp_path / "delta", tmp_path / "out")
    values = dequantized(base[f"{q}.weight"], base[f"{q}.weight_scale_inv"], (128, 128))
    assert torch.equal(read_weights(tmp_path / "out")[f"{q}.weight"], plus(values, product(*tensors.values(), 1.5)))


def test_a_base_that_can_not_be_read_is_told(tmp_path: Path) -> None:
    q = ATTENTION.format(0, "q")
    base = {f"{q}.weight": torch.ones(16, 16, dtype=torch.int8), f"{q}.SCB": torch.ones(16)}
    write_model(tmp_path / "base", base)
    with pytest.raises(MismatchError) as caught:
        pd.extract(tmp_path / "base", write_adapter(tmp_path / "lora", factors(PREFIX + q, 16, 16)), tmp_path / "delta")
    assert "bitsandbytes" in str(caught.value.mismatches[0])


def kohya(module: str, outputs: int, inputs: int, alpha: float | None, seed: int, *kernel: int) -> Tensors:
    tensors = {
        f"{module}.lora_down.weight": normal(seed, 4, inputs, *kernel),
        f"{module}.lora_up.weight": normal(seed + 1, outputs, 4, *(1 for _ in kernel)),
    }
    return tensors | ({f"{module}.alpha": torch.tensor(alpha)} if alpha is not None else {})


@kind(ADAPTERS, "kohya's files for a single-file checkpoint", works="names looked up in base; scale `alpha` / rank")
def test_kohya_files_of_a_checkpoint_in_one_file(tmp_path: Path) -> None:
    unet, text = "model.diffusion_model.input_blocks.1.1", "cond_stage_model.transformer.text_model.encoder.layers.0"
    base = {
        f"{unet}.transformer_blocks.0.attn1.to_q.weight": normal(1, 16, 16, dtype=torch.float16),
        f"{unet}.proj_in.weight": normal(2, 8, 6, 3, 3, dtype=torch.float16),
        f"{text}.mlp.fc1.weight": normal(3, 12, 16, dtype=torch.float16),
    }
    write_model(tmp_path / "base", base)
    tensors = {
        **kohya("lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q", 16, 16, 2.0, 10),
        **kohya("lora_unet_input_blocks_1_1_proj_in", 8, 6, 1.0, 20, 3, 3),
        **kohya("lora_te_text_model_encoder_layers_0_mlp_fc1", 12, 16, None, 30),
    }
    save_file(tensors, tmp_path / "style.safetensors")
    scales = iter((0.5, 0.25, 1.0))
    expected = {
        name: plus(
            weight, product(normal(seed, 4, *weight.shape[1:]), normal(seed + 1, weight.shape[0], 4), next(scales))
        )
        for (name, weight), seed in zip(base.items(), (10, 20, 30), strict=True)
    }
    assert_post(tmp_path, base, tmp_path / "style.safetensors", expected)


@kind(ADAPTERS, "`pytorch_lora_weights.safetensors` of diffusers", works="scale 1")
@pytest.mark.parametrize("kinds", [{}, {"down": "lora.down.weight", "up": "lora.up.weight"}])
def test_diffusers_files_of_one_component(tmp_path: Path, kinds: dict[str, str]) -> None:
    base = {"blocks.0.attn.to_q.weight": normal(1, 16, 16, dtype=BF16), "proj.weight": normal(2, 4, 16, dtype=BF16)}
    tensors = factors("transformer.blocks.0.attn.to_q", 16, 16, **kinds)
    (tmp_path / "lora").mkdir()
    save_file(tensors, tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    name = "blocks.0.attn.to_q.weight"
    assert_post(tmp_path, base, tmp_path / "lora", {name: plus(base[name], product(*tensors.values(), 1.0))})


PIPELINE = {
    "unet/down.0.attn.to_q.weight": normal(1, 16, 16),
    "text_encoder/encoder.layers.0.mlp.fc1.weight": normal(2, 16, 16),
    "text_encoder_2/encoder.layers.0.mlp.fc1.weight": normal(3, 16, 16),
}


def write_pipeline(root: Path) -> Path:
    for name, tensor in PIPELINE.items():
        folder, _, rest = name.partition("/")
        stem = "diffusion_pytorch_model" if folder == "unet" else "model"
        (root / folder).mkdir(parents=True)
        save_file({rest: tensor}, root / folder / f"{stem}.safetensors")
        (root / folder / "config.json").write_text("{}")
    index = {folder: ["some", "Class"] for folder in ("unet", "text_encoder", "text_encoder_2")}
    (root / "model_index.json").write_text(json.dumps(index))
    return root


@pytest.mark.parametrize("kind", ["diffusers", "kohya", "metadata"])
def test_adapters_of_a_whole_pipeline(tmp_path: Path, kind: str) -> None:
    """Each component has its own names, and in diffusers' metadata its own scale."""
    base = write_pipeline(tmp_path / "base")
    if kind == "kohya":
        modules = ("lora_unet_down_0_attn_to_q", "lora_te1_text_model_encoder_layers_0_mlp_fc1",
                   "lora_te2_text_model_encoder_layers_0_mlp_fc1")  # fmt: skip
        tensors = {}
        for seed, module in enumerate(modules):
            tensors |= kohya(module, 16, 16, 2.0, 50 + 2 * seed)
        scales = [0.5] * 3
    else:
        modules = ("unet.down.0.attn.to_q", "text_encoder.text_model.encoder.layers.0.mlp.fc1",
                   "text_encoder_2.text_model.encoder.layers.0.mlp.fc1")  # fmt: skip
        tensors = {}
        for seed, module in enumerate(modules):
            tensors |= factors(module, 16, 16, seed=50 + 2 * seed)
        scales = [1.0] * 3
    metadata = {}
    if kind == "metadata":
        told = {"unet.lora_alpha": 8, "unet.r": 4, "text_encoder.lora_alpha": 2, "text_encoder.peft_type": "LORA"}
        told |= {"text_encoder_2.lora_alpha": 4, "text_encoder_2.use_rslora": True, "unet.init_lora_weights": True}
        metadata = {"lora_adapter_metadata": json.dumps(told)}
        scales = [2.0, 0.5, 2.0]
    path = tmp_path / "pytorch_lora_weights.safetensors"
    save_file(tensors, path, metadata=metadata)
    pd.extract(base, path, tmp_path / "delta")
    pd.verify(tmp_path / "delta", base=base, post=path)
    assert pd.apply(base, tmp_path / "delta", tmp_path / "out").is_post
    for seed, (name, scale) in enumerate(zip(PIPELINE, scales, strict=True)):
        update = product(normal(50 + 2 * seed, 4, 16), normal(51 + 2 * seed, 16, 4), scale)
        [file] = (tmp_path / "out" / name.partition("/")[0]).glob("*.safetensors")
        assert_same(load_file(file), {name.partition("/")[2]: plus(PIPELINE[name], update)})


def test_what_metadata_says_is_checked_as_a_config_is(tmp_path: Path) -> None:
    base = write_pipeline(tmp_path / "base")
    for told, words in (({"unet.use_dora": True}, "DoRA"), ({"unet.r": 8, "unet.lora_alpha": 8}, "rank 4, but")):
        path = tmp_path / "pytorch_lora_weights.safetensors"
        save_file(factors("unet.down.0.attn.to_q", 16, 16), path, {"lora_adapter_metadata": json.dumps(told)})
        with pytest.raises(CheckpointError, match=words) as caught:
            pd.extract(base, path, tmp_path / "delta")
        assert words != "DoRA" or "fuse_lora" in str(caught.value.remedy)


Q = PREFIX + ATTENTION.format(0, "q")
GOOD = factors(Q, 16, 16)
TOKENS = f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta"
REFUSED: list[tuple[str, Tensors, dict[str, Any] | None]] = [
    ("DoRA", GOOD, {**CONFIG, "use_dora": True}),
    ("DoRA", {**GOOD, f"{Q}.lora_magnitude_vector": torch.ones(16)}, CONFIG),
    ("kind LOHA", {f"{Q}.hada_w1_a": torch.ones(4, 4)}, {**CONFIG, "peft_type": "LOHA"}),
    ("LoHa", {"lora_unet_a.hada_w1_a": torch.ones(4, 4)}, None),
    ("LoKr", {"lora_unet_a.lokr_w1": torch.ones(4, 4)}, None),
    ("kind IA3", {f"{Q}.ia3_l": torch.ones(4, 4)}, {**CONFIG, "peft_type": "IA3"}),
    ("kind PREFIX_TUNING", {"prompt_embeddings": torch.ones(4, 16)}, {"peft_type": "PREFIX_TUNING"}),
    ("begun with pissa_niter_4", GOOD, {**CONFIG, "init_lora_weights": "pissa_niter_4"}),
    ("target_parameters", GOOD, {**CONFIG, "target_parameters": ["experts.gate_up_proj"]}),
    ("layer_replication", GOOD, {**CONFIG, "layer_replication": [[0, 2]]}),
    ("something_new", GOOD, {**CONFIG, "something_new": 3}),
    (
        "does not fit trainable_token_indices",
        {**GOOD, TOKENS: normal(1, 2, 16)},
        {**CONFIG, "trainable_token_indices": [1]},
    ),
    ("does not fit trainable_token_indices", {TOKENS: normal(1, 1, 16)}, {**CONFIG, "trainable_token_indices": [48]}),
    ("rank 4, but adapter_config.json says 8", GOOD, {**CONFIG, "r": 8}),
    ("has no number as lora_alpha", GOOD, {"peft_type": "LORA", "r": 4}),
    ("without its adapter_config.json", GOOD, None),
    ("lacks one of its two factors", dict([*GOOD.items()][:1]), CONFIG),
    ("saved in pieces", {**GOOD, f"{Q}.lora_A.weight": torch.ones(0)}, CONFIG),
    (
        "holds 2 adapters",
        {f"{Q}.lora_A.one.weight": normal(1, 4, 16), f"{Q}.lora_B.two.weight": normal(1, 16, 4)},
        CONFIG,
    ),
    ("can't be multiplied", {**GOOD, f"{Q}.lora_B.weight": normal(1, 16, 3)}, CONFIG),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case[0])
def test_refused_by_name_with_a_remedy(tmp_path: Path, case: Any) -> None:
    words, tensors, config = case
    write_model(tmp_path / "base", small())
    adapter = write_adapter(tmp_path / "lora", tensors, config)
    with pytest.raises(CheckpointError) as caught:
        pd.extract(tmp_path / "base", adapter, tmp_path / "delta")
    assert words in caught.value.what
    assert caught.value.remedy


INCOMPLETE: dict[str, tuple[Tensors, dict[str, Any] | None, str]] = {
    "no alpha": (GOOD, {"peft_type": "LORA", "r": 4}, "add the lora_alpha that the adapter was trained with"),
    "no config": (GOOD, None, "put the adapter_config.json that belongs to it in the same folder"),
    "one factor": (dict(list(GOOD.items())[:1]), CONFIG, "get the file again"),
    "in pieces": (
        {**GOOD, f"{Q}.lora_A.weight": torch.ones(0)},
        CONFIG,
        "save the adapter again with its parameters gathered",
    ),
}
"""Each with a remedy that leads to the whole adapter."""


@kind(
    ADAPTERS,
    "an adapter without `lora_alpha`, without its config, with one factor of two, or saved in pieces",
    refused="what it adds is not known",
    remedy="complete it, as the error says: the config, the number, the file",
)
@pytest.mark.parametrize("case", INCOMPLETE)
def test_an_adapter_that_is_not_whole(tmp_path: Path, case: str) -> None:
    tensors, config, words = INCOMPLETE[case]
    write_model(tmp_path / "base", small())
    with pytest.raises(CheckpointError) as caught:
        pd.extract(tmp_path / "base", write_adapter(tmp_path / "lora", tensors, config), tmp_path / "delta")
    with remedied(caught.value, words):
        name = f"{ATTENTION.format(0, 'q')}.weight"
        expected = {name: plus(small()[name], product(*GOOD.values(), 1.5))}
        assert_post(tmp_path, small(), write_adapter(tmp_path / "whole", GOOD), expected)


METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "DoRA": ("LoraConfig", {"use_dora": True}),
    "begun with pissa": ("LoraConfig", {"init_lora_weights": "pissa"}),
    "kind LOHA": ("LoHaConfig", {"r": 4}),
    "kind LOKR": ("LoKrConfig", {"r": 4}),
    "kind IA3": ("IA3Config", {"feedforward_modules": ["down_proj"]}),
    "kind VERA": ("VeraConfig", {"r": 4}),
    "kind OFT": ("OFTConfig", {"oft_block_size": 8}),
    "kind ADALORA": ("AdaLoraConfig", {"total_step": 10, "init_r": 4, "target_r": 2}),
}
"""By what the message calls it: PEFT's class, and its settings."""


@kind(
    ADAPTERS,
    "DoRA, LoHa, LoKr, IA3, VeRA, OFT, AdaLoRA, PiSSA",
    refused="by name: it is no scaled product, or it changes base too",
    remedy="the command that merges it with PEFT",
)
@pytest.mark.filterwarnings("ignore")  # of the libraries, about each other
@pytest.mark.parametrize("method", METHODS)
def test_merged_with_peft_as_the_remedy_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """PEFT trains each kind of adapter; the error's command makes a model, whose delta leads to its answers."""
    monkeypatch.chdir(tmp_path)
    kind_of_config, settings = METHODS[method]
    model = trained_by_peft(tmp_path, getattr(peft, kind_of_config)(target_modules=["q_proj", "down_proj"], **settings))
    with pytest.raises(CheckpointError) as caught:
        pd.extract("BASE", "ADAPTER", "delta")
    assert method in caught.value.what
    with remedied(caught.value, "merge it with PEFT, and give OUT", "'BASE'", "'ADAPTER'", "'OUT'"):
        run_remedy(caught.value)
        assert_answers(tmp_path, tmp_path / "OUT", model)


@kind(
    ADAPTERS,
    "an adapter as base or target",
    refused="it has no weights of its own",
    remedy="extract its delta and apply that, or merge it with PEFT",
)
def test_adapters_are_no_models(tmp_path: Path) -> None:
    """As base or target; to verify with one, base is needed too."""
    base, adapter = write_model(tmp_path / "base", small()), write_adapter(tmp_path / "lora", GOOD)
    pd.extract(base, adapter, tmp_path / "delta")
    for call in (
        lambda: pd.extract(adapter, base, tmp_path / "other"),
        lambda: pd.apply(adapter, tmp_path / "delta", tmp_path / "out"),
    ):
        with pytest.raises(CheckpointError, match="a LoRA adapter, not a model") as caught:
            call()
        with remedied(caught.value, f"pd-extract BASE {adapter} -o DELTA, and apply DELTA", "merge_and_unload()"):
            pd.apply(base, tmp_path / "delta", tmp_path / "result", overwrite=True)
            name = f"{ATTENTION.format(0, 'q')}.weight"
            update = plus(small()[name], product(*GOOD.values(), 1.5))
            assert_same(read_weights(tmp_path / "result"), {**small(), name: update})
    with pytest.raises(CheckpointError, match="nothing without its base"):
        pd.verify(tmp_path / "delta", post=adapter)


def test_a_model_that_has_adapters_among_its_weights_is_a_model(tmp_path: Path) -> None:
    """As Phi-4-multimodal's."""
    module = "model.layers.0.self_attn.q_proj"
    base = factors(module, 16, 16, down="lora_A.speech.weight", up="lora_B.speech.weight")
    base[f"{module}.base_layer.weight"] = normal(1, 16, 16, dtype=BF16)
    post = {name: tensor * 2 for name, tensor in base.items()}
    write_model(tmp_path / "base", base, config={"model_type": "phi4mm"})
    write_model(tmp_path / "post", post, config={"model_type": "phi4mm"})
    pd.extract(tmp_path / "base", tmp_path / "post", tmp_path / "delta")
    pd.apply(tmp_path / "base", tmp_path / "delta", tmp_path / "out")
    assert_same(read_weights(tmp_path / "out"), post)


def test_a_config_beside_an_adapter_changes_nothing(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", small(), config={"model_type": "llama", "rms_norm_eps": 1e-5})
    adapter = write_adapter(tmp_path / "lora", GOOD)
    (adapter / "config.json").write_text("{}")
    report = pd.extract(base, adapter, tmp_path / "delta")
    assert report.manifest.configs == {}
    pd.apply(base, tmp_path / "delta", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["rms_norm_eps"] == 1e-5


@pytest.mark.parametrize("tied", [True, False])
def test_one_copy_of_a_tied_embedding(tmp_path: Path, tied: bool) -> None:
    """An adapter of the head leaves the embedding alone, whatever the config says."""
    base = {**small(), "lm_head.weight": small()["model.embed_tokens.weight"]}
    write_model(tmp_path / "base", base, config={"tie_word_embeddings": tied})
    tensors = factors(f"{PREFIX}lm_head", 48, 16)
    pd.extract(tmp_path / "base", write_adapter(tmp_path / "lora", tensors), tmp_path / "delta")
    assert pd.apply(tmp_path / "base", tmp_path / "delta", tmp_path / "out").is_post
    expected = {**base, "lm_head.weight": plus(base["lm_head.weight"], product(*tensors.values(), 1.5))}
    assert_same(read_weights(tmp_path / "out"), expected)


def trained_by_peft(root: Path, config: Any, tied: bool = False, copies: bool = False) -> Any:
    """Write a model as BASE, and as ADAPTER what PEFT trained on it; return PEFT's model."""
    sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    torch.manual_seed(0)
    made = transformers.LlamaConfig(**sizes, num_attention_heads=4, tie_word_embeddings=tied)
    transformers.LlamaForCausalLM(made).save_pretrained(root / "BASE")
    if copies:
        tensors = load_file(root / "BASE/model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, root / "BASE/model.safetensors", {"format": "pt"})
    model = peft.get_peft_model(transformers.LlamaForCausalLM.from_pretrained(root / "BASE"), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(root / "ADAPTER")
    return model.eval()


def assert_answers(root: Path, post: Path, adapted: Any) -> None:
    """Take the delta of a post, and check that base with it answers as PEFT's model does, which base does not."""
    pd.extract(root / "BASE", post, root / "delta", force=True)
    pd.apply(root / "BASE", root / "delta", root / "result", force=True)
    ids = torch.arange(3, 11)[None]
    with torch.no_grad():
        wanted = adapted(input_ids=ids).logits
        models = [transformers.LlamaForCausalLM.from_pretrained(root / name).eval() for name in ("BASE", "result")]
        apart, left = ((its(input_ids=ids).logits - wanted).abs().max() for its in models)
    assert apart > 0
    assert left < apart / 50


def run_remedy(error: CheckpointError) -> None:
    """Run the Python command of a remedy in this folder."""
    exec((error.remedy or "").split('python -c "')[1].removesuffix('"'), {})


TIED: dict[str, dict[str, Any]] = {
    "LoRA of the head": {"target_modules": ["q_proj", "lm_head"]},
    "LoRA of both": {"target_modules": ["q_proj", "lm_head", "embed_tokens"]},
    "LoRA of both, tied": {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    "the head saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "both saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
}
EMBEDDING_ALONE: dict[str, dict[str, Any]] = {
    "LoRA of the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "the embedding saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
}


@kind(
    ADAPTERS,
    "LoRA or a saved copy of a head that base ties to its embedding, or of both",
    works="each for itself, as it was trained: the result has a head of its own, and answers as PEFT's model",
)
@pytest.mark.filterwarnings("ignore")  # of the libraries, about each other
@pytest.mark.parametrize(
    ("case", "copies"),
    [*((case, True) for case in [*TIED, *EMBEDDING_ALONE]), *((case, False) for case in TIED)],
)
def test_adapters_of_tied_heads(tmp_path: Path, case: str, copies: bool) -> None:
    config = peft.LoraConfig(r=4, **(TIED | EMBEDDING_ALONE)[case])
    assert_answers(tmp_path, tmp_path / "ADAPTER", trained_by_peft(tmp_path, config, tied=True, copies=copies))


@kind(
    ADAPTERS,
    "LoRA or a saved copy of the embedding alone, where base ties its head and stores only the embedding",
    refused="the head was not trained, and has no name in base",
    remedy="the command that gives the head a copy of its own, for BASE",
)
@pytest.mark.filterwarnings("ignore")  # of the libraries, about each other
@pytest.mark.parametrize("case", EMBEDDING_ALONE)
def test_adapters_of_an_embedding_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.chdir(tmp_path)
    model = trained_by_peft(tmp_path, peft.LoraConfig(r=4, **EMBEDDING_ALONE[case]), tied=True)
    with pytest.raises(CheckpointError, match="but not the output head, which base ties to it") as caught:
        pd.extract("BASE", "ADAPTER", "delta")
    with remedied(caught.value, "give UNTIED as BASE", "'BASE'"):
        run_remedy(caught.value)
        (tmp_path / "BASE").rename("TIED")
        (tmp_path / "UNTIED").rename("BASE")
        assert_answers(tmp_path, tmp_path / "ADAPTER", model)


@kind(
    ADAPTERS,
    "LoRA of T5's `shared`, of which encoder and decoder hold copies of their own",
    refused="PEFT trained what the model does not use",
    remedy=r"`--skip '^shared\.weight$'`",
)
@pytest.mark.filterwarnings("ignore")  # of the libraries, about each other
def test_an_adapter_of_what_t5_does_not_use(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
    t5 = transformers.T5ForConditionalGeneration
    torch.manual_seed(0)
    t5(transformers.T5Config(**sizes, decoder_start_token_id=0)).save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=4, target_modules=["q", "shared"])
    model = peft.get_peft_model(t5.from_pretrained(tmp_path / "base"), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(tmp_path / "lora")
    with pytest.raises(CheckpointError, match="neither encoder nor decoder uses") as caught:
        pd.extract(tmp_path / "base", tmp_path / "lora", tmp_path / "delta")
    with remedied(caught.value, r"--skip '^shared\.weight$'"):
        pd.extract(tmp_path / "base", tmp_path / "lora", tmp_path / "delta", rules=rules_of(caught.value), force=True)
        pd.apply(tmp_path / "base", tmp_path / "delta", tmp_path / "out", force=True)
        ids = torch.arange(3, 11)[None]
        with torch.no_grad():
            models = [t5.from_pretrained(tmp_path / name).eval() for name in ("base", "out")]
            base, result, wanted = (m(input_ids=ids, decoder_input_ids=ids).logits for m in (*models, model.eval()))
        assert (base - wanted).abs().max() > 0
        assert (result - wanted).abs().max() < (base - wanted).abs().max() / 50


@kind(
    ADAPTERS,
    "`trainable_token_indices` of an embedding that base ties and stores twice",
    refused="PEFT changes both copies, and saves one",
    remedy="the command that merges it with PEFT",
)
@pytest.mark.filterwarnings("ignore")  # of the libraries, about each other
def test_rows_of_an_embedding_that_is_stored_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[3, 4])
    model = trained_by_peft(tmp_path, config, tied=True, copies=True)
    with pytest.raises(CheckpointError, match="of which it holds a copy") as caught:
        pd.extract("BASE", "ADAPTER", "delta")
    with remedied(caught.value, "merge it with PEFT, and give OUT"):
        run_remedy(caught.value)
        assert_answers(tmp_path, tmp_path / "OUT", model)


@kind(
    ADAPTERS,
    "a model and an adapter in one folder, as post",
    refused="either may be what was trained",
    remedy="the path of the adapter's file",
)
def test_a_folder_with_a_model_and_an_adapter(tmp_path: Path) -> None:
    base, both = write_model(tmp_path / "base", small()), write_adapter(tmp_path / "lora", GOOD)
    write_model(both, small())
    with pytest.raises(CheckpointError, match="both a model and an adapter") as caught:
        pd.extract(base, both, tmp_path / "delta")
    with remedied(caught.value, f"give the one file {both}/adapter_model.safetensors"):
        pd.extract(base, both / "adapter_model.safetensors", tmp_path / "delta")
        pd.apply(base, tmp_path / "delta", tmp_path / "summed")
        name = f"{ATTENTION.format(0, 'q')}.weight"
        update = plus(small()[name], product(*GOOD.values(), 1.5))
        assert_same(read_weights(tmp_path / "summed"), {**small(), name: update})
    with pytest.raises(CheckpointError, match="both a model and an adapter"):
        pd.verify(tmp_path / "delta", base=base, post=both)
    applied = pd.apply(both, tmp_path / "delta", tmp_path / "out")  # of a target, the adapter is not read
    assert any("adapter_model.safetensors: an adapter" in note for note in applied.notes)


@pytest.mark.parametrize("beside", ["optimizer.safetensors", "checkpoint-5/adapter_model.safetensors"])
def test_what_a_training_leaves_beside_an_adapter_is_not_read(tmp_path: Path, beside: str) -> None:
    base, adapter = write_model(tmp_path / "base", small()), write_adapter(tmp_path / "lora", GOOD)
    expected = pd.extract(base, adapter, tmp_path / "delta").id
    (adapter / beside).parent.mkdir(exist_ok=True)
    shutil.copy(adapter / "adapter_model.safetensors", adapter / beside)
    report = pd.extract(base, adapter, tmp_path / "other")
    assert report.id == expected
    assert any(beside.partition("/")[0] in note for note in report.notes)


@kind(ADAPTERS, "an adapter of a base in two float dtypes", works="each sum in the dtype of its own tensor")
def test_an_adapter_of_a_model_in_two_float_dtypes(tmp_path: Path) -> None:
    """Each sum is rounded to the dtype of its own tensor of base; with a cast, both sides are read in another."""
    base = {name: tensor.float() if "norm" in name else tensor for name, tensor in small().items()}
    write_model(tmp_path / "base", base)
    adapter = write_adapter(tmp_path / "lora", GOOD)
    report = pd.extract(tmp_path / "base", adapter, tmp_path / "delta", cast="float32")
    assert {(record.base_dtype, record.post_dtype) for record in report.manifest.tensors} == {("F32", "F32")}
    pd.verify(tmp_path / "delta", base=tmp_path / "base", post=adapter)
    plain = pd.extract(tmp_path / "base", adapter, tmp_path / "plain")
    for record in plain.manifest.tensors:
        dtype = "F32" if base[record.name].dtype == torch.float32 else "BF16"
        assert (record.base_dtype, record.post_dtype) == (dtype, dtype)
    pd.apply(tmp_path / "base", tmp_path / "delta", tmp_path / "cast")
    pd.apply(tmp_path / "base", tmp_path / "plain", tmp_path / "out")
    assert_same(read_weights(tmp_path / "cast"), read_weights(tmp_path / "out"))


@kind(ADAPTERS, "`adapter_model.bin`", refused="a pickle is never opened", remedy="the command that converts it")
def test_the_remedy_for_a_pickled_adapter_works(tmp_path: Path) -> None:
    write_model(tmp_path / "base", small())
    adapter = write_adapter(tmp_path / "lora", GOOD)
    torch.save(GOOD, adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="a pickled adapter") as caught:
        open_checkpoint(adapter)
    with remedied(caught.value, 'python -c "'):
        code = (caught.value.remedy or "").split('python -c "')[1].removesuffix('"')
        subprocess.run([sys.executable, "-c", code], cwd=adapter, check=True)
        assert_same(load_file(adapter / "adapter_model.safetensors"), GOOD)
        pd.extract(tmp_path / "base", adapter, tmp_path / "delta")


def test_the_adapters_own_tokenizer_is_taken(tmp_path: Path) -> None:
    write_model(tmp_path / "base", small())
    adapter = write_adapter(tmp_path / "lora", GOOD)
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    report = pd.extract(tmp_path / "base", adapter, tmp_path / "delta")
    assert [file.path for file in report.manifest.companions] == ["companions/chat_template.jinja"]


@kind(
    ADAPTERS,
    "a LoRA adapter that PEFT trained and saved, in bf16 and fp16",
    works="as `merge_and_unload` in float32, but for single roundings",
)
@pytest.mark.filterwarnings("ignore")  # of the libraries, about each other
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_peft_merges_the_same(tmp_path: Path, dtype: torch.dtype) -> None:
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attention_bias=True,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).to(dtype).save_pretrained(tmp_path / "base")
    model = peft.get_peft_model(
        transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base", dtype=dtype),
        peft.LoraConfig(
            r=4, lora_alpha=12, target_modules=["q_proj", "down_proj", "embed_tokens"], rank_pattern={"q_proj": 2},
            alpha_pattern={"layers.1.self_attn.q_proj": 5}, modules_to_save=["lm_head"], bias="lora_only",
        ),
    )  # fmt: skip
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.01)
    model.save_pretrained(tmp_path / "lora")
    pd.extract(tmp_path / "base", tmp_path / "lora", tmp_path / "delta")
    pd.apply(tmp_path / "base", tmp_path / "delta", tmp_path / "out")
    wide = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    merged = peft.PeftModel.from_pretrained(wide, tmp_path / "lora").merge_and_unload().state_dict()
    for name, tensor in read_weights(tmp_path / "out").items():
        differ = (merged[name].to(dtype) != tensor).float().mean()  # PEFT's float32 product is not exact
        assert differ < 0.005, name
        assert torch.allclose(merged[name], tensor.float(), rtol=2**-7, atol=1e-6), name
