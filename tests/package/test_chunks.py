"""Layouts, tables and payloads: what a shard's bytes mean, and what they can't."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

from paramdelta_hub.codecs import frames
from paramdelta_hub.codecs.by_name import REPLACING, TANS
from paramdelta_hub.codecs.sparse import encode_sparse
from paramdelta_hub.errors import IntegrityError, PackageError
from paramdelta_hub.limits import CHUNK_ELEMENTS
from paramdelta_hub.numerics.floats import FLOATS
from paramdelta_hub.package.chunks import Layout, decode_added, decode_replaced
from paramdelta_hub.package.shard import ShardWriter
from paramdelta_hub.package.tensor_delta import PayloadReader

SIZES = [0, 1, CHUNK_ELEMENTS - 1, CHUNK_ELEMENTS, CHUNK_ELEMENTS + 1, 5 * CHUNK_ELEMENTS]


def layout(codec: str = "tans", dtype: str = "BF16", elements: int = 10, added: bool = True) -> Layout:
    return Layout(codec, dtype, elements, added)


@pytest.mark.parametrize("elements", SIZES)
def test_chunks_cover_a_tensor(elements: int) -> None:
    cut = layout(elements=elements)
    assert cut.chunks == math.ceil(elements / CHUNK_ELEMENTS)
    spans = [cut.chunk(index) for index in range(cut.chunks)]
    assert sum(span.stop - span.start for span in spans) == elements
    assert [span.start for span in spans] == [index * CHUNK_ELEMENTS for index in range(cut.chunks)]
    assert cut.table_bytes == cut.chunks * cut.columns * 4


@pytest.mark.parametrize(
    ("codec", "dtype", "added", "columns"),
    [
        ("tans", "BF16", True, 2 + 3 + 1),
        ("tans", "F16", True, 2 + 3 + 1),
        ("tans", "F32", True, 2 + 5 + 1),
        ("planes", "I64", False, 8),
        ("planes", "I16", False, 2),
        ("planes", "U8", False, 1),
        ("raw", "BOOL", False, 1),
        ("raw", "I64", False, 1),
    ],
)
def test_columns(codec: str, dtype: str, added: bool, columns: int) -> None:
    """Part of the format for ever."""
    assert layout(codec, dtype, 10, added).columns == columns


def table(cut: Layout, rows: list[list[int]]) -> np.ndarray:
    return np.frombuffer(np.array(rows, "<u4").tobytes(), np.uint8)


def test_a_table_that_adds_up() -> None:
    cut = layout("raw", "U8", CHUNK_ELEMENTS + 5, added=False)
    found = cut.parse_table(table(cut, [[CHUNK_ELEMENTS], [5]]), CHUNK_ELEMENTS + 5 + 8, "shard")
    assert found.tolist() == [[CHUNK_ELEMENTS], [5]]
    for nbytes in (0, 8, CHUNK_ELEMENTS + 12, CHUNK_ELEMENTS + 14, 2**62):
        with pytest.raises(PackageError, match="does not add up"):
            cut.parse_table(table(cut, [[CHUNK_ELEMENTS], [5]]), nbytes, "shard")


def test_a_chunk_that_is_impossibly_large() -> None:
    cut = layout("raw", "U8", 100, added=False)
    most = cut.max_chunk_bytes
    cut.parse_table(table(cut, [[most]]), most + 4, "shard")
    with pytest.raises(PackageError, match="impossibly large"):
        cut.parse_table(table(cut, [[most + 1]]), most + 5, "shard")
    with pytest.raises(PackageError, match="impossibly large"):
        cut.parse_table(table(cut, [[2**32 - 1]]), 2**32 + 3, "shard")


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_the_largest_honest_chunk_is_possible(dtype: str) -> None:
    """Incompressible values, each with an exception, coded as large as the codecs can make them."""
    kind, random_ = FLOATS[dtype], np.random.default_rng(0)

    def noise(kind_: np.dtype) -> np.ndarray:  # type: ignore[type-arg]
        return np.frombuffer(random_.bytes(CHUNK_ELEMENTS * kind_.itemsize), kind_)

    sparse = sum(map(len, encode_sparse(np.arange(CHUNK_ELEMENTS), noise(kind.bits))))
    size = sum(map(len, TANS.encode(noise(kind.wide)))) + sparse + 32
    assert size <= layout("tans", dtype, CHUNK_ELEMENTS).max_chunk_bytes
    for name, codec in REPLACING.items():
        size = sum(map(len, codec.encode(noise(kind.bits))))
        assert size <= layout(name, f"U{8 * kind.itemsize}", CHUNK_ELEMENTS, added=False).max_chunk_bytes, name


def test_exceptions_and_the_digest_go_together() -> None:
    cut = layout("tans", "BF16", 3)
    values = np.array([1.5, -0.0, 2.5e-30], np.float32)
    streams, exception = TANS.encode(values), [frames.compress(b"\0"), frames.compress(b"\1"), b""]
    chunk = decode_added(cut, [*streams, *exception, bytes(32)], 3)
    assert chunk.delta.values(np.empty(3, np.float32)).tobytes() == values.tobytes()
    assert (chunk.exceptions.tolist(), chunk.exact.tolist(), chunk.base_digest) == ([0], [1], bytes(32))
    for bad in ([*exception, b""], [*exception, bytes(31)], [*exception, bytes(33)], [b"", b"", b"", bytes(32)]):
        with pytest.raises(PackageError, match="do not go together"):
            decode_added(cut, [*streams, *bad], 3)


def test_replaced_chunks() -> None:
    out = np.empty(2, np.uint64)
    decode_replaced(layout("raw", "I64", 2, added=False), [bytes(range(16))], out)
    assert out.tolist() == [0x0706050403020100, 0x0F0E0D0C0B0A0908]
    with pytest.raises(PackageError):
        decode_replaced(layout("raw", "I64", 2, added=False), [bytes(15)], out)


def shard(path: Path, payloads: dict[str, list[list[bytes]] | None]) -> dict[str, tuple[int, str]]:
    """Write payloads, given chunk by chunk; None is begun and dropped."""
    writer, found = ShardWriter(path, list(payloads)), {}
    for name, chunks in payloads.items():
        payload = writer.payload(name)
        for streams in chunks or [[b"to be dropped" * 50]]:
            payload.append(streams)
        if chunks is None:
            payload.drop()
        else:
            found[name] = payload.finish()
    writer.close()
    return found


def test_a_shard_of_payloads(tmp_path: Path) -> None:
    from safetensors import safe_open

    path = tmp_path / "x.safetensors"
    found = shard(path, {"a": [[b"12", b"345"]], "dropped": None, "b": [[b"6", b""], [b"", b"7"]]})
    with safe_open(path, "np") as file:
        assert file.metadata() == {"format": "paramdelta", "format_version": "1"}
        assert set(file.keys()) == {"a", "b"}
        contents = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
    assert contents["a"] == b"12345" + np.array([2, 3], "<u4").tobytes()
    assert contents["b"] == b"67" + np.array([1, 0, 0, 1], "<u4").tobytes()
    for name, (nbytes, digest) in found.items():
        assert (nbytes, digest) == (len(contents[name]), blake3(contents[name]).hexdigest())


def test_a_shard_without_payloads_is_no_file(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "x", ["a"])
    writer.payload("a").drop()
    assert writer.close() == 0
    assert not (tmp_path / "x").exists()


def test_names_of_any_length_leave_room_for_the_header(tmp_path: Path) -> None:
    source = random.Random(0)
    for count in (1, 2, 50):
        names = ["".join(source.choices("aé模😀.", k=source.randint(1, 300))) + str(number) for number in range(count)]
        found = shard(tmp_path / "x", {name: [[b"x" * source.randint(1, 2000)]] for name in names})
        assert list(found) == names


def test_reading_a_payload_back(tmp_path: Path) -> None:
    path, cut = tmp_path / "x", layout("raw", "U8", 7, added=False)
    ((nbytes, digest),) = shard(path, {"a": [[b"1234567"]]}).values()
    start = path.stat().st_size - nbytes
    descriptor = os.open(path, os.O_RDONLY)
    try:
        reader = PayloadReader(descriptor, start, nbytes, cut, "it")
        assert [bytes(stream) for stream in reader.next_chunk()] == [b"1234567"]
        reader.finish(digest, "a")
        reader = PayloadReader(descriptor, start, nbytes, cut, "it")
        with pytest.raises(AssertionError):
            reader.finish(digest, "a")
        reader.next_chunk()
        with pytest.raises(IntegrityError, match="payload of tensor 'a'"):
            reader.finish("0" * 64, "a")
        for bad_start, bad_nbytes in (
            (start, 3),
            (start, 0),
            (start + 1, nbytes),
            (start - 1, nbytes),
            (10**9, nbytes),
        ):
            with pytest.raises(PackageError):
                PayloadReader(descriptor, bad_start, bad_nbytes, cut, "it")
    finally:
        os.close(descriptor)
