"""The heat map: every part has its row, every layer its cell, and the colours tell the truth."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta_hub.package.manifest import TensorRecord
from paramdelta_hub.registry.cards.heatmap import HEAT, heat_map, heat_parts
from tests.registry.cards.test_changes import NAMES, NORMS

SVG = "{http://www.w3.org/2000/svg}"


def tensor(name: str, delta: float = 1.0, base: float = 100.0, effect: str = "add") -> TensorRecord:
    return TensorRecord.model_construct(
        name=name, delta_norm=delta, base_norm=base, effect=effect, shape=(4,), parts=()
    )


def cells(picture: str) -> list[tuple[str, str]]:
    """Return (class, what it says) of every cell."""
    root = ElementTree.fromstring(picture)
    return [(rect.get("class", ""), rect[0].text or "") for rect in root.iter(f"{SVG}rect") if len(rect)]


def words(picture: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(picture).iter(f"{SVG}text")]


def test_a_cell_for_every_layer_and_module() -> None:
    rows = heat_parts(
        [tensor(f"m.layers.{layer}.mlp.up.weight", layer) for layer in range(4)]
        + [tensor("m.layers.0.attn.q.weight", 0.5), tensor("m.embed_tokens.weight", 2), tensor("m.extra", 1, 0)]
    )
    picture = heat_map(rows)
    assert [part.label for part in rows] == ["mlp.up", "attn.q", "m.embed_tokens", "m.extra"]
    assert cells(picture) == [
        ("none", "mlp.up, layer 0: none"),
        ("h3", "mlp.up, layer 1: 1.00%"),
        ("h6", "mlp.up, layer 2: 2.00%"),
        ("h8", "mlp.up, layer 3: 3.00%"),
        ("h2", "attn.q, layer 0: 0.50%"),
        ("h6", "m.embed_tokens: 2.00%"),
        ("new", "m.extra: new"),
    ]
    assert {"mlp.up", "attn.q", "1.87%", "3.00%", "unchanged", "base is zero", "layer"} <= set(words(picture))


def test_a_few_that_stand_out_do_not_hide_the_rest() -> None:
    changes = [1.0] * 19 + [90.0]
    picture = heat_map(heat_parts(tensor(f"layers.{n}.mlp", change) for n, change in enumerate(changes)))
    assert [kind for kind, _ in cells(picture)] == ["h3"] * 19 + ["h8"]
    assert "≥ 3.00%" in words(picture)


def test_neighbours_share_a_column_and_the_most_changed_stands_for_them() -> None:
    rows = heat_parts(tensor(f"layers.{n}.mlp", 9.0 if n == 500 else 3.0) for n in range(1000))
    for width in (728, 350):
        found = cells(heat_map(rows, width))
        assert 20 < len(found) < 100
        assert [kind for kind, _ in found].count("h8") == 1
        assert re.fullmatch(r"mlp, layers \d+ to \d+: 9.00%", next(says for kind, says in found if kind == "h8"))


def test_models_of_other_conventions_get_a_short_map() -> None:
    picture = heat_map(heat_parts(tensor(f"block{number}.weight", number) for number in range(300)))
    assert len(cells(picture)) == 24
    assert "and 276 more parts" in words(picture)


def test_experts_are_one_row() -> None:
    (part,) = heat_parts(tensor(f"model.layers.0.mlp.experts.{n}.up_proj.weight") for n in range(64))
    assert part.label == "mlp.experts.*.up_proj"


def test_nothing_added_is_a_picture_too() -> None:
    assert heat_parts([tensor("steps", 0, 0, "replace")]) == []
    assert "no weights are added" in heat_map([])


def test_alone_it_brings_its_colours_and_a_ground() -> None:
    picture = heat_map(heat_parts([tensor("layers.0.a"), tensor("layers.1.a", 2)]), alone=True)
    root = ElementTree.fromstring(picture)
    assert all(colour in picture for colour in HEAT)
    assert root.find(f"{SVG}rect") is not None
    assert "<title>" not in picture
    assert not re.search(r"script|href|url\(|@import", picture)


@pytest.mark.parametrize("width", [728, 350])
@given(rows=st.lists(st.tuples(NAMES, NORMS, NORMS), max_size=30))
def test_any_names_and_norms_make_a_picture(width: int, rows: list[tuple[str, float, float]]) -> None:
    picture = heat_map(heat_parts(tensor(*row) for row in rows), width)
    root = ElementTree.fromstring(picture)
    assert {node.tag for node in root.iter()} <= {f"{SVG}{tag}" for tag in ("svg", "rect", "text", "title")}
    for rect in root.iter(f"{SVG}rect"):
        x, wide = float(rect.get("x", "nan")), float(rect.get("width", "nan"))
        assert math.isfinite(x)
        assert -0.1 <= x <= x + wide <= width
