"""The role of a tensor in its model, by its name and shape: token embedding, output head, a buffer that is computed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["EMBEDDINGS", "Entry", "is_derived", "is_head", "vocabulary_tensors"]

EMBEDDINGS = re.compile(
    r"(^|\.)(embed_tokens|embed_tokens_per_layer|wte|word_embeddings?|shared|embed_in|tok_embeddings"
    r"|tokens_embed|(backbone|rwkv|transformer)\.embeddings)\.weight$"
)
"""Token embeddings."""

HEADS = re.compile(
    r"(^|\.)(lm_head|embed_out|output|output_layer|proj_out|output_projection|lm_loss|head|predictions\.decoder"
    r"|lm_head\.(decoder|out_proj)|pred_layer\.proj|generator_lm_head|vocab_projector|mlm_score\.decoder)\.weight$"
    r"|^decoder\.weight$"
)
"""Output heads of all kinds of models: what turns the last hidden state into a score for every token."""

_OF_THE_VOCABULARY = re.compile(
    r"(^|\.)(lm_head|embed_out|output|output_layer|shared_head\.head|predictions|predictions\.decoder|lm_head\.decoder"
    r"|generator_lm_head|vocab_projector|proj_out|output_projection|lm_loss|pred_layer\.proj|mlm_score\.decoder"
    r"|lm_head\.out_proj)\.(weight|bias)$"
)
"""Heads of all kinds of models, and their biases."""

_COMPUTED = re.compile(
    r"(^|\.)((text_|token_|visual_|image_)?position_ids|(full_|original_)?inv_freq|masked_bias|relative_position_index"
    r"|relative_coords_table|rope\.freqs|freqs_cis|rotary_(emb|pos_emb)\.\w*freqs|(cos|sin)_cached|token_type_ids)$"
)
"""Positions, frequencies of rotations, and the number that hides masked scores."""
_MASKS = re.compile(
    r"(^|\.)(attn|attention|self_attention|causal_self_attention)\.(bias|causal_mask|mask)$|(^|\.)(attn_mask|causal_mask)$"
)
"""Causal masks, which GPT-2 and its kin call a bias."""


@dataclass(frozen=True)
class Entry:
    """A tensor of one side of a match."""

    dtype: str
    shape: tuple[int, ...]
    vocabulary: bool = False
    """Whether the first axis is the vocabulary: rows are then matched by token, and may differ in number."""

    @property
    def comparable_shape(self) -> tuple[int, ...]:
        """The shape as far as two sides must agree on it."""
        return (-1, *self.shape[1:]) if self.vocabulary else self.shape


def is_head(name: str) -> bool:
    """Whether a tensor of this name scores every token, if it is as long as the vocabulary."""
    return HEADS.search(name) is not None


def is_derived(name: str, entry: Entry) -> bool:
    """Whether a model computes this tensor anew when it is built, so that what a file holds never matters."""
    if _MASKS.search(name):  # not the trained bias of the same name, which is a vector
        *ones, rows, columns = entry.shape if len(entry.shape) >= 2 else (0, 0, 1)
        return rows == columns and set(ones) <= {1}
    return _COMPUTED.search(name) is not None


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
