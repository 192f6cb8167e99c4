"""The identity: little-endian bytes, as many as the values have."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from paramdelta_hub.codecs.by_name import REPLACING
from paramdelta_hub.errors import PackageError
from paramdelta_hub.limits import CHUNK_ELEMENTS
from tests.codecs.roundtrips import roundtrip
from tests.codecs.symbols import KINDS, TYPES, chunk

CODEC = REPLACING["raw"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("itemsize", TYPES)
def test_roundtrip(itemsize: int, kind: str) -> None:
    for size in (1, 2, 255, 257, 4095):
        assert roundtrip("raw", chunk(kind, size, itemsize)) == [chunk(kind, size, itemsize).tobytes()]


@pytest.mark.parametrize("itemsize", TYPES)
def test_roundtrip_of_a_whole_chunk(itemsize: int) -> None:
    roundtrip("raw", chunk("uniform", CHUNK_ELEMENTS, itemsize))


@settings(max_examples=50)
@given(data=st.data(), itemsize=st.sampled_from(list(TYPES)))
def test_roundtrip_of_any_values(data: st.DataObject, itemsize: int) -> None:
    roundtrip("raw", data.draw(arrays.arrays(TYPES[itemsize], st.integers(1, 600))))


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_bytes_are_little_endian(order: str) -> None:
    values = np.array([0x1234, 0x1234, 0xABCD], order)
    assert CODEC.encode(values) == [b"\x34\x12\x34\x12\xcd\xab"]
    out = np.zeros(3, order)
    CODEC.decode([b"\x34\x12\x34\x12\xcd\xab"], out)
    assert np.array_equal(out, values)


@pytest.mark.parametrize("wrong", [0, 1, 3, 5, 7, 9, 16])
def test_another_length_is_refused(wrong: int) -> None:
    with pytest.raises(PackageError, match=f"holds {wrong} bytes instead of 8"):
        CODEC.decode([bytes(wrong)], np.empty(4, np.uint16))
