"""A shard: a safetensors file of payloads, written front to back, and its header, checked against the manifest."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paramdelta_hub.errors import PackageError
from paramdelta_hub.fileio.digests import chunk_digest
from paramdelta_hub.fileio.durable import write_exactly
from paramdelta_hub.fileio.safetensors import build_header, read_header
from paramdelta_hub.package.chunk_table import make_table
from paramdelta_hub.package.manifest import FORMAT, FORMAT_VERSION

__all__ = ["PayloadWriter", "ShardWriter", "check_shard_header"]

PAYLOAD_DTYPE = "U8"
_METADATA = {"format": FORMAT, "format_version": str(FORMAT_VERSION)}


class ShardWriter:
    """Writes a delta shard front to back; the header's place is reserved and filled in last.

    The sizes of payloads are not known before they are coded, and a safetensors header stands first. Padding a header
    with spaces is allowed, so its place is reserved at the size it can have at most.
    """

    def __init__(self, path: Path, names: list[str]) -> None:
        self.path = path
        largest = 2**48
        self._reserved = len(build_header([(name, PAYLOAD_DTYPE, (largest,), largest) for name in names], _METADATA))
        self._position = self._reserved
        self._entries: list[tuple[str, str, tuple[int, ...], int]] = []
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)

    def payload(self, name: str) -> PayloadWriter:
        """Begin the next tensor's payload."""
        return PayloadWriter(self, name)

    def close(self) -> int:
        """Fill in the header and return the file's size; 0 and no file if nothing was written. Does not fsync."""
        if not self._entries:
            self.abort()
            return 0
        header = build_header(self._entries, _METADATA, least=self._reserved)
        assert len(header) == self._reserved  # the placeholder sizes had more digits than any real one
        write_exactly(self._file, header, 0)
        os.ftruncate(self._file, self._position)
        os.close(self._file)
        return self._position

    def abort(self) -> None:
        """Drop the file."""
        os.close(self._file)
        os.unlink(self.path)

    def _append(self, data: Any) -> None:
        write_exactly(self._file, data, self._position)
        self._position += len(data)

    def _rewind(self, position: int) -> None:
        self._position = position

    def _commit(self, name: str, nbytes: int) -> None:
        self._entries.append((name, PAYLOAD_DTYPE, (nbytes,), nbytes))


class PayloadWriter:
    """Writes one payload; nothing of it stays unless :meth:`finish` is called."""

    def __init__(self, shard: ShardWriter, name: str) -> None:
        self._shard, self._name, self._start = shard, name, shard._position
        self._lengths: list[list[int]] = []
        self._digests: list[bytes] = []

    def append(self, streams: list[bytes]) -> None:
        """Write one chunk's streams."""
        chunk = b"".join(streams)
        self._shard._append(chunk)
        self._lengths.append([len(stream) for stream in streams])
        self._digests.append(chunk_digest(chunk))

    def finish(self) -> tuple[int, str]:
        """Write the table, and return the payload's size and the digest (hex) of the table."""
        table = make_table(self._lengths, self._digests)
        self._shard._append(table)
        nbytes = self._shard._position - self._start
        self._shard._commit(self._name, nbytes)
        return nbytes, chunk_digest(table).hex()

    def drop(self) -> None:
        """Forget the payload: the next one takes its place."""
        self._shard._rewind(self._start)


def check_shard_header(path: Path, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return where each payload of a shard starts, if the shard's header lists just the promised tensors.

    Args:
        path: the shard.
        sizes: the size of every payload in it, by its tensor's name.

    Together with the digests of chunks and their tables this covers every byte of the file that has a meaning.

    Raises:
        PackageError: not a valid header, or one that differs from the manifest.
    """
    header = read_header(path, PackageError)
    spans = {span.name: span for span in header.tensors}
    where = str(path)
    if spans.keys() != sizes.keys():
        differing = sorted(spans.keys() ^ sizes.keys())[0]
        raise PackageError(f"the shard and the manifest disagree about tensor {differing!r}", where=where)
    for name, nbytes in sizes.items():
        span = spans[name]
        if (span.dtype, span.shape) != (PAYLOAD_DTYPE, (nbytes,)):
            raise PackageError(f"the payload of tensor {name!r} has another size in the manifest", where=where)
    return {name: span.start for name, span in spans.items()}
