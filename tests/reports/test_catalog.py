"""The catalog: every delta has its place, the site appears whole, and equal registries give equal files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import paramdelta_hub as pd
from tests.conftest import Family
from tests.registry.packages import labelled, tree
from tests.reports.hostile import Tags


@pytest.fixture
def registry(family: Family, tmp_path: Path) -> Path:
    """Two deltas of one architecture, one of them in two versions."""
    root = tmp_path / "registry"
    for org, version in (("alpha", "1.0.0"), ("alpha", "1.1.0"), ("beta", "2.0.0")):
        copy = labelled(family.delta, tmp_path / f"{org}-{version}", version, name=f"{org}-delta")
        pd.publish(copy, f"{org}/delta", registry=root)
    for manifest in root.rglob("manifest.json"):
        os.utime(manifest, (1_700_000_000, 1_700_000_000))
    return root


def test_every_delta_is_listed_and_has_a_report(registry: Path, tmp_path: Path) -> None:
    report = pd.catalog(registry, tmp_path / "site")
    site = tree(tmp_path / "site")
    pages = {"index.html", "deltas/alpha/delta/index.html", "deltas/beta/delta/index.html"}
    assert set(site) == {*pages, "paramdelta_catalog.json"}
    assert (report.listed_deltas, report.pages, report.nbytes) == (2, 3, sum(map(len, site.values())))
    index = Tags(site["index.html"])
    assert index.addresses == ["#content", "deltas/alpha/delta/index.html", "deltas/beta/delta/index.html"]
    for words in ("alpha/delta", "1.1.0", "2 versions", "license not stated", "2023-11-14", "makes post", "Of base"):
        assert words in index.text
    page = Tags(site["deltas/alpha/delta/index.html"])
    assert page.addresses == ["#content", "../../../index.html", "../../../deltas/beta/delta/index.html"]
    for words in ("1.0.0", "1.1.0", "pd-apply NEW_BASE alpha/delta@1.1.0", "Not measured", "same architecture"):
        assert words in page.text
    assert str(tmp_path) not in index.text + page.text, "nobody's business"


def test_links_of_a_site_lead_somewhere(registry: Path, tmp_path: Path) -> None:
    pd.catalog(registry, tmp_path / "site")
    for file in (tmp_path / "site").rglob("*.html"):
        for address in Tags(file.read_bytes()).addresses:
            assert address.startswith("#") or (file.parent / address).resolve().is_file(), (file, address)


def test_an_equal_registry_gives_equal_files(registry: Path, tmp_path: Path) -> None:
    shutil.copytree(registry, tmp_path / "elsewhere")
    for name, root in (("a", registry), ("b", tmp_path / "elsewhere")):
        pd.catalog(root, tmp_path / name, samples=1)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert b"sampled matrices" in tree(tmp_path / "a")["deltas/beta/delta/index.html"]


def test_deltas_are_judged_for_the_models_asked_for(registry: Path, family: Family, tmp_path: Path) -> None:
    pd.catalog(registry, tmp_path / "site", bases=[str(family.target)], title="Ours")
    index = Tags((tmp_path / "site/index.html").read_bytes())
    assert "For target: fits — same architecture" in index.text
    assert index.text.count("Ours") == 2


def test_a_broken_delta_is_told_and_hides_no_other(registry: Path, tmp_path: Path) -> None:
    newest = registry / "alpha/delta/1.1.0/manifest.json"
    newest.write_text(newest.read_text().replace('"version": "1.1.0"', '"version": "1.1.1"'))
    report = pd.catalog(registry, tmp_path / "site")
    assert report.listed_deltas == report.pages - 1
    assert "beta/delta" in (tmp_path / "site/index.html").read_text()


def test_a_site_is_not_replaced_unasked_and_then_as_a_whole(registry: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pd.catalog(registry, site)
    before = tree(site)
    with pytest.raises(pd.DestinationError):
        pd.catalog(registry, site)
    assert tree(site) == before
    shutil.rmtree(registry / "alpha")
    pd.catalog(registry, site, overwrite=True)
    assert set(tree(site)) == {"index.html", "deltas/beta/delta/index.html", "paramdelta_catalog.json"}
    assert not (tmp_path / "site.partial").exists()


def test_a_failure_leaves_no_site(registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("paramdelta_hub.reports.site.view_delta", broken)
        with pytest.raises(KeyboardInterrupt):
            pd.catalog(registry, tmp_path / "site")
    assert not (tmp_path / "site").exists()
    pd.catalog(registry, tmp_path / "site")
    assert len(tree(tmp_path / "site")) == 4


def test_queries_limits_and_empty_registries(registry: Path, tmp_path: Path) -> None:
    assert pd.catalog(registry, tmp_path / "a", query="BETA").listed_deltas == 1
    limited = pd.catalog(registry, tmp_path / "b", limit=1)
    assert (limited.listed_deltas, limited.more) == (1, True)
    (tmp_path / "nothing").mkdir()
    assert pd.catalog(tmp_path / "nothing", tmp_path / "c").pages == 1
    assert "No delta is published here yet." in (tmp_path / "c/index.html").read_text()
