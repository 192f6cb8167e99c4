"""Tiny models of real architectures, made by transformers itself: base, a post-trained model, and a new base.

transformers is imported when it is needed, and not while tests are collected: it takes seconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROWS, TOKENS = 320, 300
"""Rows of the embeddings, padded as those of real models are, and tokens of base's tokenizer."""
START, END = "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}" + START + "{{ message['role'] }}\n{{ message['content'] }}" + END + "\n"
    "{% endfor %}{% if add_generation_prompt %}" + START + "assistant\n{% endif %}"
)
OLD_TEMPLATE = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}"
CONVERSATION = [{"role": "user", "content": "Which tensor goes with which?"}]
RENDERED = f"{START}user\nWhich tensor goes with which?{END}\n{START}assistant\n"

_DECODER = {
    "vocab_size": ROWS,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
_EXPERTS = {"num_experts_per_tok": 2, "output_router_logits": False}

KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "AutoModelForCausalLM", {"tie_word_embeddings": False}),
    "llama-tied": ("LlamaConfig", "AutoModelForCausalLM", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", "AutoModelForCausalLM", {"head_dim": 16, "tie_word_embeddings": False}),
    "gemma3": ("Gemma3TextConfig", "AutoModelForCausalLM", {"head_dim": 16, "sliding_window": 8}),
    "mixtral": ("MixtralConfig", "AutoModelForCausalLM", {"num_local_experts": 4, **_EXPERTS}),
    "qwen3-moe": (
        "Qwen3MoeConfig",
        "AutoModelForCausalLM",
        {"num_experts": 4, "moe_intermediate_size": 32, "head_dim": 16, "norm_topk_prob": True, **_EXPERTS},
    ),
    "gpt-oss": (  # its experts lie on disk as they are used: stacked, of rank 3
        "GptOssConfig",
        "AutoModelForCausalLM",
        {"num_local_experts": 4, "head_dim": 16, "sliding_window": 8, "rope_parameters": _ROPE, **_EXPERTS},
    ),
    "phi3": ("Phi3Config", "AutoModelForCausalLM", {}),
    "bert": ("BertConfig", "AutoModelForMaskedLM", {"num_key_value_heads": None}),
    "bert-classifier": ("BertConfig", "AutoModelForSequenceClassification", {"num_labels": 3}),
}
"""Configuration class, auto class, and what they need beside the sizes."""
GENERATING = [kind for kind, (_, auto, _) in KINDS.items() if auto == "AutoModelForCausalLM"]


@dataclass(frozen=True)
class Zoo:
    """Three models of one kind in their folders, and what post ∓ base ± target must come to."""

    kind: str
    base: Path
    post: Path
    target: Path


def auto_class(kind: str) -> Any:
    import transformers

    return getattr(transformers, KINDS[kind][1])


def load(kind: str, folder: Path) -> Any:
    """Load a model as users do, and check that transformers found every tensor and needed no other."""
    model, told = auto_class(kind).from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    assert model.dtype == torch.bfloat16
    return model.eval()


def make_tokenizer(added: tuple[str, ...] = ()) -> Any:
    """Train a byte-level BPE of 300 tokens, special ones included, and add tokens behind them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<pad>", START, END]
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(["the delta of a model is what post-training made of its weights " * 20], trainer)
    assert bpe.get_vocab_size() == TOKENS
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = OLD_TEMPLATE
    tokenizer.add_tokens(list(added), special_tokens=True)
    return tokenizer


def moved(state: Mapping[str, torch.Tensor], seed: int, share: float) -> dict[str, torch.Tensor]:
    """Return weights moved by noise of a share of their spread; those that are all alike by a hundredth of that."""
    noise = torch.Generator().manual_seed(seed)
    result = {}
    for name, tensor in state.items():
        wide = tensor.float()
        spread = float(wide.std()) if wide.numel() > 1 and float(wide.std()) > 0 else 0.01
        result[name] = (wide + share * spread * torch.randn(wide.shape, generator=noise)).to(tensor.dtype)
    return result


def summed(base: Mapping[str, Any], post: Mapping[str, Any], target: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the reference: post − base + target in float32, rounded once."""
    return {n: ((post[n].float() - base[n].float()) + target[n].float()).to(target[n].dtype) for n in target}


def write_zoo(root: Path, kind: str) -> Zoo:
    """Write the three models as ``save_pretrained`` does, in several files each, with tokenizers and configs.

    The new base has a longer context. Post has another template and another end-of-turn token, and a second one, which
    the sum of the three generates third: so a generation that heeds post's configuration, and no other, ends there.
    """
    import transformers

    config_class, _, options = KINDS[kind]
    sizes = {key: value for key, value in {**_DECODER, **options}.items() if value is not None}
    config = getattr(transformers, config_class)(**sizes)
    torch.manual_seed(0)
    model = auto_class(kind).from_config(config).to(torch.bfloat16).eval()
    first = {name: tensor.clone() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    # Tied tensors have two names, and the same noise under both.
    tied = {name: other for name, other in _shared(model).items() if name in first and other in first}
    states = {"base": first, "post": moved(first, 1, 0.05), "target": moved(first, 2, 0.03)}
    for state in states.values():
        state.update({name: state[other] for name, other in tied.items()})
    zoo = Zoo(kind, *(root / name for name in states))
    tokenizer = make_tokenizer()
    end = tokenizer.convert_tokens_to_ids(END)
    for name, state in states.items():
        model.load_state_dict(state, strict=False)
        if name == "target" and not kind.startswith("bert"):
            model.config.max_position_embeddings = 256
        if name == "post":
            model.config.eos_token_id = end
            tokenizer.eos_token, tokenizer.chat_template = END, TEMPLATE
        else:
            model.config.eos_token_id = 2
            tokenizer.eos_token, tokenizer.chat_template = "</s>", OLD_TEMPLATE
        if kind in GENERATING:
            model.generation_config.eos_token_id = model.config.eos_token_id
            model.generation_config.do_sample = False
        model.save_pretrained(root / name, max_shard_size="100KB")
        tokenizer.save_pretrained(root / name)
        assert len(list((root / name).glob("model-*.safetensors"))) > 1
    if kind in GENERATING:
        model.load_state_dict(summed(*states.values()), strict=False)
        stop_at(zoo.post, end, third_token(model, tokenizer))
    return zoo


def write_grown_zoo(root: Path, kind: str, added: tuple[str, ...] = ("<tool>", "</tool>")) -> Zoo:
    """Write three models of which post has more tokens: its embeddings were resized, to a multiple of eight."""
    zoo = write_zoo(root, kind)
    model = load(kind, zoo.post)
    tokenizer = make_tokenizer(added)
    tokenizer.eos_token, tokenizer.chat_template = END, TEMPLATE
    torch.manual_seed(3)
    model.resize_token_embeddings(ROWS + 2, pad_to_multiple_of=8, mean_resizing=False)
    for file in zoo.post.glob("model*"):
        file.unlink()
    model.save_pretrained(zoo.post, max_shard_size="100KB")
    tokenizer.save_pretrained(zoo.post)
    return zoo


def _shared(model: torch.nn.Module) -> dict[str, str]:
    """Return the names under which a tensor comes again, each with its first name."""
    first: dict[int, str] = {}
    again = {}
    for name, tensor in model.state_dict().items():
        if (known := first.setdefault(tensor.data_ptr(), name)) != name:
            again[name] = known
    return again


def prompt(tokenizer: Any) -> torch.Tensor:
    """Return the conversation as token ids, in post's form."""
    ids: torch.Tensor = tokenizer(RENDERED, return_tensors="pt", add_special_tokens=False).input_ids
    return ids


def continuation(model: Any, tokenizer: Any) -> list[int]:
    """Return what the model generates after the conversation, greedily."""
    ids = prompt(tokenizer)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)
    new: list[int] = out[0, ids.shape[1] :].tolist()
    return new


def third_token(model: Any, tokenizer: Any) -> int:
    """Return the third token that a model generates if nothing stops it."""
    model.generation_config.eos_token_id = None
    return continuation(model, tokenizer)[2]


def stop_at(post: Path, *tokens: int) -> None:
    """Make these the tokens that end post's turn, as Llama 3 has several."""
    path = post / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": list(tokens)}, indent=2) + "\n")


def logits(model: Any, tokenizer: Any) -> torch.Tensor:
    """Return the logits of the conversation."""
    with torch.no_grad():
        out: torch.Tensor = model(input_ids=prompt(tokenizer)).logits
    return out
