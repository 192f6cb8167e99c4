"""Downgrades: an older or another content under a known name, or a format that the reader does not know.

The attacker holds the registry, or the line to it, and would like a user to get last year's delta with its known
fault, or to have new fields skipped by an old reader.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import paramdelta_hub as pd
from paramdelta_hub.errors import DestinationError, IntegrityError, PackageError, RegistryError, UnsupportedFormatError
from paramdelta_hub.registry.stores.registry import StoreRegistry
from tests.attacks.outcomes import change_manifest, refused_everywhere
from tests.attacks.threats import shows
from tests.conftest import Family
from tests.registry.packages import altered, id_of, labelled, tree

VERSIONS = (2, 99, 2**40, 2**62)
REPO = "org/name"


@shows("downgrade, replaced versions", f"{len(VERSIONS)} later format versions: refused as such, with what to do")
@pytest.mark.parametrize("version", VERSIONS)
def test_a_later_format(family: Family, tmp_path: Path, version: int) -> None:
    """A reader that skips what it does not know would apply the wrong delta."""
    change_manifest(family.delta, lambda manifest: manifest.update(format_version=version, more={"new": 1}))
    refused_everywhere(family, tmp_path, UnsupportedFormatError, f"format version {version}")
    with pytest.raises(UnsupportedFormatError, match="upgrade"):
        pd.inspect(family.delta)


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "1", None, [1]], ids=repr)
def test_what_is_no_format_version(family: Family, value: Any) -> None:
    change_manifest(family.delta, lambda manifest: manifest.update(format_version=value))
    with pytest.raises(PackageError, match="format_version"):
        pd.inspect(family.delta)


@pytest.fixture
def served(family: Family, tmp_path: Path) -> Path:
    """A registry of two versions, of which the second was pulled; where the attacker can write."""
    registry = StoreRegistry(tmp_path / "registry")
    for version in ("1.0.0", "2.0.0"):
        registry.publish(labelled(family.delta, tmp_path / version, version), REPO, version)
    registry.pull(REPO, "2.0.0", tmp_path / "copy")
    return tmp_path / "registry" / REPO


def put(source: Path, place: Path) -> None:
    shutil.rmtree(place)
    shutil.copytree(source, place)


@shows("downgrade, replaced versions", "an old version served as the new one, as the only one, or by another's id: "
       "refused, and the pulled copy stays as it was")  # fmt: skip
def test_an_old_version_for_a_new_one(served: Path, tmp_path: Path) -> None:
    registry, copy = StoreRegistry(tmp_path / "registry"), tmp_path / "copy"
    before, pinned = tree(copy), id_of(copy)
    put(tmp_path / "1.0.0", served / "2.0.0")
    with pytest.raises(IntegrityError, match=r"published as 2\.0\.0, but the manifest says 1\.0\.0"):
        registry.pull(REPO, "2.0.0", copy)
    with pytest.raises(RegistryError):
        registry.pull(REPO, pinned, copy)
    shutil.rmtree(served / "2.0.0")
    with pytest.raises(DestinationError, match=r"holds 2\.0\.0"):
        registry.pull(REPO, None, copy)
    with pytest.raises(DestinationError, match=r"newer than 1\.0\.0"):
        registry.pull(REPO, "1.0.0", copy)
    assert tree(copy) == before


def test_other_content_under_a_pulled_version(served: Path, family: Family, tmp_path: Path) -> None:
    registry, copy = StoreRegistry(tmp_path / "registry"), tmp_path / "copy"
    before = tree(copy)
    put(altered(family.delta, tmp_path / "other", "2.0.0"), served / "2.0.0")
    for revision in ("2.0.0", None):
        with pytest.raises(IntegrityError, match="never replaced"):
            registry.pull(REPO, revision, copy)
    assert tree(copy) == before
