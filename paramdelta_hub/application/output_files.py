"""The weight files of the result: those of the target, with its tensor order and metadata, changed where needed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paramdelta_hub.checkpoints.checkpoint import Checkpoint
from paramdelta_hub.checkpoints.files.weight_files import Index, WeightFile
from paramdelta_hub.errors import CheckpointError
from paramdelta_hub.fileio import strict_json
from paramdelta_hub.fileio.durable import allocate, open_regular, read_exactly, write_exactly
from paramdelta_hub.fileio.safetensors import Sized, build_header

__all__ = ["OutTensor", "OutputFile", "new_indexes", "plan_output_files"]


@dataclass(frozen=True)
class OutTensor(Sized):
    """What a tensor of the result is."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return self.elements * self.itemsize


@dataclass(frozen=True)
class OutputFile:
    """A weight file of the result: its header, and where its tensors start."""

    name: str
    source: WeightFile
    header: bytes | None
    """None: the target's own, byte for byte, with its order, metadata and padding."""
    starts: Mapping[str, int]
    size: int

    def prepare(self, folder: Path) -> None:
        """Make the file at its final size, and write its header.

        Of an interrupted run's file only what receipts prove is believed, so the header is written again.
        """
        path = folder / self.name
        path.parent.mkdir(parents=True, exist_ok=True)
        allocate(path, self.size)
        header = self.header if self.header is not None else self._own_header()
        output = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            write_exactly(output, header, 0)
        finally:
            os.close(output)

    def _own_header(self) -> bytes:
        if self.source.start is not None:
            return self.source.start
        header = np.empty(self.source.header.data_start, np.uint8)
        source = open_regular(self.source.path, CheckpointError)
        try:
            read_exactly(source, header, 0, CheckpointError, str(self.source.path))
        finally:
            os.close(source)
        return header.tobytes()


def plan_output_files(
    target: Checkpoint, tensors: Mapping[str, OutTensor], colocate_with: Mapping[str, str]
) -> dict[str, OutputFile]:
    """Return the result's files by name.

    Args:
        target: whose files they are modelled on.
        tensors: all tensors of the result. A tensor of the target that is not among them is left out.
        colocate_with: for each tensor that the target has not, one that it has: they will lie in one file.
    """
    added: dict[str, list[str]] = {}
    for name, neighbour in colocate_with.items():
        added.setdefault(target.tensors[neighbour][0].name, []).append(name)
    files = {}
    for file in target.files:
        spans = file.header.tensors
        names = [span.name for span in spans if span.name in tensors] + added.get(file.name, [])
        if names == [span.name for span in spans] and all(
            tensors[span.name] == OutTensor(span.dtype, span.shape) for span in spans
        ):
            starts = {span.name: span.start for span in spans}
            files[file.name] = OutputFile(file.name, file, None, starts, file.header.size)
        elif names:
            files[file.name] = _new_file(file, {name: tensors[name] for name in names})
    return files


def _new_file(file: WeightFile, tensors: Mapping[str, OutTensor]) -> OutputFile:
    entries = [
        (name.removeprefix(file.prefix), tensor.dtype, tensor.shape, tensor.nbytes) for name, tensor in tensors.items()
    ]
    header = build_header(entries, file.header.metadata)
    starts, position = {}, len(header)
    for name, tensor in tensors.items():
        starts[name] = position
        position += tensor.nbytes
    return OutputFile(file.name, file, header, starts, position)


def new_indexes(
    target: Checkpoint, files: Sequence[OutputFile], tensors: Mapping[str, OutTensor]
) -> dict[str, bytes | None]:
    """Return the result's indexes by name: a new one, or None where the target's own is right.

    A file that the target's index does not name is not named here either.
    """
    return {index.name: _new_index(index, files, tensors) for index in target.indexes}


def _new_index(index: Index, files: Sequence[OutputFile], tensors: Mapping[str, OutTensor]) -> bytes | None:
    listed = [file for file in files if file.source.is_listed and file.source.folder == index.folder]
    weight_map = {
        name.removeprefix(file.source.prefix): file.name.removeprefix(file.source.prefix)
        for file in listed
        for name in file.starts
    }
    if all(file.header is None for file in listed) and weight_map == index.weight_map:
        return None
    sizes = [tensors[name] for file in listed for name in file.starts]
    old: Any = index.value.get("metadata")
    metadata = {**(old if isinstance(old, dict) else {}), "total_size": sum(tensor.nbytes for tensor in sizes)}
    if "total_parameters" in metadata:
        metadata["total_parameters"] = sum(tensor.elements for tensor in sizes)
    return strict_json.pretty({"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))})
