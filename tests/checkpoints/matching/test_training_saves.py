"""Checkpoints saved from within a training: the error says what happened, and its remedy works."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import paramdelta_hub as pd
from paramdelta_hub.errors import MismatchError
from tests.support.kinds import SAVES, kind, remedied, rules_of
from tests.support.models import (
    apply_in,
    assert_same,
    extract_in,
    read_weights,
    tuned,
    weights,
    write_model,
    write_models,
)

WRAPPED: dict[str, Callable[[str], str]] = {
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "torch.compile by layer": lambda name: re.sub(r"(layers\.\d+\.)", r"\1_orig_mod.", name),
    "DDP": lambda name: f"module.{name}",
    "both": lambda name: f"_orig_mod.module.{name}",
    "FSDP": lambda name: (
        "_fsdp_wrapped_module."
        + re.sub(r"(layers\.\d+\.)", r"\1_fsdp_wrapped_module._checkpoint_wrapped_module.", name)
    ),
}


@kind(
    SAVES,
    "names with `_orig_mod.`, `module.`, `_fsdp_wrapped_module.`",
    refused="names differ",
    remedy="the `--rename` rules that the error proposes",
)
@pytest.mark.parametrize("case", sorted(WRAPPED))
def test_names_of_wrappers(tmp_path: Path, case: str) -> None:
    post = tuned(weights(0), 1)
    base = write_model(tmp_path / "base", weights(0))
    wrapped = write_model(tmp_path / "post", {WRAPPED[case](name): tensor for name, tensor in post.items()})
    with pytest.raises(MismatchError) as caught:
        pd.extract(base, wrapped, tmp_path / "delta")
    with remedied(caught.value, "try --rename"):
        pd.extract(base, wrapped, tmp_path / "delta", rules=rules_of(caught.value))
        pd.apply(base, tmp_path / "delta", tmp_path / "out")
        assert_same(read_weights(tmp_path / "out"), post)


@pytest.mark.parametrize("case", sorted(WRAPPED))
def test_a_target_with_names_of_wrappers(tmp_path: Path, case: str) -> None:
    """The delta's tensors get the target's names, wrappers and all."""
    base, post = write_model(tmp_path / "base", weights(0)), tuned(weights(0), 1)
    pd.extract(base, write_model(tmp_path / "post", post), tmp_path / "delta")
    target = write_model(tmp_path / "target", {WRAPPED[case](name): tensor for name, tensor in weights(0).items()})
    with pytest.raises(MismatchError) as caught:
        pd.apply(target, tmp_path / "delta", tmp_path / "out")
    pd.apply(target, tmp_path / "delta", tmp_path / "out", rules=rules_of(caught.value))
    assert_same(read_weights(tmp_path / "out"), {WRAPPED[case](name): tensor for name, tensor in post.items()})


@kind(
    SAVES,
    "empty tensors of DeepSpeed ZeRO-3",
    refused="they hold no weights",
    remedy="whole weights, by `zero_to_fp32.py`",
)
@pytest.mark.parametrize("side", ["base", "post"])
def test_weights_that_were_not_gathered(tmp_path: Path, side: str) -> None:
    empty = {name: torch.zeros(0, dtype=tensor.dtype) for name, tensor in weights(0).items()}
    whole = {"base": weights(0), "post": tuned(weights(0), 1)}
    sides = {**whole, side: empty}
    for name, tensors in sides.items():
        write_model(tmp_path / name, tensors)
    with pytest.raises(MismatchError, match=rf"{side} has {len(empty)} empty tensor\(s\), as DeepSpeed") as caught:
        extract_in(tmp_path)
    with remedied(caught.value, "make whole weights with zero_to_fp32.py"):  # in float32, whatever the training's dtype
        write_model(tmp_path / side, {n: t.float() if t.is_floating_point() else t for n, t in whole[side].items()})
        extract_in(tmp_path)
        assert pd.verify(tmp_path / "delta", base=tmp_path / "base", post=tmp_path / "post").exact
        apply_in(tmp_path, "base", dtype="bfloat16")
        assert_same(read_weights(tmp_path / "out"), whole["post"])


@kind(SAVES, "a target with such tensors", refused="they hold no weights", remedy="whole weights, by `zero_to_fp32.py`")
def test_a_target_that_was_not_gathered(tmp_path: Path) -> None:
    write_models(
        tmp_path,
        base=weights(0),
        post=tuned(weights(0), 1),
        target={**weights(0), "model.norm.weight": torch.zeros(0, dtype=torch.bfloat16)},
    )
    extract_in(tmp_path)
    with pytest.raises(MismatchError, match=r"the target has 1 empty tensor\(s\)") as caught:
        apply_in(tmp_path)
    with remedied(caught.value, "make whole weights with zero_to_fp32.py"):
        write_model(tmp_path / "target", weights(0))
        assert apply_in(tmp_path).is_post
        assert_same(read_weights(tmp_path / "out"), tuned(weights(0), 1))


@kind(
    SAVES,
    "flat parameters of FSDP",
    refused="they are not the model's tensors",
    remedy="save again with the state dict type `FULL_STATE_DICT`",
)
def test_flat_parameters(tmp_path: Path) -> None:
    write_models(tmp_path, base=weights(0), post={"_fsdp_wrapped_module._flat_param": torch.ones(9)})
    with pytest.raises(MismatchError, match="saved by FSDP with flat parameters") as caught:
        extract_in(tmp_path)
    with remedied(caught.value, 'save again with the state dict type "FULL_STATE_DICT"'):
        write_model(tmp_path / "post", tuned(weights(0), 1))
        extract_in(tmp_path)
        assert apply_in(tmp_path, "base").is_post
        assert_same(read_weights(tmp_path / "out"), tuned(weights(0), 1))
