"""A model on the Hub, opened by its headers. Weight files are downloaded one by one, when they are needed.

Headers (about 100 kB per file) and single values are read by Range requests. Configs and tokenizers are downloaded to
the Hub's cache as usual.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.checkpoints.checkpoint import Checkpoint
from paramdelta_hub.checkpoints.files.repository import read_repository
from paramdelta_hub.checkpoints.files.resolve import download, is_hub_id
from paramdelta_hub.checkpoints.files.weight_files import WeightFile
from paramdelta_hub.errors import CheckpointError
from paramdelta_hub.fileio.durable import file_digest, read_small
from paramdelta_hub.fileio.safetensors import check_header
from paramdelta_hub.hub.addresses import parse_address
from paramdelta_hub.hub.client import connect
from paramdelta_hub.hub.errors import translate_hub_errors
from paramdelta_hub.hub.files import RemoteFile, ask_for_digests, ask_for_file, listed_files
from paramdelta_hub.limits import HEADER_BYTES, KIB

__all__ = ["RemoteModel", "RemoteValues", "open_remote", "read_remote_header"]

_FIRST_BYTES = 96 * KIB
"""Bytes asked for first: nearly every header fits."""
_REQUESTS_AT_ONCE = 8


@dataclass(frozen=True)
class RemoteModel:
    """A model whose weight files lie on the Hub, and, one at a time, in ``folder``."""

    checkpoint: Checkpoint
    """As if all its files lay in ``folder`` already."""
    folder: Path
    bases: frozenset[str]
    """The base models that its card names."""

    def fetch(self, name: str) -> None:
        """Download a weight file to its place, unless it is there; checked by size and sha256, then renamed.

        Raises:
            CheckpointError: it can't be had, or is not what the Hub promised.
            RegistryError: the Hub can't be reached, or is out of order.
        """
        connect()
        from huggingface_hub import hf_hub_download

        path, source = self.folder / name, self.checkpoint.source
        if path.exists():
            return
        staging = self.folder / f"{name}.download"
        with translate_hub_errors(f"{source.name}@{source.commit}", CheckpointError):
            fetched = Path(hf_hub_download(source.name, name, revision=source.commit, local_dir=staging))
        promised = next(file.sha256 for file in self.checkpoint.files if file.name == name)
        digest, _ = file_digest(fetched, CheckpointError)
        if digest != promised:
            shutil.rmtree(staging)
            raise CheckpointError(
                f"{name!r} does not have the sha256 that the Hub states",
                where=source.name,
                remedy="run the command again",
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(fetched, path)
        shutil.rmtree(staging)

    def drop(self, name: str) -> None:
        """Delete a weight file's copy."""
        (self.folder / name).unlink(missing_ok=True)


class RemoteValues:
    """Read access to the values of a remote model's files, by their paths; every range is a request, made once.

    For a few values here and there. Threads may share it.
    """

    def __init__(self, model: RemoteModel) -> None:
        self._source = model.checkpoint.source
        self._names = {str(file.path): file.name for file in model.checkpoint.files}
        self._cache: dict[tuple[str, int, int], bytes] = {}

    def read(self, path: str, position: int, out: NDArray[Any]) -> None:
        """Fill ``out`` (uint8) with a file's bytes from ``position``, or raise a CheckpointError."""
        key = (path, position, out.size)
        if key not in self._cache:
            source = self._source
            end = position + out.size
            self._cache[key] = _range(source.name, str(source.commit), self._names[path], position, end)
        out[:] = np.frombuffer(self._cache[key], np.uint8)


def open_remote(model: str, folder: Path, *, code: bool = False, headers_only: bool = False) -> RemoteModel:
    """Open ``org/name[@revision]`` without downloading weights; they will be fetched into ``folder``.

    With ``headers_only`` they never will be. Otherwise the Hub must state a sha256 of each.

    Raises:
        CheckpointError: no such repository, not allowed, no safetensors weights in it, or a header that breaks a rule.
        RegistryError: the Hub can't be reached, or is out of order.
    """
    if address := parse_address(model):
        model = "@".join(filter(None, address))
    if not is_hub_id(model):
        raise CheckpointError(
            "not a Hub id", where=model, remedy="give org/name[@revision]; local models need no --stream"
        )
    repository, _, revision = model.partition("@")
    with translate_hub_errors(model, CheckpointError):
        info = connect().model_info(repository, revision=revision or None, files_metadata=True)
        base_models = getattr(info.card_data, "base_model", None)
        commit = str(info.sha)
        files = listed_files(info)
    if bare := [name for name, file in files.items() if name.endswith(".safetensors") and not file.sha256]:
        files |= ask_for_digests(repository, commit, bare)
    bases = frozenset(
        base for base in (base_models if isinstance(base_models, list) else [base_models]) if isinstance(base, str)
    )
    source = download(repository, commit, part="config" if headers_only else "companions", code=code)
    listing = _HubListing(model, repository, commit, files, source.path, folder, headers_only)
    return RemoteModel(Checkpoint.of(source, read_repository(listing)), folder, bases)


@dataclass(frozen=True)
class _HubListing:
    """The files of a repository on the Hub: small ones are on this machine already, of weights the headers are read."""

    where: str
    repository: str
    commit: str
    files: Mapping[str, RemoteFile]
    cache: Path
    folder: Path
    headers_only: bool

    @property
    def names(self) -> Collection[str]:
        return self.files.keys()

    def read(self, name: str) -> bytes:
        return read_small(self.cache / name, HEADER_BYTES, CheckpointError, follow=True)

    def open_files(self, names: Sequence[str]) -> list[WeightFile]:
        with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
            return list(pool.map(self._open_file, names))

    def _open_file(self, name: str) -> WeightFile:
        about = self.files[name]
        if about.sha256 is None:
            about = ask_for_file(self.repository, self.commit, name)
        if not about.size or (about.sha256 is None and not self.headers_only):
            remedy = "download the model, and give its folder"
            raise CheckpointError(f"the Hub states no sha256 of {name!r}", where=self.where, remedy=remedy)
        start = read_remote_header(self.repository, self.commit, name, about.size)
        header = check_header(start[8:], about.size, CheckpointError, f"{self.where}/{name}")
        return WeightFile(name, self.folder / name, header, about.sha256, start)


def read_remote_header(repository: str, revision: str, name: str, size: int) -> bytes:
    """Return all bytes before the data of a safetensors file on the Hub: the header and its length.

    Raises:
        CheckpointError: it can't be had, or is no safetensors file.
        RegistryError: the Hub can't be reached, or is out of order.
    """
    first = _range(repository, revision, name, 0, min(_FIRST_BYTES, size))
    length = int.from_bytes(first[:8], "little")
    if len(first) < 8 or length > min(HEADER_BYTES, size - 8):
        where = f"{repository}@{revision}/{name}"
        raise CheckpointError(f"not a safetensors file: it declares a header of {length} bytes", where=where)
    rest = _range(repository, revision, name, len(first), 8 + length) if len(first) < 8 + length else b""
    return (first + rest)[: 8 + length]


def _range(repository: str, revision: str, name: str, start: int, end: int) -> bytes:
    """Return bytes [start, end) of a file; never more, whatever the server sends."""
    connect()
    from paramdelta_hub.hub.patience import read_range

    with translate_hub_errors(f"{repository}@{revision}", CheckpointError):
        content = read_range(repository, revision, name, start, end)
    if content is None:
        raise CheckpointError("the server does not answer Range requests", where=f"{repository}/{name}")
    if len(content) != end - start:
        raise CheckpointError(f"asked for {end - start} bytes of {name!r} and got {len(content)}", where=repository)
    return content
