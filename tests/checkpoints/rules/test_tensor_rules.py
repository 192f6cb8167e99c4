"""Rules: what each of them hits, and that one which hits nothing is refused with names that come near."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta_hub.checkpoints.rules.tensor_rules import Rules, RuleUse, refuse_unused, rule_uses, weight_map_uses
from paramdelta_hub.errors import OptionError

LLAMA = [f"model.layers.{layer}.{part}" for layer in range(40) for part in ("self_attn.q_proj.weight", "mlp.up.weight")]
LLAMA += ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
NAMES = st.lists(st.from_regex(r"[ab]\.[cd]{1,2}\.[0-2]", fullmatch=True), unique=True, max_size=12)


def test_every_rule_counts_what_it_hits() -> None:
    rules = Rules(
        renames=(("^bert\\.", ""), ("layer", "block")),
        skips=("pooler", "block\\.1", "nothing"),
        carries=("head", "block"),
    )
    left = ["block.0.w", "block.1.w", "pooler.w"]
    right = ["bert.layer.0.w", "bert.layer.1.w", "bert.pooler.w", "head.w"]
    assert rule_uses(rules, left, [right], ["head.w"]) == [
        RuleUse("rename", "^bert\\.", 3),
        RuleUse("rename", "layer", 2),
        RuleUse("skip", "pooler", 1),
        RuleUse("skip", "block\\.1", 1),
        RuleUse("skip", "nothing", 0),
        RuleUse("carry", "head", 1),
        RuleUse("carry", "block", 0),
    ]


@given(left=NAMES, right=NAMES, old=st.sampled_from("abcd"), new=st.sampled_from("abx"), skip=st.sampled_from("abcdx"))
def test_counts_are_those_of_a_plain_loop(left: list[str], right: list[str], old: str, new: str, skip: str) -> None:
    rules = Rules(renames=((old, new),), skips=(skip,))
    rename, skipped = rule_uses(rules, left, [right])
    assert rename.tensors == sum(old in name and old != new for name in right)
    hit = {name for name in left if skip in name}
    hit |= {name.replace(old, new) for name in right if skip in name or skip in name.replace(old, new)}
    assert skipped.tensors == len(hit)


def test_a_rule_that_changes_no_name_hits_nothing() -> None:
    (use,) = rule_uses(Rules(renames=(("^model\\.", "model."),)), LLAMA, [LLAMA])
    assert use.tensors == 0


def test_a_rule_of_a_weight_map_counts_the_tensors_that_it_decides() -> None:
    """The last that matches decides: one before `.*` never does."""
    assert [use.tensors for use in weight_map_uses([".*", "mlp", "xyz"], LLAMA)] == [len(LLAMA) - 40, 40, 0]
    assert [use.tensors for use in weight_map_uses(["mlp", ".*"], LLAMA)] == [0, len(LLAMA)]


@pytest.mark.parametrize(
    ("pattern", "nearest"),
    [
        ("lm_haed", "lm_head.weight"),
        (r"^lm_hed\.weight$", "lm_head.weight"),
        (r"embed_token\.", "model.embed_tokens.weight"),
        (r"layers\.\d+\.self_atn\.q_proj", "model.layers.0.self_attn.q_proj.weight"),
        (r"(mpl)", "model.layers.0.mlp.up.weight"),
        ("modle.norm", "model.norm.weight"),
    ],
)
def test_the_nearest_names_are_told(pattern: str, nearest: str) -> None:
    with pytest.raises(OptionError, match=re.escape(nearest)) as caught:
        refuse_unused([RuleUse("skip", pattern, 0)], {"skip": LLAMA})
    assert f"--skip {pattern!r} matches no tensor" in caught.value.what


def test_all_idle_rules_are_told_at_once_and_others_not() -> None:
    uses = [RuleUse("skip", "a", 0), RuleUse("rename", "b", 1), RuleUse("weight-map", "c", 0)]
    with pytest.raises(OptionError) as caught:
        refuse_unused(uses, {})
    assert [word for word in ("--skip 'a'", "--rename", "--weight-map 'c'") if word in caught.value.what] == [
        "--skip 'a'",
        "--weight-map 'c'",
    ]
    refuse_unused(uses[1:2], {})


def test_many_names_take_no_time_to_speak_of() -> None:
    """91,000 names are of some ten kinds: layers and experts alike are compared once."""
    names = [f"model.layers.{n % 61}.mlp.experts.{n}.up_proj.weight" for n in range(91_000)]
    with pytest.raises(OptionError, match="up_proj"):
        refuse_unused([RuleUse("skip", "upproj", 0)] * 5, {"skip": names})


def test_what_training_had_changed_is_named_by_its_rule() -> None:
    use = RuleUse("skip", "bias$", 14).with_trained({f"h.{n}.c_attn.bias": [f"h.{n}.c_attn.bias"] for n in range(7)})
    assert use.trained == tuple(f"h.{n}.c_attn.bias" for n in range(7))
    assert str(use).endswith(
        "matched 14 tensors, 7 of them changed by training: " + ", ".join(use.trained[:5]) + " and 2 more"
    )
    assert RuleUse("skip", "x", 1).with_trained({"bias": ["bias"]}).trained == ()
    assert RuleUse("rename", "bias", 1).with_trained({"bias": ["bias"]}).trained == ()
