"""Base with an adapter, against torch's own product, and against PEFT."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

import paramdelta_hub as pd
from paramdelta_hub.errors import MismatchError
from tests.support.adapters import (
    ATTENTION,
    BF16,
    CONFIG,
    GOOD,
    PREFIX,
    TOKENS,
    assert_post,
    factors,
    normal,
    plus,
    product,
    small,
    write_adapter,
)
from tests.support.chunks import set_chunk_elements
from tests.support.fp8_models import FP8, dequantized, quantized
from tests.support.kinds import ADAPTERS, kind
from tests.support.models import apply_in, assert_same, extract_in, read_weights, write_model


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


@kind(ADAPTERS, "an adapter of a quantized base", works="added to base's bf16 values; told")
def test_a_quantized_base_is_said(tmp_path: Path) -> None:
    q = ATTENTION.format(0, "q")
    base = {**quantized(f"{q}.weight", (16, 16)), "model.norm.weight": torch.ones(16).bfloat16()}
    write_model(tmp_path / "base", base, config={"quantization_config": FP8})
    tensors = factors(PREFIX + q, 16, 16)
    report = pd.extract(tmp_path / "base", write_adapter(tmp_path / "lora", tensors), tmp_path / "delta")
    assert "1 of these tensors are quantized in base: the adapter is added to their bf16 values" in report.notes
    apply_in(tmp_path, "base")
    values = dequantized(base[f"{q}.weight"], base[f"{q}.weight_scale_inv"], (128, 128))
    assert torch.equal(read_weights(tmp_path / "out")[f"{q}.weight"], plus(values, product(*tensors.values(), 1.5)))


def test_a_base_that_can_not_be_read_is_told(tmp_path: Path) -> None:
    q = ATTENTION.format(0, "q")
    base = {f"{q}.weight": torch.ones(16, 16, dtype=torch.int8), f"{q}.SCB": torch.ones(16)}
    write_model(tmp_path / "base", base)
    with pytest.raises(MismatchError) as caught:
        pd.extract(tmp_path / "base", write_adapter(tmp_path / "lora", factors(PREFIX + q, 16, 16)), tmp_path / "delta")
    assert "bitsandbytes" in str(caught.value.mismatches[0])


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
    apply_in(tmp_path, "base", "delta", "cast")
    apply_in(tmp_path, "base", "plain")
    assert_same(read_weights(tmp_path / "cast"), read_weights(tmp_path / "out"))


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
    extract_in(tmp_path, "base", "lora")
    apply_in(tmp_path, "base")
    wide = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    merged = peft.PeftModel.from_pretrained(wide, tmp_path / "lora").merge_and_unload().state_dict()
    for name, tensor in read_weights(tmp_path / "out").items():
        differ = (merged[name].to(dtype) != tensor).float().mean()  # PEFT's float32 product is not exact
        assert differ < 0.005, name
        assert torch.allclose(merged[name], tensor.float(), rtol=2**-7, atol=1e-6), name
