"""A model's weights as described by its headers: every tensor and its location. No values are read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from paramdelta_hub.checkpoints.resolve import ModelSource, resolve
from paramdelta_hub.checkpoints.roles import HEADS, TYING_EMBEDDINGS
from paramdelta_hub.errors import CheckpointError
from paramdelta_hub.fileio import strict_json
from paramdelta_hub.fileio.durable import read_small
from paramdelta_hub.fileio.names import check_file_name, shown
from paramdelta_hub.fileio.safetensors import GGUF_REMEDY, Header, TensorSpan, read_header
from paramdelta_hub.fileio.strict_json import JsonObject
from paramdelta_hub.limits import CONFIG_BYTES, FILES, HEADER_BYTES

__all__ = [
    "ADAPTER",
    "INDEX",
    "WEIGHTS",
    "Checkpoint",
    "WeightFile",
    "assemble",
    "open_checkpoint",
    "parse_index",
    "read_index",
]

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
_MODEL_REMEDY = "give a folder in Hugging Face layout, a .safetensors file, or org/name"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".tar")
_PICKLE_REMEDY = (
    "a pickle can run code when it is read, so it is never opened; convert it once, in an environment you trust: "
    "scripts/tools/convert_pickle.py, or transformers' save_pretrained(safe_serialization=True)"
)
_PICKLED_ADAPTER_REMEDY = (
    'convert it; in its folder: python -c "import torch; from safetensors.torch import save_file as save; '
    "save({k: v.contiguous() for k, v in torch.load('adapter_model.bin', 'cpu', weights_only=True).items()}, "
    "'adapter_model.safetensors')\""
)
"""With ``weights_only``, torch runs no code that a pickle names."""


@dataclass(frozen=True)
class WeightFile:
    """One safetensors file of a model: its name in the folder, its real path, its checked header."""

    name: str
    path: Path
    header: Header
    sha256: str | None = None
    """As reported by the Hub, for a file that has not been downloaded."""
    start: bytes | None = None
    """All bytes before the data, for such a file."""

    def identity(self) -> JsonObject:
        """Return what identifies the file for resuming: its digest if known, else size and modification time."""
        if self.sha256 is not None:
            return {"file": str(self.path), "sha256": self.sha256}
        status = os.stat(self.path)
        return {"file": str(self.path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}


@dataclass(frozen=True)
class Checkpoint:
    """An opened model. Tensors keep the order of files and, within a file, of data."""

    source: ModelSource
    files: tuple[WeightFile, ...]
    index: Mapping[str, Any] | None
    """``model.safetensors.index.json`` as it was, or None for a single file."""

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

    @property
    def dtypes(self) -> dict[str, int]:
        """Parameters by dtype, the most first."""
        counts: Counter[str] = Counter()
        for _, span in self.tensors.values():
            counts[span.dtype] += span.elements
        return dict(counts.most_common())

    @property
    def tied_embeddings(self) -> bool | None:
        """Whether the output head is the token embedding, as the tensors say; None where there is no embedding."""
        if not any(TYING_EMBEDDINGS.search(name) for name in self.tensors):
            return None
        return not any(HEADS.search(name) for name in self.tensors)


def open_checkpoint(model: str | Path, *, code: bool = False) -> Checkpoint:
    """Open a model by path or Hub id and read its headers; Python files are downloaded only with ``code``.

    Raises:
        CheckpointError: there is no model, it is pickled, GGUF or truncated, or the index names missing files.
    """
    source = resolve(model, code=code)
    path = source.path
    if path.is_file():
        if path.suffix != ".safetensors":
            raise _not_safetensors(path)
        return Checkpoint(source, (_weight_file(path.name, path),), None)
    if not path.is_dir():
        raise CheckpointError("neither a file nor a folder", where=str(path))
    if (path / "manifest.json").exists() and not (path / "config.json").exists():
        raise CheckpointError("this is a delta package, but a model is needed", where=str(path))
    names = sorted(entry.name for entry in path.iterdir())
    if ADAPTER in names and (INDEX in names or WEIGHTS in names):
        raise CheckpointError(
            f"both a model and an adapter ({ADAPTER})",
            where=str(path),
            remedy=f"give the one file {path / ADAPTER}, or move the adapter's two files to a folder of their own",
        )
    if INDEX in names:
        return _sharded(source, names)
    weight_files = [name for name in names if name.endswith(".safetensors")]
    if WEIGHTS in weight_files:
        weight_files = [WEIGHTS]
    if len(weight_files) > 1:
        raise CheckpointError(
            f"{len(weight_files)} safetensors files, but no {INDEX} that lists their tensors",
            where=str(path),
            remedy="get the index file, or give a single file",
        )
    if not weight_files:
        raise _no_weights(path, names)
    return Checkpoint(source, (_weight_file(weight_files[0], path / weight_files[0]),), None)


def read_index(folder: Path) -> tuple[JsonObject, list[str]]:
    """Return ``model.safetensors.index.json`` and the names of the files it speaks of, sorted, all of them safe.

    Raises:
        CheckpointError: not an index.
    """
    path = folder / INDEX
    return parse_index(read_small(path, HEADER_BYTES, CheckpointError, follow=True), str(path))


def parse_index(text: bytes, where: str) -> tuple[JsonObject, list[str]]:
    """Parse the content of an index; see :func:`read_index`.

    Raises:
        CheckpointError: not an index.
    """
    index = strict_json.parse(text, CheckpointError, where)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError("the index has no weight_map from tensors to files", where=where)
    shards = sorted(set(weight_map.values()))
    if len(shards) > FILES:
        raise CheckpointError(f"the index names {len(shards)} files", where=where)
    for shard in shards:
        try:
            check_file_name(shard, CheckpointError)
        except CheckpointError as error:
            raise CheckpointError(error.what, where=where) from None
    return index, shards


def assemble(source: ModelSource, files: Sequence[WeightFile], index: JsonObject) -> Checkpoint:
    """Return a model of several files, after checking that the index and the headers list the same tensors.

    Raises:
        CheckpointError: they do not.
    """
    held = {span.name: file.name for file in files for span in file.header.tensors}
    if held != index["weight_map"] or len(held) != sum(len(file.header.tensors) for file in files):
        odd = sorted(held.items() ^ index["weight_map"].items(), key=str)
        what = f"tensor {odd[0][0]!r}" if odd else "a tensor that is in two files"
        raise CheckpointError(f"the index and the files disagree about {what}", where=str(source.path / INDEX))
    return Checkpoint(source, tuple(files), index)


def _sharded(source: ModelSource, names: list[str]) -> Checkpoint:
    index, shards = read_index(source.path)
    present = set(names)
    if missing := [shard for shard in shards if shard not in present]:
        raise CheckpointError(
            f"the index names {len(missing)} missing file(s): {', '.join(missing[:5])}",
            where=str(source.path / INDEX),
            remedy="the download is not complete; get the missing files",
        )
    return assemble(source, [_weight_file(shard, source.path / shard) for shard in shards], index)


def _weight_file(name: str, path: Path) -> WeightFile:
    """Open a weight file. Links are followed: people link the weights of their own models, and the Hub cache does."""
    check_file_name(name, CheckpointError)
    return WeightFile(name, path.resolve(), read_header(path, CheckpointError, follow=True))


def _not_safetensors(path: Path) -> CheckpointError:
    where = shown(str(path))  # a stranger may have named the file
    if path.suffix == ".gguf":
        return CheckpointError("a GGUF file, not safetensors", where=where, remedy=GGUF_REMEDY)
    if path.name == "adapter_model.bin":
        return CheckpointError("a pickled adapter", where=where, remedy=_PICKLED_ADAPTER_REMEDY)
    if path.suffix in _PICKLES:
        return CheckpointError("a pickled checkpoint", where=where, remedy=_PICKLE_REMEDY)
    return CheckpointError("not a .safetensors file", where=where, remedy=_MODEL_REMEDY)


def _no_weights(path: Path, names: list[str]) -> CheckpointError:
    for name in names:
        if name.endswith(".gguf") or name.endswith(_PICKLES):
            return _not_safetensors(path / name)
    what = "an empty folder" if not names else "no .safetensors file in this folder"
    return CheckpointError(what, where=str(path), remedy=_MODEL_REMEDY)
