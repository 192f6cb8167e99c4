"""What an attack may come to: a refusal with an error of ours, or the very result an untouched package gives."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blake3 import blake3

import paramdelta_hub as pd
from paramdelta_hub.codecs import CODECS
from paramdelta_hub.errors import IntegrityError, ParamdeltaError, SourceError
from paramdelta_hub.package.chunks import Layout
from tests.conftest import Family
from tests.support.models import assert_same, read_weights


def refused_by_verify(delta: Path, error: type[ParamdeltaError] = SourceError, match: str | None = None) -> None:
    """Check that verify refuses the package; the error is about a source, and names a place."""
    with pytest.raises(error, match=match) as caught:
        pd.verify(delta, threads=1)
    assert caught.value.what


def not_vouched_for(delta: Path, name: str) -> None:
    """Check that verify names a file that lies beside the package, and refuses it if it is strict."""
    assert pd.verify(delta, threads=1).beside == (name,)
    with pytest.raises(IntegrityError, match="beside the package, not vouched for"):
        pd.verify(delta, strict=True, threads=1)


def apply_is_safe(
    target: Path, delta: Path, out: Path, expected: dict[str, torch.Tensor], threads: int = 1
) -> ParamdeltaError | None:
    """Apply; return the refusal, or None if the result is just what it would be without the attack."""
    try:
        pd.apply(target, delta, out, threads=threads)
    except ParamdeltaError as error:
        assert not out.exists()
        shutil.rmtree(out.with_name(out.name + ".partial"), ignore_errors=True)
        return error
    assert_same(read_weights(out), expected)
    shutil.rmtree(out)
    return None


def refused_everywhere(
    family: Family, tmp_path: Path, error: type[ParamdeltaError] = SourceError, match: str | None = None
) -> None:
    """Check that verify and apply both refuse, and that apply leaves no result."""
    refused_by_verify(family.delta, error, match)
    refusal = apply_is_safe(family.base, family.delta, tmp_path / "out", {})
    assert isinstance(refusal, error), refusal


def change_manifest(delta: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite the manifest, as anybody can."""
    path = delta / "manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    path.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def shard_of(delta: Path) -> Path:
    """Return the only shard."""
    (shard,) = delta.glob("delta-*.safetensors")
    return shard


def reseal(delta: Path) -> None:
    """Make every digest and size in the manifest fit what lies there, as an attacker who knows the format does."""

    def refresh(manifest: dict[str, Any]) -> None:
        for tensor in manifest["tensors"]:
            for part in tensor["parts"]:
                if part["shard"]:
                    reseal_payload(delta / part["shard"], tensor, part)

    change_manifest(delta, refresh)
    reseal_files(delta)


def reseal_files(delta: Path) -> None:
    """Make the sizes and digests of files fit, and no digest of what is in them."""

    def refresh(manifest: dict[str, Any]) -> None:
        for file in (*manifest["shards"], manifest["lineage"], *manifest["companions"]):
            content = (delta / file["path"]).read_bytes()
            file["size"], file["sha256"] = len(content), hashlib.sha256(content).hexdigest()

    change_manifest(delta, refresh)


def reseal_payload(shard: Path, tensor: dict[str, Any], part: dict[str, Any]) -> None:
    """Make the digests of chunks, as far as the table says where these are, and that of the table fit."""
    content = bytearray(shard.read_bytes())
    header, start = read_shard_header(content)
    begin, end = (start + offset for offset in header[tensor["name"]]["data_offsets"])
    layout = layout_of(tensor, part)
    row_bytes = replace(layout, chunks=1).table_bytes
    place, row = begin, max(begin, end - layout.table_bytes)
    while row + row_bytes <= end:
        size = int(np.frombuffer(content, "<u4", layout.columns, row).sum(dtype=np.int64))
        content[row + row_bytes - 32 : row + row_bytes] = blake3(content[place : place + size]).digest()
        place, row = place + size, row + row_bytes
    part["nbytes"] = end - begin
    part["blake3"] = blake3(content[max(begin, end - layout.table_bytes) : end]).hexdigest()
    shard.write_bytes(content)


def layout_of(tensor: dict[str, Any], part: dict[str, Any]) -> Layout:
    """Return how a payload is cut."""
    return Layout(part["codec"], tensor["dtype"], part["chunks"], added=part["codec"] in CODECS["add"])


def read_shard_header(content: bytes | bytearray) -> tuple[dict[str, Any], int]:
    """Return a shard's header and where its data starts."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), 8 + length


def replace_payload(delta: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """Replace a tensor's payload by another of any size, with the header and all digests made to fit."""
    path = shard_of(delta)
    content = path.read_bytes()
    header, start = read_shard_header(content)
    metadata = header.pop("__metadata__")
    payloads = {n: content[start + e["data_offsets"][0] : start + e["data_offsets"][1]] for n, e in header.items()}
    payloads[name] = change(payloads[name])
    entries: dict[str, Any] = {"__metadata__": metadata}
    position = 0
    for tensor, payload in payloads.items():
        entries[tensor] = {"dtype": "U8", "shape": [len(payload)], "data_offsets": [position, position + len(payload)]}
        position += len(payload)
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(payloads.values()))
    reseal(delta)


def split(payload: bytes, layout: Layout) -> tuple[list[bytes], np.ndarray]:
    """Return the streams of a payload of one chunk, and its table."""
    table = np.frombuffer(payload[-layout.table_bytes : -32], "<u4")
    ends = np.cumsum(table)
    return [payload[end - length : end] for end, length in zip(ends.tolist(), table.tolist(), strict=True)], table


def joined(streams: list[bytes]) -> bytes:
    """Return the payload of one chunk."""
    chunk = b"".join(streams)
    return chunk + np.array([len(stream) for stream in streams], "<u4").tobytes() + blake3(chunk).digest()
