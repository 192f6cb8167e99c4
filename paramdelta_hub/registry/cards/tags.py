"""The tags and metadata by which deltas are found on the Hub: written to cards, and used in searches."""

from __future__ import annotations

from collections.abc import Iterable

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
    "tag_value",
]

LIBRARY = "paramdelta-hub"
"""The ``library_name`` of every card."""

TAG = "paramdelta"
"""A tag that every delta has, and nothing else. A search for it finds only deltas."""

FACTS_KEY = "paramdelta"
"""The metadata key of :func:`card_facts`. A search shows these facts without a download."""

FINGERPRINT_PREFIX = "paramdelta-fp-"
BASE_PREFIX = "base_model:"
"""The Hub derives these tags from a card's ``base_model``, and also ``base_model:adapter:org/name``."""

LICENSE_PREFIX = "license:"
_DIGITS = 16


def fingerprint_tag(fingerprint: str) -> str:
    """Return the tag of an architecture: 64 bits of its fingerprint. A match is then compared in full."""
    return FINGERPRINT_PREFIX + fingerprint[:_DIGITS]


def base_tag(base: str) -> str:
    """Return the tag that the Hub gives every repository with ``base_model: base``."""
    return BASE_PREFIX + base


def tag_value(tags: Iterable[str], prefix: str) -> str | None:
    """Return what follows ``prefix`` in the first tag that begins with it, without tags of the form ``a:b:value``."""
    return next((tag.removeprefix(prefix) for tag in tags if tag.startswith(prefix) and tag.count(":") < 2), None)


def card_facts(manifest: Manifest, package_id: str) -> dict[str, str | int]:
    """Return the facts of a card's metadata under ``paramdelta``. Readers show them, but never trust them."""
    return {
        "id": package_id,
        "name": manifest.name,
        "version": manifest.version,
        "base": manifest.base.name,
        "post": manifest.post.name,
        "fingerprint": manifest.architecture.fingerprint,
        "bytes": manifest.nbytes,
    }
