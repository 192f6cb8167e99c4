"""Charts: shapes tell the values, and everything stays inside the picture."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_hub.registry.cards.svg import text_width
from paramdelta_hub.reports.charts import Bar, Series, bars_chart, dots_chart, draw, lines_chart
from tests.reports.hostile import HOSTILE

SVG = "{http://www.w3.org/2000/svg}"
WIDTHS = (728, 350)
NUMBERS = {"x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "width", "height", "rx", "stroke-width"}
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=60) | st.sampled_from(HOSTILE)


def checked(chart: str, width: int) -> ElementTree.Element:
    """Return a chart after checking that it only has shapes and words, all of them inside the picture."""
    root = ElementTree.fromstring(chart)
    height = float(root.get("height", "nan"))
    assert float(root.get("width", "nan")) == width
    assert {node.tag.removeprefix(SVG) for node in root.iter()} <= {
        "svg", "g", "title", "text", "rect", "line", "circle", "polyline"
    }  # fmt: skip
    for node in root.iter():
        value = {key: float(node.get(key, 0)) for key in NUMBERS if node is not root}
        assert set(node.attrib) - NUMBERS <= {"class", "fill", "points", "text-anchor", *root.attrib}
        xs, ys = [], []
        if node.tag == f"{SVG}text":
            long = text_width(node.text or "")
            start = value["x"] - long * {"start": 0, "middle": 0.5, "end": 1}[node.get("text-anchor", "start")]
            xs, ys = [start, start + long], [value["y"] - 9, value["y"] + 3]
        elif node.tag == f"{SVG}rect":
            xs, ys = [value["x"], value["x"] + value["width"]], [value["y"], value["y"] + value["height"]]
        elif node.tag == f"{SVG}circle":
            xs, ys = [value["cx"]], [value["cy"] - value["r"], value["cy"] + value["r"]]
        elif node.tag == f"{SVG}line":
            xs, ys = [value["x1"], value["x2"]], [value["y1"], value["y2"]]
        elif node.tag == f"{SVG}polyline":
            places = [tuple(map(float, place.split(","))) for place in node.get("points", "").split()]
            xs, ys = [x for x, _ in places], [y for _, y in places]
        assert all(-0.1 <= x <= width + 0.1 for x in xs), ElementTree.tostring(node)
        assert all(-0.1 <= y <= height + 0.1 for y in ys), ElementTree.tostring(node)
    return root


def titles(root: ElementTree.Element) -> list[str]:
    return [title.text or "" for title in root.iter(f"{SVG}title")]


def words(root: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in root.iter(f"{SVG}text")]


def circles(root: ElementTree.Element, axis: str) -> list[float]:
    return [float(circle.get(axis, "nan")) for circle in root.iter(f"{SVG}circle")]


def test_there_is_a_picture_for_wide_and_for_narrow_screens() -> None:
    assert draw(str) == {"wide": "728", "narrow": "350"}


@pytest.mark.parametrize("width", WIDTHS)
def test_lines_are_on_a_logarithmic_scale_and_broken_where_there_is_no_value(width: int) -> None:
    layers = ["0", "1", "2", "3"]
    chart = lines_chart(layers, Series("base", [100, 100, 100, 100]), Series("Δ", [1, 10, None, 100]), "what", width)
    root = checked(chart, width)
    assert root.get("aria-label") == "what"
    assert {"layer", *layers, "1", "10", "100", "base", "Δ"} <= set(words(root))
    assert len(list(root.iter(f"{SVG}polyline"))) == 3
    first, second, third = circles(root, "cy")[4:]
    assert first - second == pytest.approx(second - third, abs=0.2)
    assert titles(root)[4:] == ["Δ, layer 0: 1", "Δ, layer 1: 10", "Δ, layer 3: 100"]


@pytest.mark.parametrize("width", WIDTHS)
def test_bars_are_as_long_as_their_shares(width: int) -> None:
    shares = (0.0, 0.25, 1.0, 1.2)
    root = checked(
        bars_chart([Bar("x", share, f"{share:.0%}", "says") for share in shares], "of it", "w", width), width
    )
    lengths = {kind: [float(rect.get("width", "nan")) for rect in root.iter(f"{SVG}rect") if rect.get("class") == kind]
               for kind in ("none", "bar")}  # fmt: skip
    full = lengths["none"][0]
    assert lengths == {"none": [full] * 4, "bar": pytest.approx([0.25 * full, full, full], abs=0.1)}
    assert {"0%", "25%", "100%", "120%", "of it"} <= set(words(root))


@pytest.mark.parametrize("width", WIDTHS)
def test_dots_share_one_scale(width: int) -> None:
    rows = [Series("A × B", [1.0, -0.003]), Series("A × C", [None, 1.0])]
    root = checked(dots_chart(["0", "rest"], rows, 0.0, None, "w", width), width)
    assert [word for word in words(root) if word not in ("layer", "rest")] == [
        "A × B", "0", "0.5", "1", "A × C", "0", "0.5", "1", "0"
    ]  # fmt: skip
    assert titles(root) == ["A × B, layer 0: 1", "A × B, layer rest: -0.003", "A × C, layer rest: 1"]
    first, second, third = circles(root, "cy")
    assert second - first > 60
    assert third - first > 60, "a row below"


@pytest.mark.parametrize("domain", [None, (0.0, 1.0)])
def test_dots_without_differences_make_a_picture(domain: tuple[float, float] | None) -> None:
    root = checked(dots_chart(["0"], [Series("A × B", [0.5])], 0.5, domain, "w", 350), 350)
    assert len(circles(root, "cy")) == 1


def test_layer_numbers_have_room() -> None:
    layers = [str(layer) for layer in range(300)]
    for width in WIDTHS:
        root = checked(dots_chart(layers, [Series("A × B", [0.5] * 300)], 0.5, (0, 1), "w", width), width)
        axis = [text for text in root.iter(f"{SVG}text") if text.get("text-anchor") == "middle"]
        places = [(float(text.get("x", "nan")), text_width(text.text or "")) for text in axis]
        assert len(places) > 5
        for (x, long), (other, wide) in itertools.pairwise(places):
            assert x + long / 2 < other - wide / 2


def test_layers_stay_apart_where_names_are_cut() -> None:
    bars = [Bar("very.long." * 9 + "weight", 0.5, "50%", name, f"{name} · ") for name in ("7", "11")]
    root = checked(bars_chart(bars, "t", "w", 350), 350)
    assert {"7 · …weight", "11 · …weight"} < {re.sub(r"…(very|long|\.)*", "…", word) for word in words(root)}
    assert titles(root) == ["7", "11"]


@pytest.mark.parametrize("width", WIDTHS)
@settings(max_examples=40)
@given(st.lists(st.tuples(NAMES, st.floats(0, 2)), min_size=1, max_size=12))
def test_any_names_and_shares_make_bars(width: int, bars: list[tuple[str, float]]) -> None:
    made = bars_chart([Bar(name, share, f"{share:.0%}", name) for name, share in bars], "of noise", "w", width)
    assert titles(checked(made, width)) == [name for name, _ in bars]


@pytest.mark.parametrize("width", WIDTHS)
@settings(max_examples=40)
@given(st.lists(st.none() | st.floats(1e-300, 1e300), min_size=1, max_size=12).filter(any), NAMES)
def test_any_norms_make_lines(width: int, norms: list[float | None], name: str) -> None:
    layers = [str(layer) for layer in range(len(norms))]
    root = checked(lines_chart(layers, Series("base", norms), Series("Δ", norms[::-1]), name, width), width)
    assert root.get("aria-label") == name
    assert len(titles(root)) == 2 * sum(norm is not None for norm in norms)


@pytest.mark.parametrize("width", WIDTHS)
@settings(max_examples=40)
@given(st.lists(st.none() | st.floats(-1, 1), min_size=1, max_size=12))
def test_any_cosines_make_dots(width: int, values: list[float | None]) -> None:
    layers = [str(layer) for layer in range(len(values))]
    root = checked(dots_chart(layers, [Series("A × B", values)], 0.0, None, "w", width), width)
    assert len(titles(root)) == sum(value is not None for value in values)
