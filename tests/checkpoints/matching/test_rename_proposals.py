"""Proposed renames: they pair what they say they pair, and nothing is proposed where names differ by more."""

from __future__ import annotations

import re
import shlex
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import paramdelta_hub as pd
from paramdelta_hub.checkpoints.matching.by_name import Entry, match
from paramdelta_hub.checkpoints.matching.rename_proposals import suggest_renames
from paramdelta_hub.checkpoints.rules.tensor_rules import Rules
from paramdelta_hub.cli.common import parse_assignment
from tests.conftest import Family
from tests.support.models import extract_in, read_weights, tuned, weights, write_model, write_models

Side = dict[str, Entry]


def entry(*shape: int) -> Entry:
    return Entry("BF16", shape)


def encoder(prefix: str = "", layers: int = 3) -> Side:
    names: Side = {f"{prefix}embeddings.word_embeddings.weight": entry(90, 8), f"{prefix}pooler.weight": entry(8, 8)}
    for layer in range(layers):
        names[f"{prefix}encoder.layer.{layer}.query.weight"] = entry(8, 8)
        names[f"{prefix}encoder.layer.{layer}.output.weight"] = entry(8, 32)
        names[f"{prefix}encoder.layer.{layer}.LayerNorm.weight"] = entry(8)
    return names


def decoder(prefix: str, layers: int = 4) -> Side:
    names: Side = {f"{prefix}embed_tokens.weight": entry(90, 8), f"{prefix}norm.weight": entry(8)}
    for layer in range(layers):
        names[f"{prefix}layers.{layer}.mlp.up_proj.weight"] = entry(32, 8)
        names[f"{prefix}layers.{layer}.input_layernorm.weight"] = entry(8)
        names[f"{prefix}layers.{layer}.post_attention_layernorm.weight"] = entry(8)
    return names


def vision(prefix: str) -> Side:
    return {f"{prefix}blocks.{block}.attn.qkv.weight": entry(24, 8) for block in range(5)}


def without(part: str, side: Side) -> Side:
    return {name: e for name, e in side.items() if part not in name}


HEAD = {"cls.predictions.bias": entry(90), "cls.predictions.transform.weight": entry(8, 8)}
LM_HEAD = {"lm_head.weight": entry(90, 8)}


def parsed(proposal: str) -> tuple[Rules, int, int, int]:
    """Read a proposal as a shell and the command line would: its rules, and the numbers it states."""
    found = re.fullmatch(r"(.+) \(pairs (\d+) of (\d+) tensors, (\d+) without\)", proposal)
    assert found
    words = shlex.split(found[1])
    assert set(words[::2]) == {"--rename"}
    rules = Rules(renames=tuple(parse_assignment(word, "OLD=NEW") for word in words[1::2]))
    return rules, int(found[2]), int(found[3]), int(found[4])


@pytest.mark.parametrize(
    ("left", "right", "options"),
    [
        (encoder("bert.") | HEAD, encoder(), ["^=bert."]),
        (encoder(), encoder("bert.") | HEAD, [r"^bert\.="]),
        (encoder("bert."), encoder("roberta."), [r"^roberta\.=bert."]),
        (encoder(), encoder("0.auto_model."), [r"^0\.auto_model\.="]),
        (decoder(""), decoder("transformer."), [r"^transformer\.="]),
        (decoder("lm.model."), decoder("model.lm."), [r"^model\.lm\.=lm.model."]),
        (decoder("language_model.model.") | vision("vision_tower."), decoder("model."), [r"^=language_model."]),
        # What pairs already is left alone …
        (decoder("model.language_model.") | LM_HEAD, decoder("model.") | LM_HEAD, [r"^model\.=model.language_model."]),
        (decoder("model.") | LM_HEAD, decoder("") | LM_HEAD, [r"^(?!lm_head\.)=model."]),
        (encoder("bert.") | HEAD, encoder() | HEAD, [r"^(?!cls\.)=bert."]),
        # … and where two parts have moved, each gets a rule.
        (
            decoder("model.language_model.") | vision("model.visual."),
            decoder("model.") | vision("visual."),
            [r"^model\.=model.language_model.", r"^(?!model\.)=model."],
        ),
    ],
)  # fmt: skip
def test_common_prefixes_of_model_classes(left: Side, right: Side, options: list[str]) -> None:
    proposal = suggest_renames(left, right)
    assert proposal is not None
    rules, after, of, _ = parsed(proposal)
    assert ["=".join(rename) for rename in rules.renames] == options
    assert of == len(right)
    assert after == len(match(left, right, rules, ("base", "post")).pairs)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (encoder(), encoder()),
        (encoder(), {}),
        ({}, encoder()),
        (encoder() | HEAD, encoder() | {"classifier.weight": entry(2, 8)}),
        (encoder(), decoder("")),
        # Deeper, or with other layers taken out: a layer is no prefix.
        (decoder("model.", 4), decoder("model.", 6)),
        (without(".2.", decoder("m.", 6)), without(".4.", decoder("m.", 6))),
        # The same names after a change of prefix, but not the same shapes.
        (decoder("model."), {name: entry(*(2 * length for length in e.shape)) for name, e in decoder("").items()}),
    ],
)  # fmt: skip
def test_nothing_is_proposed_where_prefixes_are_not_what_differs(left: Side, right: Side) -> None:
    assert suggest_renames(left, right) is None


COMPONENTS = st.lists(
    st.sampled_from(["model", "bert", "a-b", "x y", "0", "q\\g", "it's", "k=v", "[x]", "é"]), max_size=3
)


@given(COMPONENTS, COMPONENTS, st.integers(0, 3), st.booleans())
def test_a_proposal_keeps_its_word(new: list[str], old: list[str], extra: int, with_head: bool) -> None:
    """Whatever stands in the prefixes: pasted into a shell, the rules pair as many as was said, and lose none."""
    left, right = (encoder("".join(f"{part}." for part in parts)) for parts in (new, old))
    right |= {f"other.{number}.weight": entry(3) for number in range(extra)}
    if with_head:
        left, right = left | HEAD, right | HEAD
    proposal = suggest_renames(left, right)
    if proposal is None:
        # Only where nothing has changed, where a number was exchanged for another, or where "=" would be misread.
        assert old == new or (old[-1:] == new[-1:] == ["0"]) or "k=v" in new
        return
    rules, after, of, before = parsed(proposal)
    assert (after, of) == (len(encoder()) + len(HEAD) * with_head, len(right))
    paired = match(left, right, rules, ("base", "post"))
    assert len(paired.pairs) == after > before
    assert not [wrong for wrong in paired.mismatches if wrong.kind != "missing"]


def test_vocabularies_may_differ_in_size() -> None:
    left, right = decoder("model."), decoder("")
    left["model.embed_tokens.weight"] = Entry("BF16", (90, 8), vocabulary=True)
    right["embed_tokens.weight"] = Entry("BF16", (96, 8), vocabulary=True)
    assert (
        suggest_renames(left, right) == f"--rename '^=model.' (pairs {len(right)} of {len(right)} tensors, 0 without)"
    )


def test_rules_already_given_come_first() -> None:
    left, right = encoder("bert.") | HEAD, {f"module.{name}": e for name, e in encoder().items()}
    given_rules = Rules(renames=((r"^module\.", ""),), skips=("^cls", "pooler"))
    proposal = suggest_renames(left, right, given_rules)
    assert proposal is not None
    rules, after, of, before = parsed(proposal)
    assert (rules.renames, after, of, before) == ((("^", "bert."),), len(encoder()) - 1, len(encoder()) - 1, 0)


def test_ninety_thousand_names() -> None:
    left: Side = {"lm_head.weight": entry(9, 7), "language_model.model.norm.weight": entry(7)}
    for layer in range(61):
        for expert in range(500):
            for part in ("gate", "up", "down"):
                left[f"language_model.model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight"] = entry(4, 8)
    right = {name.replace("language_model.", ""): e for name, e in left.items()}
    start = time.perf_counter()
    proposal = suggest_renames(left, right)
    print(f"{len(left)} names: {time.perf_counter() - start:.2f} s")
    assert proposal == f"--rename '^(?=model\\.)=language_model.' (pairs {len(left)} of {len(left)} tensors, 1 without)"


def test_extract_says_which_rename_would_do(tmp_path: Path) -> None:
    base = weights(1)
    write_models(tmp_path, base={f"bert.{name}": tensor for name, tensor in base.items()}, post=tuned(base, 2))
    with pytest.raises(pd.MismatchError) as caught:
        extract_in(tmp_path)
    assert caught.value.remedy is not None
    assert "--rename '^=bert.' (pairs 7 of 7 tensors, 0 without)" in caught.value.remedy
    extract_in(tmp_path, rules=Rules(renames=(("^", "bert."),)))


def test_apply_says_which_rename_would_do(family: Family, tmp_path: Path) -> None:
    target = {name.replace("model.", "language_model.", 1): t for name, t in read_weights(family.target).items()}
    write_model(tmp_path / "target", target)
    with pytest.raises(pd.MismatchError) as caught:
        pd.apply(tmp_path / "target", family.delta, tmp_path / "out")
    assert caught.value.remedy is not None
    rules, *_ = parsed(caught.value.remedy.removeprefix("try ").partition(";")[0])
    pd.apply(tmp_path / "target", family.delta, tmp_path / "out", rules=rules)
