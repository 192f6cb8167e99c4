"""A model's weights as described by its headers: every tensor and its location. No values are read."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from paramdelta_hub.checkpoints.files.repository import INDEX, Repository, not_safetensors, read_repository
from paramdelta_hub.checkpoints.files.resolve import ModelSource, resolve
from paramdelta_hub.checkpoints.files.weight_files import Index, WeightFile
from paramdelta_hub.errors import CheckpointError
from paramdelta_hub.fileio import strict_json
from paramdelta_hub.fileio.durable import read_small
from paramdelta_hub.fileio.names import check_file_name, shown
from paramdelta_hub.fileio.safetensors import TensorSpan, read_header
from paramdelta_hub.fileio.strict_json import JsonObject
from paramdelta_hub.limits import CONFIG_BYTES, HEADER_BYTES, NAME_DEPTH

__all__ = ["INDEX", "Checkpoint", "open_checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """An opened model. Tensors keep the order of files and, within a file, of data."""

    source: ModelSource
    files: tuple[WeightFile, ...]
    indexes: tuple[Index, ...] = ()
    """One for every component that has several files."""
    folders: tuple[str, ...] = ()
    """Folders of components, and of modules without weights."""
    notes: tuple[str, ...] = ()
    """Which files were chosen where there was a choice, and which were not read, in words."""

    @classmethod
    def of(cls, source: ModelSource, repository: Repository) -> Checkpoint:
        """Return the model that consists of these files."""
        return cls(source, repository.files, repository.indexes, repository.folders, repository.notes)

    def notes_of(self, side: str) -> tuple[str, ...]:
        """Return the notes with the name of the model's side before them, such as ``base``."""
        return tuple(f"{side}: {note}" for note in self.notes)

    @cached_property
    def tensors(self) -> dict[str, tuple[WeightFile, TensorSpan]]:
        """Every tensor by name."""
        return {span.name: (file, span) for file in self.files for span in file.header.tensors}

    @cached_property
    def config(self) -> JsonObject | None:
        """``config.json``, or None."""
        return self.read_json("config.json")

    def read_json(self, name: str) -> JsonObject | None:
        """Return a JSON object of the model's folder, or None if there is no such file.

        Raises:
            CheckpointError: not JSON, or not an object.
        """
        path = self.folder / name
        if not path.exists() or self.is_lone_file:
            return None
        text = read_small(path, CONFIG_BYTES, CheckpointError, follow=True)
        return strict_json.parse_object(text, CheckpointError, str(path))

    @property
    def is_lone_file(self) -> bool:
        """Whether the model was given as one file, not a folder."""
        return self.source.path.is_file()

    @property
    def folder(self) -> Path:
        """The folder the weights lie in."""
        return self.source.path.parent if self.is_lone_file else self.source.path

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(span.nbytes for _, span in self.tensors.values())

    def neighbor(self, name: str) -> str | None:
        """Return the tensor beside which a new one belongs, the last of its component; None if there is no such one."""
        component = max((folder for folder in self.folders if name.startswith(f"{folder}/")), key=len, default="")
        files = [file for file in self.files if file.is_listed and file.folder == component and file.header.tensors]
        return files[-1].header.tensors[-1].name if files else None

    @property
    def dtypes(self) -> dict[str, int]:
        """Parameters by dtype, the most first."""
        counts: Counter[str] = Counter()
        for _, span in self.tensors.values():
            counts[span.dtype] += span.elements
        return dict(counts.most_common())


def open_checkpoint(model: str | Path, *, code: bool = False) -> Checkpoint:
    """Open a model by path or Hub id and read its headers; Python files are downloaded only with ``code``.

    Raises:
        CheckpointError: there is no model, it is pickled, GGUF or truncated, or its files contradict each other.
    """
    source = resolve(model, code=code)
    path = source.path
    if path.is_file():
        if path.suffix != ".safetensors":
            raise not_safetensors(str(path))
        return Checkpoint(source, (_weight_file(path.name, path),), notes=_lone_shard(path))
    if not path.is_dir():
        raise CheckpointError("neither a file nor a folder", where=str(path))
    if (path / "manifest.json").exists() and not (path / "config.json").exists():
        raise CheckpointError("this is a delta package, but a model is needed", where=str(path))
    return Checkpoint.of(source, read_repository(_LocalListing(path)))


@dataclass(frozen=True)
class _LocalListing:
    """The files of a folder on this machine."""

    path: Path

    @property
    def where(self) -> str:
        return str(self.path)

    @cached_property
    def names(self) -> list[str]:
        return list(_files_in(self.path))

    def read(self, name: str) -> bytes:
        return read_small(self.path / name, HEADER_BYTES, CheckpointError, follow=True)

    def open_files(self, names: Sequence[str]) -> list[WeightFile]:
        return [_weight_file(name, self.path / name) for name in names]


def _files_in(top: Path) -> Iterator[str]:
    """Yield the names of all files below a folder, as deep as a name may be; links are followed, hidden folders not.

    People link the weights of their own models, and the Hub cache does.
    """
    folders, seen = [""], {os.path.realpath(top)}
    while folders:
        folder = folders.pop()
        try:
            entries = sorted(os.scandir(top / folder), key=lambda entry: entry.name)
        except OSError as problem:
            raise CheckpointError(f"can't be read: {problem.strerror}", where=str(top / folder)) from None
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            try:
                is_folder = entry.is_dir()
            except OSError:  # a link to where nobody may look
                is_folder = False
            if not is_folder:
                yield name
            elif not entry.name.startswith(".") and name.count("/") < NAME_DEPTH - 1:
                real = os.path.realpath(entry.path)
                if real not in seen:  # else a link leads round in a circle
                    seen.add(real)
                    folders.append(name)


def _lone_shard(path: Path) -> tuple[str, ...]:
    """Return in words that a file is only a part of a model, if its name says so."""
    shard = re.fullmatch(r".*-\d+-of-0*(\d+)\.safetensors", path.name, re.DOTALL)
    if shard is None or shard[1] == "1":
        return ()
    return (f"{shown(path.name)} is one of {shard[1]} files; the tensors of the others are not read",)


def _weight_file(name: str, path: Path) -> WeightFile:
    """Open a weight file. Links are followed: people link the weights of their own models, and the Hub cache does."""
    check_file_name(name, CheckpointError)
    return WeightFile(name, path.resolve(), read_header(path, CheckpointError, follow=True))
