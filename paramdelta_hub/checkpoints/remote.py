"""A model on the Hub, opened by its headers alone: weights are fetched file by file, when they are wanted.

Headers come by Range requests, a few hundred kilobytes a file; configs and tokenizers as usual, through the cache.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from paramdelta_hub.checkpoints.checkpoint import INDEX, WEIGHTS, Checkpoint, WeightFile, assemble, read_index
from paramdelta_hub.checkpoints.sources import download, hub_errors, is_hub_id
from paramdelta_hub.errors import CheckpointError
from paramdelta_hub.format.durable import file_digest
from paramdelta_hub.format.headers import check_header
from paramdelta_hub.limits import HEADER_BYTES, MIB

__all__ = ["RemoteModel", "open_remote", "read_remote_start"]

_FIRST = 1 * MIB
"""Bytes asked for first: nearly every header fits."""


@dataclass(frozen=True)
class RemoteModel:
    """A model whose weight files lie on the Hub, and, one at a time, in ``folder``."""

    checkpoint: Checkpoint
    """As if all its files lay in ``folder`` already."""
    folder: Path

    def fetch(self, name: str) -> None:
        """Download a weight file to its place, unless it is there; checked by size and sha256, then renamed.

        Raises:
            CheckpointError: it can't be had, or is not what the Hub promised.
        """
        from huggingface_hub import hf_hub_download

        path, source = self.folder / name, self.checkpoint.source
        if path.exists():
            return
        staging = self.folder / f"{name}.download"
        with hub_errors(f"{source.name}@{source.commit}"):
            fetched = Path(hf_hub_download(source.name, name, revision=source.commit, local_dir=staging))
        promised = next(file.sha256 for file in self.checkpoint.files if file.name == name)
        digest, _ = file_digest(fetched, CheckpointError)
        if digest != promised:
            shutil.rmtree(staging)
            raise CheckpointError(
                f"{name!r} has not the sha256 that the Hub promised", where=source.name, remedy="run the command again"
            )
        os.replace(fetched, path)
        shutil.rmtree(staging)

    def drop(self, name: str) -> None:
        """Delete a weight file's copy."""
        (self.folder / name).unlink(missing_ok=True)


def open_remote(model: str, folder: Path, *, code: bool = False) -> RemoteModel:
    """Open ``org/name[@revision]`` without downloading weights; they will be fetched into ``folder``.

    Raises:
        CheckpointError: no such repository, not allowed, no safetensors weights in it, or a header that breaks a rule.
    """
    from huggingface_hub import HfApi

    if not is_hub_id(model):
        raise CheckpointError(
            "not a Hub id", where=model, remedy="give org/name[@revision]; local models need no stream"
        )
    repository, _, revision = model.partition("@")
    with hub_errors(model):
        info = HfApi().model_info(repository, revision=revision or None, files_metadata=True)
    commit = str(info.sha)
    siblings = {file.rfilename: file for file in info.siblings or []}
    source = download(repository, commit, weights=False, code=code)
    index, names = read_index(source.path) if INDEX in siblings else (None, [WEIGHTS])
    files = []
    for name in names:
        about = siblings.get(name)
        if about is None or about.lfs is None or not about.size:
            raise CheckpointError(f"the repository has no {name!r}, or no sha256 of it", where=model)
        start = read_remote_start(repository, commit, name, about.size)
        header = check_header(start[8:], about.size, CheckpointError, f"{model}/{name}")
        files.append(WeightFile(name, folder / name, header, about.lfs.sha256, start))
    checkpoint = assemble(source, files, index) if index else Checkpoint(source, tuple(files), None)
    return RemoteModel(checkpoint, folder)


def read_remote_start(repository: str, revision: str, name: str, size: int) -> bytes:
    """Return all bytes before the data of a safetensors file on the Hub: the header and its length.

    Raises:
        CheckpointError: it can't be had, or is no safetensors file.
    """
    first = _range(repository, revision, name, 0, min(_FIRST, size))
    length = int.from_bytes(first[:8], "little")
    if len(first) < 8 or length > min(HEADER_BYTES, size - 8):
        where = f"{repository}@{revision}/{name}"
        raise CheckpointError(f"not a safetensors file: it declares a header of {length} bytes", where=where)
    rest = _range(repository, revision, name, len(first), 8 + length) if len(first) < 8 + length else b""
    return (first + rest)[: 8 + length]


def _range(repository: str, revision: str, name: str, start: int, end: int) -> bytes:
    """Return bytes [start, end) of a file; never more, whatever the server sends."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils._headers import build_hf_headers
    from huggingface_hub.utils._http import get_session, hf_raise_for_status

    url = hf_hub_url(repository, name, revision=revision)
    headers = {**build_hf_headers(), "Range": f"bytes={start}-{end - 1}"}
    content = bytearray()
    with hub_errors(f"{repository}@{revision}"), get_session().stream("GET", url, headers=headers) as response:
        hf_raise_for_status(response)
        if response.status_code != 206:
            raise CheckpointError("the server does not answer Range requests", where=f"{repository}/{name}")
        for piece in response.iter_bytes():
            content += piece
            if len(content) > end - start:
                break
    if len(content) != end - start:
        raise CheckpointError(f"asked for {end - start} bytes of {name!r} and got {len(content)}", where=repository)
    return bytes(content)
