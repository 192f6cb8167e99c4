"""Small chunks, so that small tensors have many of them."""

from __future__ import annotations

import pytest

from paramdelta_hub.checkpoints import tensor_sources
from paramdelta_hub.package import chunks
from paramdelta_hub.transforms import arranged, encode, requantize
from paramdelta_hub.transforms import sum as tensor_sum


def set_chunk_elements(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    """Cut tensors into chunks of so many elements, everywhere."""
    for module in (tensor_sources, chunks, encode, tensor_sum, requantize, arranged):
        monkeypatch.setattr(module, "CHUNK_ELEMENTS", elements)
