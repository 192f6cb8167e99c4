"""The version, in a module without imports so that every other may have it."""

from __future__ import annotations

__all__ = ["CREATED_BY", "VERSION"]

VERSION = "0.1.0"
CREATED_BY = f"paramdelta-hub {VERSION}"
