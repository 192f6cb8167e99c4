"""The part of a delta's card that is generated, between two markers. Everything outside of them is its author's.

The first marker has the digest of the part, so that an edit of it is noticed before it is replaced.
"""

from __future__ import annotations

import hashlib
import re

from paramdelta_hub.registry.cards.front_matter import line_end, split
from paramdelta_hub.registry.cards.sections import append_section, cut_section, find_section

__all__ = ["END", "own_text", "with_generated", "without_generated"]

END = "<!-- delta:end -->"
_BEGIN = r"<!-- delta:begin ([0-9a-f]{16}): [^<>]* -->"
_HINT = "written again for every version; your own text goes above or below this part, and stays"


def with_generated(card: str, text: str, where: str) -> tuple[str, bool]:
    """Return a card with the generated part, where the old one was or at the end, and whether that was edited by hand.

    Raises:
        SourceError: the markers are not one pair.
    """
    end = line_end(card)
    part = f"<!-- delta:begin {_digest(text)}: {_HINT} -->\n{text}\n{END}".replace("\n", end)
    span = find_section(card, _BEGIN, END, where)
    if span is None:
        return append_section(card, part), False
    return card[: span[0]] + part + card[span[1] :], _is_edited(card[slice(*span)])


def without_generated(card: str, where: str) -> str:
    """Return a card without the generated part.

    Raises:
        SourceError: the markers are not one pair.
    """
    span = find_section(card, _BEGIN, END, where)
    return card if span is None else cut_section(card, span)


def own_text(card: str, where: str) -> str:
    """Return the author's text: all but the metadata and the generated part.

    Raises:
        SourceError: the markers are not one pair.
    """
    return split(without_generated(card, where))[1]


def _is_edited(part: str) -> bool:
    begin, _, text = "\n".join(part.splitlines()).removesuffix(f"\n{END}").partition("\n")
    found = re.fullmatch(_BEGIN, begin)
    return found is None or found[1] != _digest(text)


def _digest(text: str) -> str:
    """Return a digest that does not depend on line ends, which editors change, and blanks before them."""
    return hashlib.sha256("\n".join(line.rstrip() for line in text.splitlines()).encode()).hexdigest()[:16]
