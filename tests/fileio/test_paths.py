"""How two places relate: by what they are on disk, not by how they are spelled."""

from __future__ import annotations

from pathlib import Path

import pytest

from paramdelta_hub.fileio.paths import relation


def test_places_are_the_same_inside_each_other_or_apart(tmp_path: Path) -> None:
    place = tmp_path / "registry"
    assert relation(place, place) == "is"
    assert relation(tmp_path, place) == "contains"
    assert relation(place / "org" / "name", place) == "lies inside"
    assert relation(tmp_path / "registry-2", place) is None
    assert relation(tmp_path / "other", place) is None


def test_links_dots_and_tildes_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "registry"
    place.mkdir()
    (tmp_path / "link").symlink_to(place)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(place)
    for spelling in (tmp_path / "link", f"{place}/org/..", ".", "~/registry", "~/link"):
        assert relation(spelling, place) == "is", spelling
        assert relation(place, spelling) == "is", spelling
    assert relation("..", "~/link/org") == "contains"
    assert relation("copy", "~/link") == "lies inside"
