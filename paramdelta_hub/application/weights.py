"""The weights of deltas, and factors for chosen tensors.

:func:`weighted_deltas` and :meth:`WeightMap.of` parse what users write, on the command line and in Python, and refuse
what is ambiguous: a weight that is misread makes a wrong model.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, TypeAlias

from paramdelta_hub.checkpoints.rules.tensor_rules import compile_pattern
from paramdelta_hub.errors import OptionError
from paramdelta_hub.limits import LARGEST_WEIGHT

__all__ = ["Deltas", "Factors", "WeightMap", "WeightedDelta", "Weights", "checked_weight", "weighted_deltas"]


def checked_weight(weight: Any, what: str = "weight") -> float:
    """Return a weight as a float, if it is a finite number of a size that makes sense.

    Raises:
        OptionError: no number, NaN, infinite, or larger than :data:`~paramdelta_hub.limits.LARGEST_WEIGHT`.
    """
    if isinstance(weight, bool) or not isinstance(weight, Real):
        raise OptionError(f"the {what} {weight!r} is not a number", remedy="give a number such as 0.5")
    try:
        number = float(weight)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise OptionError(f"the {what} {number} is not finite", remedy="give a number such as 0.5")
    if abs(number) > LARGEST_WEIGHT:
        raise OptionError(
            f"the {what} {number:g} is too large; the limit is ±{LARGEST_WEIGHT:g}",
            remedy="weights are shares: half of a delta is 0.5, not 50",
        )
    return number


def _parse_weight(text: str, what: str) -> float:
    """Return the weight that a text spells, in digits: Python would take ``0_5`` for five.

    Raises:
        OptionError: none that can be used.
    """
    remedy = f"write {what.rpartition('=')[0]}=0.5, for example"
    try:
        number = float(text if "_" not in text else "")
    except ValueError:
        raise OptionError(f"{text!r} is not a number", where=what, remedy=remedy) from None
    if number == 0 and re.search("[1-9]", re.split("[eE]", text)[0]):
        raise OptionError(f"{text!r} is too small: it rounds to 0", where=what, remedy=remedy)
    return checked_weight(number)


@dataclass(frozen=True)
class WeightedDelta:
    """One delta of the sum and its weight.

    Raises:
        OptionError: neither a path nor a text, or a weight that is no number of moderate size.
    """

    delta: str | Path
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.delta, (str, os.PathLike)):
            raise OptionError(f"a delta is a path or org/name, not {self.delta!r}")
        object.__setattr__(self, "weight", checked_weight(self.weight))


Deltas: TypeAlias = (
    "str | Path | WeightedDelta | tuple[str | Path, float] | Mapping[str | Path, float]"
    " | Sequence[str | Path | WeightedDelta | tuple[str | Path, float]]"
)
"""What people write for deltas and their weights; see :func:`weighted_deltas`."""


def weighted_deltas(deltas: Deltas) -> list[WeightedDelta]:
    """Return deltas and weights, however they are written, in order.

    Args:
        deltas: a path or ``org/name``, alone with a weight of 1 or, in a text, as ``DELTA=0.5``; a pair of a delta and
            its weight; a :class:`WeightedDelta`; a list of such; or a mapping from deltas to weights.

    Raises:
        OptionError: anything else, no delta at all, or a weight that can't be used.
    """
    if isinstance(deltas, Mapping):
        parsed = [WeightedDelta(delta, weight) for delta, weight in deltas.items()]
    elif isinstance(deltas, (str, os.PathLike, WeightedDelta)) or _is_pair(deltas):
        parsed = [_weighted_delta(deltas)]
    elif isinstance(deltas, tuple) and len(deltas) == 2 and isinstance(deltas[1], str) and _spells_number(deltas[1]):
        raise OptionError(
            f"the weight {deltas[1]!r} is a string", remedy=f"give a number: ({deltas[0]!r}, {deltas[1]})"
        )
    elif isinstance(deltas, Sequence) and not isinstance(deltas, bytes):
        parsed = [_weighted_delta(delta) for delta in deltas]
    else:
        raise OptionError(
            f"deltas can't be given as {deltas!r}", remedy="give a list, or a mapping such as {delta: 0.5}"
        )
    if not parsed:
        raise OptionError("no delta to apply")
    return parsed


def _is_pair(value: Any) -> bool:
    """Whether a value is a delta with its weight, and not two deltas."""
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and isinstance(value[0], (str, os.PathLike))
        and isinstance(value[1], Real)
    )


def _spells_number(value: Any) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _weighted_delta(value: Any) -> WeightedDelta:
    if isinstance(value, WeightedDelta):
        return value
    if _is_pair(value):
        return WeightedDelta(*value)
    if isinstance(value, str):
        return _parse_delta(value)
    if isinstance(value, os.PathLike):
        return WeightedDelta(Path(value))
    raise OptionError(
        f"a delta can't be given as {value!r}",
        remedy="give a path or org/name, or a pair of it and a number: (delta, 0.5)",
    )


def _parse_delta(text: str) -> WeightedDelta:
    """Split ``DELTA=WEIGHT``; a folder whose own name holds an ``=`` is still a folder."""
    delta, equals, weight = text.rpartition("=")
    if not equals or os.path.lexists(os.path.expanduser(text)):
        return WeightedDelta(text)
    if not delta:
        raise OptionError(f"{text!r} is not of the form DELTA=WEIGHT")
    return WeightedDelta(delta, _parse_weight(weight, text))


Factors: TypeAlias = "WeightMap | Mapping[str, float] | Sequence[tuple[str, float] | str]"
"""What people write for factors of chosen tensors; see :meth:`WeightMap.of`."""


@dataclass(frozen=True)
class WeightMap:
    """Factors for chosen tensors: (pattern, factor) in order; the last pattern found in a name decides, else 1.

    Raises:
        OptionError: a pattern that is no regular expression, or a factor that is no number of moderate size.
    """

    rules: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", tuple(map(_factor, _rules(self.rules))))

    @classmethod
    def of(cls, factors: Factors | None) -> WeightMap:
        """Return the map that people wrote: as one, as a mapping, as pairs, or as texts ``REGEX=W``.

        Raises:
            OptionError: anything else.
        """
        if isinstance(factors, WeightMap):
            return factors
        return cls(tuple(_rules(factors if factors is not None else ())))

    def factor(self, name: str) -> float:
        """Return the factor of a tensor."""
        if not self.rules:
            return 1.0
        return next((factor for pattern, factor in reversed(self.rules) if compile_pattern(pattern).search(name)), 1.0)


def _rules(factors: Any) -> Iterable[Any]:
    if isinstance(factors, Mapping):
        return factors.items()
    if isinstance(factors, Sequence) and not isinstance(factors, (str, bytes)):
        return factors
    raise OptionError(f"a weight map can't be given as {factors!r}", remedy="give a mapping such as {pattern: 0.5}")


def _factor(rule: Any) -> tuple[str, float]:
    if isinstance(rule, str):
        pattern, equals, number = rule.rpartition("=")
        if not equals or not pattern:
            raise OptionError(f"{rule!r} is not of the form REGEX=W")
        factor: Any = _parse_weight(number, rule)
    elif isinstance(rule, (tuple, list)) and len(rule) == 2 and isinstance(rule[0], str):
        pattern, factor = rule
    else:
        raise OptionError(f"a rule of a weight map is a pair of a pattern and a number, not {rule!r}")
    compile_pattern(pattern)
    return pattern, checked_weight(factor, "factor")


@dataclass(frozen=True)
class Weights:
    """The weight of every delta, and factors for chosen tensors."""

    deltas: tuple[float, ...]
    by_name: WeightMap

    def of(self, number: int, name: str) -> float:
        """Return the weight that a delta has for a tensor."""
        return checked_weight(self.deltas[number] * self.by_name.factor(name), "weight times factor")
