#!/usr/bin/env python3
"""The script of someone who minds memory: shard by shard, tensor by tensor, mapped and not loaded, in target's layout.

python scripts/benchmarks/peers/careful.py BASE POST TARGET OUT
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file


class Model:
    """A folder of shards; tensors are read when asked for."""

    def __init__(self, folder: Path) -> None:
        self.files: dict[str, Any] = {}
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            self.places = json.loads(index.read_text())["weight_map"]
        else:
            (only,) = folder.glob("*.safetensors")
            with safe_open(only, "pt") as file:
                self.places = dict.fromkeys(file.keys(), only.name)
        self.folder = folder

    def __getitem__(self, name: str) -> torch.Tensor:
        """Read one tensor."""
        place = self.places[name]
        if place not in self.files:
            self.files[place] = safe_open(self.folder / place, "pt")
        tensor: torch.Tensor = self.files[place].get_tensor(name)
        return tensor


def main() -> None:
    """Go through target's shards."""
    base, post, target = (Model(Path(folder)) for folder in sys.argv[1:4])
    out = Path(sys.argv[4])
    out.mkdir()
    for shard in sorted(set(target.places.values())):
        result = {}
        for name in (name for name, place in target.places.items() if place == shard):
            old = target[name]
            wide = post[name].float().sub_(base[name].float()).add_(old.float())
            result[name] = wide.to(old.dtype)
        save_file(result, out / shard, {"format": "pt"})
    for path in target.folder.glob("*.json"):
        shutil.copy(path, out)
    for path in [*out.iterdir(), out]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


if __name__ == "__main__":
    main()
