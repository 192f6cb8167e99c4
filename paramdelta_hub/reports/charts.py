"""Charts by Vega-Lite, drawn while the page is made: what a page holds are static SVG pictures, and no program.

So a page needs no script, a tenth of the bytes that the library would take in it, and a reader's browser runs nothing.
Colours are left to the page: the charts are drawn in colours that stand for its classes. The library runs in this
process (V8 inside the wheel of vl-convert), is given data and no addresses, and may fetch nothing.
"""

from __future__ import annotations

import importlib.util
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from paramdelta_hub.errors import OptionError
from paramdelta_hub.reports.markup import Markup, element

__all__ = ["WIDTHS", "bars_chart", "check_charts", "dots_chart", "figure", "lines_chart"]

WIDTHS = {"wide": 728, "narrow": 350}
"""Pixels of the two pictures of every chart; the page shows the one that fits."""

_CLASSES = {
    "#000001": "ink",
    "#000002": "line",
    "#000003": "bar",
    "#000004": "quiet",
    "#000005": "trace",
    "#000006": "quiet-line",
    "#000007": "mark",
    "#000008": "soft",
}
_COLOURS = {name: colour for colour, name in _CLASSES.items()}
_SVG = "{http://www.w3.org/2000/svg}"
_TAGS = {f"{_SVG}{tag}" for tag in ("svg", "g", "path", "line", "rect", "text", "tspan")}
_ATTRIBUTES = """
d transform x y x1 x2 y1 y2 dx dy width height viewBox fill stroke stroke-width stroke-dasharray stroke-linecap
stroke-miterlimit opacity fill-opacity stroke-opacity text-anchor font-size aria-hidden display
"""
_KEPT = frozenset(_ATTRIBUTES.split())
"""Attributes taken over from a drawing: those of shapes and words."""

_LABEL_LETTERS = 30
_LETTER = 6.6
"""Width of a letter of 12 pixels: generous for all systems' fonts, which the library can't measure."""

Values = Sequence[Mapping[str, Any]]


def check_charts() -> None:
    """Check that charts can be drawn, before any work is done for them.

    Raises:
        OptionError: the library is not installed.
    """
    if importlib.util.find_spec("vl_convert") is None:
        raise OptionError(
            "reports need a package that is not installed: vl-convert-python",
            remedy="pip install 'paramdelta-hub[report]'",
        )


def figure(pictures: Iterable[tuple[str, Markup]], caption: str, *more: Markup) -> Markup:
    """Return a figure of one picture for every width, of which the page shows one."""
    shown = [element("div", picture, class_=kind) for kind, picture in pictures]
    return element("figure", shown, element("figcaption", caption), *more)


def lines_chart(values: Values, x: str, y: str, what: str, labels: tuple[str, str], width: int) -> Markup:
    """Draw two lines over ``x`` on a logarithmic scale: the field ``kind`` is one of the two ``labels``; not empty."""
    first, second = labels
    powers = [math.log10(value[y]) for value in values]
    low, high = math.floor(min(powers)), math.ceil(max(powers))
    decades = [10.0**power for power in range(low, high + 1, 1 + (high - low) // 6)]
    colour = {
        "field": "kind",
        "type": "nominal",
        "scale": {"domain": [first, second], "range": [_COLOURS["quiet-line"], _COLOURS["trace"]]},
        "legend": {"title": None, "orient": "top", "symbolType": "stroke", "symbolStrokeWidth": 3},
    }
    encoding = {
        "x": {"field": x, "type": "quantitative", "title": x, "scale": {"nice": False}, "axis": {"tickMinStep": 1}},
        "y": {
            "field": y,
            "type": "quantitative",
            "title": None,
            "scale": {"type": "log", "domain": [10.0**low, 10.0 ** max(high, low + 1)]},
            "axis": {"values": decades, "format": "~g"},
        },
        "color": colour,
    }
    mark = {"type": "line", "strokeWidth": 2, "point": False}
    size = {"width": width, "height": 180, "autosize": {"type": "fit", "contains": "padding"}}
    return _draw({**size, "data": {"values": list(values)}, "mark": mark, "encoding": encoding}, what)


def bars_chart(values: Values, what: str, title: str, width: int) -> Markup:
    """Draw a bar for every ``label``, as long as its ``share`` of one, with its ``figure`` at the right."""
    values = _labelled(values, width)
    room = int(max((len(value["label"]) for value in values), default=0) * _LETTER) + 8
    y = {
        "field": "label",
        "type": "nominal",
        "sort": None,
        "title": None,
        "axis": {"labelLimit": 400, "ticks": False, "domain": False, "labelPadding": 8, "minExtent": room},
    }
    x = {
        "field": "share",
        "type": "quantitative",
        "title": title,
        "scale": {"domain": [0, 1]},
        "axis": {"format": "~%", "tickCount": 5},
    }
    bars = {
        "mark": {"type": "bar", "color": _COLOURS["bar"], "height": 12},
        "encoding": {"x": x, "y": y, "description": {"field": "says"}},
    }
    figures = {
        "mark": {"type": "text", "color": _COLOURS["ink"], "align": "left", "dx": 8, "fontSize": 12},
        "encoding": {"x": {"value": "width"}, "y": y, "text": {"field": "figure"}},
    }
    # A step a row does not go with fitting a width, so what labels and figures need is taken off by hand.
    size = {"width": width - room - 60, "height": {"step": 22}}
    return _draw({**size, "data": {"values": values}, "layer": [bars, figures]}, what)


def dots_chart(
    values: Values, what: str, title: str, rule: float, width: int, domain: tuple[float, float] | None
) -> Markup:
    """Draw ``value`` of every ``layer`` as a dot on a bar from ``rule``, in a row for each ``pair``, on one scale."""
    y = {
        "field": "value",
        "type": "quantitative",
        "title": None,
        "axis": {"tickCount": 3, "format": "~g"},
        "scale": {"domain": list(domain)} if domain else {"zero": True},
    }
    layer_axis = {"labelAngle": 0, "labelOverlap": True, "ticks": False}
    x = {"field": "layer", "type": "ordinal", "sort": None, "title": title, "axis": layer_axis}
    bars = {
        "mark": {"type": "bar", "size": 2, "color": _COLOURS["quiet"]},
        "encoding": {"x": x, "y": y, "y2": {"datum": rule}},
    }
    dots = {
        "mark": {"type": "point", "filled": True, "size": 30, "opacity": 1, "color": _COLOURS["bar"]},
        "encoding": {"x": x, "y": y, "description": {"field": "says"}},
    }
    line = {"mark": {"type": "rule", "color": _COLOURS["mark"]}, "encoding": {"y": {"datum": rule}}}
    header = {"title": None, "labelAngle": 0, "labelAnchor": "start", "labelAlign": "left", "labelOrient": "top"}
    spec = {
        "data": {"values": list(values)},
        "facet": {"row": {"field": "pair", "type": "nominal", "sort": None, "header": header}},
        "spec": {"layer": [bars, line, dots], "width": width - 60, "height": 72},
        "spacing": 14,
    }
    return _draw(spec, what)


def _labelled(values: Values, width: int) -> list[dict[str, Any]]:
    """Shorten labels to what fits, and keep them apart where that makes two alike."""
    letters = min(_LABEL_LETTERS, int(width * 0.4 / _LETTER))
    seen: dict[str, int] = {}
    found = []
    for value in values:
        text = str(value["label"])
        cut = text if len(text) <= letters else f"…{text[len(text) - letters + 1 :]}"
        seen[cut] = seen.get(cut, 0) + 1
        found.append({**value, "label": cut + "\u200b" * (seen[cut] - 1)})
    return found


def _draw(spec: dict[str, Any], what: str) -> Markup:
    """Return a chart as markup whose only colours are the page's.

    Raises:
        OptionError: the library is not installed.
    """
    check_charts()
    import vl_convert

    return _themed(vl_convert.vegalite_to_svg({**spec, "config": _config()}, allowed_base_urls=[]), what)


def _config() -> dict[str, Any]:
    axis = {
        "labelColor": _COLOURS["soft"],
        "titleColor": _COLOURS["soft"],
        "titleFontWeight": "normal",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "domainColor": _COLOURS["line"],
        "tickColor": _COLOURS["line"],
        "gridColor": _COLOURS["line"],
    }
    legend = {"labelFontSize": 12, "labelColor": _COLOURS["ink"]}
    return {
        "background": None,
        "padding": 4,
        "view": {"stroke": None},
        "axis": axis,
        "axisX": {"grid": False},
        "axisY": {"domain": False, "ticks": False},
        "legend": legend,
        "header": {"labelFontSize": 12, "labelColor": _COLOURS["ink"]},
    }


def _themed(text: str, what: str) -> Markup:
    """Take over of a drawing only what shapes and words need, and put classes for its colours.

    The drawing comes from a library, so what is not expected in it is a fault, and stops here rather than in a page.
    """
    root = ElementTree.fromstring(text)
    for node in list(root.iter()):
        if node.tag not in _TAGS:
            raise ValueError(f"a drawing with a {node.tag!r} in it")
        label = node.get("aria-label") if node.get("role") == "graphics-symbol" else None
        classes = [_CLASSES[value] for key in ("fill", "stroke") if (value := node.get(key, "")) in _CLASSES]
        node.attrib = {key: value for key, value in node.attrib.items() if key in _KEPT and _draws(key, value)}
        if classes:
            node.set("class", " ".join(classes))
        if label and node.tag == f"{_SVG}path":
            ElementTree.SubElement(node, f"{_SVG}title").text = label
    root.set("role", "img")
    root.set("aria-label", what)
    ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _draws(key: str, value: str) -> bool:
    """Whether an attribute can do no more than draw: no address, and no colour, for which there are classes."""
    return value in ("none", "transparent") if key in ("fill", "stroke") else ":" not in value and "url" not in value
