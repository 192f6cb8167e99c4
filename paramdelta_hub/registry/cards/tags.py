"""The words by which deltas are found on the Hub: what a card says, and what a search asks for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from paramdelta_hub.package.manifest import Manifest

__all__ = [
    "BASE_PREFIX",
    "FACTS_KEY",
    "FINGERPRINT_PREFIX",
    "LIBRARY",
    "LICENSE_PREFIX",
    "TAG",
    "base_tag",
    "card_facts",
    "fingerprint_tag",
    "tagged",
]

LIBRARY = "paramdelta-hub"
"""``library_name`` of every card."""

TAG = "paramdelta"
"""On every delta, and on nothing else: a search for it finds deltas only."""

FACTS_KEY = "paramdelta"
"""Key of a card's metadata that holds :func:`card_facts`, so that a search can show them without a download."""

FINGERPRINT_PREFIX = "paramdelta-fp-"
BASE_PREFIX = "base_model:"
"""The Hub makes these tags itself, of a card's ``base_model``: also ``base_model:adapter:org/name``."""

LICENSE_PREFIX = "license:"
_DIGITS = 16


def fingerprint_tag(fingerprint: str) -> str:
    """Return the tag of an architecture: 64 bits of its fingerprint, enough to find it; a match is judged in full."""
    return FINGERPRINT_PREFIX + fingerprint[:_DIGITS]


def base_tag(base: str) -> str:
    """Return the tag that every repository with ``base_model: base`` has on the Hub."""
    return BASE_PREFIX + base


def tagged(tags: Iterable[str], prefix: str) -> str | None:
    """Return what follows ``prefix`` in the first tag that begins with it and has no further kind before its value."""
    return next((tag.removeprefix(prefix) for tag in tags if tag.startswith(prefix) and tag.count(":") < 2), None)


def card_facts(manifest: Manifest, package_id: str) -> dict[str, Any]:
    """Return what a card's metadata holds under ``paramdelta``: plain values, to be shown and never to be trusted."""
    return {
        "id": package_id,
        "name": manifest.name,
        "version": manifest.version,
        "base": manifest.base.name,
        "post": manifest.post.name,
        "fingerprint": manifest.architecture.fingerprint,
        "bytes": manifest.nbytes,
    }
