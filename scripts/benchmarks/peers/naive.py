#!/usr/bin/env python3
"""The script that everyone writes first: three whole models in memory, a sum of dictionaries, one file.

python scripts/benchmarks/peers/naive.py BASE POST TARGET OUT
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file


def main() -> None:
    """Load, add, save, and wait for the disk."""
    base, post, target = (
        {
            name: tensor
            for path in sorted(Path(folder).glob("*.safetensors"))
            for name, tensor in load_file(path).items()
        }
        for folder in sys.argv[1:4]
    )
    source, out = Path(sys.argv[3]), Path(sys.argv[4])
    out.mkdir()
    result = {
        name: ((post[name].float() - base[name].float()) + tensor.float()).to(tensor.dtype)
        for name, tensor in target.items()
    }
    save_file(result, out / "model.safetensors", {"format": "pt"})
    for path in source.glob("*.json"):
        if not path.name.endswith(".index.json"):
            shutil.copy(path, out)
    for path in [*out.iterdir(), out]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


if __name__ == "__main__":
    main()
