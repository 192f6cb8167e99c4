"""How much each part of a model changed: the parts, and a Markdown table with a bar for every layer.

The table is plain text, so it is visible everywhere. :mod:`.heatmap` draws the same data as a picture.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from paramdelta_hub.checkpoints.matching.roles import EMBEDDINGS, is_head
from paramdelta_hub.package.manifest import TensorRecord
from paramdelta_hub.registry.cards.markdown import escape_markdown

__all__ = ["Part", "Place", "change_table", "norms", "parts", "percent", "place_of", "ratio"]

_BARS = "▁▂▃▄▅▆▇█"
_COLUMNS = 32
"""The number of bars in a row, as a phone can show. In deeper models, neighboring layers share a bar."""
_ROWS = 24
"""The number of parts with a row of their own. Models with unusual names may have hundreds of parts."""
_LAYER = re.compile(r"(?:(?P<stack>.*?)\.)?(?P<number>[0-9]{1,9})\.(?P<rest>.+)", re.DOTALL)
_NORM = re.compile(r"norm|^ln(_|\d|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Part:
    """The tensors of one kind, such as the attention of all layers in a stack."""

    label: str
    change: float
    """|Δ| / |base| over all of them (Euclidean norms); infinite if base is zero or has none of them."""
    layers: tuple[tuple[int, float], ...]
    """(layer number, change of that layer), in order; empty for tensors outside the layers."""
    delta_norm: float = 0.0
    base_norm: float = 0.0
    tensors: tuple[TensorRecord, ...] = ()


class Place(NamedTuple):
    """The position of a tensor in its model. The first number in its name is its layer."""

    stack: str
    """The text before the number, or ``layers``; empty for tensors outside the layers."""
    layer: int
    module: str
    """The text after the number; outside the layers, the role of the tensor."""


def parts(tensors: Iterable[TensorRecord], *, fine: bool = False) -> list[Part]:
    """Group the added tensors by kind: the module within each stack of layers, embeddings, head, others.

    ``model.layers.7.self_attn.q_proj.weight`` belongs to ``self_attn``, or with ``fine`` to ``self_attn.q_proj``.
    Without ``fine``, all norms of a stack are one part. The parts are in the order of the tensors.
    """
    members: dict[tuple[str, str], dict[int, list[TensorRecord]]] = defaultdict(lambda: defaultdict(list))
    for tensor in tensors:
        if tensor.effect == "add":
            stack, layer, module = place_of(tensor.name, fine=fine)
            members[stack, module][layer].append(tensor)
    stacks = {stack for stack, _ in members if stack}
    found = []
    for (stack, module), layers in members.items():
        own = tuple(tensor for number in sorted(layers) for tensor in layers[number])
        by_layer = tuple((number, ratio(*norms(layers[number]))) for number in sorted(layers)) if stack else ()
        label = f"{stack}: {module}" if len(stacks) > 1 and stack else module
        found.append(Part(label, ratio(*norms(own)), by_layer, *norms(own), own))
    return found


def change_table(tensors: Iterable[TensorRecord]) -> str:
    """Return the parts as a Markdown table: name, change, a bar for every layer, and the layer that changed most.

    All bars have the same scale, from zero to the largest change. Names come from strangers and are escaped.
    """
    rows = parts(tensors)
    shown, left = rows[:_ROWS], rows[_ROWS:]
    top = max((change for part in shown for _, change in part.layers if math.isfinite(change)), default=0.0)
    lines = ["| part | change | by layer, first to last | most |", "|---|---:|---|---|"]
    for part in shown:
        bars = f"`{_bars([change for _, change in part.layers], top)}`" if len(part.layers) > 1 else ""
        number, most = max(part.layers, key=lambda layer: layer[1], default=(0, 0.0))
        peak = f"layer {number}: {percent(most)}" if len(part.layers) > 1 and most else ""
        lines.append(f"| {escape_markdown(part.label)} | {percent(part.change)} | {bars} | {peak} |")
    if left:
        least, most = min(part.change for part in left), max(part.change for part in left)
        lines.append(f"| {len(left)} more | {percent(least)} to {percent(most)} | | |")
    return "\n".join(lines)


def place_of(name: str, *, fine: bool = False) -> Place:
    """Return the position of a tensor by its name. ``fine`` gives the exact module, with ``*`` for numbers in it."""
    found = _LAYER.fullmatch(name)
    path = (found["rest"] if found else name).split(".")
    exact = ".".join("*" if part.isdigit() else part for part in path)
    exact = exact.removesuffix(".weight").removesuffix(".bias") if fine else ""
    if EMBEDDINGS.search(name) or (name.startswith("embeddings.") and not _NORM.search(name)):
        return Place("", 0, exact or "embeddings")
    if is_head(name):
        return Place("", 0, exact or "head")
    is_norm = any(_NORM.search(part) for part in path)
    if found:
        return Place(found["stack"] or "layers", int(found["number"]), exact or ("norms" if is_norm else path[0]))
    return Place("", 0, exact or ("norms outside the layers" if is_norm else path[0]))


def percent(change: float) -> str:
    """Format a change: ``1.23%``, ``none``, ``new`` if base is zero, ``12.3 ×`` from a factor of ten."""
    if not change:
        return "none"
    return "new" if math.isinf(change) else f"{change:.2%}" if change < 10 else f"{change:.3g} ×"


def norms(tensors: Sequence[TensorRecord]) -> tuple[float, float]:
    """Return |Δ| and |base| over all tensors. ``hypot`` does not overflow if a stranger's manifest says 1e300."""
    return math.hypot(*(tensor.delta_norm for tensor in tensors)), math.hypot(*(tensor.base_norm for tensor in tensors))


def ratio(delta: float, base: float) -> float:
    """Return |Δ| / |base|; infinite if base is zero, and zero if nothing changed."""
    if not delta:
        return 0.0
    return delta / base if base and math.isfinite(delta) else math.inf


def _bars(changes: Sequence[float], top: float) -> str:
    """Return a bar for each layer, or for groups of neighbors if there are many. A group shows its largest change."""
    columns = min(len(changes), _COLUMNS)
    cuts = [index * len(changes) // columns for index in range(columns + 1)]
    return "".join(_bar(max(changes[start:stop]), top) for start, stop in itertools.pairwise(cuts))


def _bar(change: float, top: float) -> str:
    if not change:
        return "·"
    return _BARS[-1] if change >= top else _BARS[int(change / top * len(_BARS))]
