"""Markdown for cards: escaping text from strangers, links, and the metadata of a new card."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from urllib.parse import quote

__all__ = ["escape_markdown", "front_matter", "hub_address", "hub_id", "model_link"]

_HARMLESS = re.compile(r"[A-Za-z0-9/,()%]|:(?= )|(?<=\S) (?=\S)|(?<=[A-Za-z0-9])[_.'-](?=[A-Za-z0-9])")
"""Characters without a meaning in Markdown where they stand. Within words, these include marks of lists and rules."""
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_CREDENTIALS = re.compile(r"//[^/]*@")
_MAX_LENGTH = 120


def escape_markdown(text: str, limit: int = _MAX_LENGTH) -> str:
    """Escape a stranger's text, so that Markdown and HTML show its characters and nothing else.

    The text is cut after ``limit`` characters. Everything that could have a meaning becomes a character reference.
    """
    cut = text if len(text) <= limit else f"{text[:limit]}…"
    shown = "".join(
        character
        if _HARMLESS.match(cut, index) or (not character.isascii() and character.isprintable())
        else f"&#{ord(character)};"
        for index, character in enumerate(cut)
    )
    return re.sub(r"(?i)(www)\.", r"\1&#46;", shown)  # otherwise it becomes a link


def hub_id(name: str, commit: str | None) -> str | None:
    """Return ``name`` if it is a model on the Hub: it has that form, and a commit, which local folders don't have."""
    return name if commit and _HUB_ID.fullmatch(name) else None


def model_link(name: str, commit: str | None) -> str:
    """Return a model's escaped name, with a link to the exact commit if the model is on the Hub."""
    if hub_id(name, commit) is None:
        return f"{escape_markdown(name)} (a local copy)" if commit is None else escape_markdown(name)
    return f"[{escape_markdown(name)}]({hub_address(f'{name}/tree/{commit}')}) at commit `{str(commit)[:12]}`"


def hub_address(path: str) -> str:
    """Return the address of a path on the Hub that is in use (see HF_ENDPOINT), without a user name and password.

    This needs no client of the Hub, whose import takes time.
    """
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    return f"{quote(_CREDENTIALS.sub('//', endpoint), safe=':/%[]')}/{path}"


def front_matter(data: Mapping[str, str | Sequence[str] | None]) -> str:
    """Return a card's metadata block, without the keys whose value is None.

    ASCII strings and lists in JSON are valid YAML. So an apply needs no YAML library, whose import takes time.
    """
    lines = [f"{key}: {json.dumps(value)}" for key, value in data.items() if value is not None]
    return "\n".join(["---", *lines, "---", ""])
