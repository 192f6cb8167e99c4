"""The heat map of a delta: how much each kind of module changed in each layer, as a static SVG picture.

It is drawn without a chart library, because every publication needs one. In a page, the colors come from the page
(classes ``none``, ``h1`` … ``h8``, ``new``). A file of its own includes them, on a light background.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from html import escape

from paramdelta_hub.limits import HEAT_MAP_ROWS
from paramdelta_hub.package.manifest import TensorRecord
from paramdelta_hub.registry.cards.changes import Part, parts, percent

__all__ = ["HEAT", "heat_map", "heat_parts"]

HEAT = ("#e4ebfb", "#c3d2f6", "#9fb7ef", "#7899e4", "#547bd6", "#385fc0", "#2547a0", "#17317a")
"""The eight steps on a light background, the smallest change first."""

_ROW, _GAP, _TEXT = 20, 1, 12
_LETTER = 0.6
"""The width of a letter relative to the text height, large enough for the sans-serif fonts of all systems."""
_FEWEST_PIXELS = 9
"""The minimum width of a column. In deeper models, neighboring layers share a column."""
_STYLE = (
    "<style>text{font:12px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#1d1f26}"
    ".none{fill:#f1f0ed}.new{fill:#6b6f7a}.soft{fill:#5d6069}"
    + "".join(f".h{step}{{fill:{color}}}" for step, color in enumerate(HEAT, 1))
    + '</style><rect width="100%" height="100%" rx="6" fill="#fff"/>'
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
    escaped.

    Args:
        rows: the result of :func:`heat_parts`. Rows that do not fit are only counted.
        width: the width of the picture in pixels.
        alone: whether it is a file of its own, with colors and background, or part of a page.
    """
    shown, left = rows[:HEAT_MAP_ROWS], len(rows) - HEAT_MAP_ROWS
    longest = max((len(part.label) for part in shown), default=0)
    letters = min(longest, int(width * 0.42 / (_TEXT * _LETTER)))
    start, end = letters * _TEXT * _LETTER + 10, width - 62.0
    numbers = sorted({number for part in shown for number, _ in part.layers})
    columns = min(len(numbers), max(1, int((end - start) / _FEWEST_PIXELS)))
    groups = [
        numbers[index * len(numbers) // columns : (index + 1) * len(numbers) // columns] for index in range(columns)
    ]
    top = _scale_end([change for part in shown for change in _changes(part)])
    cell = (end - start) / max(columns, 1)
    lines = []
    for row, part in enumerate(shown):
        y = row * _ROW
        lines.append(f'<text x="0" y="{y + 14}">{escape(_shorten(part.label, letters))}</text>')
        by_number = dict(part.layers)
        for column, group in enumerate(groups if part.layers else ()):
            present = [by_number[number] for number in group if number in by_number]
            if present:
                where = f"layer {group[0]}" if len(group) == 1 else f"layers {group[0]} to {group[-1]}"
                lines.append(_cell(start + column * cell, y, cell, max(present), top, f"{part.label}, {where}", alone))
        if not part.layers:
            lines.append(_cell(start, y, end - start, part.change, top, part.label, alone))
        lines.append(f'<text x="{width}" y="{y + 14}" text-anchor="end">{percent(part.change)}</text>')
    height = len(shown) * _ROW
    if left > 0:
        lines.append(f'<text class="soft" x="0" y="{height + 14}">and {left} more parts</text>')
        height += _ROW
    if numbers:
        lines += _axis(groups, start, cell, height)
        height += 18
    lines += _legend(width, height + 8, top, shown)
    return _picture(lines, width, height + 8 + _ROW, _description(shown), alone=alone)


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


def _axis(groups: Sequence[Sequence[int]], start: float, cell: float, y: int) -> list[str]:
    """Label the layers: the first one, and as many others as fit."""
    room = max(len(str(group[0])) for group in groups) * _TEXT * _LETTER + 12
    every = max(1, math.ceil(room / cell))
    lines = [f'<text class="soft" x="0" y="{y + 13}">layer</text>']
    lines += [
        f'<text class="soft" x="{start + (index + 0.5) * cell:.1f}" y="{y + 13}" text-anchor="middle">{group[0]}</text>'
        for index, group in enumerate(groups)
        if index % every == 0
    ]
    return lines


def _legend(width: int, y: int, top: float, rows: Sequence[Part]) -> list[str]:
    changes = [change for part in rows for change in _changes(part)]
    finite = [change for change in changes if math.isfinite(change)]
    swatch, x = 18, float(width - 62 - len(HEAT) * 18)
    lines = []
    if top:
        lines.append(f'<text class="soft" x="{x - 6:.1f}" y="{y + 13}" text-anchor="end">0</text>')
        lines += [
            f'<rect class="h{step + 1}" x="{x + step * swatch:.1f}" y="{y + 2}" width="{swatch}" height="13"/>'
            for step in range(len(HEAT))
        ]
        most = f"≥ {percent(top)}" if max(finite) > top else percent(top)
        lines.append(f'<text class="soft" x="{x + len(HEAT) * swatch + 6:.1f}" y="{y + 13}">{most}</text>')
    left = 0.0
    for kind, says in (("none", "unchanged"), ("new", "base is zero")):
        if any(_css_class(change, top) == kind for change in changes):
            lines.append(f'<rect class="{kind}" x="{left:.1f}" y="{y + 2}" width="13" height="13"/>')
            lines.append(f'<text class="soft" x="{left + 18:.1f}" y="{y + 13}">{says}</text>')
            left += 18 + len(says) * _TEXT * _LETTER + 14
    return lines


def _description(rows: Sequence[Part]) -> str:
    """Return a description of the picture for screen readers."""
    if not rows:
        return "Heat map without rows: no weights are added."
    most = max(rows, key=lambda part: part.change)
    return f"Heat map of relative change by module and layer. Most changed: {most.label}, {percent(most.change)}."


def _shorten(label: str, letters: int) -> str:
    """Shorten a label at its start, which says least."""
    cut = label
    while len(cut) > letters and "." in cut:
        cut = "…" + cut.removeprefix("…").partition(".")[2]
    return cut if len(cut) <= letters else f"{cut[: letters - 1]}…"


def _picture(lines: Iterable[str], width: int, height: int, described: str, *, alone: bool) -> str:
    margin = 14 if alone else 0
    box = f"{-margin} {-margin} {width + 2 * margin} {height + 2 * margin}"
    size = f'width="{width + 2 * margin}" height="{height + 2 * margin}"'
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" class="heat" {size} viewBox="{box}" role="img"'
    style = _STYLE.replace("<rect width", f'<rect x="{-margin}" y="{-margin}" width') if alone else ""
    body = itertools.chain([f'{opening} aria-label="{escape(described)}">{style}'], lines, ["</svg>"])
    return "\n".join(body) + "\n"
