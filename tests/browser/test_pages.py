"""Pages as a browser shows them: in light and dark, on a phone, by keyboard, without JavaScript; and nothing runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import paramdelta_hub as pd
from paramdelta_hub.package.package import open_package
from paramdelta_hub.reports.agreement import compare_packages
from paramdelta_hub.reports.comparison_page import comparison_page
from paramdelta_hub.reports.delta_page import delta_page
from paramdelta_hub.reports.spectra import Spectrum
from tests.browser.conftest import Shown
from tests.conftest import Family, make_family
from tests.registry.packages import labelled
from tests.reports.hostile import HOSTILE, hostile

Show = Callable[..., Shown]
PAGES = ("report", "comparison", "site", "site report", "hostile")


@pytest.fixture(scope="session")
def pages(shared_family: Family, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every kind of page, made of small deltas."""
    root = tmp_path_factory.mktemp("pages")
    other = make_family(root / "other", seed=11)
    package, second = open_package(shared_family.delta), open_package(other.delta)
    made = {name: root / f"{name}.html" for name in ("report", "comparison", "hostile")}
    spectra = [Spectrum("model.layers.0.mlp.weight", (40, 16), 40, 16, 7.5, 14.0, 9)]
    made["report"].write_bytes(delta_page(package.manifest, package.digest, "org/delta@1.0.0", spectra))
    made["comparison"].write_bytes(comparison_page(compare_packages([package, second])))
    named = [Spectrum(text, (9, 9), 9, 9, 2.0, 4.0, 1) for text in HOSTILE]
    made["hostile"].write_bytes(delta_page(hostile(package.manifest), package.digest, HOSTILE[0], named))
    registry = root / "registry"
    for number, (org, license_name) in enumerate([("alpha", "mit"), ("alpha", "apache-2.0"), ("beta", "mit")]):
        name = f"delta-{number}"
        source = shared_family.delta if number else other.delta
        copy = labelled(source, root / name, f"1.{number}.0", name=f"{name} <b>", license=license_name)
        pd.publish(copy, f"{org}/{name}", registry=registry)
    pd.catalog(registry, root / "site", bases=[str(shared_family.target)])
    made["site"] = root / "site/index.html"
    made["site report"] = root / "site/deltas/alpha/delta-1/index.html"
    return made


@pytest.fixture(scope="session")
def axe() -> Any:
    """What judges pages by the rules for accessible content."""
    module = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    return module.Axe()


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("scheme", "width"), [("light", 1100), ("dark", 1100), ("light", 390), ("dark", 390)])
def test_a_page_fits_and_is_quiet(pages: dict[str, Path], show: Show, name: str, scheme: str, width: int) -> None:
    shown = show(pages[name], scheme, width)
    assert shown.complaints == []
    assert shown.requests == [pages[name].as_uri()]
    assert shown.value("document.documentElement.scrollWidth") <= width, "nothing to scroll to the side"
    # Of the two pictures of a figure the one for this width is seen, whole, and has letters of a readable size.
    seen = shown.value(
        "[...document.querySelectorAll('figure > div')].filter(d => d.offsetParent).map(d => [d.className,"
        " d.getBoundingClientRect().right, d.querySelector('svg').getBoundingClientRect().width"
        " / d.querySelector('svg').getAttribute('width')])"
    )
    assert {kind for kind, _, _ in seen} <= {"narrow" if width == 390 else "wide"}
    assert bool(seen) == (name != "site")
    assert all(right <= width and scale > 0.94 for _, right, scale in seen)


@pytest.mark.parametrize("name", PAGES)
def test_light_and_dark_are_two_pictures(pages: dict[str, Path], show: Show, name: str) -> None:
    looks = []
    for scheme in ("light", "dark"):
        shown = show(pages[name], scheme)
        paper, ink = shown.value("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
        bright = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (paper, ink)]
        assert (bright[0] > bright[1]) == (scheme == "light")
        fills = shown.value("[...document.querySelectorAll('svg rect, svg path')].map(n => getComputedStyle(n).fill)")
        looks.append((paper, *fills))
        assert len(shown.page.screenshot(full_page=True)) > 10_000
    assert looks[0] != looks[1]


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_is_accessible(pages: dict[str, Path], show: Show, axe: Any, name: str, scheme: str) -> None:
    shown = show(pages[name], scheme, 390)
    shown.value("document.querySelectorAll('details').forEach(d => d.open = true)")
    found = axe.run(shown.page).response
    broken = [(rule["id"], node["html"][:200]) for rule in found["violations"] for node in rule["nodes"]]
    assert broken == []
    assert len(found["passes"]) > 15, "axe did look"


def test_hostile_names_run_nothing(pages: dict[str, Path], show: Show) -> None:
    shown = show(pages["hostile"])
    shown.page.mouse.move(300, 300)
    assert "owned" not in shown.page.title() or shown.page.title().startswith("<script>")
    assert shown.value("document.querySelectorAll('script, iframe, img, object, embed, a').length") == 0
    attributes = "[...document.querySelectorAll('*')].flatMap(n => [...n.attributes]).map(a => a.name)"
    assert not [name for name in shown.value(attributes) if name.startswith("on") or name in ("style", "src")]
    assert HOSTILE[0] in shown.value("document.body.innerText")


def test_the_policy_stops_what_would_get_in_all_the_same(pages: dict[str, Path], show: Show, tmp_path: Path) -> None:
    page = pages["report"].read_text()
    hurt = (
        "<script>document.title = 'owned'</script><img src='https://evil.example/x.png' onerror=\"document.title='o'\">"
    )
    (tmp_path / "hurt.html").write_text(page.replace('<main id="content">', f'<main id="content">{hurt}'))
    shown = show(tmp_path / "hurt.html")
    assert shown.page.title() == "post-delta 1.0.0"
    assert any("Content Security Policy" in complaint for complaint in shown.complaints)


def test_the_search_narrows_by_base_name_and_license(pages: dict[str, Path], show: Show) -> None:
    page = show(pages["site"]).page
    shown = page.locator("[data-words]:visible h3")
    assert shown.count() == 3
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Tab")
    page.keyboard.type("MIT  alpha")
    assert shown.all_inner_texts() == ["alpha/delta-0 1.0.0"]
    assert page.locator("#found").inner_text() == "1 of 3 shown"
    page.locator("#filter").fill("base")
    assert shown.count() == 3
    page.locator("#filter").fill("nothing like it")
    assert shown.count() == 0
    assert page.locator(".base:visible").count() == 0
    page.locator("#filter").fill("")
    assert shown.count() == 3


def test_by_keyboard_to_a_report_and_back(pages: dict[str, Path], show: Show) -> None:
    page = show(pages["site"]).page
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "alpha/delta-1":
            break
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "what has the focus is seen"
    page.keyboard.press("Enter")
    page.wait_for_url("**/deltas/alpha/delta-1/index.html")
    assert page.locator("h1").inner_text() == "delta-1 <b> 1.1.0"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**/site/index.html")


def test_without_javascript_all_can_be_read(pages: dict[str, Path], show: Show) -> None:
    page = show(pages["site"], javascript=False).page
    assert page.locator("h3 a:visible").all_inner_texts() == ["alpha/delta-0", "alpha/delta-1", "beta/delta-2"]
    assert not page.locator("#filter").is_visible()
    page.locator("h3 a").first.click()
    assert page.locator("figure svg:visible").count() >= 2
