"""Bar charts as SVG: readable on light and dark pages, without a plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Bar", "Panel", "chart"]

_PANEL, _LABEL, _VALUE, _ROW, _GAP, _TITLE = 460, 180, 52, 17, 26, 26
_STYLE = """
  text { font: 11px system-ui, sans-serif; fill: #1f2328 }
  .title { font-weight: 600; font-size: 13px }
  .value { fill: #59636e }
  .ours { fill: #0969da } .other { fill: #afb8c1 } .pale { fill: #e1e5ea } .floor { fill: #1a7f37 }
  .range, .mark { stroke: #1f2328 } .mark { stroke-dasharray: 3 2 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .value { fill: #9198a1 }
    .ours { fill: #4493f8 } .other { fill: #545d68 } .pale { fill: #30363d } .floor { fill: #3fb950 }
    .range, .mark { stroke: #e6edf3 }
  }
"""


@dataclass(frozen=True)
class Bar:
    """One bar: its length, what stands beside it, and the range over rounds, if there were several."""

    label: str
    value: float
    text: str
    kind: str = "other"
    """``ours``, ``other``, ``pale`` or ``floor``."""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Panel:
    """Some bars on one scale, which begins at zero; ``mark`` draws a line there."""

    title: str
    bars: Sequence[Bar]
    mark: float | None = None


def chart(panels: Sequence[Panel], description: str, columns: int = 2) -> str:
    """Return a picture of the panels, row by row, each on a scale of its own."""
    parts, y = [], 0
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    for row in rows:
        parts += [_panel(panel, column * (_PANEL + _GAP), y) for column, panel in enumerate(row)]
        y += _TITLE + _ROW * max(len(panel.bars) for panel in row) + _GAP
    width = min(columns, len(panels)) * (_PANEL + _GAP) - _GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" width="{width}" role="img">\n'
        f"<title>{escape(description)}</title>\n<style>{_STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _panel(panel: Panel, left: int, top: int) -> str:
    start, room = left + _LABEL, _PANEL - _LABEL - _VALUE
    scale = room / max(max(bar.value, bar.high or 0) for bar in panel.bars)
    parts = [f'<text class="title" x="{left}" y="{top + 14}">{escape(panel.title)}</text>']
    for number, bar in enumerate(panel.bars):
        y = top + _TITLE + number * _ROW
        end = start + bar.value * scale
        parts.append(f'<text x="{start - 6}" y="{y + 11}" text-anchor="end">{escape(bar.label)}</text>')
        parts.append(f'<rect class="{bar.kind}" x="{start}" y="{y + 1}" width="{end - start:.1f}" height="13" rx="2"/>')
        if bar.low is not None and bar.high is not None:
            low, high = (start + value * scale for value in (bar.low, bar.high))
            parts.append(f'<path class="range" d="M{low:.1f} {y + 7.5}H{high:.1f}"/>')
            end = max(end, high)
        parts.append(f'<text class="value" x="{end + 5:.1f}" y="{y + 11}">{escape(bar.text)}</text>')
    if panel.mark is not None:
        x, bottom = start + panel.mark * scale, top + _TITLE + len(panel.bars) * _ROW
        parts.append(f'<path class="mark" d="M{x:.1f} {top + _TITLE - 3}V{bottom}"/>')
    return "\n".join(parts)
