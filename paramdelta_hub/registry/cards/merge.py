"""What an author wrote in two places: on the card that is published, and in the README.md of the package's folder."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from paramdelta_hub.errors import OptionError
from paramdelta_hub.registry.cards.card import FACTS_KEY, FINGERPRINT_PREFIX, LIBRARY, TAG
from paramdelta_hub.registry.cards.front_matter import (
    Change,
    Items,
    Lines,
    change_metadata,
    entries,
    line_end,
    metadata,
    split,
)
from paramdelta_hub.registry.cards.generated import own_text, without_generated

__all__ = ["card_diff", "edits", "merge_cards"]


def merge_cards(published: str | None, own: str | None, repo: str, where: str, replace_edits: bool) -> str | None:
    """Return the published card with what ``own``, the card in the package's folder, adds to it; or the one there is.

    ``repo`` and ``where`` say where the two are, for messages.

    Keys that only one of them has are kept, and so are all members of their tags and base models. Of two texts, the
    one that has all lines of the other is kept.

    Raises:
        SourceError: a card's metadata or markers can't be read.
        OptionError: the two differ otherwise, and ``replace_edits`` is not set, which takes ``own``.
    """
    if not published or not own or published == own:
        return published or own
    changes = dict(_changes(published, own, repo, where))
    before = metadata(published, repo)
    ours = _ours(before)
    replaced = [key for key, change in changes.items() if isinstance(change, Lines) and key in before]
    lost = [key for key in replaced if key not in ours or before[key] != ours[key]]
    card = published
    text, own_words = own_text(published, repo), own_text(own, where)
    if not _lines(own_words) <= _lines(text):
        if not _lines(text) <= _lines(own_words):
            lost.append("text")
        (block, _), (own_block, rest) = split(published), split(own)
        missing = [not block.endswith(("\n", "\r")), not own_block]  # the line end of the block, and a blank line
        card = block + line_end(block) * sum(missing) * bool(block) + rest
    if lost and not replace_edits:
        raise OptionError(
            f"the published card and the README.md in the package's folder have different {' and '.join(lost)}",
            where=repo,
            remedy="make them agree, or delete the README.md to keep the published card, or give --replace-edits to"
            " replace it",
        )
    return change_metadata(card, changes, repo)


def edits(before: str, after: str, repo: str) -> str:
    """Return how the author's part of a card changes, as a unified diff; empty if it does not.

    Raises:
        SourceError: a card's metadata or markers can't be read.
    """
    parts = (change_metadata(without_generated(card, repo), {FACTS_KEY: None}, repo) for card in (before, after))
    old, new = (part.splitlines() for part in parts)
    return "\n".join(difflib.unified_diff(old, new, f"{repo}/README.md", f"{repo}/README.md", n=1, lineterm=""))


def card_diff(before: str, after: str, repo: str) -> str:
    """Return how a card changes, as a unified diff; empty if it does not."""
    old, new = (text.splitlines(keepends=True) for text in (before, after))
    lines = difflib.unified_diff(old, new, f"{repo}/README.md", f"{repo}/README.md")
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


def _changes(published: str, own: str, repo: str, where: str) -> Iterator[tuple[str, Change]]:
    """Yield what ``own`` has in its metadata that is neither ours nor in the published card."""
    there = {entry.key: entry for entry in entries(published, repo)}
    mine = metadata(own, where)
    facts, ours = _facts(mine), _ours(mine)
    for entry in entries(own, where):
        key, other = entry.key, there.get(entry.key)
        if key is None or key == FACTS_KEY or (key in ours and entry.value == ours[key]):
            continue
        if key in ("tags", "base_model") and not isinstance(entry.value, dict):
            members = entry.value if isinstance(entry.value, list) else [entry.value]
            new = [member for member in members if isinstance(member, str)]
            kept = [text for text in new if text not in (TAG, facts.get("base")) and FINGERPRINT_PREFIX not in text]
            yield key, Items(kept)
        elif other is None or not entry.same(other):
            yield key, Lines(entry)


def _facts(data: Mapping[str, Any]) -> Mapping[str, Any]:
    facts = data.get(FACTS_KEY)
    return facts if isinstance(facts, dict) else {}


def _ours(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a card that are not its author's."""
    facts = _facts(data)
    license_ = facts.get("license", facts.get("inherited"))
    ours: dict[str, Any] = {"library_name": LIBRARY, "base_model_relation": "adapter"}
    if license_ is not None and license_ == data.get("license"):
        ours |= {"license": license_, "license_name": data.get("license_name")}
    return ours


def _lines(text: str) -> set[str]:
    return {line.strip() for line in text.splitlines() if line.strip()}
