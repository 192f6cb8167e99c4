"""Checkpoints saved from within a training: the error says what happened, and its remedy works."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import paramdelta_hub as pd
from paramdelta_hub.errors import MismatchError
from tests.support.models import assert_same, read_weights, tuned, weights, write_model

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


@pytest.mark.parametrize("case", sorted(WRAPPED))
def test_names_of_wrappers(tmp_path: Path, case: str) -> None:
    post = tuned(weights(0), 1)
    base = write_model(tmp_path / "base", weights(0))
    wrapped = write_model(tmp_path / "post", {WRAPPED[case](name): tensor for name, tensor in post.items()})
    with pytest.raises(MismatchError) as caught:
        pd.extract(base, wrapped, tmp_path / "delta")
    options = shlex.split(str(caught.value.remedy).removeprefix("try ").partition(" (pairs")[0])
    renames = [tuple(text.split("=", 1)) for text in options[1::2]]
    assert options[::2] == ["--rename"] * len(renames)
    pd.extract(base, wrapped, tmp_path / "delta", rules=pd.Rules(renames=renames))
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
    options = shlex.split(str(caught.value.remedy).removeprefix("try ").partition(" (pairs")[0])
    renames = [tuple(text.split("=", 1)) for text in options[1::2]]
    pd.apply(target, tmp_path / "delta", tmp_path / "out", rules=pd.Rules(renames=renames))
    assert_same(read_weights(tmp_path / "out"), {WRAPPED[case](name): tensor for name, tensor in post.items()})


@pytest.mark.parametrize("side", ["base", "post"])
def test_weights_that_were_not_gathered(tmp_path: Path, side: str) -> None:
    empty = {name: torch.zeros(0, dtype=tensor.dtype) for name, tensor in weights(0).items()}
    sides = {"base": weights(0), "post": tuned(weights(0), 1), side: empty}
    for name, tensors in sides.items():
        write_model(tmp_path / name, tensors)
    with pytest.raises(MismatchError, match=rf"{side} has {len(empty)} empty tensor\(s\), as DeepSpeed") as caught:
        pd.extract(tmp_path / "base", tmp_path / "post", tmp_path / "delta")
    assert "zero_to_fp32.py" in str(caught.value.remedy)


def test_a_target_that_was_not_gathered(tmp_path: Path) -> None:
    write_model(tmp_path / "base", weights(0))
    write_model(tmp_path / "post", tuned(weights(0), 1))
    write_model(tmp_path / "target", {**weights(0), "model.norm.weight": torch.zeros(0, dtype=torch.bfloat16)})
    pd.extract(tmp_path / "base", tmp_path / "post", tmp_path / "delta")
    with pytest.raises(MismatchError, match=r"the target has 1 empty tensor\(s\)"):
        pd.apply(tmp_path / "target", tmp_path / "delta", tmp_path / "out")


def test_flat_parameters(tmp_path: Path) -> None:
    write_model(tmp_path / "base", weights(0))
    write_model(tmp_path / "post", {"_fsdp_wrapped_module._flat_param": torch.ones(9)})
    with pytest.raises(MismatchError, match="saved by FSDP with flat parameters") as caught:
        pd.extract(tmp_path / "base", tmp_path / "post", tmp_path / "delta")
    assert "FULL_STATE_DICT" in str(caught.value.remedy)
