"""Layouts, tables and payloads: what a shard's bytes mean, and what they can't."""

from __future__ import annotations

import itertools
import math
import os
import random
from dataclasses import replace
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
from paramdelta_hub.package.chunk_table import make_table
from paramdelta_hub.package.chunks import Layout, chunk_ranges, decode_added, decode_replaced
from paramdelta_hub.package.shard import ShardWriter
from paramdelta_hub.package.tensor_delta import PayloadReader, StoredPart

SIZES = [0, 1, CHUNK_ELEMENTS - 1, CHUNK_ELEMENTS, CHUNK_ELEMENTS + 1, 5 * CHUNK_ELEMENTS]


def layout(codec: str = "tans", dtype: str = "BF16", chunks: int = 1, added: bool = True) -> Layout:
    return Layout(codec, dtype, chunks, added)


@pytest.mark.parametrize("parts", [1, 2, 3, 100])
@pytest.mark.parametrize("elements", SIZES)
def test_parts_cover_a_tensor(elements: int, parts: int) -> None:
    ranges = chunk_ranges(elements, parts)
    assert len(ranges) == max(1, min(parts, math.ceil(elements / CHUNK_ELEMENTS)))
    assert sum(count for _, count in ranges) == elements
    assert [first for first, _ in ranges] == list(itertools.accumulate((n for _, n in ranges[:-1]), initial=0))
    assert all(first % CHUNK_ELEMENTS == 0 for first, _ in ranges)


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
    assert layout(codec, dtype, 1, added).columns == columns


def table(rows: list[list[int]]) -> np.ndarray:
    return np.frombuffer(make_table(rows, [bytes([number]) * 32 for number in range(len(rows))]), np.uint8)


def test_a_table_that_adds_up() -> None:
    cut = layout("raw", "U8", 2, added=False)
    rows = table([[CHUNK_ELEMENTS], [5]])
    assert rows.size == cut.table_bytes == 2 * (4 + 32)
    assert bytes(rows) == b"\0\0\x10\0" + bytes(32) + b"\5\0\0\0" + b"\1" * 32, "part of the format for ever"
    lengths, digests = cut.parse_table(rows, CHUNK_ELEMENTS + 5 + 72, "shard")
    assert lengths.tolist() == [[CHUNK_ELEMENTS], [5]]
    assert digests == [bytes(32), b"\1" * 32]
    for nbytes in (0, 72, CHUNK_ELEMENTS + 76, CHUNK_ELEMENTS + 78, 2**62):
        with pytest.raises(PackageError, match="does not add up"):
            cut.parse_table(rows, nbytes, "shard")


def test_a_chunk_that_is_impossibly_large() -> None:
    cut = layout("raw", "U8", 1, added=False)
    most = cut.max_chunk_bytes
    cut.parse_table(table([[most]]), most + 36, "shard")
    with pytest.raises(PackageError, match="impossibly large"):
        cut.parse_table(table([[most + 1]]), most + 37, "shard")
    with pytest.raises(PackageError, match="impossibly large"):
        cut.parse_table(table([[2**32 - 1]]), 2**32 + 35, "shard")


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_the_largest_honest_chunk_is_possible(dtype: str) -> None:
    """Incompressible values, each with an exception, coded as large as the codecs can make them."""
    kind, random_ = FLOATS[dtype], np.random.default_rng(0)

    def noise(kind_: np.dtype) -> np.ndarray:  # type: ignore[type-arg]
        return np.frombuffer(random_.bytes(CHUNK_ELEMENTS * kind_.itemsize), kind_)

    sparse = sum(map(len, encode_sparse(np.arange(CHUNK_ELEMENTS), noise(kind.bits))))
    size = sum(map(len, TANS.encode(noise(kind.wide)))) + sparse + 32
    assert size <= layout("tans", dtype).max_chunk_bytes
    for name, codec in REPLACING.items():
        size = sum(map(len, codec.encode(noise(kind.bits))))
        assert size <= layout(name, f"U{8 * kind.itemsize}", added=False).max_chunk_bytes, name


def test_exceptions_and_the_digest_go_together() -> None:
    cut = layout("tans", "BF16")
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
    decode_replaced(layout("raw", "I64", added=False), [bytes(range(16))], out)
    assert out.tolist() == [0x0706050403020100, 0x0F0E0D0C0B0A0908]
    with pytest.raises(PackageError):
        decode_replaced(layout("raw", "I64", added=False), [bytes(15)], out)


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
    tables = {
        "a": np.array([2, 3], "<u4").tobytes() + blake3(b"12345").digest(),
        "b": b"".join(
            np.array(lengths, "<u4").tobytes() + blake3(chunk).digest()
            for lengths, chunk in (([1, 0], b"6"), ([0, 1], b"7"))
        ),
    }
    assert contents == {"a": b"12345" + tables["a"], "b": b"67" + tables["b"]}
    for name, (nbytes, digest) in found.items():
        assert (nbytes, digest) == (len(contents[name]), blake3(tables[name]).hexdigest())


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
    path, cut = tmp_path / "x", layout("raw", "U8", 2, added=False)
    ((nbytes, digest),) = shard(path, {"a": [[b"1234567"], [b"89"]]}).values()
    start = path.stat().st_size - nbytes
    part = StoredPart(2, "raw", str(path), start, nbytes, digest)
    descriptor = os.open(path, os.O_RDWR)
    try:
        reader = PayloadReader(descriptor, part, cut, "tensor 'a'")
        for index, content in ((0, b"1234567"), (1, b"89"), (0, b"1234567")):
            assert [bytes(stream) for stream in reader.chunk(index)] == [content]
        os.pwrite(descriptor, b"x", start + 8)
        assert [bytes(stream) for stream in reader.chunk(0)] == [b"1234567"]
        with pytest.raises(IntegrityError, match="a chunk of tensor 'a' has the digest"):
            reader.chunk(1)
        with pytest.raises(IntegrityError, match="the chunk table of tensor 'a' has the digest"):
            PayloadReader(descriptor, replace(part, digest="0" * 64), cut, "tensor 'a'")
        for bad in (
            replace(part, nbytes=3),
            replace(part, nbytes=0),
            replace(part, start=start + 1),
            replace(part, start=start - 1),
            replace(part, start=10**9),
        ):
            with pytest.raises(PackageError):
                PayloadReader(descriptor, bad, cut, "tensor 'a'")
    finally:
        os.close(descriptor)
