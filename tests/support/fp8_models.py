"""fp8 weights as the published models have them, made by torch: codes, scales, and what they stand for."""

from __future__ import annotations

import torch

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
BLOCK = (128, 128)
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def quantized(
    name: str, shape: tuple[int, ...], block: tuple[int, int] = BLOCK, ending: str = "_scale_inv", seed: int = 0
) -> dict[str, torch.Tensor]:
    """A weight of noise, quantized as DeepSeek-V3's are, and its scales."""
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.02
    weight, scale = quantize(values, block)
    return {name: weight, name + ending: scale}


def quantize(
    values: torch.Tensor, block: tuple[int, int], dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes, and scales of the dtype: one a block of each matrix, its largest magnitude / 448."""
    rows, columns = values.shape[-2:]
    height, width = min(block[0], rows), min(block[1], columns)
    up, along = -(-rows // height), -(-columns // width)
    padded = torch.zeros(*values.shape[:-2], up * height, along * width)
    padded[..., :rows, :columns] = values
    scale = (padded.unflatten(-1, (along, width)).unflatten(-3, (up, height)).abs().amax((-1, -3)) / 448).to(dtype)
    held = (values.float() / spread(scale, block, tuple(values.shape))).clamp(-448, 448)
    return held.to(E4M3), scale


def spread(scale: torch.Tensor, block: tuple[int, int], shape: tuple[int, ...]) -> torch.Tensor:
    """One scale an element."""
    rows, columns = shape[-2:]
    wide = scale.float().repeat_interleave(min(block[0], rows), -2).repeat_interleave(min(block[1], columns), -1)
    return wide[..., :rows, :columns]


def dequantized(weight: torch.Tensor, scale: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """What codes and scales stand for, by definition."""
    return (weight.float() * spread(scale, block, tuple(weight.shape))).bfloat16()
