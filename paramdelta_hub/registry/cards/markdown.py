"""Markdown into which strangers' words can be put, and in which people's own words survive."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

__all__ = ["YOURS_BEGIN", "YOURS_END", "front_matter", "hub_id", "model_link", "own_words", "plain", "split"]

YOURS_BEGIN, YOURS_END = "<!-- yours:begin -->", "<!-- yours:end -->"
"""What stands between them is the author's, and is left as it is when the rest is written anew."""

_KEPT = re.compile(r"[A-Za-z0-9/,()%]|:(?= )|(?<=\S) (?=\S)|(?<=[A-Za-z0-9])[_.'-](?=[A-Za-z0-9])")
"""What can't open or close anything: within words also marks that begin a list or a rule at the start of a line."""
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_FRONT = re.compile(r"\A\s*---\r?\n(.*?\r?\n)?---[ \t]*(\r?\n|\Z)", re.DOTALL)
_SHOWN = 120


def plain(text: str, most: int = _SHOWN) -> str:
    """Return a stranger's text such that Markdown and HTML show just its characters, cut after ``most`` of them.

    All but letters, digits and what is harmless where it stands becomes a character reference, which can't open or
    close anything.
    """
    cut = text if len(text) <= most else f"{text[:most]}…"
    shown = "".join(
        character
        if _KEPT.match(cut, index) or (not character.isascii() and character.isprintable())
        else f"&#{ord(character)};"
        for index, character in enumerate(cut)
    )
    return re.sub(r"(?i)(www)\.", r"\1&#46;", shown)  # else it becomes a link by itself


def hub_id(name: str, commit: str | None) -> str | None:
    """Return ``name`` if it is a model on the Hub: written as one, and with a commit, which local folders have not."""
    return name if commit and _HUB_ID.fullmatch(name) else None


def model_link(name: str, commit: str | None) -> str:
    """Return a model's name, linked to the very commit if it is on the Hub; escaped."""
    if hub_id(name, commit) is None:
        return f"{plain(name)} (a local copy)" if commit is None else plain(name)
    return f"[{plain(name)}](https://huggingface.co/{name}/tree/{commit}) at commit `{commit[:12]}`" if commit else ""


def front_matter(data: Mapping[str, str | Sequence[str] | None]) -> str:
    """Return a card's metadata block; what is None is left out.

    JSON's strings and lists are YAML as they are, as long as they are ASCII.
    """
    lines = [f"{key}: {json.dumps(value)}" for key, value in data.items() if value is not None]
    return "\n".join(["---", *lines, "---", ""])


def split(card: str) -> tuple[str, str]:
    """Return (metadata block with its fences, the rest) of a card; the first is empty where there is none."""
    found = _FRONT.match(card)
    return (found[0], card[found.end() :]) if found else ("", card)


def own_words(existing: str | None) -> str:
    """Return what the author wrote in a card: between the markers, or all of it where there are none."""
    if not existing:
        return ""
    begin, end = existing.find(YOURS_BEGIN), existing.rfind(YOURS_END)
    if begin < 0 or end < begin:
        return split(existing)[1].strip("\n")
    return existing[begin + len(YOURS_BEGIN) : end].strip("\n")
