"""Helpers for SVG pictures: escaped text that fits, the axis of layers, and the SVG document.

Colors are CSS classes, which a page defines for light and dark mode. The reader's font is unknown, so the estimated
width of text is generous.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["TEXT_HEIGHT", "layer_axis", "picture", "shorten", "text", "text_width", "titled"]

TEXT_HEIGHT = 12
"""The font size in pixels."""


def text_width(words: str) -> float:
    """Return the number of pixels that a text may need in a sans-serif font."""
    return TEXT_HEIGHT * sum(map(_letter_width, words))


def shorten(label: str, room: float) -> str:
    """Shorten a label to at most ``room`` pixels, at the start of a dotted name, which says least."""
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
    """Return shapes that have ``title`` as their tooltip."""
    return f"<g><title>{escape(title)}</title>{shapes}</g>"


def layer_axis(labels: Sequence[str], centers: Sequence[float], y: float, end: float) -> list[str]:
    """Label the layers at their equally spaced centers: the first one, and as many others as fit before ``end``."""
    step = centers[1] - centers[0] if len(centers) > 1 else math.inf
    every = max(1, math.ceil((max(map(text_width, labels)) + 12) / step))
    return [text(0, y, "layer", soft=True)] + [
        text(min(center, end - text_width(label) / 2), y, label, anchor="middle", soft=True)
        for label, center in list(zip(labels, centers, strict=True))[::every]
    ]


def picture(
    shapes: Iterable[str], width: float, height: float, description: str, *, margin: int = 0, style: str = ""
) -> str:
    """Return an SVG document of shapes, whose text is escaped, with a description for screen readers.

    The width and the height are without margins. ``style`` comes before the shapes.
    """
    full_width, full_height = width + 2 * margin, height + 2 * margin
    size = f'width="{full_width:g}" height="{full_height:g}"'
    box = f"{-margin} {-margin} {full_width:g} {full_height:g}"
    start = f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="{box}" role="img"'
    return "\n".join([f'{start} aria-label="{escape(description)}">{style}', *shapes, "</svg>\n"])


def _letter_width(letter: str) -> float:
    """Return the width of a letter relative to the font size."""
    if unicodedata.combining(letter):
        return 0.0
    if unicodedata.east_asian_width(letter) in "WF":
        return 1.0
    return 0.95 if letter in "mwMW@%" else 0.75 if letter.isupper() else 0.6
