"""Merge patches do what RFC 7396 says; a three-way merge takes what post changed, and never in silence."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta_hub.checkpoints.config_merge import (
    ALWAYS,
    STRUCTURE,
    apply_patch,
    config_change,
    merge_config,
    merge_patch,
)
from paramdelta_hub.errors import CheckpointError

BOTH = {**STRUCTURE, **ALWAYS}
Config = dict[str, Any]

_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("abc", max_size=1), inner, max_size=3),
    max_leaves=8,
)
_keys = st.text("abc", max_size=1) | st.sampled_from(["eos_token_id", "pad_token_id"])
configs = st.dictionaries(_keys, _values, max_size=5)


def plain(value: Any) -> Any:
    """Return a value without the nulls that a merge patch can't make: to a config they are absent keys."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items() if inner is not None}
    return value


def text(value: Any) -> str:
    """Return what tells 1 from 1.0 and true, as Python's equality does not."""
    return json.dumps(plain(value), sort_keys=True)


RFC_7396_APPENDIX_A = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]


@pytest.mark.parametrize(("value", "patch", "expected"), RFC_7396_APPENDIX_A)
def test_the_examples_of_the_rfc(value: Any, patch: Any, expected: Any) -> None:
    before = copy.deepcopy((value, patch))
    assert apply_patch(value, patch) == expected
    assert (value, patch) == before, "neither is changed"


@given(configs, configs)
def test_a_patch_makes_new_of_old(old: Config, new: Config) -> None:
    assert text(apply_patch(old, merge_patch(old, new))) == text(new)
    assert merge_patch(new, new) == {}


def test_a_patch_tells_numbers_apart() -> None:
    assert merge_patch({"a": 1}, {"a": True}) == {"a": True}, "true is not one"
    assert merge_patch({"a": {"b": 1}}, {"a": {"b": True}}) == {"a": {"b": True}}
    assert merge_patch({"a": [1]}, {"a": [1.0]}) == {"a": [1.0]}


@given(configs, configs)
def test_a_change_leads_there_and_back(base: Config, post: Config) -> None:
    change = config_change(base, post)
    assert text(apply_patch(base, change.patch)) == text(post)
    assert text(apply_patch(post, change.reverse)) == text(base)


@given(configs, configs)
def test_a_targets_config_that_is_bases_becomes_posts(base: Config, post: Config) -> None:
    laid = merge_config(base, [("d", config_change(base, post))], exceptions={})
    assert text(laid.config) == text(post)
    assert not laid.conflicts
    assert not laid.kept


@given(configs, configs, configs, st.sampled_from(["target", "post"]), st.sampled_from(["target", "merge", 0]))
def test_laying_over_twice_is_laying_over_once(
    base: Config, post: Config, target: Config, prefer: Any, tokens: Any
) -> None:
    before, changes = copy.deepcopy(target), [("d", config_change(base, post))]
    once = merge_config(target, changes, exceptions=BOTH, prefer=prefer, tokens=tokens)
    twice = merge_config(once.config, changes, exceptions=BOTH, prefer=prefer, tokens=tokens)
    assert text(twice.config) == text(once.config)
    assert target == before, "the target's own is left as it is"
    assert [key for key in target if key in once.config] == [key for key in once.config if key in target], "in order"


@given(configs, configs, configs)
def test_three_ways_for_every_key(base: Config, post: Config, target: Config) -> None:
    """Top-level keys that are not objects, against the rule as one says it."""
    result = merge_config(target, [("d", config_change(base, post))], exceptions={})
    for key in {*base, *post, *target}:
        values = [plain(side.get(key)) for side in (base, post, target, result.config)]
        if any(isinstance(value, dict) for value in values):
            continue
        old, new, theirs, ours = map(text, values)
        expected = new if theirs == old else theirs
        assert ours == expected
        conflicting = old not in (new, theirs) and theirs != new
        assert (key in {conflict.key for conflict in result.conflicts}) == conflicting


BASE: Config = {
    "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "hidden_size": 64, "eos_token_id": 2,
    "max_position_embeddings": 2048, "rope_theta": 1e4, "torch_dtype": "float32", "transformers_version": "4.30",
    "vocab_size": 100, "attention_dropout": 0.0, "text_config": {"num_hidden_layers": 2, "use_cache": True},
}  # fmt: skip
POST: Config = {
    **BASE, "eos_token_id": [2, 7], "max_position_embeddings": 8192, "rope_theta": 1e6, "torch_dtype": "bfloat16",
    "transformers_version": "4.44", "attention_dropout": 0.1, "_name_or_path": "/home/somebody/post", "vocab_size": 101,
    "rope_scaling": {"type": "dynamic"}, "pad_token_id": 7, "text_config": {"num_hidden_layers": 4, "use_cache": False},
    "tie_word_embeddings": True, "auto_map": {"AutoModel": "evil.Model"}, "quantization_config": {"quant_method": "x"},
}  # fmt: skip


def test_what_describes_the_targets_tensors_stays() -> None:
    laid = merge_config(BASE, [("d", config_change(BASE, POST))], exceptions=BOTH)
    assert set(laid.taken) == {"eos_token_id", "pad_token_id", "attention_dropout", "text_config.use_cache"}
    assert laid.config == {
        **BASE, "eos_token_id": [2, 7], "pad_token_id": 7, "attention_dropout": 0.1,
        "text_config": {"num_hidden_layers": 2, "use_cache": False},
    }  # fmt: skip
    assert set(laid.kept) == {
        "max_position_embeddings", "rope_theta", "rope_scaling", "torch_dtype", "transformers_version", "vocab_size",
        "_name_or_path", "text_config.num_hidden_layers", "tie_word_embeddings", "quantization_config",
    }  # fmt: skip
    assert not laid.conflicts


def test_where_the_tensors_are_posts_so_are_shapes_and_positions() -> None:
    laid = merge_config(BASE, [("d", config_change(BASE, POST))], exceptions=ALWAYS)
    assert (laid.config["rope_theta"], laid.config["vocab_size"]) == (1e6, 101)
    assert laid.config["torch_dtype"] == "float32"
    assert "auto_map" not in laid.config


SHAPES = [
    "hidden_size", "intermediate_size", "moe_intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "num_local_experts", "num_experts_per_tok", "n_routed_experts", "n_embd", "n_layer",
    "n_head", "vocab_size", "head_dim", "qk_rope_head_dim", "v_head_dim", "d_model", "d_ff", "d_kv", "q_lora_rank",
    "kv_lora_rank", "type_vocab_size", "layer_types", "encoder_layers", "decoder_ffn_dim", "tie_word_embeddings",
    "architectures", "model_type", "id2label", "label2id", "num_labels", "embedding_size", "patch_size",
]  # fmt: skip
POSITIONS = [
    "rope_theta", "rope_scaling", "rope_parameters", "rope_local_base_freq", "rotary_emb_base", "partial_rotary_factor",
    "max_position_embeddings", "original_max_position_embeddings", "n_positions", "n_ctx",
]  # fmt: skip
FREE = [
    "hidden_act", "use_cache", "attention_dropout", "eos_token_id", "initializer_range", "rms_norm_eps", "num_beams",
    "num_return_sequences", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "do_sample", "temperature",
    "sliding_window", "problem_type", "max_new_tokens",
]  # fmt: skip


def why(key: str) -> str | None:
    return next((reason for reason, pattern in BOTH.items() if pattern.fullmatch(key)), None)


@pytest.mark.parametrize("key", SHAPES)
def test_shapes(key: str) -> None:
    assert "shapes" in str(why(key))


@pytest.mark.parametrize("key", POSITIONS)
def test_positions(key: str) -> None:
    assert "positions" in str(why(key))


@pytest.mark.parametrize("key", FREE)
def test_what_post_training_may_change(key: str) -> None:
    assert why(key) is None


def test_a_conflict_is_told_and_the_target_wins() -> None:
    change = config_change({"a": 1, "b": {"c": 1}}, {"a": 2, "b": {"c": 2}})
    target = {"a": 3, "b": {"c": 4}, "d": 5}
    laid = merge_config(target, [("delta 1.0.0", change)], exceptions=BOTH)
    assert laid.config == target
    told = [(c.key, c.delta, c.base, c.post, c.found, c.other, c.winner) for c in laid.conflicts]
    assert told == [
        ("a", "delta 1.0.0", "1", "2", "3", "target", "target"),
        ("b.c", "delta 1.0.0", "1", "2", "4", "target", "target"),
    ]
    laid = merge_config(target, [("delta 1.0.0", change)], exceptions=BOTH, prefer="post")
    assert laid.config == {"a": 2, "b": {"c": 2}, "d": 5}
    assert [conflict.winner for conflict in laid.conflicts] == ["delta 1.0.0"] * 2


def test_what_the_target_has_not_is_a_conflict_too() -> None:
    laid = merge_config({}, [("d", config_change({"a": {"b": 1}, "c": 1}, {"a": {"b": 2}, "c": None}))], exceptions={})
    assert laid.config == {}
    assert [conflict.key for conflict in laid.conflicts] == ["a"], "c is gone from both"


def test_two_deltas_that_disagree() -> None:
    changes = [("one 1.0.0", config_change({"a": 1}, {"a": 2})), ("two 1.0.0", config_change({"a": 1}, {"a": 3}))]
    laid = merge_config({"a": 1}, changes, exceptions={})
    assert laid.config == {"a": 2}
    (conflict,) = laid.conflicts
    assert (conflict.other, conflict.winner) == ("one 1.0.0", "one 1.0.0")
    laid = merge_config({"a": 1}, changes, exceptions={}, prefer="post")
    assert laid.config == {"a": 3}
    assert laid.taken == {"a": "two 1.0.0"}


@pytest.mark.parametrize(
    ("tokens", "expected", "conflicts", "kept"),
    [
        (0, 7, [], ["eos_token_id"]),
        (1, 8, [], []),
        ("target", 5, [], ["eos_token_id"]),
        ("merge", 5, ["eos_token_id"], []),
    ],
)
def test_token_ids_are_those_of_the_tokenizer(
    tokens: Any, expected: int, conflicts: list[str], kept: list[str]
) -> None:
    """Even where post has what base had: a target with another tokenizer has other ids."""
    changes = [
        ("one 1.0.0", config_change({"eos_token_id": 7}, {"eos_token_id": 7})),
        ("two 1.0.0", config_change({"eos_token_id": 7}, {"eos_token_id": 8})),
    ]
    laid = merge_config({"eos_token_id": 5}, changes, exceptions={}, tokens=tokens)
    assert laid.config == {"eos_token_id": expected}
    assert [conflict.key for conflict in laid.conflicts] == conflicts
    assert list(laid.kept) == kept


def test_what_the_tensors_settle() -> None:
    target = {
        "vocab_size": 100,
        "text_config": {"vocab_size": 100, "tie_word_embeddings": True},
        "quantization_config": 1,
    }
    overrides = {"vocab_size": 102, "tie_word_embeddings": False, "quantization_config": None, "extra": None}
    laid = merge_config(target, [], exceptions=BOTH, overrides=overrides)
    assert laid.config == {"vocab_size": 102, "text_config": {"vocab_size": 102, "tie_word_embeddings": False}}
    assert laid.overridden == [
        "vocab_size",
        "text_config.vocab_size",
        "text_config.tie_word_embeddings",
        "quantization_config",
    ]
    assert merge_config(laid.config, [], exceptions=BOTH, overrides=overrides).overridden == []
    assert merge_config({}, [], exceptions=BOTH, overrides=overrides).config == {
        "vocab_size": 102,
        "tie_word_embeddings": False,
    }


@pytest.mark.parametrize("exceptions", [BOTH, {}], ids=["kept", "taken"])
def test_a_key_has_one_fate(exceptions: dict[str, Any]) -> None:
    """What the tensors decide is not told as the target's, or as post's, in the same report."""
    changes = [("a delta", config_change({"vocab_size": 100}, {"vocab_size": 101}))]
    laid = merge_config({"vocab_size": 100}, changes, exceptions=exceptions, overrides={"vocab_size": 102})
    assert laid.config == {"vocab_size": 102}
    assert laid.overridden == ["vocab_size"]
    assert (laid.kept, laid.taken) == ({}, {})


def test_no_change_names_code() -> None:
    code = {"auto_map": {"AutoModel": "a.B"}, "custom_pipelines": {"x": 1}}
    change = config_change({"t": code, **code}, {"t": {**code, "auto_map": 2}, "list": [code], "a": 1})
    assert change.patch == {"list": [{}], "a": 1}
    assert change.reverse == {"list": None, "a": None}


@pytest.mark.parametrize("key", ["a\x1b[2J", "a\nb", "\u202eb"])
def test_a_key_that_can_not_be_printed(key: str) -> None:
    with pytest.raises(CheckpointError, match="control characters"):
        config_change({}, {"a": {key: 1}})


def test_long_values_are_cut_in_reports() -> None:
    change = config_change({"a": 1}, {"a": "\x1b" * 500})
    (conflict,) = merge_config({"a": 2}, [("d", change)], exceptions={}).conflicts
    assert len(conflict.post) < 130
    assert conflict.post[:-1].isascii()
    assert conflict.post.rstrip("…").isprintable()
