"""A last line by which we know a text of ours again: whether it is just what we wrote, or has been edited since.

Model cards and reports are files that people edit. Before one is replaced, its seal tells whether anybody did.
"""

from __future__ import annotations

import hashlib
import re

__all__ = ["is_sealed", "seal"]

_SEAL = "<!-- made by paramdelta-hub; sha256 of what stands above: {} -->\n"
_FOUND = re.compile(re.escape(_SEAL).replace(r"\{\}", "([0-9a-f]{64})").encode() + rb"\Z")


def seal(text: bytes) -> bytes:
    """Return an HTML or Markdown text with its seal, a comment, as its last line."""
    return text + _SEAL.format(hashlib.sha256(text).hexdigest()).encode()


def is_sealed(content: bytes) -> bool:
    """Whether a file holds a text of ours, not changed by a byte."""
    found = _FOUND.search(content)
    return bool(found and hashlib.sha256(content[: found.start()]).hexdigest() == found[1].decode())
