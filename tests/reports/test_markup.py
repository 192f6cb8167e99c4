"""Markup: what is text stays text."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_hub.reports.markup import Markup, element, join, link, name, page, table
from tests.reports.hostile import HOSTILE, Tags


@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_escaped_wherever_it_is_put(text: str) -> None:
    made = element("p", text, [text], name(text), title=text)
    seen = Tags(made.encode())
    assert seen.tags == {"p", "bdi"}
    assert seen.attributes == {"title", "class"}
    assert seen.text == text * 3


@settings(max_examples=50)
@given(st.lists(st.text()))
def test_joined_text_reads_as_it_was(texts: list[str]) -> None:
    seen = Tags(join(*texts, texts).encode("utf-8", "replace"))
    assert seen.tags == set()
    assert seen.text == "".join(texts * 2).encode("utf-8", "replace").decode()


def test_markup_is_put_as_it_is_and_nothing_is_nothing() -> None:
    assert element("p", Markup("<b>x</b>"), None, hidden=True, id=None, lang=False) == "<p hidden><b>x</b></p>"
    assert element("input", type="search", aria_label="x", for_="y") == '<input type="search" aria-label="x" for="y">'


@pytest.mark.parametrize(
    "address", ["javascript:alert(1)", "https://evil.example/", "//evil.example", "https://huggingface.co.evil/x", ""]
)
def test_links_lead_to_the_hub_or_stay_here(address: str) -> None:
    with pytest.raises(ValueError, match="address"):
        link(address, "x")


@pytest.mark.parametrize("address", ["https://huggingface.co/o/n/tree/0f", "../../index.html", "deltas/o/n/", "#a-1"])
def test_links_that_are_ours(address: str) -> None:
    assert link(address, "<x>") == f'<a href="{address}">&lt;x&gt;</a>'


def test_the_policy_allows_just_the_style_and_the_script_that_are_there() -> None:
    text = page("t", element("p", "x"), script="let a = 1 < 2 && 'x';").decode()
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert found
    policy = found[1].replace("&#x27;", "'")
    assert policy.startswith("default-src 'none'; ")
    for tag in ("style", "script"):
        inner = text.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "script-src 'none'" in page("t").decode().replace("&#x27;", "'")


def test_a_table_says_what_its_cells_are() -> None:
    made = table(("a", "b"), [("x", "1"), ("y", "2")], "c", numbers=1)
    assert made.count('scope="col"') == made.count('scope="row"') == 2
    assert made.count('class="number"') == 3
    assert "<caption>c</caption>" in made
