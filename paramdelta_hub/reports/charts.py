"""Lines, bars and dots as static SVG pictures. A page needs no script to show them, and defines their colors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from paramdelta_hub.registry.cards.svg import layer_axis, picture, shorten, text, text_width, titled

__all__ = ["Bar", "Pictures", "Series", "bars_chart", "dots_chart", "draw", "lines_chart"]

_WIDTHS = {"wide": 728, "narrow": 350}
_BASELINE = 4
"""The distance in pixels from the middle of a text to its baseline."""
_GAP = 8
"""The distance in pixels between a label and what it labels."""

Pictures = dict[str, str]
"""A picture for wide screens and one for narrow screens. The page shows the one that fits."""


@dataclass(frozen=True)
class Bar:
    """A bar of a chart; its length is a share of the whole."""

    label: str
    share: float
    figure: str
    """The share as text, at the end of the row."""
    title: str
    """The tooltip of the row."""
    prefix: str = ""
    """Text before the label that is never shortened."""


@dataclass(frozen=True)
class Series:
    """One value for every layer; None if there is no value."""

    label: str
    values: Sequence[float | None]


def draw(chart: Callable[[int], str]) -> Pictures:
    """Draw a chart, given as a function of its width in pixels, for wide and for narrow screens."""
    return {screen: chart(width) for screen, width in _WIDTHS.items()}


def lines_chart(layers: Sequence[str], quiet: Series, strong: Series, description: str, width: int) -> str:
    """Draw two series of positive values by layer, at least one value in all, on a logarithmic scale."""
    powers = [math.log10(value) for series in (quiet, strong) for value in series.values if value is not None]
    low, high = math.floor(min(powers)), math.ceil(max(powers))
    high = max(high, low + 1)
    top, height = 30.0, 150.0
    ticks = {power: f"{10.0**power:g}" for power in range(low, high + 1, 1 + (high - low) // 6)}
    start = max(map(text_width, ["layer", *ticks.values()])) + _GAP

    def y(value: float) -> float:
        return top + height * (high - math.log10(value)) / (high - low)

    shapes = _legend(((quiet.label, "quiet"), (strong.label, "bar")), start)
    for power, label in ticks.items():
        shapes += _grid_line(y(10.0**power), label, start, width)
    centers = _centers(len(layers), start, width)
    for series, fill, stroke in ((quiet, "quiet", "quiet-line"), (strong, "bar", "trace")):
        points = [(layer, center, value) for layer, center, value in zip(layers, centers, series.values, strict=True)]
        for drawn, run in itertools.groupby(points, key=lambda point: point[2] is not None):
            if not drawn:
                continue
            places = [(layer, x, value) for layer, x, value in run if value is not None]
            path = " ".join(f"{x:.1f},{y(value):.1f}" for _, x, value in places)
            shapes.append(f'<polyline class="{stroke}" points="{path}" fill="none" stroke-width="2"/>')
            shapes += [
                _dot(x, y(value), fill, _dot_size(centers), f"{series.label}, layer {layer}: {value:.4g}")
                for layer, x, value in places
            ]
    shapes += layer_axis(layers, centers, top + height + 20, width)
    return picture(shapes, width, top + height + 26, description)


def bars_chart(bars: Sequence[Bar], axis_title: str, description: str, width: int) -> str:
    """Draw a bar for every row, on a scale from 0 to 100 %."""
    row, thickness = 22, 12
    labels = [bar.prefix + shorten(bar.label, width * 0.5 - text_width(bar.prefix)) for bar in bars]
    start = max(map(text_width, ["0%", *labels])) + _GAP
    end = width - max(map(text_width, ["100%", *(bar.figure for bar in bars)])) - _GAP
    shapes = []
    for index, (bar, label) in enumerate(zip(bars, labels, strict=True)):
        middle = (index + 0.5) * row
        y = middle - thickness / 2
        place = f'x="{start:.1f}" y="{y:g}" height="{thickness}" rx="2"'
        length = (end - start) * min(max(bar.share, 0.0), 1.0)
        track = f'<rect class="none" {place} width="{end - start:.1f}"/>'
        filled = f'<rect class="bar" {place} width="{length:.1f}"/>' if length else ""
        shapes += [
            text(start - _GAP, middle + _BASELINE, label, anchor="end", soft=True),
            titled(track + filled, bar.title),
            text(end + _GAP, middle + _BASELINE, bar.figure),
        ]
    y = len(bars) * row + 16
    ticks = (0, 20, 40, 60, 80, 100) if end - start > 300 else (0, 50, 100)
    shapes += [text(start + (end - start) * tick / 100, y, f"{tick}%", anchor="middle", soft=True) for tick in ticks]
    half = text_width(axis_title) / 2
    center = min(max((start + end) / 2, half), width - half)
    shapes.append(text(center, y + 18, axis_title, anchor="middle", soft=True))
    return picture(shapes, width, y + 24, description)


def dots_chart(
    layers: Sequence[str],
    rows: Sequence[Series],
    rule: float,
    domain: tuple[float, float] | None,
    description: str,
    width: int,
) -> str:
    """Draw a row for every series: a dot for every layer, on a stem from ``rule``. All rows have the same scale.

    Without ``domain``, the scale covers ``rule`` and all values.
    """
    values = [value for series in rows for value in series.values if value is not None]
    low, high = domain or (min([rule, *values]), max([rule, *values]))
    if high - low < 1e-9:
        high = low + 1
    ticks = _ticks(low, high)
    labels = [f"{tick:g}".replace("-", "−") for tick in ticks]
    start = max(map(text_width, ["layer", *labels])) + _GAP
    centers = _centers(len(layers), start, width)
    head, height, gap = 26, 64, 16
    shapes = []
    for index, series in enumerate(rows):
        top = index * (head + height + gap) + head

        def y(value: float, top: int = top) -> float:
            return top + height * (high - value) / (high - low)

        shapes.append(text(start, top - 12, series.label))
        for tick, label in zip(ticks, labels, strict=True):
            shapes += _grid_line(y(tick), label, start, width)
        shapes.append(_line(start, y(rule), width, y(rule), "mark", 1.5))
        for layer, x, value in zip(layers, centers, series.values, strict=True):
            if value is not None:
                title = f"{series.label}, layer {layer}: {value:.4g}"
                shapes.append(_line(x, y(rule), x, y(value), "quiet-line", 2))
                shapes.append(_dot(x, y(value), "bar", _dot_size(centers), title))
    bottom = len(rows) * (head + height + gap) - gap
    shapes += layer_axis(layers, centers, bottom + 20, width)
    return picture(shapes, width, bottom + 26, description)


def _legend(entries: Sequence[tuple[str, str]], x: float) -> list[str]:
    shapes = []
    for label, fill in entries:
        shapes.append(f'<rect class="{fill}" x="{x:.1f}" y="8" width="16" height="3" rx="1"/>')
        shapes.append(text(x + 22, 14, label))
        x += 22 + text_width(label) + 18
    return shapes


def _grid_line(y: float, label: str, start: float, width: float) -> Iterator[str]:
    yield text(start - _GAP, y + _BASELINE, label, anchor="end", soft=True)
    yield _line(start, y, width, y, "line", 1)


def _line(x1: float, y1: float, x2: float, y2: float, stroke: str, thickness: float) -> str:
    place = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line class="{stroke}" {place} stroke-width="{thickness:g}"/>'


def _dot(x: float, y: float, fill: str, radius: float, title: str) -> str:
    return titled(f'<circle class="{fill}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>', title)


def _centers(count: int, start: float, end: float) -> list[float]:
    """Return the middles of ``count`` equal columns."""
    return [start + (column + 0.5) * (end - start) / count for column in range(count)]


def _dot_size(centers: Sequence[float]) -> float:
    """Return a radius with which dots do not overlap."""
    return min(3.0, max(1.0, (centers[1] - centers[0]) / 3)) if len(centers) > 1 else 3.0


def _ticks(low: float, high: float) -> list[float]:
    """Return two to five round numbers, equally spaced, from ``low`` to ``high``."""
    step = 10.0 ** math.floor(math.log10((high - low) / 2))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 4)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
