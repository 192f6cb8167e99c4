"""How two places on disk relate, after all symbolic links are resolved."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from paramdelta_hub.fileio.durable import expand

__all__ = ["Relation", "relation"]

Relation = Literal["is", "contains", "lies inside"]


def relation(path: str | Path, place: str | Path) -> Relation | None:
    """Return how ``path`` relates to ``place``: it is that place, contains it or lies inside it; None if it is apart.

    Both may begin with ``~``. Neither needs to exist.
    """
    one, other = (Path(os.path.realpath(expand(text))) for text in (path, place))
    if one == other:
        return "is"
    if one in other.parents:
        return "contains"
    return "lies inside" if other in one.parents else None
