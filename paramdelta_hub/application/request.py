"""What is asked of an apply."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from paramdelta_hub.application.companions import Mode, Prefer
from paramdelta_hub.application.requantize import Dtype
from paramdelta_hub.application.weights import WeightMap, weighted_deltas
from paramdelta_hub.checkpoints.rules import Rules
from paramdelta_hub.tasks.requests import Request, absolute

__all__ = ["ApplyRequest"]


@dataclass(frozen=True)
class ApplyRequest(Request):
    """What :func:`~paramdelta_hub.apply` is asked for; fields as its arguments, deltas as (package, weight)."""

    target: str
    deltas: tuple[tuple[str, float], ...]
    weight_map: tuple[tuple[str, float], ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    skips: tuple[str, ...] = ()
    dtype: Dtype | None = None
    companions: Mode = "post"
    prefer: Prefer = "target"
    keep_remote_code_of_target: bool = False
    target_tokenizer: str | None = None
    stream: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        deltas = tuple((os.fspath(summand.delta), summand.weight) for summand in weighted_deltas(self.deltas))
        object.__setattr__(self, "deltas", deltas)
        object.__setattr__(self, "weight_map", WeightMap.of(self.weight_map).rules)
        self.check_fields()

    @property
    def rules(self) -> Rules:
        """The rules, checked."""
        return Rules(self.renames, self.skips)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON that holds from any current folder."""
        paths = {key: absolute(getattr(self, key)) for key in ("target", "target_tokenizer")}
        return {**asdict(self), **paths, "deltas": [(absolute(delta), weight) for delta, weight in self.deltas]}
