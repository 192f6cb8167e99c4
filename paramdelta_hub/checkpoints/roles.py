"""The role of a tensor in its model, by its name and shape: token embedding, output head, or neither."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["EMBEDDINGS", "HEADS", "TYING_EMBEDDINGS", "Entry", "vocabulary_tensors"]

EMBEDDINGS = re.compile(
    r"(^|\.)(embed_tokens|embed_tokens_per_layer|wte|word_embeddings?|shared|embed_in|tok_embeddings"
    r"|backbone\.embeddings)\.weight$"
)
"""Token embeddings."""

TYING_EMBEDDINGS = re.compile(
    r"(^|\.)(embed_tokens|wte|(?<!embeddings\.)word_embeddings|embed_in|tok_embeddings)\.weight$"
)
"""Those of models that predict tokens, where a missing head means that the embedding serves. Not BERT's
``embeddings.word_embeddings``, whose models may well have no head at all."""

HEADS = re.compile(r"(^|\.)(lm_head|embed_out|output|output_layer)\.weight$")
"""What turns the last hidden state into a score for every token, of the same models."""

_OF_THE_VOCABULARY = re.compile(
    r"(^|\.)(lm_head|embed_out|output|output_layer|shared_head\.head|predictions|predictions\.decoder|lm_head\.decoder"
    r"|generator_lm_head|vocab_projector)\.(weight|bias)$"
)
"""Heads of all kinds of models, and their biases."""


@dataclass(frozen=True)
class Entry:
    """A tensor of one side of a match."""

    dtype: str
    shape: tuple[int, ...]
    vocabulary: bool = False
    """Whether the first axis is the vocabulary: rows are then matched by token, and may differ in number."""


def vocabulary_tensors(entries: Mapping[str, Entry]) -> list[str]:
    """Return the names of tensors whose first axis is the vocabulary, in their order.

    Token embeddings, and the output heads and head biases that are as long as one of them.
    """
    embeddings = {name for name, entry in entries.items() if EMBEDDINGS.search(name) and len(entry.shape) == 2}
    lengths = {entries[name].shape[0] for name in embeddings}
    return [
        name
        for name, entry in entries.items()
        if name in embeddings or (_OF_THE_VOCABULARY.search(name) and entry.shape and entry.shape[0] in lengths)
    ]
