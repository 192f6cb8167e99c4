"""The version, in a module without imports so that every other may have it."""

from __future__ import annotations

__all__ = ["CREATED_BY", "__version__"]

__version__ = "0.1.0"
CREATED_BY = f"paramdelta-hub {__version__}"
