"""How much of each delta is wanted: a weight for all of it, and factors for chosen tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paramdelta_hub.checkpoints.pairing import compiled
from paramdelta_hub.errors import OptionError

__all__ = ["Summand", "WeightMap", "Weights", "finite_weight"]


def finite_weight(weight: float) -> float:
    """Return a weight that stays finite in float32, in which sums of 16-bit weights are made.

    Raises:
        OptionError: NaN, infinite, or beyond float32.
    """
    if not abs(weight) <= float(np.finfo(np.float32).max):
        raise OptionError(f"the weight {weight} is not a finite number of moderate size")
    return weight


@dataclass(frozen=True)
class Summand:
    """One delta of the sum and its weight."""

    delta: str | Path
    weight: float = 1.0

    def __post_init__(self) -> None:
        finite_weight(self.weight)


@dataclass(frozen=True)
class WeightMap:
    """Factors for chosen tensors: (pattern, factor) in order; the last pattern found in a name decides, else 1."""

    rules: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        for pattern, factor in self.rules:
            compiled(pattern)
            finite_weight(factor)

    def factor(self, name: str) -> float:
        """Return the factor of a tensor."""
        if not self.rules:
            return 1.0
        return next((factor for pattern, factor in reversed(self.rules) if compiled(pattern).search(name)), 1.0)


@dataclass(frozen=True)
class Weights:
    """The weight of every delta, and factors for chosen tensors."""

    deltas: tuple[float, ...]
    by_name: WeightMap

    def of(self, number: int, name: str) -> float:
        """Return the weight that a delta has for a tensor."""
        return finite_weight(self.deltas[number] * self.by_name.factor(name))
