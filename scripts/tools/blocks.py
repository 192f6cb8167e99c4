"""The parts of a document that a script writes: ``<!-- NAME: made by COMMAND -->``, lines, ``<!-- end -->``."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["fill"]

_BLOCK = re.compile(r"(<!-- ([\w-]+): made by [^\n]+ -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(page: str, blocks: Mapping[str, str]) -> str:
    """Return the page with new text in each of its blocks; a text ends with a line break.

    Raises:
        ValueError: the page has another set of blocks.
    """
    names = sorted(match[2] for match in _BLOCK.finditer(page))
    if names != sorted(blocks):
        raise ValueError(f"the page has the blocks {names}, not {sorted(blocks)}")
    return _BLOCK.sub(lambda match: match[1] + blocks[match[2]] + match[3], page)
