"""The heat map of a delta: how much each kind of module changed in each layer, as a static SVG picture.

In a page, the colors come from the page (classes ``none``, ``h1`` … ``h8``, ``new``). A file of its own includes them,
on a light background.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from paramdelta_hub.limits import HEAT_MAP_ROWS
from paramdelta_hub.package.manifest import TensorRecord
from paramdelta_hub.registry.cards.changes import Part, parts, percent
from paramdelta_hub.registry.cards.svg import layer_axis, picture, shorten, text, text_width

__all__ = ["HEAT", "heat_map", "heat_parts"]

HEAT = ("#e4ebfb", "#c3d2f6", "#9fb7ef", "#7899e4", "#547bd6", "#385fc0", "#2547a0", "#17317a")
"""The eight steps on a light background, the smallest change first."""

_ROW, _GAP, _MARGIN = 20, 1, 14
_FEWEST_PIXELS = 9
"""The minimum width of a column. In deeper models, neighboring layers share a column."""
_STYLE = (
    "<style>text{font:12px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#1d1f26}"
    ".none{fill:#f1f0ed}.new{fill:#6b6f7a}.soft{fill:#5d6069}"
    + "".join(f".h{step}{{fill:{color}}}" for step, color in enumerate(HEAT, 1))
    + f'</style><rect x="{-_MARGIN}" y="{-_MARGIN}" width="100%" height="100%" rx="6" fill="#fff"/>'
)


def heat_parts(tensors: Iterable[TensorRecord]) -> list[Part]:
    """Return the rows of a heat map: every kind of module, or coarser parts if these are too many."""
    records = [tensor for tensor in tensors if tensor.effect == "add"]
    fine = parts(records, fine=True)
    rows = fine if len(fine) <= HEAT_MAP_ROWS else parts(records)
    # Embeddings, final norm and head come last.
    return [part for part in rows if part.layers] + [part for part in rows if not part.layers]


def heat_map(rows: Sequence[Part], width: int = 720, *, alone: bool = False) -> str:
    """Return the picture of ``rows``: a cell for every layer, darker for a larger change.

    All cells have the same scale, from zero to the largest change. A few outliers do not stretch it: the scale ends at
    three times the change that nine of ten cells stay below, and the legend says so. Names come from strangers and are
    escaped. Rows that do not fit are only counted. A picture ``alone`` has its own colors and background.
    """
    shown, left = rows[:HEAT_MAP_ROWS], len(rows) - HEAT_MAP_ROWS
    labels = [shorten(part.label, width * 0.42) for part in shown]
    start, end = max(map(text_width, ["layer", *labels])) + 10, width - 62.0
    numbers = sorted({number for part in shown for number, _ in part.layers})
    columns = min(len(numbers), max(1, int((end - start) / _FEWEST_PIXELS)))
    groups = [
        numbers[index * len(numbers) // columns : (index + 1) * len(numbers) // columns] for index in range(columns)
    ]
    top = _scale_end([change for part in shown for change in _changes(part)])
    cell = (end - start) / max(columns, 1)
    lines = []
    for row, (part, label) in enumerate(zip(shown, labels, strict=True)):
        y = row * _ROW
        lines.append(text(0, y + 14, label))
        by_number = dict(part.layers)
        for column, group in enumerate(groups if part.layers else ()):
            present = [by_number[number] for number in group if number in by_number]
            if present:
                where = f"layer {group[0]}" if len(group) == 1 else f"layers {group[0]} to {group[-1]}"
                lines.append(_cell(start + column * cell, y, cell, max(present), top, f"{part.label}, {where}", alone))
        if not part.layers:
            lines.append(_cell(start, y, end - start, part.change, top, part.label, alone))
        lines.append(text(width, y + 14, percent(part.change), anchor="end"))
    height = len(shown) * _ROW
    if left > 0:
        lines.append(text(0, height + 14, f"and {left} more parts", soft=True))
        height += _ROW
    if numbers:
        centers = [start + (column + 0.5) * cell for column in range(columns)]
        lines += layer_axis([str(group[0]) for group in groups], centers, height + 13, width)
        height += 18
    lines += _legend(width, height + 8, top, shown)
    margin, style = (_MARGIN, _STYLE) if alone else (0, "")
    return picture(lines, width, height + 8 + _ROW, _description(shown), margin=margin, style=style)


def _changes(part: Part) -> list[float]:
    return [change for _, change in part.layers] if part.layers else [part.change]


def _scale_end(changes: Sequence[float]) -> float:
    """Return the smallest change with the darkest color."""
    finite = sorted(change for change in changes if change and math.isfinite(change))
    if not finite:
        return 0.0
    return min(finite[-1], 3 * finite[(len(finite) - 1) * 9 // 10])


def _css_class(change: float, top: float) -> str:
    """Return the CSS class of a cell."""
    if not change:
        return "none"
    if math.isinf(change):
        return "new"
    return f"h{len(HEAT)}" if change >= top else f"h{int(change / top * len(HEAT)) + 1}"


def _cell(x: float, y: int, width: float, change: float, top: float, what: str, alone: bool) -> str:
    # An image shows no tooltips.
    inside = "/>" if alone else f"><title>{escape(what)}: {percent(change)}</title></rect>"
    place = f'x="{x:.1f}" y="{y}" width="{max(width - _GAP, 1):.1f}" height="{_ROW - _GAP}"'
    return f'<rect class="{_css_class(change, top)}" {place}{inside}'


def _legend(width: int, y: int, top: float, rows: Sequence[Part]) -> list[str]:
    changes = [change for part in rows for change in _changes(part)]
    finite = [change for change in changes if math.isfinite(change)]
    swatch, x = 18, float(width - 62 - len(HEAT) * 18)
    lines = []
    if top:
        lines.append(text(x - 6, y + 13, "0", anchor="end", soft=True))
        lines += [
            f'<rect class="h{step + 1}" x="{x + step * swatch:.1f}" y="{y + 2}" width="{swatch}" height="13"/>'
            for step in range(len(HEAT))
        ]
        most = f"≥ {percent(top)}" if max(finite) > top else percent(top)
        lines.append(text(x + len(HEAT) * swatch + 6, y + 13, most, soft=True))
    left = 0.0
    for kind, label in (("none", "unchanged"), ("new", "base is zero")):
        if any(_css_class(change, top) == kind for change in changes):
            lines.append(f'<rect class="{kind}" x="{left:.1f}" y="{y + 2}" width="13" height="13"/>')
            lines.append(text(left + 18, y + 13, label, soft=True))
            left += 18 + text_width(label) + 14
    return lines


def _description(rows: Sequence[Part]) -> str:
    """Return a description of the picture for screen readers."""
    if not rows:
        return "Heat map without rows: no weights are added."
    most = max(rows, key=lambda part: part.change)
    return f"Heat map of relative change by module and layer. Most changed: {most.label}, {percent(most.change)}."
