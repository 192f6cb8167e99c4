"""What a test does to a document to make it a bad one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def set_at(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Return a mutation: the last argument is put at the path that the others spell."""

    def mutate(value: dict[str, Any]) -> None:
        *steps, last, new = path
        node: Any = value
        for step in steps:
            node = node[step]
        node[last] = new

    return mutate
