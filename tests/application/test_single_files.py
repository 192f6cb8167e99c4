"""Checkpoints in one file, as Stable Diffusion and ComfyUI have them: all parts in it, no config beside it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import paramdelta_hub as pd
from paramdelta_hub.errors import CheckpointError, MismatchError
from tests.support.kinds import CHANNELS, FILES, kind, remedied, rules_of
from tests.support.models import apply_in, assert_same, extract_in, read_weights, reference, tuned

ROOT = Path(__file__).resolve().parents[2]
Tensors = dict[str, torch.Tensor]
CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"


def stable_diffusion(seed: int, dtype: torch.dtype = torch.float16) -> Tensors:
    """Return the three parts of a checkpoint under the names that CompVis gave them."""
    noise = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=noise) * 0.1).to(dtype)

    return {
        CONV_IN: normal(32, 4, 3, 3),
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight": normal(32, 32),
        "model.diffusion_model.out.2.weight": normal(4, 32, 3, 3),
        "first_stage_model.decoder.conv_in.weight": normal(16, 4, 3, 3),
        "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight": normal(48, 16),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        "alphas_cumprod": torch.linspace(1, 0.005, 1000),
    }


def write(root: Path, **models: Tensors) -> None:
    for name, tensors in models.items():
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, root / f"{name}.safetensors")


def kept(base: Tensors, seed: int) -> Tensors:
    """Return a fine-tune: what a training does not touch is as in base."""
    fixed = {name: tensor for name, tensor in base.items() if name.startswith("alphas") or "position_ids" in name}
    return {**tuned(base, seed), **fixed}


def summed(base: Tensors, post: Tensors, target: Tensors) -> Tensors:
    return {
        name: reference(base[name], post[name], tensor) if tensor.is_floating_point() else tensor
        for name, tensor in target.items()
    }


@kind(
    FILES,
    "a single-file Stable Diffusion or ComfyUI checkpoint",
    works="every part gets its sum; the result has the target's file name",
)
def test_every_part_of_one_file_is_summed(tmp_path: Path) -> None:
    base = stable_diffusion(1)
    post, target = kept(base, 2), kept(base, 3)
    write(tmp_path, base=base, post=post, target=target)
    extract_in(tmp_path, "base.safetensors", "post.safetensors")
    apply_in(tmp_path, "target.safetensors")
    [file] = (tmp_path / "out").glob("*.safetensors")
    assert_same(load_file(file), summed(base, post, target))
    assert apply_in(tmp_path, "base.safetensors", "delta", "again").is_post
    assert_same(read_weights(tmp_path / "again"), post)


@kind(
    CHANNELS,
    "a single-file inpainting checkpoint",
    refused="shapes differ",
    remedy="the `--partial` option that the error proposes: Δ goes to the leading channels",
)
def test_an_inpainting_checkpoint_in_one_file(tmp_path: Path) -> None:
    base = stable_diffusion(1)
    post, target = kept(base, 2), kept(base, 3)
    own = torch.randn(32, 5, 3, 3, generator=torch.Generator().manual_seed(4)).half()
    target[CONV_IN] = torch.cat([target[CONV_IN], own], 1)
    write(tmp_path, base=base, post=post, target=target)
    extract_in(tmp_path, "base.safetensors", "post.safetensors")
    with pytest.raises(MismatchError) as caught:
        apply_in(tmp_path, "target.safetensors")
    with remedied(caught.value, "--partial"):
        rules = rules_of(caught.value)
        assert not apply_in(tmp_path, "target.safetensors", rules=rules).is_post
        leading = {**target, CONV_IN: target[CONV_IN][:, :4]}
        expected = summed(base, post, leading)
        assert_same(read_weights(tmp_path / "out"), {**expected, CONV_IN: torch.cat([expected[CONV_IN], own], 1)})


@kind(
    CHANNELS,
    "an inpainting checkpoint whose names have another prefix",
    refused="names and shapes differ",
    remedy="`--rename`, then `--partial`, as the errors propose them one after the other",
)
def test_renames_and_parts_together(tmp_path: Path) -> None:
    base = stable_diffusion(1)
    post, target = kept(base, 2), kept(base, 3)
    wide = torch.cat([target[CONV_IN], torch.ones(32, 5, 3, 3).half()], 1)
    write(tmp_path, base=base, post=post, target={f"sd.{n}": t for n, t in {**target, CONV_IN: wide}.items()})
    extract_in(tmp_path, "base.safetensors", "post.safetensors")
    call = tmp_path / "target.safetensors", tmp_path / "delta", tmp_path / "out"
    with pytest.raises(MismatchError) as first:
        pd.apply(*call)
    renames = rules_of(first.value).renames
    with pytest.raises(MismatchError) as second:
        pd.apply(*call, rules=pd.Rules(renames=renames))
    with remedied(first.value, "try --rename"), remedied(second.value, "--partial"):
        pd.apply(*call, rules=pd.Rules(renames=renames, partials=rules_of(second.value).partials))
        expected = summed(base, post, target)
        expected[CONV_IN] = torch.cat([expected[CONV_IN], wide[:, 4:]], 1)
        assert_same(read_weights(tmp_path / "out"), {f"sd.{name}": tensor for name, tensor in expected.items()})


@kind(
    FILES,
    "`pytorch_model.bin`, or a `.ckpt`",
    refused="a pickle is never opened",
    remedy="`scripts/tools/convert_pickle.py`, once",
)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "v1-5.ckpt"])
def test_a_pickle_is_converted_as_the_remedy_says(tmp_path: Path, name: str) -> None:
    base = {name: tensor for name, tensor in stable_diffusion(1).items() if tensor.is_floating_point()}
    post = kept(base, 2)
    write(tmp_path, base=base)
    (tmp_path / "pickled").mkdir()
    torch.save(post, tmp_path / "pickled" / name)
    with pytest.raises(CheckpointError, match="a pickled checkpoint") as caught:
        extract_in(tmp_path, "base.safetensors", "pickled")
    with remedied(caught.value, "scripts/tools/convert_pickle.py"):
        command = [sys.executable, "scripts/tools/convert_pickle.py", str(tmp_path / "pickled"), str(tmp_path / "post")]
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
        extract_in(tmp_path, "base.safetensors")
        assert apply_in(tmp_path, "base.safetensors").is_post
        assert_same(read_weights(tmp_path / "out"), post)
