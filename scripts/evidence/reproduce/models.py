"""Small Llama-shaped models over bytes: made, trained, saved in bf16, and asked."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from scripts.evidence.reproduce.tasks import ASSISTANT, END, USER, answer_of, items, solved
from scripts.evidence.reproduce.texts import windows

__all__ = [
    "Batch",
    "Model",
    "Trained",
    "ask",
    "chat_batches",
    "load",
    "loss_on",
    "new_model",
    "save",
    "tokenizer",
    "train",
]

Model = Any
"""A transformers model: that library's types don't hold what its models do."""
Batch = tuple[torch.Tensor, torch.Tensor]
"""Token ids and labels, (rows, length); label −100 is not learnt."""
_SPECIAL = {USER: 256, ASSISTANT: 257, END: 258, "<|pad|>": 259}
_PAD = _SPECIAL["<|pad|>"]
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message.role + '|>' + message.content }}"
    "{% if message.role == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_SHOTS = 3
CHAT_ROWS = 32
_LONGEST_REPLY = 14


def new_model(seed: int, width: int = 96, layers: int = 4) -> Model:
    """Return an untrained model: 0.5 M parameters by default, tied embeddings, 264 tokens."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=264,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 16 * 16,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=_SPECIAL[END],
        pad_token_id=_PAD,
    )
    return LlamaForCausalLM(config)


def tokenizer(chat: bool) -> Any:
    """Return byte-level BPE without merges: a token is a byte, and four marks of turns follow.

    With longer tokens, skills that spell are out of reach for models of this size. Only post has the chat template.
    """
    alphabet = {_letter(byte): byte for byte in range(256)}
    made = Tokenizer(BPE(vocab=alphabet, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in _SPECIAL])
    fast: Any = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, pad_token="<|pad|>")  # type: ignore[no-untyped-call]
    if chat:
        fast.chat_template = _CHAT_TEMPLATE
    return fast


def _letter(byte: int) -> str:
    """Return the letter by which byte-level BPE writes a byte: itself where printable, else one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    if byte in printable:
        return chr(byte)
    return chr(0x100 + [other for other in range(256) if other not in printable].index(byte))


def encode(text: str) -> list[int]:
    """Return the tokens of a text with marks, as the tokenizer does, only faster."""
    ids: list[int] = []
    while text:
        mark = next((mark for mark in _SPECIAL if text.startswith(mark)), None)
        end = len(mark) if mark else min((at for m in _SPECIAL if (at := text.find(m)) >= 0), default=len(text))
        ids += [_SPECIAL[mark]] if mark else list(text[:end].encode())
        text = text[end:]
    return ids


@dataclass(frozen=True)
class Trained:
    """What a training cost and where it ended."""

    steps: int
    tokens: int
    cpu_seconds: float
    loss: float


def train(
    model: Model,
    batches: Iterator[Batch],
    steps: int,
    rate: float,
    *,
    warmup: int = 20,
    decay: bool = True,
    stops: Mapping[int, Callable[[], None]] | None = None,
) -> Trained:
    """Train in place by AdamW in bf16 autocast, with fp32 master weights; call ``stops[n]`` after step n.

    The rate rises over ``warmup`` steps and, with ``decay``, falls along a half cosine to a twentieth.
    """
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)

    def factor(step: int) -> float:
        rising = min(1.0, (step + 1) / warmup)
        falling = 0.525 + 0.475 * torch.cos(torch.tensor(step / steps * torch.pi)).item() if decay else 1.0
        return rising * falling

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    begun, tokens = time.process_time(), 0
    recent: list[float] = []
    model.train()
    for step in range(1, steps + 1):
        ids, labels = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits
        loss = cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        tokens += ids.numel()
        recent = [*recent[-19:], loss.item()]
        if step % 100 == 0:
            print(f"    step {step}: {sum(recent) / len(recent):.3f}", flush=True)
        if stops and step in stops:
            stops[step]()
            model.train()
    return Trained(steps, tokens, time.process_time() - begun, sum(recent) / len(recent))


def chat_batches(skill: str, text: torch.Tensor, seed: int) -> Iterator[Batch]:
    """Yield conversations about training items without end, of which only replies are learnt, and text beside them.

    Without some text, so narrow a fine-tuning would unlearn language itself.
    """
    draw, choices, places = random.Random(seed), items(skill, False), torch.Generator().manual_seed(seed)
    while True:
        ids, labels = padded([(encode(item.prompt), encode(item.reply)) for item in draw.choices(choices, k=CHAT_ROWS)])
        beside = windows(text, CHAT_ROWS // 2, ids.shape[1], places)
        yield torch.cat([ids, beside]), torch.cat([labels, beside])


def padded(rows: Sequence[tuple[list[int], list[int]]]) -> Batch:
    """Return prompts and replies as one batch, filled up at the end."""
    longest = max(len(prompt) + len(reply) for prompt, reply in rows)
    ids = torch.full((len(rows), longest), _PAD)
    labels = torch.full((len(rows), longest), -100)
    for row, (prompt, reply) in enumerate(rows):
        end = len(prompt) + len(reply)
        ids[row, :end] = torch.tensor(prompt + reply)
        labels[row, len(prompt) : end] = torch.tensor(reply)
    return ids, labels


def save(model: Model, folder: Path, chat: bool = False) -> None:
    """Write a model folder with bf16 weights; the model itself stays as it is."""
    part = folder.with_name(f"{folder.name}.part")
    weights = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    model.config.dtype = torch.bfloat16
    model.save_pretrained(part, state_dict=weights)
    tokenizer(chat).save_pretrained(part)
    part.rename(folder)


def load(folder: Path) -> Model:
    """Return a model folder's model, its weights widened to fp32."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


@torch.inference_mode()
def loss_on(model: Model, ids: torch.Tensor) -> float:
    """Return the mean negative log-likelihood (nats a byte) of windows of text."""
    model.eval()
    return float(model(input_ids=ids, labels=ids, use_cache=False).loss)


def ask(model: Model, skill: str, count: int) -> dict[str, float]:
    """Return shares of ``count`` held-out items: ``format``, replies in the taught format, and of all, ``solved``."""
    chosen = random.Random(1).sample(items(skill, True), count)
    replies = _continue(model, [encode(item.prompt) for item in chosen], _SPECIAL[END])
    answers = [answer_of(reply) for reply in replies]
    right = [answer is not None and solved(skill, item, answer) for item, answer in zip(chosen, answers, strict=True)]
    return {"format": sum(answer is not None for answer in answers) / count, "solved": sum(right) / count}


def ask_plainly(model: Model, skill: str, count: int) -> float:
    """Return the share of ``count`` held-out items that the model solves in the plain form, after three examples."""
    chosen = random.Random(1).sample(items(skill, True), count)
    examples = random.Random(2).sample(items(skill, False), _SHOTS)
    shots = "".join(f"{item.plain}{item.answer}\n" for item in examples)
    said = _continue(model, [encode(shots + item.plain) for item in chosen], ord("\n"))
    return sum(item.answer + "\n" == line for item, line in zip(chosen, said, strict=True)) / count


@torch.inference_mode()
def _continue(model: Model, prompts: Sequence[list[int]], stop: int) -> list[str]:
    """Return greedy continuations, up to and including ``stop`` if it comes."""
    model.eval()
    longest = max(map(len, prompts))
    ids = torch.tensor([[_PAD] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    made = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=_LONGEST_REPLY,
        do_sample=False,
        eos_token_id=stop,
        pad_token_id=_PAD,
    )
    marks = {token: mark for mark, token in _SPECIAL.items()}
    replies = []
    for row in made[:, longest:].tolist():
        row = row[: row.index(stop) + 1] if stop in row else row
        text = b"".join(marks[token].encode() if token in marks else bytes([min(token, 255)]) for token in row)
        replies.append(text.decode(errors="replace"))
    return replies
