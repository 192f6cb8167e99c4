"""The request of an apply."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar

from paramdelta_hub.application.companions import Mode, Prefer
from paramdelta_hub.application.requantize import Dtype
from paramdelta_hub.application.weights import WeightMap, weighted_deltas
from paramdelta_hub.checkpoints.rules.tensor_rules import Rules
from paramdelta_hub.errors import OptionError
from paramdelta_hub.fileio.strict_json import JsonObject
from paramdelta_hub.tasks.requests import Request, absolute

__all__ = ["ApplyRequest", "rule_fields"]


@dataclass(frozen=True)
class ApplyRequest(Request):
    """What :func:`~paramdelta_hub.apply` and :func:`~paramdelta_hub.preview` are asked for."""

    paths: ClassVar = ("target", "target_tokenizer")

    target: str
    """The new base: a folder, a ``.safetensors`` file, or ``org/name[@revision]``."""
    deltas: tuple[tuple[str, float], ...]
    """Packages and their weights. A package is a folder, or ``org/name[@version]`` in a registry."""
    weight_map: tuple[tuple[str, float], ...] = ()
    """(pattern, factor) for the weights of chosen tensors. The last match decides. With 0 a tensor stays as it is."""
    renames: tuple[tuple[str, str], ...] = ()
    """(pattern, replacement) for the names of the deltas' tensors."""
    skips: tuple[str, ...] = ()
    """Patterns of the tensors to leave as they are."""
    layouts: tuple[str, ...] = ()
    """Layout rules, such as ``stack experts.*.w1.weight -> experts.w1``, that make the target's tensors of the deltas'
    tensors."""
    partials: tuple[str, ...] = ()
    """Patterns of tensors that have another size in the target, and to whose leading part the delta is added."""
    dtype: Dtype | None = None
    """The dtype of all float tensors of the result: ``bfloat16``, ``float16`` or ``float32``; or, for an fp8 target,
    ``float8_e4m3fn`` with new scales in the target's layout, and the report says what that costs. By default each
    tensor has the target's dtype, and bf16 where that is fp8."""
    companions: Mode = "post"
    """Where tokenizer, templates, processors and generation settings come from: ``post`` (the first delta that has
    some), ``target``, or ``none`` for ``config.json`` alone."""
    prefer: Prefer = "target"
    """Whose value a config gets where post and the target both changed it."""
    keep_remote_code_of_target: bool = False
    """Keep code references in the target's configs, and copy its Python files."""
    target_tokenizer: str | None = None
    """The folder of the target's tokenizer, if it is not beside the weights: embedding rows are matched by token."""
    stream: bool = False
    """Download the files of a target on the Hub one by one, and delete each after use. The disk then needs room for the
    result and a few files. Lineage is judged by the first file alone."""
    force: bool = False
    """Apply even if the target is not related to base. The provenance records it."""

    def __post_init__(self) -> None:
        deltas = tuple((os.fspath(each.delta), each.weight) for each in weighted_deltas(self.deltas))
        object.__setattr__(self, "deltas", deltas)
        object.__setattr__(self, "weight_map", WeightMap.of(self.weight_map).rules)
        self.check_fields()

    @property
    def rules(self) -> Rules:
        """The rules, checked."""
        return Rules(self.renames, self.skips, layouts=self.layouts, partials=self.partials)

    def to_json(self) -> JsonObject:
        """Return plain JSON that holds from any current folder."""
        return {**super().to_json(), "deltas": [(absolute(delta), weight) for delta, weight in self.deltas]}


def rule_fields(rules: Rules) -> JsonObject:
    """Return rules as the fields of a request.

    Raises:
        OptionError: there are rules that an apply has no use for.
    """
    if rules.carries:
        raise OptionError("carry rules are for pd-extract only", remedy="remove them")
    return {kind: found for kind, found in rules.fields.items() if kind != "carries"}
