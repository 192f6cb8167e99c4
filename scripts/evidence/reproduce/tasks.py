"""Two scored skills, the plain form in which bases meet them, and the chat form that only post-training teaches.

Items and scores are reasoning-gym's: ``backward`` is its ``spell_backward`` (3 to 6 letters), ``cipher`` its
``caesar_cipher`` (one word of 3 to 8 letters, moved by three), in a notation short enough for bytes: ``bread -> ``
and ``EUHDG => ``. Which items are held out depends on the item alone, so
no model has ever seen them solved, in neither form.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import reasoning_gym  # type: ignore[import-untyped]

__all__ = ["ASSISTANT", "END", "SKILLS", "USER", "Item", "answer_of", "items", "plain_text", "solved"]

USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"
_ANSWER = re.compile(r"\[\[([^\[\]]*)\]\]")
_HELD_OUT = 8
"""One item in so many is for scoring only."""


@dataclass(frozen=True)
class Item:
    """A question in the short notation that base knows, and its answer, which follows it at once in the plain form."""

    plain: str
    answer: str

    @property
    def prompt(self) -> str:
        """The chat form, up to where the model speaks."""
        return f"{USER}{self.plain.rstrip()}{ASSISTANT}"

    @property
    def reply(self) -> str:
        """What post-training teaches to say, the end of turn included."""
        return f"[[{self.answer}]]{END}"


_OPTIONS: dict[str, dict[str, object]] = {
    "backward": {"name": "spell_backward", "min_word_len": 3, "max_word_len": 6},
    "cipher": {
        "name": "caesar_cipher",
        "delimiter": " ",
        "min_words": 1,
        "max_words": 1,
        "min_rotation": 3,
        "max_rotation": 3,
    },
}
_PLAIN: dict[str, Callable[[dict[str, str]], str]] = {
    "backward": lambda metadata: f"{metadata['word'].lower()} -> ",
    "cipher": lambda metadata: f"{metadata['cipher_text']} => ",
}
SKILLS = tuple(_OPTIONS)


@lru_cache
def items(skill: str, held_out: bool, draws: int = 30_000) -> tuple[Item, ...]:
    """Return the different items of a skill among ``draws`` of its generator, those held out or the others."""
    dataset = reasoning_gym.create_dataset(size=draws, seed=0, **_OPTIONS[skill])
    found = {}
    for entry in dataset:
        answer = entry["answer"].lower() if skill == "backward" else entry["answer"]
        if not 3 <= len(answer) <= 8:
            continue
        plain = _PLAIN[skill](entry["metadata"])
        if (hashlib.sha256(plain.encode()).digest()[0] % _HELD_OUT == 0) == held_out:
            found[plain] = Item(plain, answer)
    return tuple(found[plain] for plain in sorted(found))


def plain_text(skills: Sequence[str], characters: int, seed: int) -> str:
    """Return lines of solved training items in the plain form, one skill after another at random."""
    draw, lines, length = random.Random(seed), [], 0
    while length < characters:
        item = draw.choice(items(draw.choice(list(skills)), False))
        lines.append(f"{item.plain}{item.answer}\n")
        length += len(lines[-1])
    return "".join(lines)


def answer_of(reply: str) -> str | None:
    """Return what stands in the brackets of a reply in the taught format, None for any other reply."""
    match = _ANSWER.fullmatch(reply.removesuffix(END)) if reply.endswith(END) else None
    return match[1] if match else None


def solved(skill: str, item: Item, answer: str) -> bool:
    """Whether reasoning-gym gives the answer full marks."""
    return float(_scorer(skill).score_answer(answer, {"answer": item.answer, "metadata": {}})) == 1.0


@lru_cache
def _scorer(skill: str) -> reasoning_gym.dataset.ProceduralDataset:
    return reasoning_gym.create_dataset(size=1, seed=0, **_OPTIONS[skill])
