"""How folders that this project made are recognized: by the files that each kind always has."""

from __future__ import annotations

import os
from pathlib import Path

from paramdelta_hub.package.manifest import LINEAGE_NAME, MANIFEST_NAME
from paramdelta_hub.package.provenance import PROVENANCE_NAME

__all__ = ["SITE_NAME", "artifact_in"]

SITE_NAME = "paramdelta_catalog.json"
"""The file by which a catalog is recognized. It lists all other files of the catalog."""

_MARKS = {
    "a delta package": (MANIFEST_NAME, LINEAGE_NAME),
    "a model that pd-apply made": (PROVENANCE_NAME,),
    "a catalog that pd-catalog made": (SITE_NAME,),
}


def artifact_in(folder: Path) -> str | None:
    """Return which of our outputs a folder is, in words; None if it is none. A file added to one would break it."""
    at = os.fspath(folder)  # asked of every folder above an output, where joining Paths takes longer than looking
    for kind, names in _MARKS.items():
        if all(os.path.lexists(os.path.join(at, name)) for name in names):
            return kind
    return None
