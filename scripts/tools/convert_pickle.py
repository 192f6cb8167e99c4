#!/usr/bin/env python3
"""Convert a pickled checkpoint to safetensors, so that Paramdelta Hub can read it.

    python scripts/tools/convert_pickle.py SRC DST

SRC is a folder with pytorch_model.bin (or pytorch_model-*-of-*.bin), or with one pickle of another name, or one file
(.bin, .ckpt, .pt, .pth, .tar); DST is a folder that does not exist yet: model.safetensors, and SRC's config and
tokenizer files. Values and dtypes are kept, bit for bit. Tensors that share storage are written once each.

The package itself never opens a pickle. This script does, by ``torch.load(weights_only=True)`` only: tensors and plain
containers are read, and anything that would run code is refused.
"""

from __future__ import annotations

import argparse
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

STATE_DICTS = ("model", "state_dict", "module")
"""Where training checkpoints keep the weights, beside optimizer and scheduler: ``{"model": {"state_dict": …}}``."""
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".tar")
COMPANIONS = (".json", ".jinja", ".txt", ".model")
"""Configs and tokenizers. An index of the pickles (``*.bin.index.json``) is left behind: it would name what is gone."""


def convert(src: Path, dst: Path) -> Path:
    """Write ``dst`` as a model folder with the tensors of ``src``; nothing is left of it after an error.

    Raises:
        FileExistsError: ``dst`` exists.
        FileNotFoundError: ``src`` does not.
        ValueError: no pickled weights in ``src``, or what it holds is not a flat mapping of names to tensors.
        pickle.UnpicklingError: the pickle holds more than tensors and plain containers.
    """
    if dst.exists():
        raise FileExistsError(f"{dst} exists")
    tensors: dict[str, torch.Tensor] = {}
    for file in _pickles(src):
        found = _state_dict(torch.load(file, map_location="cpu", weights_only=True), file)
        if twice := sorted(tensors.keys() & found.keys()):
            raise ValueError(f"{file}: {twice[0]} and {len(twice) - 1} more are in an earlier file too")
        tensors.update(found)
    dst.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=dst.parent, prefix=f".{dst.name}-") as temporary:
        made = Path(temporary) / "model"
        made.mkdir()
        if src.is_dir():
            for file in sorted(src.iterdir()):
                if file.is_file() and file.suffix in COMPANIONS and not file.name.endswith(".index.json"):
                    shutil.copyfile(file, made / file.name)
        # safetensors refuses tensors that share storage, and views that are not contiguous: a copy of each is neither.
        contiguous = torch.contiguous_format
        copies = {name: tensor.detach().clone(memory_format=contiguous) for name, tensor in tensors.items()}
        save_file(copies, made / "model.safetensors", metadata={"format": "pt"})
        os.rename(made, dst)
    return dst


def _pickles(src: Path) -> list[Path]:
    if src.is_file():
        return [src]
    found = [src / "pytorch_model.bin"] if (src / "pytorch_model.bin").is_file() else []
    if files := found or sorted(src.glob("pytorch_model-*-of-*.bin")):
        return files
    if not src.exists():
        raise FileNotFoundError(f"{src} does not exist")
    others = [file for file in src.iterdir() if file.suffix in PICKLES and not _is_state(file.name)]
    if len(others) == 1:
        return others
    raise ValueError(f"{src}: no pytorch_model.bin; if the weights have another name, give that file instead")


def _is_state(name: str) -> bool:
    """Whether a file is what a training leaves beside the weights."""
    return name.startswith(("optimizer", "scheduler", "rng_state", "training_args", "scaler"))


def _state_dict(loaded: Any, file: Path) -> dict[str, torch.Tensor]:
    """Return the flat name → tensor mapping in what was loaded."""
    while isinstance(loaded, Mapping) and (inner := next((key for key in STATE_DICTS if key in loaded), None)):
        loaded = loaded[inner]
    if not isinstance(loaded, Mapping) or not loaded:
        raise ValueError(f"{file}: no mapping of names to tensors")
    for name, tensor in loaded.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{file}: {name!r} is a {type(tensor).__name__}, not a tensor")
    return dict(loaded)


def main() -> None:
    assert __doc__
    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("src", type=Path, help="folder or pickled file")
    parser.add_argument("dst", type=Path, help="folder to make")
    arguments = parser.parse_args()
    try:
        print(convert(arguments.src, arguments.dst))
    except pickle.UnpicklingError as error:
        # torch's own message explains how to run the code in the pickle, which is the last thing to do with it.
        cause = next((line for line in str(error).splitlines() if "Unsupported" in line or "GLOBAL" in line), "")
        sys.exit(f"error: {arguments.src} holds more than tensors and plain containers, so it is not read. {cause}")
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
