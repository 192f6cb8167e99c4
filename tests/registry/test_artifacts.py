"""Our own outputs are recognized by the files that each of them always has."""

from __future__ import annotations

from pathlib import Path

import pytest

from paramdelta_hub.registry.artifacts import artifact_in


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("manifest.json", "lineage.safetensors"), "a delta package"),
        (("paramdelta_provenance.json",), "a model that pd-apply made"),
        (("paramdelta_catalog.json",), "a catalog that pd-catalog made"),
        (("manifest.json",), None),  # other tools have files of this name too
        (("config.json", "model.safetensors"), None),
        ((), None),
    ],
)
def test_each_kind_has_its_files(tmp_path: Path, names: tuple[str, ...], kind: str | None) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert artifact_in(tmp_path) == kind


def test_a_broken_link_counts_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "paramdelta_provenance.json").symlink_to("nowhere")
    assert artifact_in(tmp_path) == "a model that pd-apply made"


def test_a_missing_folder_is_none(tmp_path: Path) -> None:
    assert artifact_in(tmp_path / "absent") is None
