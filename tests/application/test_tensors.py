"""Deltas as torch tensors, for models in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import paramdelta_hub as pd
from tests.support.models import extract_in


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dense_deltas_are_the_differences(dtype: torch.dtype, tmp_path: Path) -> None:
    noise = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(40, 30, generator=noise).to(dtype), "same": torch.ones(5, dtype=dtype)}
    post = {"w": (base["w"].float() * torch.randn(40, 30, generator=noise)).to(dtype), "same": base["same"]}
    steps = {"steps": torch.arange(3)}
    save_file({**base, **steps}, tmp_path / "base.safetensors")
    save_file({**post, "steps": torch.arange(3) + 1}, tmp_path / "post.safetensors")
    extract_in(tmp_path, "base.safetensors", "post.safetensors", force=True)

    wide = torch.float64 if dtype == torch.float32 else torch.float32
    deltas = dict(pd.tensors(tmp_path / "delta"))
    assert deltas.keys() == base.keys()
    for name, delta in deltas.items():
        assert delta.dtype == wide
        assert torch.equal(delta, post[name].to(wide) - base[name].to(wide))
    assert [name for name, _ in pd.tensors(tmp_path / "delta", "^s")] == ["same"]


def test_a_damaged_tensor_is_never_handed_out(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(300)}, tmp_path / "base.safetensors")
    save_file({"w": torch.rand(300)}, tmp_path / "post.safetensors")
    extract_in(tmp_path, "base.safetensors", "post.safetensors")
    shard = next((tmp_path / "delta").glob("delta-*"))
    content = bytearray(shard.read_bytes())
    content[-200] ^= 1
    shard.write_bytes(content)
    with pytest.raises(pd.PackageError):
        dict(pd.tensors(tmp_path / "delta"))
