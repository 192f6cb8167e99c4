"""Models of transformers, and the same weights as other programs store them: the rules are those of the errors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from paramdelta_hub.errors import MismatchError
from tests.support.kinds import OTHER_LAYOUTS, kind, remedied, rules_of
from tests.support.models import (
    apply_in,
    assert_same,
    extract_in,
    read_weights,
    reference,
    tuned,
    write_models,
)

pytestmark = pytest.mark.usefixtures("quiet_transformers")
Tensors = dict[str, torch.Tensor]
SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {**SMALL, "num_local_experts": 3, "num_experts_per_tok": 2, "head_dim": 8}


def stored(path: Path, model: Any) -> Tensors:
    """Save a model by transformers, and return what its file has."""
    model.to(torch.bfloat16).save_pretrained(path)
    return load_file(path / "model.safetensors")


def phi3(path: Path) -> Tensors:
    from transformers import Phi3Config, Phi3ForCausalLM

    return stored(path, Phi3ForCausalLM(Phi3Config(**SMALL)))


def llama4(path: Path) -> Tensors:
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    more = {"intermediate_size_mlp": 48, "interleave_moe_layer_step": 1}
    return stored(path, Llama4ForCausalLM(Llama4TextConfig(**EXPERTS, **more)))


def gpt2(path: Path) -> Tensors:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    return stored(path, GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)))


def gpt_neox(path: Path) -> Tensors:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    sizes = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
    return stored(path, GPTNeoXForCausalLM(GPTNeoXConfig(**sizes)))


def gpt_oss(path: Path) -> Tensors:
    from transformers import GptOssConfig, GptOssForCausalLM

    return stored(path, GptOssForCausalLM(GptOssConfig(**EXPERTS)))


def as_llama_has_it(tensors: Tensors) -> Tensors:
    """q, k, v and gate, up of Phi-3 apart, as Llama's names have them."""
    made: Tensors = {}
    for name, tensor in tensors.items():
        if "qkv_proj" in name:
            parts = zip("qkv", tensor.split([32, 16, 16]), strict=True)
            made |= {name.replace("qkv_proj", f"{part}_proj"): values for part, values in parts}
        elif "gate_up_proj" in name:
            made |= {name.replace("gate_up", part): t for part, t in zip(("gate", "up"), tensor.chunk(2), strict=True)}
        else:
            made[name] = tensor
    return made


def one_by_one(tensors: Tensors) -> Tensors:
    """Llama-4's experts as matrices of their own, outputs first."""
    made: Tensors = {}
    for name, tensor in tensors.items():
        if not (found := re.fullmatch(r"(.*\.experts)\.(gate_up|down)_proj", name)):
            made[name] = tensor
            continue
        for expert, values in enumerate(tensor):
            parts = values.T.chunk(2) if found[2] == "gate_up" else (values.T,)
            names = ("gate", "up") if found[2] == "gate_up" else ("down",)
            made |= {f"{found[1]}.{expert}.{n}_proj.weight": t for n, t in zip(names, parts, strict=True)}
    return made


def outputs_first(tensors: Tensors) -> Tensors:
    """GPT-2's matrices as torch.nn.Linear has them."""
    conv = re.compile(r"(c_attn|c_proj|c_fc)\.weight$")
    return {name: tensor.T if conv.search(name) else tensor for name, tensor in tensors.items()}


def heads_apart(tensors: Tensors) -> Tensors:
    """GPT-NeoX's q, k and v apart: each head has its three parts side by side."""
    made: Tensors = {}
    for name, tensor in tensors.items():
        if "query_key_value" not in name:
            made[name] = tensor
            continue
        heads = tensor.reshape(4, 3, 8, *tensor.shape[1:])
        for number, part in enumerate("qkv"):
            made[name.replace("query_key_value", f"{part}_proj")] = heads[:, number].reshape(32, *tensor.shape[1:])
    return made


def columns_apart(tensors: Tensors) -> Tensors:
    """gpt-oss's experts one by one: gate and up take turns."""
    made: Tensors = {}
    for name, tensor in tensors.items():
        if not (found := re.fullmatch(r"(.*\.experts)\.(gate_up|down)_proj(_bias)?", name)):
            made[name] = tensor
            continue
        for expert, values in enumerate(tensor):
            place, ending = f"{found[1]}.{expert}", ".bias" if found[3] else ".weight"
            if found[2] == "down":
                made[f"{place}.down_proj{ending}"] = values if found[3] else values.T
            else:
                for start, part in enumerate(("gate", "up")):
                    taken = values[..., start::2]
                    made[f"{place}.{part}_proj{ending}"] = taken if found[3] else taken.T
    return made


MADE: dict[str, tuple[Callable[[Path], Tensors], Callable[[Tensors], Tensors]]] = {
    "phi3": (phi3, as_llama_has_it),
    "llama4": (llama4, one_by_one),
    "gpt2": (gpt2, outputs_first),
    "gpt-neox": (gpt_neox, heads_apart),
    "gpt-oss": (gpt_oss, columns_apart),
}


@kind(
    OTHER_LAYOUTS,
    "Phi-3's q/k/v and gate/up as Llama's; Llama-4's and gpt-oss's experts one by one; GPT-2's matrices transposed; "
    "GPT-NeoX's q, k and v, which are interleaved by head",
    refused="names and shapes differ",
    remedy="the `--layout` rules that the error proposes, at extract and at apply",
)
@pytest.mark.parametrize("family", MADE)
def test_the_layouts_of_other_programs(tmp_path: Path, family: str) -> None:
    """Post and a target in the other layout; base as transformers saves it."""
    torch.manual_seed(0)
    make, apart = MADE[family]
    base = make(tmp_path / "base")
    post, target = tuned(base, 1), tuned(base, 2)
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    write_models(tmp_path, config, post=apart(post), target=apart(target))
    with pytest.raises(MismatchError) as caught:
        extract_in(tmp_path)
    with remedied(caught.value, "try --layout"):
        extract_in(tmp_path, rules=rules_of(caught.value))
        assert apply_in(tmp_path, "base", "delta", "again").is_post
        assert_same(read_weights(tmp_path / "again"), post)
    with pytest.raises(MismatchError) as caught:
        apply_in(tmp_path)
    with remedied(caught.value, "try --layout"):
        apply_in(tmp_path, rules=rules_of(caught.value))
        expected = {name: reference(base[name], post[name], target[name]) for name in base}
        assert_same(read_weights(tmp_path / "out"), {name: t.contiguous() for name, t in apart(expected).items()})
