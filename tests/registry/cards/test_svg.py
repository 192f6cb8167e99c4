"""The parts of pictures: labels fit and stay readable, and text is escaped."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta_hub.registry.cards.svg import picture, shorten, text, text_width, titled


@pytest.mark.parametrize(
    ("label", "room", "short"),
    [
        ("mlp.up", 100, "mlp.up"),
        ("self_attn.q_proj", 70, "…q_proj"),
        ("block.self_attn.q_proj", 130, "…self_attn.q_proj"),
        ("embeddings", 50, "embed…"),
        ("模型注意", 40, "模型…"),
        ("x.", 3, "…"),
        ("", 10, ""),
    ],
)
def test_labels_are_shortened_where_they_tell_least(label: str, room: float, short: str) -> None:
    assert shorten(label, room) == short


@given(st.text(), st.floats(8, 300))
def test_a_shortened_label_fits(label: str, room: float) -> None:
    cut = shorten(label, room)
    assert text_width(cut) <= room
    assert cut == label or "…" in cut


def test_wide_letters_need_more_room() -> None:
    assert text_width("漢字") > text_width("WW") > text_width("ll")
    assert text_width("e\u0301") == text_width("e")


def test_text_is_escaped() -> None:
    made = picture([text(1, 2, "<b>&"), titled("<rect/>", '"><script>')], 10, 20, "'\"<x>")
    root = ElementTree.fromstring(made)
    assert root.get("aria-label") == "'\"<x>"
    assert [node.text for node in root.iter() if node.text and node.text.strip()] == ["<b>&", '"><script>']


def test_a_margin_goes_around_the_picture() -> None:
    root = ElementTree.fromstring(picture([], 100, 50, "x", margin=7, style="<rect/>"))
    assert (root.get("width"), root.get("height"), root.get("viewBox")) == ("114", "64", "-7 -7 114 64")
    assert len(root) == 1
