"""Text of ours in the card of somebody else: a section between two markers. What is outside of them is never touched.

A section that was added and is cut out again leaves the card as it was, to the byte.
"""

from __future__ import annotations

import re

from paramdelta_hub.errors import SourceError
from paramdelta_hub.registry.cards.front_matter import line_end, split

__all__ = ["append_section", "cut_section", "find_section"]


def find_section(card: str, begin: str, end: str, where: str) -> tuple[int, int] | None:
    """Return where a section is, with its markers; None if there is none. ``begin`` is a regular expression.

    Raises:
        SourceError: the markers are not one pair.
    """
    at = len(split(card)[0])
    begins, ends = (
        [at + found.start() for found in re.finditer(marker, card[at:])] for marker in (begin, re.escape(end))
    )
    if not begins and not ends:
        return None
    if len(begins) != 1 or len(ends) != 1 or ends < begins:
        raise SourceError(
            "the card must hold exactly one pair of paramdelta markers, or none",
            where=where,
            remedy=f"delete the markers, which end with a line of {end}",
        )
    return begins[0], ends[0] + len(end)


def append_section(card: str, section: str) -> str:
    """Return the card with a section at its end, below a blank line. It ends in a line end if the card did."""
    end = line_end(card)
    if not card.removeprefix("\ufeff"):
        return card + section + end
    return f"{card}{end}{section}{end}" if card.endswith(end) else f"{card}{end}{end}{section}"


def cut_section(card: str, span: tuple[int, int]) -> str:
    """Return the card without a section, and without the blank line that was added above it."""
    before, after, end = card[: span[0]], card[span[1] :], line_end(card)
    if after == "" and before.endswith(end * 2):
        return before.removesuffix(end * 2)
    after = after.removeprefix(end)
    if before.endswith(end * 2) and (not after or after.startswith(end)):
        return before.removesuffix(end) + after
    return before + after
