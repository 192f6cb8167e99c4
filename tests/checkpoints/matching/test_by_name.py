"""Pairing: what goes with what, and every misfit at once."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta_hub.checkpoints.matching.by_name import (
    DERIVED,
    Entry,
    OmittedTensor,
    lacking_heads,
    match,
    suggest_skips,
)
from paramdelta_hub.checkpoints.rules.tensor_rules import Rules
from paramdelta_hub.errors import OptionError
from paramdelta_hub.numerics.floats import FLOATS

SIDES = ("base", "post")
ENTRIES = st.dictionaries(
    st.sampled_from(["a", "b", "c.weight", "x.inv_freq", "position_ids"]),
    st.builds(Entry, st.sampled_from(["BF16", "F32", "I64"]), st.sampled_from([(2,), (2, 3)])),
)


@given(ENTRIES, ENTRIES, st.sampled_from([(), ("a",), ("weight$",)]))
def test_nothing_is_dropped_in_silence(left: dict[str, Entry], right: dict[str, Entry], skips: tuple[str, ...]) -> None:
    """Every name of either side ends as a pair, an omission with its reason, or a mismatch."""
    found = match(left, right, Rules(skips=skips), SIDES)
    omitted, wrong = {omission.name for omission in found.omissions}, {m.location for m in found.mismatches}
    for name in {*left, *right}:
        assert (name in found.pairs) + (name in omitted) + (name in wrong and name not in found.pairs) == 1
    for ours, theirs in found.pairs.items():
        one, other = left[ours], right[theirs]
        dtypes_fit = one.dtype == other.dtype or {one.dtype, other.dtype} <= FLOATS.keys()
        assert (dtypes_fit and replace(one, dtype=other.dtype) == other) == (ours not in wrong)


def test_a_derived_buffer_is_left_out_whatever_it_is_like() -> None:
    name = "rotary.inv_freq"
    for left, right, side in (
        (Entry("F32", (4,)), Entry("F32", (4,)), "both"),
        (Entry("F32", (4,)), Entry("F16", (8,)), "both"),
        (Entry("F32", (4,)), None, "base"),
        (None, Entry("F32", (4,)), "post"),
    ):
        found = match({name: left} if left else {}, {name: right} if right else {}, Rules(skips=("freq",)), SIDES)
        assert found.omissions == [OmittedTensor(name, side, DERIVED)]
        assert not found.pairs
        assert not found.mismatches


def test_what_one_side_lacks_can_be_skipped_by_pasting() -> None:
    """Whole parts by their names, others in all layers at once; nothing is proposed where most does not fit."""
    model = {f"layers.{n}.{x}.weight": Entry("BF16", (4, 4)) for n in range(12) for x in "qkv"}
    more = {f"{name}.weight": Entry("BF16", (4, 4)) for name in ("2_Dense/linear", "vae.encoder.1", "vae.decoder")}
    more |= {f"layers.{n}.q_norm.weight": Entry("BF16", (4,)) for n in range(12)}
    for left, right in ((model, {**model, **more}), ({**model, **more}, model)):
        options = suggest_skips(match(left, right, Rules(), SIDES), left, right)
        assert options is not None
        skips = tuple(shlex.split(options)[1::2])
        assert skips == (r"^2_Dense/", r"^vae\.", r"^layers\.\d+\.q_norm\.weight$")
        assert not match(left, right, Rules(skips=skips), SIDES).mismatches
    assert suggest_skips(match(model, more, Rules(), SIDES), model, more) is None
    other = {**model, "layers.0.q.weight": Entry("BF16", (4, 5))}
    assert suggest_skips(match({**model, **more}, other, Rules(), SIDES), model, more) is None


def test_a_head_scores_tokens() -> None:
    """A UNet's proj_out is called as a head is, but there is no vocabulary."""
    head, unet = "lm_head.weight", "unet/mid_block.proj_out.weight"
    model = {"x": Entry("BF16", (4,)), unet: Entry("BF16", (4, 4)), head: Entry("BF16", (50, 4), vocabulary=True)}
    for left, right in ((model, {"x": model["x"]}), ({"x": model["x"]}, model)):
        assert lacking_heads(match(left, right, Rules(), SIDES), left, right) == [head]


def test_known_omissions_of_a_delta_may_be_missing_from_it() -> None:
    target = {"a": Entry("F32", (1,)), "b": Entry("F32", (1,))}
    found = match(target, {"a": Entry("F32", (1,))}, Rules(), ("the target", "the delta"), known=["b"])
    assert not found.mismatches
    assert found.omissions == [OmittedTensor("b", "the target", "left out when the delta was made")]


def test_shape_and_dtype_are_both_told() -> None:
    found = match({"a": Entry("I64", (1,))}, {"a": Entry("BF16", (2,))}, Rules(), SIDES)
    assert [m.kind for m in found.mismatches] == ["shape", "dtype"]
    assert "base has [1], post has [2]" in str(found.mismatches[0])


def test_skips_see_names_before_and_after_renaming() -> None:
    rules = Rules(renames=(("^x", "y"),), skips=("^x",))
    assert match({"y1": Entry("F32", (1,))}, {"x1": Entry("F32", (1,))}, rules, SIDES).omissions == [
        OmittedTensor("y1", "both", "skipped by rule")
    ]


def test_too_many_renames_are_refused_before_the_work() -> None:
    Rules(renames=(("a", "b"),) * 1000)
    with pytest.raises(OptionError, match="1001 rename rules"):
        Rules(renames=(("a", "b"),) * 1001)
