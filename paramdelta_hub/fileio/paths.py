"""Paths: how two places on disk relate, and how a path goes into JSON."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, TypeAlias
from urllib.parse import quote, unquote_to_bytes

from pydantic import PlainSerializer, PlainValidator

from paramdelta_hub.fileio.durable import expand

__all__ = ["PathText", "Relation", "relation"]

Relation = Literal["is", "contains", "lies inside"]
PathText: TypeAlias = Annotated[
    str,
    PlainSerializer(lambda path: quote(os.fsencode(path))),
    PlainValidator(lambda text: os.fsdecode(unquote_to_bytes(text))),
]
"""A path as text. In JSON it is percent-encoded, because a path need not be valid UTF-8."""


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
