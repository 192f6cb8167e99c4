"""A seal: a last line that tells whether a generated text was edited.

People edit model cards and reports. Before one is replaced, its seal shows whether anybody did.
"""

from __future__ import annotations

import hashlib
import re

__all__ = ["is_sealed", "seal"]

_SEAL = "<!-- made by paramdelta-hub; sha256 of what stands above: {} -->\n"
_FOUND = re.compile(re.escape(_SEAL).replace(r"\{\}", "([0-9a-f]{64})").encode() + rb"\Z")


def seal(text: bytes) -> bytes:
    """Return an HTML or Markdown text with its seal as the last line, in a comment."""
    return text + _SEAL.format(hashlib.sha256(text).hexdigest()).encode()


def is_sealed(content: bytes) -> bool:
    """Whether a file holds a text with a valid seal, unchanged."""
    found = _FOUND.search(content)
    return bool(found and hashlib.sha256(content[: found.start()]).hexdigest() == found[1].decode())
