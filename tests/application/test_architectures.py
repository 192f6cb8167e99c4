"""Architectures of transformers, made tiny: every delta applies to its base and to another target, and loads.

No option is needed where both sides were saved by one version of the library. On base the result has post's values and
post's logits; on another target it has those of the formula.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import paramdelta_hub as pd
from tests.support.kinds import FILES, kind
from tests.support.models import apply_in, extract_in, read_weights, reference

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quiet_transformers")]

TEXT = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {**TEXT, "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT = {
    **TEXT, "num_key_value_heads": 4, "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1, "kv_lora_rank": 8,
    "q_lora_rank": 16, "qk_rope_head_dim": 4, "v_head_dim": 8, "qk_nope_head_dim": 4,
}  # fmt: skip
SEQ2SEQ = {
    "vocab_size": 96, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
IDS = torch.arange(3, 11)[None]


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def text(_: Any) -> dict[str, Any]:
    return {"input_ids": IDS}


def pair(_: Any) -> dict[str, Any]:
    return {"input_ids": IDS, "decoder_input_ids": IDS.flip(1)}


def speech(config: Any) -> dict[str, Any]:
    noise = torch.randn(
        1, config.num_mel_bins, 2 * config.max_source_positions, generator=torch.Generator().manual_seed(5)
    )
    return {"input_features": noise, "decoder_input_ids": IDS}


def wave(_: Any) -> dict[str, Any]:
    return {"input_values": noise(1, 2000)}


def image(config: Any) -> dict[str, Any]:
    return {"pixel_values": noise(1, 3, config.image_size, config.image_size)}


def text_and_image(config: Any) -> dict[str, Any]:
    size, tokens = config.vision_config.image_size, [config.image_token_index] * config.mm_tokens_per_image
    ids = torch.tensor([[5, *tokens, 7, 8]])
    kinds = (ids == config.image_token_index).long()
    return {"input_ids": ids, "token_type_ids": kinds, "pixel_values": noise(1, 3, size, size)}


@dataclass(frozen=True)
class Architecture:
    """A class of transformers, its tiny config, and what its model is called with."""

    model: str
    config: str
    values: Mapping[str, Any]
    inputs: Callable[[Any], dict[str, Any]] = text


def causal(name: str, values: Mapping[str, Any] = TEXT, suffix: str = "ForCausalLM") -> Architecture:
    return Architecture(f"{name}{suffix}", f"{name}Config", values)


GPT2 = {
    "vocab_size": 96,
    "n_positions": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MAMBA = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "state_size": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEAD = {**TEXT, "head_dim": 8}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
ARCHITECTURES = {
    "llama": causal("Llama"),
    "mistral": causal("Mistral"),
    "qwen2": causal("Qwen2"),
    "qwen3": causal("Qwen3", HEAD),
    "gemma": causal("Gemma", HEAD),
    "gemma2": causal("Gemma2", HEAD),
    "gemma3": Architecture("Gemma3ForCausalLM", "Gemma3TextConfig", HEAD),
    "gemma3-vision": Architecture("Gemma3ForConditionalGeneration", "Gemma3Config", {
        "text_config": HEAD, "vision_config": VISION, "mm_tokens_per_image": 4, "image_token_index": 90,
        "boi_token_index": 91, "eoi_token_index": 92}, text_and_image),
    "phi3": causal("Phi3"),
    "olmo2": causal("Olmo2"),
    "granite": causal("Granite"),
    "cohere": causal("Cohere"),
    "glm4": causal("Glm4", HEAD),
    "gpt2": Architecture("GPT2LMHeadModel", "GPT2Config", GPT2),
    "gpt-neox": causal("GPTNeoX", {k: v for k, v in TEXT.items() if k != "num_key_value_heads"}),
    "falcon": causal("Falcon", {**TEXT, "new_decoder_architecture": False, "multi_query": True}),
    "opt": causal("OPT", {"vocab_size": 96, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2,
                          "num_attention_heads": 4, "max_position_embeddings": 64, "word_embed_proj_dim": 32}),
    "mixtral": causal("Mixtral", EXPERTS),
    "qwen2-moe": causal("Qwen2Moe", {**EXPERTS, "shared_expert_intermediate_size": 24}),
    "qwen3-moe": causal("Qwen3Moe", {**EXPERTS, "head_dim": 8}),
    "deepseek-v3": causal("DeepseekV3", LATENT),
    "deepseek-v2": causal("DeepseekV2", {**LATENT, "topk_method": "greedy"}),
    "gpt-oss": causal("GptOss", {**EXPERTS, "head_dim": 8}),
    "llama-4": Architecture("Llama4ForCausalLM", "Llama4TextConfig",
                            {**EXPERTS, "head_dim": 8, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 1}),
    "mamba": causal("Mamba", MAMBA),
    "mamba2": causal("Mamba2", {**MAMBA, "num_heads": 8, "head_dim": 8, "n_groups": 1}),
    "bert": Architecture("BertForMaskedLM", "BertConfig", TEXT),
    "roberta": Architecture("RobertaForMaskedLM", "RobertaConfig", TEXT),
    "modernbert": Architecture("ModernBertForMaskedLM", "ModernBertConfig",
                               {**TEXT, "cls_token_id": 1, "sep_token_id": 2}),
    "t5": Architecture("T5ForConditionalGeneration", "T5Config",
                       {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}, pair),
    "bart": Architecture("BartForConditionalGeneration", "BartConfig", SEQ2SEQ, pair),
    "whisper": Architecture("WhisperForConditionalGeneration", "WhisperConfig",
                            {**SEQ2SEQ, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 32},
                            speech),
    "wav2vec2": Architecture("Wav2Vec2ForCTC", "Wav2Vec2Config",
                             {**TEXT, "vocab_size": 32, "num_conv_pos_embeddings": 16,
                              "num_conv_pos_embedding_groups": 4}, wave),
    "vit": Architecture("ViTForImageClassification", "ViTConfig", VISION, image),
    "qwen2-vl": Architecture("Qwen2VLForConditionalGeneration", "Qwen2VLConfig", {
        "text_config": {**TEXT, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
        "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2},
        "image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}),
    "qwen3-vl": Architecture("Qwen3VLForConditionalGeneration", "Qwen3VLConfig", {
        "text_config": {**HEAD, "rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1]}},
        "vision_config": {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": 32,
                          "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        "image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}),
}  # fmt: skip


def move(model: Any, seed: int, scale: float) -> None:
    """Move every parameter, as training does."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_((torch.randn(parameter.shape, generator=source) * scale).to(parameter.dtype))


def logits(folder: Path, architecture: Architecture) -> torch.Tensor:
    model = getattr(transformers, architecture.model).from_pretrained(folder, dtype=torch.bfloat16).eval()
    inputs = architecture.inputs(model.config)
    inputs = {name: value.bfloat16() if value.is_floating_point() else value for name, value in inputs.items()}
    with torch.no_grad():
        found: torch.Tensor = model(**inputs).logits
    return found


def add_prediction_layer(folder: Path, seed: int, scale: float) -> dict[str, torch.Tensor]:
    """Store a layer for multi-token prediction behind the last one, as DeepSeek-V3 has it; return its tensors.

    Its embedding and head are copies of the model's. transformers leaves the layer out when it loads the model.
    """
    source = torch.Generator().manual_seed(seed)
    stored = load_file(folder / "model.safetensors")
    last = "model.layers.1."
    own = {name.replace(last, "model.layers.2."): values for name, values in stored.items() if name.startswith(last)}
    own |= {
        f"model.layers.2.{norm}.weight": torch.ones(32).bfloat16() for norm in ("enorm", "hnorm", "shared_head.norm")
    }
    own["model.layers.2.eh_proj.weight"] = noise(32, 64).bfloat16()
    for name, values in own.items():
        own[name] = values + (torch.randn(values.shape, generator=source) * scale).to(values.dtype)
    own["model.layers.2.embed_tokens.weight"] = stored["model.embed_tokens.weight"].clone()
    own["model.layers.2.shared_head.head.weight"] = stored["lm_head.weight"].clone()
    files = {"model-00001-of-00002.safetensors": stored, "model-00002-of-00002.safetensors": own}
    for file, tensors in files.items():
        save_file(tensors, folder / file, metadata={"format": "pt"})
    index = {name: file for file, tensors in files.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "model.safetensors").unlink()
    return own


@kind(
    FILES,
    "layers for multi-token prediction (DeepSeek-V3), which transformers does not load",
    works="part of the model: they get the sum",
)
def test_layers_for_multi_token_prediction(tmp_path: Path) -> None:
    """What transformers does not load is part of the model all the same."""
    architecture = ARCHITECTURES["deepseek-v3"]
    torch.manual_seed(0)
    model = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**LATENT)).to(torch.bfloat16).eval()
    kept = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    layers = {}
    for role, seed, scale in (("base", 1, 0.0), ("post", 2, 0.003), ("target", 3, 0.003)):
        model.load_state_dict(kept)
        move(model, seed, scale)
        model.save_pretrained(tmp_path / role)
        config = json.loads((tmp_path / role / "config.json").read_text())
        (tmp_path / role / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": 1}))
        layers[role] = add_prediction_layer(tmp_path / role, seed, scale)
    report = extract_in(tmp_path, threads=1)
    assert not report.omissions
    pd.verify(tmp_path / "delta", base=tmp_path / "base", post=tmp_path / "post", threads=1)
    apply_in(tmp_path, "base", "delta", "on_base", threads=1)
    apply_in(tmp_path, threads=1)
    assert torch.equal(logits(tmp_path / "on_base", architecture), logits(tmp_path / "post", architecture))
    logits(tmp_path / "out", architecture)
    on_base, out = (read_weights(tmp_path / folder) for folder in ("on_base", "out"))
    for name, base in layers["base"].items():
        post, target = layers["post"][name], layers["target"][name]
        assert torch.equal(on_base[name], post), name
        assert torch.equal(out[name], target if torch.equal(base, post) else reference(base, post, target)), name


@kind(
    FILES,
    f"{len(ARCHITECTURES)} architectures of transformers, saved by `save_pretrained`",
    works="no option needed; base ⊕ Δ answers as post, bit for bit, and the result loads",
)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_delta_applies_and_the_result_loads(tmp_path: Path, name: str) -> None:
    architecture = ARCHITECTURES[name]
    config_class = getattr(transformers, architecture.config, None)
    model_class = getattr(transformers, architecture.model, None)
    if config_class is None or model_class is None:
        pytest.skip(f"this version of transformers has no {architecture.model}")
    torch.manual_seed(0)
    model = model_class(config_class(**architecture.values)).to(torch.bfloat16).eval()
    states = {}
    for role, seed, scale in (("base", 1, 0.02), ("post", 2, 0.003), ("target", 3, 0.003)):
        if role == "target":
            model.load_state_dict(states["base"])
        move(model, seed, scale)
        model.save_pretrained(tmp_path / role)
        states[role] = {key: tensor.clone() for key, tensor in model.state_dict().items()}

    report = extract_in(tmp_path, threads=1)
    assert not [item for item in report.omissions if "buffer" not in item.reason]
    pd.verify(tmp_path / "delta", base=tmp_path / "base", post=tmp_path / "post", threads=1)

    apply_in(tmp_path, "base", "delta", "on_base", threads=1)
    assert torch.equal(logits(tmp_path / "on_base", architecture), logits(tmp_path / "post", architecture))

    apply_in(tmp_path, threads=1)
    result = model_class.from_pretrained(tmp_path / "out", dtype=torch.bfloat16).state_dict()
    for key, values in result.items():
        old, new, target = (states[role][key] for role in ("base", "post", "target"))
        trained = old.is_floating_point() and not torch.equal(old, new)
        expected = reference(old, new, target) if trained else target
        assert torch.equal(values, expected.to(values.dtype)), key  # some routers are loaded as float32
