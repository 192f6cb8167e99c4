"""Small chunks, so that small tensors have many of them."""

from __future__ import annotations

import pytest

from paramdelta_hub.checkpoints import stored, tensor_sources
from paramdelta_hub.fileio import digests
from paramdelta_hub.package import chunks, manifest, tensor_delta
from paramdelta_hub.transforms import decoded_delta, encode, requantize


def set_chunk_elements(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    """Cut tensors into chunks of so many elements, everywhere."""
    for module in (stored, tensor_sources, digests, chunks, manifest, tensor_delta, encode, requantize, decoded_delta):
        monkeypatch.setattr(module, "CHUNK_ELEMENTS", elements)
