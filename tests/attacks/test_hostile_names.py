"""Names that lead out of a folder, hide in it, or mean another file on another system, wherever a name can stand.

The attacker hopes that a shard is read, or a companion written, somewhere else: over a shell's start file, into a git
hook, onto a device.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import paramdelta_hub as pd
from paramdelta_hub.errors import CheckpointError, PackageError
from tests.attacks.names import HOSTILE
from tests.attacks.threats import shows
from tests.conftest import Family
from tests.support.models import read_weights

POSITIONS = ("shard", "lineage file", "companion")


@shows("path traversal", f"{len(HOSTILE)} hostile names as {', as '.join(POSITIONS)}: refused, nothing outside touched")
@pytest.mark.parametrize("position", POSITIONS)
def test_in_a_package(family: Family, tmp_path: Path, position: str, outside: Callable[[], set[str]]) -> None:
    """In a package whose manifest fits them: all refused, and no file has come or gone."""
    path = family.delta / "manifest.json"
    original = path.read_bytes()
    before = outside()
    for name in HOSTILE:
        manifest = json.loads(original)
        if position == "companion":
            manifest["companions"].append({"path": f"companions/{name}", "size": 1, "sha256": "0" * 64})
        else:
            record = manifest["shards"][0] if position == "shard" else manifest["lineage"]
            for tensor in manifest["tensors"]:
                for part in tensor["parts"]:
                    part["shard"] = name if part["shard"] == record["path"] else part["shard"]
            record["path"] = name
        path.write_text(json.dumps(manifest))
        with pytest.raises(PackageError):
            pd.inspect(family.delta)
        with pytest.raises(PackageError):
            pd.apply(family.base, family.delta, tmp_path / "out")
    assert outside() == before


@shows("path traversal", f"{len(HOSTILE)} in the index of a target and of a base: refused, nothing outside touched")
@pytest.mark.parametrize("side", ["base", "target"])
def test_in_an_index(family: Family, tmp_path: Path, side: str, outside: Callable[[], set[str]]) -> None:
    model = family.base if side == "base" else family.target
    names = list(read_weights(model))
    index = model / "model.safetensors.index.json"
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")  # or the index would not be read
    index.touch()
    before = outside()
    attempts = {
        "base": lambda: pd.extract(model, family.post, tmp_path / "out"),
        "target": lambda: pd.apply(model, family.delta, tmp_path / "out"),
    }
    run = attempts[side]
    for name in HOSTILE:
        index.write_text(json.dumps({"weight_map": dict.fromkeys(names, name)}))
        with pytest.raises(CheckpointError):
            run()
    assert outside() == before
