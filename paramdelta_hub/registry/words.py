"""What a search by words looks at: the same in every registry."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

__all__ = ["has_words"]


def has_words(query: str | None, texts: Iterable[str | None]) -> bool:
    """Whether every word of a query, or part of a word, is in one of the texts. Case does not count."""
    folded = "\n".join(_fold(text) for text in texts if text)
    return all(word in folded for word in _fold(query or "").split())


def _fold(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
