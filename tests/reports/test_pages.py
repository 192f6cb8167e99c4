"""Pages: what a report must tell, that it is one file that asks for nothing, and that no stranger can write into it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_hub.fileio.names import is_clear
from paramdelta_hub.package.manifest import Manifest
from paramdelta_hub.package.package import Package
from paramdelta_hub.reports.agreement import compare_packages
from paramdelta_hub.reports.comparison_page import comparison_page
from paramdelta_hub.reports.delta_page import delta_page
from paramdelta_hub.reports.pages import share
from paramdelta_hub.reports.spectra import Spectrum, measure_spectra
from tests.reports.hostile import HOSTILE, Tags, hostile

COMMIT = "0123456789abcdef" * 2 + "01234567"
ATTRIBUTES = """
aria-label charset class content cx cy fill height href http-equiv id lang name points r role rx scope stroke-width
tabindex text-anchor viewbox width x x1 x2 xmlns y y1 y2
"""


def on_the_hub(manifest: Manifest) -> Manifest:
    base = manifest.base.model_copy(update={"name": "org/base", "commit": COMMIT})
    post = manifest.post.model_copy(update={"name": "org/base-instruct", "commit": COMMIT[::-1]})
    return manifest.model_copy(update={"base": base, "post": post, "license": "apache-2.0"})


def test_a_report_tells_what_there_is_to_tell(known: dict[str, Package]) -> None:
    package = known["noise"]
    manifest = on_the_hub(package.manifest)
    seen = Tags(delta_page(manifest, package.digest, "org/delta@1.0.0", measure_spectra(package, 4)))
    for words in (
        manifest.name,
        "apache-2.0",
        package.digest,
        manifest.architecture.fingerprint,
        "pd-apply NEW_BASE org/delta@1.0.0 -o new-model",
        "pd-verify org/delta@1.0.0 --base org/base",
        f"{manifest.exactness.elements:,}",
        "up to 256 rows and 256 columns",
        COMMIT[:12],
        "1800×600",
        "mlp",
    ):
        assert words in seen.text
    assert f"https://huggingface.co/org/base/tree/{COMMIT}" in seen.addresses
    assert {"main", "h1", "h2", "svg", "table", "footer", "figcaption"} <= seen.tags


def test_a_report_asks_for_nothing(known: dict[str, Package]) -> None:
    page = delta_page(known["low"].manifest, known["low"].digest, "low", measure_spectra(known["low"], 2))
    assert Tags(page).addresses == []
    assert not re.search(rb"src=|url\(|@import|<link|<script|<iframe|<img|fetch\(", page)
    assert b"script-src &#39;none&#39;" in page
    assert len(page) < 150_000


def test_equal_deltas_give_equal_pages(known: dict[str, Package]) -> None:
    package = known["both"]
    pages = {delta_page(package.manifest, package.digest, "x", measure_spectra(package, 3)) for _ in range(2)}
    assert len(pages) == 1
    assert len({comparison_page(compare_packages([known["low"], package], threads=n)) for n in (1, 2)}) == 1


def test_unread_weights_are_told_as_such(manifest: Manifest) -> None:
    assert "Not measured" in Tags(delta_page(manifest, "0" * 64, "x", None)).text
    assert "No changed matrix" in Tags(delta_page(manifest, "0" * 64, "x", ())).text


def test_a_comparison_tells_cosines_and_conflicts(known: dict[str, Package]) -> None:
    seen = Tags(comparison_page(compare_packages([known["noise"], known["opposite"], known["low"]])))
    assert "-1.0000" in seen.text
    assert "100.0%" in seen.text
    assert "A × B" in seen.text
    assert seen.addresses == []


def safe(page: bytes, like: bytes) -> None:
    """Check that a hostile page has no tag, attribute or address that a harmless one has not."""
    bad, good = Tags(page), Tags(like)
    assert bad.tags <= good.tags | {"details", "summary"}
    assert bad.attributes <= set(ATTRIBUTES.split())
    assert bad.addresses == []
    assert not any(name.startswith("on") for name in bad.attributes)


def test_hostile_names_are_shown_and_do_nothing(manifest: Manifest) -> None:
    found = hostile(manifest)
    spectra = [Spectrum(text, (9, 9), 9, 9, 2.0, 4.0, 1) for text in HOSTILE]
    page = delta_page(found, "0" * 64, HOSTILE[0], spectra)
    safe(page, delta_page(manifest, "0" * 64, "x", spectra[:0]))
    seen = Tags(page)
    assert all(text in seen.text for text in HOSTILE)
    assert "'<script>document.title='\"'\"'owned'\"'\"'</script>'" in seen.text, "quoted for a shell"


@settings(max_examples=8, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=40).filter(is_clear), min_size=1, max_size=8).map(tuple))
def test_any_names_are_safe(manifest: Manifest, texts: tuple[str, ...]) -> None:
    safe(delta_page(hostile(manifest, texts), "0" * 64, texts[0], None), delta_page(manifest, "0" * 64, "x", None))


@settings(max_examples=8, deadline=None)
@given(st.lists(st.floats(0, allow_nan=False, allow_infinity=False), min_size=14, max_size=14))
def test_any_norms_make_a_page(manifest: Manifest, norms: list[float]) -> None:
    tensors = [
        tensor.model_copy(update={"delta_norm": norms[index], "base_norm": norms[index + 7]})
        for index, tensor in enumerate(manifest.tensors)
    ]
    page = delta_page(manifest.model_copy(update={"tensors": tuple(tensors)}), "0" * 64, "x", None)
    assert b"nan" not in re.sub(rb"<style>.*</style>", b"", page, flags=re.DOTALL).lower()


@pytest.mark.parametrize(
    ("part", "whole", "says"),
    [(0, 9, "0%"), (9, 9, "100%"), (1, 9999, "< 0.1%"), (9998, 9999, "> 99.9%"), (1, 3, "33.3%"), (0, 0, "0%")],
)
def test_none_and_all_are_said_only_where_they_are_true(part: int, whole: int, says: str) -> None:
    assert share(part, whole) == says
