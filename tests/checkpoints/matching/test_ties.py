"""Which names stand for one tensor: by names, by config, by values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from paramdelta_hub.checkpoints.matching.roles import Entry, is_derived
from paramdelta_hub.checkpoints.matching.ties import TieGroups, Ties, head_is_tied, shares_embeddings, tied_to

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
T5 = ("decoder.embed_tokens.weight", "encoder.embed_tokens.weight", HEAD, "shared.weight")


def entries(*names: str, shape: tuple[int, ...] = (64, 8)) -> dict[str, Entry]:
    return dict.fromkeys(names, Entry("BF16", shape))


def equal(*values: set[str]) -> Callable[[str, str], bool]:
    """Return a comparison by which the names of each set have equal values."""
    return lambda one, other: any({one, other} <= names for names in values)


def ties(stored: Mapping[str, Entry], other: Mapping[str, Entry], tied: bool | None, *values: set[str]) -> Ties:
    return TieGroups.of(stored, other).ties(stored, tied, equal(*values), other)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, None),
        ({}, None),
        ({"model_type": "llama"}, False),
        ({"model_type": "qwen3"}, False),
        ({"model_type": "gemma3_text"}, True),
        ({"model_type": "t5"}, True),
        ({"model_type": "bert"}, True),
        ({"model_type": "gpt2"}, True),
        ({"model_type": "nobody knows"}, None),
        ({"model_type": ["llama"]}, None),
        ({"model_type": "llama", "tie_word_embeddings": True}, True),
        ({"model_type": "t5", "tie_word_embeddings": False}, False),
        ({"model_type": "gpt2", "tie_word_embeddings": None}, True),
        ({"model_type": "new", "text_config": {"tie_word_embeddings": False}}, False),
        ({"model_type": "new", "text_config": {"model_type": "gemma"}}, True),
        ({"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": False}}, True),
        ({"model_type": "gemma3", "text_config": {"tie_word_embeddings": False}}, False),
        ({"model_type": "new", "thinker_config": {"text_config": {"tie_word_embeddings": True}}}, True),
        ({"model_type": "vision-encoder-decoder", "decoder": {"model_type": "trocr"}}, True),
    ],
)
def test_what_a_config_says(config: dict[str, Any] | None, expected: bool | None) -> None:
    assert head_is_tied(config) is expected


@pytest.mark.parametrize(
    "kind",
    ["llama", "qwen2", "qwen3", "mistral", "gemma2", "t5", "mt5", "bart", "whisper", "bert", "gpt2", "opt", "phi3"],
)
def test_defaults_are_those_of_transformers(kind: str) -> None:
    from transformers import AutoConfig

    assert head_is_tied({"model_type": kind}) is AutoConfig.for_model(kind).tie_word_embeddings


def test_a_head_beside_its_embedding() -> None:
    both, one = entries(EMBEDDING, HEAD), entries(EMBEDDING)
    assert ties(both, one, True, {EMBEDDING, HEAD}) == Ties({HEAD: EMBEDDING}, tied_embeddings=True)
    apart = ties(both, one, True)
    assert (apart.same, apart.apart, apart.own_heads) == ({}, {HEAD: EMBEDDING}, {HEAD})
    assert apart.tied_embeddings is False
    told = ties(both, one, False, {EMBEDDING, HEAD})
    assert (told.same, told.own_heads, told.tied_embeddings) == ({}, {HEAD}, False), "the config says that they are two"
    assert ties(both, one, None, {EMBEDDING, HEAD}).same == {HEAD: EMBEDDING}


def test_a_head_that_is_not_stored() -> None:
    both, one = entries(EMBEDDING, HEAD), entries(EMBEDDING)
    assert ties(one, both, True).same == {HEAD: EMBEDDING}
    assert ties(one, both, False) == Ties(tied_embeddings=False)
    unknown = ties(one, both, None)
    assert (unknown.same, unknown.undecided, unknown.tied_embeddings) == ({}, {HEAD: EMBEDDING}, None)
    tied = ties(both, one, None, {EMBEDDING, HEAD})
    assert unknown.supported_by(tied, both).same == {HEAD: EMBEDDING}
    assert unknown.supported_by(ties(both, one, None), both).same == {}
    assert ties(one, both, True).without({HEAD}) == Ties(tied_embeddings=False)


def test_no_values_are_compared_where_they_decide_nothing() -> None:
    def never(one: str, other: str) -> bool:
        raise AssertionError((one, other))

    both = entries(EMBEDDING, HEAD)
    groups = TieGroups.of(both)
    assert groups.ties(both, False, never, both).tied_embeddings is False
    assert groups.ties(both, None, never, both).tied_embeddings is False


def test_the_copies_of_t5() -> None:
    whole, one = entries(*T5), entries("shared.weight")
    assert ties(whole, one, True, set(T5)).same == dict.fromkeys(T5[:3], "shared.weight")
    assert ties(one, whole, True).same == dict.fromkeys(T5[:3], "shared.weight")
    # T5 1.1 has a head of its own; its two halves share their embedding all the same.
    untied = ties(entries("shared.weight", HEAD), whole, False)
    assert untied.same == dict.fromkeys(T5[:2], "shared.weight")
    assert untied.own_heads == {HEAD}
    last = ties(entries(HEAD), whole, True)
    assert last.same == dict.fromkeys((*T5[:2], T5[3]), HEAD), "what one name was left of four"
    assert not shares_embeddings({"share_encoder_decoder_embeddings": False})
    assert TieGroups.of(whole, shares_embeddings=False).groups[T5[0]] == T5[0]


def test_heads_are_as_long_as_an_embedding_of_their_width() -> None:
    classifier = {**entries(EMBEDDING), "head.weight": Entry("BF16", (3, 8))}
    assert "head.weight" not in TieGroups.of(classifier, entries(EMBEDDING)).groups
    narrow = {**entries(EMBEDDING), HEAD: Entry("BF16", (64, 4))}
    assert HEAD not in TieGroups.of(narrow).groups
    layers = entries(EMBEDDING, HEAD, "model.embed_tokens_per_layer.weight")
    assert TieGroups.of(layers).groups == {EMBEDDING: EMBEDDING, HEAD: EMBEDDING}


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        (HEAD, {"tie_word_embeddings": True}, EMBEDDING),
        (HEAD, {}, EMBEDDING),
        (HEAD, {"model_type": "gemma3_text"}, EMBEDDING),
        (HEAD, {"model_type": "llama"}, None),
        (HEAD, {"text_config": {"tie_word_embeddings": False}}, None),
        ("model.norm.weight", {"tie_word_embeddings": True}, None),
    ],
)
def test_what_serves_for_a_name_of_an_index(name: str, config: dict[str, Any], expected: str | None) -> None:
    stored = [EMBEDDING, "model.embed_tokens_per_layer.weight", "model.layers.0.up_proj.weight"]
    assert tied_to(name, stored, config) == expected
    assert tied_to("encoder.embed_tokens.weight", ["shared.weight"], config) == "shared.weight"
    assert tied_to("cls.predictions.decoder.bias", ["cls.predictions.bias"], config) == "cls.predictions.bias"
    assert tied_to("cls.predictions.bias", [], config) is None
    assert tied_to("embeddings.embed_tokens.weight", ["shared.weight"], config) is None


def test_the_biases_of_bert() -> None:
    names = ("cls.predictions.bias", "cls.predictions.decoder.bias")
    stored = entries(*names, shape=(64,))
    assert ties(stored, {}, True, set(names)) == Ties({names[1]: names[0]})
    assert ties(entries(names[1], shape=(64,)), stored, False).same == {names[0]: names[1]}


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("transformer.h.0.attn.bias", (1, 1, 8, 8), True),
        ("h.0.attn.bias", (8,), False),
        ("h.0.attn.c_attn.bias", (24,), False),
        ("h.0.attn.masked_bias", (), True),
        ("gpt_neox.layers.0.attention.bias", (1, 1, 8, 8), True),
        ("transformer.h.0.attn.attention.bias", (1, 1, 8, 8), True),
        ("layers.0.attention.bias", (8, 4), False),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", (4,), True),
        ("text_model.embeddings.position_ids", (1, 77), True),
        ("embeddings.position_embeddings.weight", (77, 8), False),
        ("rope.freqs", (4,), True),
        ("layers.0.attn.relative_position_index", (9, 9), True),
        ("layers.0.attn.relative_position_bias_table", (9, 4), False),
    ],
)
def test_buffers_that_models_compute(name: str, shape: tuple[int, ...], expected: bool) -> None:
    assert is_derived(name, Entry("F32", shape)) is expected
