"""Values ↔ streams: how one chunk of a tensor becomes bytes.

A codec knows neither files nor shards. It is registered by its name, which stands in the manifest, so a name never
changes meaning.

    tans      the exact difference of floats, in the wide type       added tensors
    planes    byte planes, each compressed on its own                replaced tensors
    raw       the values as they are                                 replaced tensors that do not compress

``zero`` (a tensor without a payload) is none: there is nothing to code. Here are the names alone, which is all that
most commands need; the codecs are in :mod:`~paramdelta_hub.codecs.by_name`.
"""

from __future__ import annotations

__all__ = ["CODECS", "ZERO"]

ZERO = "zero"
"""The codec name of a tensor that base and post have in common."""
CODECS = {"add": ("tans",), "replace": ("planes", "raw")}
"""The names of the codecs that a tensor with a payload may have, by its effect."""
