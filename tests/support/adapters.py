"""LoRA adapters of tiny models: made by hand or trained by PEFT, and what base with one of them is by torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

import paramdelta_hub as pd
from paramdelta_hub.errors import CheckpointError
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


def kohya(module: str, outputs: int, inputs: int, alpha: float | None, seed: int, *kernel: int) -> Tensors:
    tensors = {
        f"{module}.lora_down.weight": normal(seed, 4, inputs, *kernel),
        f"{module}.lora_up.weight": normal(seed + 1, outputs, 4, *(1 for _ in kernel)),
    }
    return tensors | ({f"{module}.alpha": torch.tensor(alpha)} if alpha is not None else {})


Q = PREFIX + ATTENTION.format(0, "q")
GOOD = factors(Q, 16, 16)
TOKENS = f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta"


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
