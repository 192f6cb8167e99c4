"""Templates: what is text stays text, and nothing but our own templates is ever rendered."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import paramdelta_hub.reports
from paramdelta_hub.reports import pages
from paramdelta_hub.reports.pages import environment, figure, render
from tests.reports.hostile import HOSTILE, Tags

TEMPLATES = sorted((Path(paramdelta_hub.reports.__file__).parent / "templates").iterdir())
TEMPLATE_CODE = ("{{ 7 * 7 }}", "{% include '/etc/passwd' %}", "{{ self.__init__.__globals__ }}", "{# x #}", "${7}")


def macros() -> Any:
    return environment().get_template("macros.html.j2").module


@pytest.mark.parametrize("text", [*HOSTILE, *TEMPLATE_CODE])
def test_text_is_escaped_wherever_it_is_put(text: str) -> None:
    made = macros().row([text, macros().name(text)]) + macros().figure({}, text) + macros().fact(text, text, text)
    seen = Tags(made.encode())
    assert seen.tags == {"tr", "th", "td", "bdi", "figure", "figcaption", "div", "dt", "dd"}
    assert seen.attributes == {"scope", "class"}
    assert seen.text.count(text) == 6
    in_attribute = Tags(macros().table([text], text, caller=lambda: text).encode())
    assert in_attribute.attributes == {"class", "tabindex", "role", "aria-label", "scope"}
    assert in_attribute.text.count(text) == 3


@settings(max_examples=50)
@given(st.lists(st.text(), min_size=1))
def test_text_reads_as_it_was(texts: list[str]) -> None:
    seen = Tags(macros().row(texts).encode("utf-8", "replace"))
    assert seen.tags <= {"tr", "th", "td"}
    assert seen.text.removesuffix("\n") == "".join(texts).encode("utf-8", "replace").decode()


def test_long_names_are_cut() -> None:
    assert str(macros().name("<" * 121)) == f'<bdi class="name">{"&lt;" * 120}…</bdi>'


@pytest.mark.parametrize(
    "address", ["javascript:alert(1)", "https://evil.example/", "//evil.example", "https://huggingface.co.evil/x", ""]
)
def test_links_lead_to_the_hub_or_stay_here(address: str) -> None:
    with pytest.raises(ValueError, match="address"):
        environment().filters["address"](address)


@pytest.mark.parametrize("address", ["https://huggingface.co/o/n/tree/0f", "../../index.html", "deltas/o/n/", "#a-1"])
def test_links_that_are_ours(address: str) -> None:
    assert environment().filters["address"](address) == address


def test_links_lead_to_the_hub_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example:8080")
    assert environment().filters["address"]("https://hub.example:8080/o/n/tree/0f")
    for address in ("https://huggingface.co/o/n", "https://hub.example:8080.evil/x", "https://hub.example:8080/x?y"):
        with pytest.raises(ValueError, match="address"):
            environment().filters["address"](address)


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_a_template_can_not_forget_to_escape(template: Path) -> None:
    text = template.read_text(encoding="utf-8")
    environment().get_template(template.name)
    assert set(re.findall(r"\{\{ *([^}]*?)\|\s*safe\b", text)) <= {"style", "script", "picture"}
    assert "autoescape" not in text
    assert not re.search(r"=\s*\{\{", re.sub(r"\{%.*?%\}", "", text)), "attributes are quoted"
    for value in re.findall(r'(?:href|src|action)="([^"#]*)"', re.sub(r"\{%.*?%\}", "", text)):
        assert value.endswith("|address }}"), value
    assert not re.search(r"\bon\w+=|style=|javascript:", text)


def test_only_files_of_the_package_are_rendered_and_all_values_escaped() -> None:
    made = environment()
    assert isinstance(made.loader, jinja2.PackageLoader)
    assert made.autoescape is True
    assert made.undefined is jinja2.StrictUndefined
    assert not re.search(r"from_string|Template\(", Path(pages.__file__).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["../style.css", "/etc/passwd", "chat_template.jinja", "x\x00"])
def test_no_other_file_is_a_template(name: str) -> None:
    with pytest.raises((jinja2.TemplateNotFound, ValueError)):
        environment().get_template(name)


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        render("delta.html.j2", "t")


def test_the_policy_allows_just_the_style_and_the_script_that_are_there() -> None:
    text = render("catalog.html.j2", "t", script="filter.js", entries=[], groups={}).decode()
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert found
    policy = found[1].replace("&#39;", "'")
    assert policy.startswith("default-src 'none'; ")
    for tag in ("style", "script"):
        inner = text.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    without = render("catalog.html.j2", "t", entries=[], groups={}).decode()
    assert "script-src 'none'" in without.replace("&#39;", "'")
    assert "<script>" not in without


def test_a_table_says_what_its_cells_are() -> None:
    rows = macros().row(["x", "1"], 1) + macros().row(["y", "2"], 1)
    made = str(macros().table(["a", "b"], "c", 1, caller=lambda: rows))
    assert made.count('scope="col"') == made.count('scope="row"') == 2
    assert made.count('class="number"') == 3
    assert "<caption>c</caption>" in made


def test_what_is_not_known_is_a_dash() -> None:
    assert [figure(value, form) for value, form in ((None, ".1%"), (0.5, ".1%"), (1234, ","))] == [
        "–",
        "50.0%",
        "1,234",
    ]
