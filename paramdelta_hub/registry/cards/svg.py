"""The parts of our SVG pictures: escaped text that fits, the axis of layers, and the picture around them.

Colors are classes, which a page defines for light and for dark. Nothing here can tell which font will be used, so text
is measured generously.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["TEXT_HEIGHT", "layer_axis", "picture", "shorten", "text", "text_width", "titled"]

TEXT_HEIGHT = 12
"""Font size in pixels."""


def text_width(words: str) -> float:
    """Return how many pixels a text may need in a system's sans-serif font."""
    return TEXT_HEIGHT * sum(map(_letter_width, words))


def shorten(label: str, room: float) -> str:
    """Return a label that needs at most ``room`` pixels; the first parts of a dotted name go first."""
    cut = label
    while text_width(cut) > room and "." in cut.rstrip("."):
        cut = "…" + cut.removeprefix("…").partition(".")[2]
    while text_width(cut) > room and cut != "…":
        cut = f"{cut.removesuffix('…')[:-1]}…"
    return cut


def text(x: float, y: float, words: str, *, anchor: str = "start", soft: bool = False) -> str:
    """Return a text whose baseline is at ``y``, escaped."""
    style = ' class="soft"' if soft else ""
    place = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text{style} x="{x:.1f}" y="{y:.1f}"{place}>{escape(words)}</text>'


def titled(shapes: str, title: str) -> str:
    """Return shapes that show ``title`` when they are pointed at."""
    return f"<g><title>{escape(title)}</title>{shapes}</g>"


def layer_axis(labels: Sequence[str], centers: Sequence[float], y: float, end: float) -> list[str]:
    """Label the layers at their centers, equally spaced: the first, and then as many as have room before ``end``."""
    step = centers[1] - centers[0] if len(centers) > 1 else math.inf
    every = max(1, math.ceil((max(map(text_width, labels)) + 12) / step))
    return [text(0, y, "layer", soft=True)] + [
        text(min(center, end - text_width(label) / 2), y, label, anchor="middle", soft=True)
        for label, center in list(zip(labels, centers, strict=True))[::every]
    ]


def picture(
    shapes: Iterable[str], width: float, height: float, description: str, *, margin: int = 0, style: str = ""
) -> str:
    """Return a picture with its description for readers who can't see it.

    Args:
        shapes: SVG elements, their text escaped.
        width: in pixels, without margins.
        height: in pixels, without margins.
        description: becomes the picture's accessible name.
        margin: empty pixels on every side.
        style: what comes before the shapes: a picture outside a page brings its own colors.
    """
    full_width, full_height = width + 2 * margin, height + 2 * margin
    size = f'width="{full_width:g}" height="{full_height:g}"'
    box = f"{-margin} {-margin} {full_width:g} {full_height:g}"
    start = f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="{box}" role="img"'
    return "\n".join([f'{start} aria-label="{escape(description)}">{style}', *shapes, "</svg>\n"])


def _letter_width(letter: str) -> float:
    """Return a letter's width as a share of the font size."""
    if unicodedata.combining(letter):
        return 0.0
    if unicodedata.east_asian_width(letter) in "WF":
        return 1.0
    return 0.95 if letter in "mwMW@%" else 0.75 if letter.isupper() else 0.6
