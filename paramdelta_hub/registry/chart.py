"""How much each part of a model changed: a Markdown table with a bar for every layer.

Plain text on purpose: the Hub strips inline SVG from cards, and a picture in the package would be a file that its
manifest does not list.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from paramdelta_hub.checkpoints.roles import EMBEDDINGS, HEADS
from paramdelta_hub.format.manifest import TensorRecord
from paramdelta_hub.registry.markdown import plain

__all__ = ["Part", "change_table", "parts"]

_BARS = "▁▂▃▄▅▆▇█"
_COLUMNS = 32
"""Bars in a row: what a phone shows. Neighbouring layers of deeper models share one."""
_ROWS = 24
"""Parts that have a row of their own; a model of other conventions may have hundreds."""
_LAYER = re.compile(r"(?:(?P<stack>.*?)\.)?(?P<number>[0-9]{1,9})\.(?P<rest>.+)", re.DOTALL)
_NORM = re.compile(r"norm|^ln(_|\d|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Part:
    """Tensors of one kind, such as the attention of all layers of a stack."""

    label: str
    change: float
    """|Δ| / |base| over all of them, Euclidean norms; infinite where base is zero or has none."""
    layers: tuple[tuple[int, float], ...]
    """(number, the same of that layer alone), in order; empty for what lies outside the layers."""


def parts(tensors: Iterable[TensorRecord]) -> list[Part]:
    """Group the added tensors by what they are: the kind of module in each stack of layers, embeddings, head, others.

    The first number in a name is its layer, what stands before it the stack, what follows the module:
    ``model.layers.7.self_attn.q_proj.weight`` belongs to ``self_attn``. Norms of a stack are one part. Parts are in the
    order of the tensors.
    """
    squares: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))
    for tensor in tensors:
        if tensor.effect == "add":
            stack, layer, module = _place(tensor.name)
            sums = squares[stack, module][layer]
            # Hypotenuses, not squares: a norm of a stranger's manifest may be 1e300.
            sums[0] = math.hypot(sums[0], tensor.delta_norm)
            sums[1] = math.hypot(sums[1], tensor.base_norm)
    stacks = {stack for stack, _ in squares if stack}
    found = []
    for (stack, module), layers in squares.items():
        change = _ratio(math.hypot(*(d for d, _ in layers.values())), math.hypot(*(b for _, b in layers.values())))
        by_layer = tuple((number, _ratio(*layers[number])) for number in sorted(layers)) if stack else ()
        found.append(Part(f"{stack}: {module}" if len(stacks) > 1 and stack else module, change, by_layer))
    return found


def change_table(tensors: Iterable[TensorRecord]) -> str:
    """Return the parts as a Markdown table: name, change, a bar for every layer, and the layer that changed most.

    All bars share one scale, from zero to the largest. Names come from strangers and are escaped.
    """
    rows = parts(tensors)
    shown, left = rows[:_ROWS], rows[_ROWS:]
    top = max((change for part in shown for _, change in part.layers if math.isfinite(change)), default=0.0)
    lines = ["| part | change | by layer, first to last | most |", "|---|---:|---|---|"]
    for part in shown:
        bars = f"`{_bars([change for _, change in part.layers], top)}`" if len(part.layers) > 1 else ""
        number, most = max(part.layers, key=lambda layer: layer[1], default=(0, 0.0))
        peak = f"layer {number}: {_percent(most)}" if len(part.layers) > 1 and most else ""
        lines.append(f"| {plain(part.label)} | {_percent(part.change)} | {bars} | {peak} |")
    if left:
        least, most = min(part.change for part in left), max(part.change for part in left)
        lines.append(f"| {len(left)} more | {_percent(least)} to {_percent(most)} | | |")
    return "\n".join(lines)


def _place(name: str) -> tuple[str, int, str]:
    """Return (stack, layer, module) of a tensor; without a stack, the module is what it is to the model."""
    if EMBEDDINGS.search(name) or (name.startswith("embeddings.") and not _NORM.search(name)):
        return "", 0, "embeddings"
    if HEADS.search(name):
        return "", 0, "head"
    found = _LAYER.fullmatch(name)
    path = (found["rest"] if found else name).split(".")
    is_norm = any(_NORM.search(part) for part in path)
    if found:
        return found["stack"] or "layers", int(found["number"]), "norms" if is_norm else path[0]
    return "", 0, "norms outside the layers" if is_norm else path[0]


def _ratio(delta: float, base: float) -> float:
    if not delta:
        return 0.0
    return delta / base if base and math.isfinite(delta) else math.inf


def _percent(change: float) -> str:
    if not change:
        return "none"
    return "new" if math.isinf(change) else f"{change:.2%}" if change < 10 else f"{change:.3g} ×"


def _bars(changes: Sequence[float], top: float) -> str:
    """Return a bar for each, or for as many groups of neighbours as fit: the largest of a group stands for it."""
    columns = min(len(changes), _COLUMNS)
    cuts = [index * len(changes) // columns for index in range(columns + 1)]
    return "".join(_bar(max(changes[start:stop]), top) for start, stop in itertools.pairwise(cuts))


def _bar(change: float, top: float) -> str:
    if not change:
        return "·"
    return _BARS[-1] if change >= top else _BARS[int(change / top * len(_BARS))]
