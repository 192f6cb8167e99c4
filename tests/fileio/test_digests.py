"""What names bytes: the digest of values is BLAKE3, whoever computes it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from paramdelta_hub.errors import IntegrityError
from paramdelta_hub.fileio.digests import ChunkDigests, check_digest, chunk_digest, tensor_digest
from tests.support import blake3_numpy


def test_nothing_has_the_digest_that_blake3s_own_vectors_give_it() -> None:
    digest = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert chunk_digest(b"").hex() == tensor_digest(b"") == digest
    assert blake3_numpy.blake3(b"").hex() == digest


@given(size=st.integers(0, 20_000), seed=st.integers(0, 255), cuts=st.lists(st.integers(0, 20_000), max_size=4))
@example(size=1024, seed=0, cuts=[])
@example(size=1025, seed=1, cuts=[1024])
@example(size=3 * 1024, seed=2, cuts=[64, 1024])
@example(size=7 * 1024 + 65, seed=3, cuts=[1])
def test_the_digest_is_that_of_an_implementation_from_the_paper(size: int, seed: int, cuts: list[int]) -> None:
    content = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    expected = blake3_numpy.blake3(content.tobytes())
    assert chunk_digest(content) == chunk_digest(content.tobytes()) == expected
    digests, places = ChunkDigests(1), [0, *sorted(min(cut, size) for cut in cuts), size]
    for start, end in itertools.pairwise(places):
        digests.update(content[start:end])
    assert digests.finish() == (expected if size else b"")


@given(size=st.integers(0, 500), itemsize=st.sampled_from([1, 2, 8]), cuts=st.lists(st.integers(0, 4000), max_size=6))
@example(size=21, itemsize=2, cuts=[])
@example(size=14, itemsize=1, cuts=[7])
def test_a_tensor_has_the_digest_of_its_chunks_digests(size: int, itemsize: int, cuts: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("paramdelta_hub.fileio.digests.CHUNK_ELEMENTS", 7)
        content = np.arange(size * itemsize).astype(np.uint8)
        digests, places = ChunkDigests(itemsize), sorted({0, *(min(cut, content.size) for cut in cuts), content.size})
        for start, end in itertools.pairwise(places):
            digests.update(content[start:end])
        found = digests.finish()
    whole = content.tobytes()
    chunks = [whole[start : start + 7 * itemsize] for start in range(0, len(whole), 7 * itemsize)]
    assert found == b"".join(map(blake3_numpy.blake3, chunks))
    assert tensor_digest(found) == blake3_numpy.blake3(found).hex()


def test_two_digests_that_differ_are_told_of() -> None:
    check_digest("a" * 64, "a" * 64, "it")
    with pytest.raises(IntegrityError, match="it has the digest aaaaaaaaaaaaaaaa…, but the manifest promises bbbb"):
        check_digest("a" * 64, "b" * 64, "it", "somewhere")
