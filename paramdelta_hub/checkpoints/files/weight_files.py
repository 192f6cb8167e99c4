"""The weight files of a model, and the indexes that say which tensor lies in which of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paramdelta_hub.errors import CheckpointError
from paramdelta_hub.fileio import strict_json
from paramdelta_hub.fileio.names import check_file_name, check_tensor_name
from paramdelta_hub.fileio.safetensors import Header
from paramdelta_hub.fileio.strict_json import JsonObject
from paramdelta_hub.limits import FILES

__all__ = ["Index", "WeightFile", "parse_index"]


@dataclass(frozen=True)
class WeightFile:
    """One safetensors file of a model: its name in the model's folder, its real path, its checked header."""

    name: str
    path: Path
    header: Header
    """Its tensors' names begin with :attr:`prefix`, as everywhere outside the file itself."""
    sha256: str | None = None
    """As reported by the Hub, for a file that has not been downloaded."""
    start: bytes | None = None
    """All bytes before the data, for such a file."""
    is_listed: bool = True
    """Whether the index names it. A file beside an index may be a part of the model without being named."""

    @property
    def folder(self) -> str:
        """The component that it belongs to: its folder within the model's, or an empty text for that itself."""
        return self.name.rpartition("/")[0]

    @property
    def prefix(self) -> str:
        """What the names of its tensors begin with outside the file: ``2_Dense/``; empty in the model's folder."""
        return f"{self.folder}/" if self.folder else ""

    def identity(self) -> JsonObject:
        """Return what identifies the file for resuming: its digest if known, else size and modification time."""
        if self.sha256 is not None:
            return {"file": str(self.path), "sha256": self.sha256}
        status = os.stat(self.path)
        return {"file": str(self.path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}

    def within_model(self) -> WeightFile:
        """Return the file with its tensors named as in the model: by component.

        Raises:
            CheckpointError: a name becomes too long.
        """
        if not self.folder:
            return self
        spans = tuple(replace(span, name=self.prefix + span.name) for span in self.header.tensors)
        for span in spans:
            check_tensor_name(span.name, CheckpointError)
        return replace(self, header=replace(self.header, tensors=spans))


@dataclass(frozen=True)
class Index:
    """An index of a component's shards, as it lies on disk: ``unet/diffusion_pytorch_model.safetensors.index.json``."""

    name: str
    value: Mapping[str, Any]

    @property
    def folder(self) -> str:
        """The component that it belongs to."""
        return self.name.rpartition("/")[0]

    @property
    def weight_map(self) -> dict[str, str]:
        """The file of each tensor, both without the component's folder."""
        weight_map: dict[str, str] = self.value["weight_map"]
        return weight_map

    @property
    def shards(self) -> list[str]:
        """The files that it names, sorted, without the component's folder."""
        return sorted(set(self.weight_map.values()))


def parse_index(name: str, text: bytes, where: str) -> Index:
    """Parse the content of an index; every file that it names is safe to join to its folder.

    Raises:
        CheckpointError: not an index.
    """
    value = strict_json.parse(text, CheckpointError, where)
    weight_map = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError("the index has no weight_map from tensors to files", where=where)
    index = Index(name, value)
    if len(index.shards) > FILES:
        raise CheckpointError(f"the index names {len(index.shards)} files", where=where)
    for shard in index.shards:
        try:
            check_file_name(shard, CheckpointError)
            if "/" in shard:
                raise CheckpointError(f"the index names a file in another folder, {shard!r}")
        except CheckpointError as error:
            raise CheckpointError(error.what, where=where) from None
    return index
