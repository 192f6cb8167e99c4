"""How two places relate: by what they are on disk, not by how they are spelled; and which links are followed."""

from __future__ import annotations

from pathlib import Path

import pytest

from paramdelta_hub.errors import PackageError
from paramdelta_hub.fileio.paths import relation, resolve_inside


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


def snapshot(cache: Path, target: str) -> Path:
    """Make a snapshot folder whose one file is a link to ``target``, a path from the cache's root."""
    folder = cache / "models--org--name" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    file = cache / target
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x")
    (folder / "weights").symlink_to(file)
    return folder


@pytest.mark.parametrize("target", ["models--org--name/blobs/0123", "blobs/01/0123"])
def test_the_caches_own_blobs(tmp_path: Path, target: str) -> None:
    assert resolve_inside(snapshot(tmp_path, target), "weights") == (tmp_path / target).resolve()


def test_a_blob_that_is_itself_a_link_to_a_shared_one(tmp_path: Path) -> None:
    folder = snapshot(tmp_path, "blobs/01/0123")
    blob = tmp_path / "models--org--name" / "blobs" / "0123"
    blob.parent.mkdir()
    blob.symlink_to(tmp_path / "blobs" / "01" / "0123")
    (folder / "weights").unlink()
    (folder / "weights").symlink_to(blob)
    assert resolve_inside(folder, "weights") == (tmp_path / "blobs/01/0123").resolve()


@pytest.mark.parametrize(
    "target",
    ["secret", "blobs/secret", "blobs/02/0123", "models--org--other/blobs/0123", "blobs/01/deep/0123", "other/01/0123"],
)
def test_any_other_link_is_refused(tmp_path: Path, target: str) -> None:
    with pytest.raises(PackageError, match="symbolic link"):
        resolve_inside(snapshot(tmp_path, target), "weights")
