"""Little on disk that wants much memory: frames, tables, shapes and files that claim, or really hold, gigabytes.

Every attempt runs in a process of its own, forked from one that has done the same with an honest package of the same
size, and measures by how much its memory grew beyond that.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

import paramdelta_hub as pd
from paramdelta_hub.codecs import frames
from paramdelta_hub.limits import CHUNK_ELEMENTS, MIB
from paramdelta_hub.package.chunks import Layout
from tests.attacks.outcomes import change_manifest, joined, replace_payload, shard_of, split
from tests.attacks.threats import shows
from tests.conftest import Family

NAME = "model.layers.0.mlp.weight"
GROWTH = (CHUNK_ELEMENTS * 2 >> 20) + 64
"""MiB: a chunk of 16-bit weights, and 64."""
HUGE, SPARSE = 2 << 30, 1 << 29

_MEASURE = """
import json, os, sys
import paramdelta_hub as pd
def high_water():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) >> 10
def attempt(delta, out):
    told = []
    for run in (lambda: pd.inspect(delta), lambda: pd.verify(delta, threads=1), lambda: pd.apply(model, delta, out, threads=1)):
        try: run(); told.append(None)
        except pd.ParamdeltaError as error: told.append(error.kind)
    return told
model, honest, out, *hostile = sys.argv[1:]
for number in range(2): attempt(honest, f"{out}/{number}")
for delta in hostile:
    if (child := os.fork()):
        assert os.waitpid(child, 0)[1] == 0
        continue
    open("/proc/self/clear_refs", "w").write("5")
    before = high_water()
    told = attempt(delta, f"{out}/hostile")
    print(json.dumps([delta, high_water() - before, told]), flush=True)
    os._exit(0)
"""  # noqa: E501


def bomb() -> bytes:
    """Return a whole, checksummed frame of 2 GiB of zeros in some 64 KiB."""
    compressor = zstandard.ZstdCompressor(write_checksum=True).compressobj(size=HUGE)
    return b"".join([*(compressor.compress(bytes(1 << 24)) for _ in range(HUGE >> 24)), compressor.flush()])


def lying_bomb(size: int) -> bytes:
    """Return a frame that declares ``size`` bytes and holds 200 MiB."""
    frame = bytearray(frames.compress(bytes(200 * MIB)))
    at = frame.index((200 * MIB).to_bytes(4, "little"))
    assert at < 10
    frame[at : at + 4] = size.to_bytes(4, "little")
    return bytes(frame)


def in_stream(column: int, make: Callable[[], bytes]) -> Callable[[Path], object]:
    """Plant something in the place of a stream of the tensor NAME."""

    def plant(delta: Path) -> None:
        record = next(record for record in pd.inspect(delta).manifest.tensors if record.name == NAME)
        layout = Layout(record.codec, record.dtype, 1, added=True)

        def change(payload: bytes) -> bytes:
            streams, _ = split(payload, layout)
            streams[column] = make()
            return joined(streams)

        replace_payload(delta, NAME, change)

    return plant


def edited(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Change the manifest's record of the tensor NAME, and the totals with it."""

    def plant(delta: Path) -> None:
        def change(manifest: dict[str, Any]) -> None:
            edit(next(tensor for tensor in manifest["tensors"] if tensor["name"] == NAME))
            shapes = [np.prod(tensor["shape"], dtype=object) for tensor in manifest["tensors"]]
            manifest["exactness"]["elements"] = int(sum(shapes))

        change_manifest(delta, change)

    return plant


def a_table_of_gigabytes(delta: Path) -> None:
    """Every length of the chunk table is the largest there is."""

    def change(payload: bytes) -> bytes:
        return payload + b"\xff" * 4 * 12

    replace_payload(delta, NAME, change)


def a_sparse_file(name: str) -> Callable[[Path], object]:
    """Let a file end in half a GiB of nothing, and let the manifest say so."""

    def plant(delta: Path) -> None:
        path = shard_of(delta) if name == "shard" else delta / name

        def change(manifest: dict[str, Any]) -> None:
            for record in (*manifest["shards"], manifest["lineage"]):
                if record["path"] == path.name:
                    record["size"] = SPARSE

        change_manifest(delta, change)
        with path.open("ab") as file:
            file.truncate(SPARSE)

    return plant


def a_header_that_claims(length: int) -> Callable[[Path], object]:
    """Put another header length at the start of the shard, and make all digests fit."""

    def plant(delta: Path) -> None:
        path = shard_of(delta)
        content = path.read_bytes()
        path.write_bytes(struct.pack("<Q", length) + content[8:])

        def change(manifest: dict[str, Any]) -> None:
            manifest["shards"][0]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()

        change_manifest(delta, change)

    return plant


def a_companion(delta: Path) -> None:
    """A config of 200 MiB: one text."""
    content = b'{"x":"' + b"x" * (200 * MIB) + b'"}'
    (delta / "companions").mkdir()
    (delta / "companions" / "tokenizer_config.json").write_bytes(content)
    record = {"path": "companions/tokenizer_config.json", "size": len(content)}
    record["sha256"] = hashlib.sha256(content).hexdigest()
    change_manifest(delta, lambda manifest: manifest["companions"].append(record))


BOMBS: dict[str, Callable[[Path], object]] = {
    **{f"2 GiB of zeros as stream {column}": in_stream(column, bomb) for column in (0, 1, 2, 3)},
    "200 MiB behind 640 bytes": in_stream(0, lambda: lying_bomb(640)),
    "a frame without a size": in_stream(
        0, lambda: zstandard.ZstdCompressor(write_content_size=False, write_checksum=True).compress(bytes(200 * MIB))
    ),
    "a window of 2 TiB": in_stream(
        0, lambda: b"\x28\xb5\x2f\xfd" + bytes([0b11000100, 31 << 3]) + (640).to_bytes(8, "little") + bytes(20)
    ),
    "streams of half a GiB": in_stream(1, lambda: b"\xff" * 12 + bytes(100)),
    "a chunk table of gigabytes": a_table_of_gigabytes,
    "a tensor of 2 TiB": edited(lambda record: record.update(shape=[1 << 40])),
    "a tensor of 2 TiB in a thousand rows": edited(lambda record: record.update(shape=[1 << 10, 1 << 30])),
    "a terabyte of rows": edited(lambda record: record.update(
        shape=[1 << 40], rows={"base": 1 << 40, "runs": [[0, 0, 1 << 39], [1 << 39, None, 1 << 39]]})),
    "a shard of half a GiB": a_sparse_file("shard"),
    "a lineage file of half a GiB": a_sparse_file("lineage.safetensors"),
    "a manifest of half a GiB": a_sparse_file("manifest.json"),
    "a card of half a GiB": a_sparse_file("README.md"),
    "a header of 31 MiB": a_header_that_claims(31 * MIB),
    "a header of 16 EiB": a_header_that_claims((1 << 64) - 1),
    "a config of 200 MiB": a_companion,
}  # fmt: skip


@shows("decompression bombs", f"{len(BOMBS)} packages that claim or hold gigabytes, measured in a process each: memory "
       f"grows by at most a chunk and 64 MiB ({GROWTH} MiB)")  # fmt: skip
@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory(family: Family, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for number, plant in enumerate(BOMBS.values()):
        shutil.copytree(family.delta, tmp_path / str(number))
        plant(tmp_path / str(number))
    places = [tmp_path / str(number) for number in range(len(BOMBS))]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *map(str, (family.base, family.delta, tmp_path / "out", *places))],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    measured = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(measured) == len(BOMBS)
    for case, (_, mebibytes, told) in zip(BOMBS, measured, strict=True):
        assert mebibytes <= GROWTH, case
        # A card is nothing to these commands; verify is content with a config that is what the manifest promises.
        assert (told[2] is None) == ("card" in case), (case, told)
        assert (told[1] is None) == ("card" in case or "config" in case), (case, told)
