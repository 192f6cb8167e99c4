"""Small models, made on the spot, and comparisons of their weights bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

import paramdelta_hub as pd

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
WIDE = {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.float32: torch.float64}
DTYPES = tuple(TORCH)


def write_model(
    path: Path, tensors: Mapping[str, torch.Tensor], shards: int = 1, config: Mapping[str, Any] | None = None
) -> Path:
    """Write a folder in Hugging Face layout; the tensors are dealt to ``shards`` files in turn."""
    path.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    if shards == 1:
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    else:
        weight_map = {}
        for number in range(shards):
            file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
            part = dict(list(tensors.items())[number::shards])
            save_file(part, path / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(part, file)
        size = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return path


def write_models(root: Path, config: Mapping[str, Any] | None = None, **models: Mapping[str, torch.Tensor]) -> None:
    """Write models into folders of these names."""
    for name, tensors in models.items():
        write_model(root / name, tensors, config=config)


def extract_in(
    root: Path, base: str = "base", post: str = "post", delta: str = "delta", **options: Any
) -> pd.ExtractReport:
    """Extract the delta of two models, all of them by their names in a folder."""
    return pd.extract(root / base, root / post, root / delta, **options)


def apply_in(
    root: Path, target: str = "target", delta: str = "delta", out: str = "out", **options: Any
) -> pd.ApplyReport:
    """Apply a delta to a model, all of them by their names in a folder."""
    return pd.apply(root / target, root / delta, root / out, **options)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of a model folder, or of one file."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def raw(tensor: torch.Tensor) -> bytes:
    """Return a tensor's bytes."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> None:
    """Compare names, dtypes, shapes and bits."""
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        other = theirs[name]
        assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape), name
        if raw(tensor) != raw(other):
            wrong = (tensor != other) | (tensor.view(BITS[tensor.dtype]) != other.view(BITS[tensor.dtype]))
            where = wrong.reshape(-1).nonzero()[0].item()
            words = f"{int(wrong.sum())} elements, first {where}: {tensor.reshape(-1)[where]}, "
            raise AssertionError(f"{name}: {words}{other.reshape(-1)[where]}")


def reference(base: torch.Tensor, post: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Promise 2's own words, for 16-bit types in float32 and for float32 in float64."""
    wide = WIDE[target.dtype]
    return ((post.to(wide) - base.to(wide)) + target.to(wide)).to(target.dtype)


def from_bits(bits: NDArray[Any], dtype: torch.dtype) -> torch.Tensor:
    """Return the tensor of these bit patterns."""
    signed = np.ascontiguousarray(bits).view(f"i{bits.dtype.itemsize}")
    return torch.from_numpy(signed.copy()).view(dtype)


def to_bits(tensor: torch.Tensor) -> NDArray[Any]:
    """Return a tensor's bit patterns, flat."""
    signed = tensor.contiguous().reshape(-1).view(BITS[tensor.dtype]).numpy()
    return signed.view(f"u{signed.dtype.itemsize}").copy()


def weights(seed: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """Return a tiny model: an embedding, two matrices, a norm, a bias, and buffers that can't be added."""
    noise = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=noise) * 0.05).to(dtype)

    return {
        "model.embed_tokens.weight": normal(48, 16),
        "model.layers.0.mlp.weight": normal(40, 16),
        "model.layers.1.mlp.weight": normal(40, 16),
        "model.layers.1.bias": normal(40),
        "model.norm.weight": torch.ones(16, dtype=dtype),
        "model.steps": torch.tensor([7, 8, 9]),
        "model.mask": torch.tensor([[True, False], [False, True]]),
    }


def tuned(tensors: Mapping[str, torch.Tensor], seed: int, scale: float = 0.003) -> dict[str, torch.Tensor]:
    """Return a fine-tune: every float tensor moved a little, the norm left alone, integers counted on."""
    noise = torch.Generator().manual_seed(seed)
    moved = {}
    for name, tensor in tensors.items():
        if tensor.dtype == torch.int64:
            moved[name] = tensor + 5
        elif tensor.is_floating_point() and "norm" not in name:
            moved[name] = (tensor.float() + scale * torch.randn(tensor.shape, generator=noise)).to(tensor.dtype)
        else:
            moved[name] = tensor.clone()
    return moved
