"""How a delta lies to the way that its target went from base: figures that a prediction can be calibrated on."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

__all__ = ["difference", "relation"]


def difference(after: Path, before: Path, *skipped: str) -> torch.Tensor:
    """Return all weights of ``after`` − ``before``, in float64, as one flat tensor in the order of names."""
    ours, theirs = load_file(after / "model.safetensors"), load_file(before / "model.safetensors")
    names = sorted(set(ours) - set(skipped))
    return torch.cat([(ours[name].double() - theirs[name].double()).flatten() for name in names])


def relation(a: torch.Tensor, b: torch.Tensor) -> dict[str, float | None]:
    """Return both norms, their ratio and cosine, the share of elements that both changed, and there, of equal signs.

    None stands where a figure is not defined: nothing moved.
    """
    norm_a, norm_b = a.norm().item(), b.norm().item()
    both = (a != 0) & (b != 0)
    moved = int(both.sum())
    agreeing = int((torch.sign(a) == torch.sign(b))[both].sum())
    return {
        "norm_a": norm_a,
        "norm_b": norm_b,
        "ratio": norm_a / norm_b if norm_b else None,
        "cosine": (a @ b).item() / (norm_a * norm_b) if norm_a and norm_b else None,
        "both_moved": moved / a.numel(),
        "sign_agreement": agreeing / moved if moved else None,
    }
