"""The soak's models: base, post, target, the delta, and what each command must make of them."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import paramdelta_hub as pd
from paramdelta_hub.tasks import plan

__all__ = ["ROOT", "Family", "make_family", "tree"]

ROOT = Path(__file__).resolve().parents[3]
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64}
ITEM_SIZES = {"BF16": 2, "F16": 2, "F32": 4}


@dataclass
class Family:
    """Base, post, target, the delta's package, the same as published, and what each command must make."""

    base: Path
    post: Path
    target: Path
    delta: Path
    published: Path
    trees: dict[str, dict[str, str]]
    task_bytes: int
    seconds: dict[str, float] = field(default_factory=dict)
    """How long an undisturbed run took."""


def tree(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file below, by name."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def make_family(root: Path, chance: random.Random) -> Family:
    """Write three related models of a random dtype, size and number of shards, and all that comes of them."""
    dtype, layers = chance.choice(sorted(ITEM_SIZES)), chance.randint(1, 12)
    width, shards = 2 ** chance.randint(4, 10), chance.randint(1, 3)
    noise = np.random.default_rng(chance.randrange(2**32))
    shapes = {"model.embed_tokens.weight": (48, width), "model.norm.weight": (width,)}
    shapes |= {f"model.layers.{layer}.mlp.weight": (chance.randint(1, 600), width) for layer in range(layers)}
    base = {name: 0.05 * noise.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    for role, step in {"base": 0.0, "post": 0.002, "target": 0.008}.items():
        moved = {
            name: values + np.float32(step) * noise.standard_normal(values.shape, np.float32)
            for name, values in base.items()
        }
        _write_model(root / role, moved, dtype, shards, role)
    family = Family(
        root / "base", root / "post", root / "target", root / "delta", root / "registry/org/delta/1.0.0", {},
        task_bytes=chance.choice([1, 1 << 16, 1 << 27]),
    )  # fmt: skip
    plan.TASK_BYTES_MIN = family.task_bytes  # which decides how a package is cut into shards
    pd.extract(family.base, family.post, family.delta, name="soak")
    family.trees["extract"] = tree(family.delta)
    pd.apply(family.target, family.delta, root / "applied")
    family.trees["apply"] = tree(root / "applied")
    shutil.copytree(family.delta, root / "to publish")
    pd.publish(root / "to publish", f"{root}/registry/org/delta")
    family.trees["publish"] = tree(family.published)
    return family


def _write_model(folder: Path, tensors: dict[str, Any], dtype: str, shards: int, role: str) -> None:
    folder.mkdir(parents=True)
    names, weight_map = list(tensors), {}
    shards = min(shards, len(names))
    for number in range(shards):
        file = "model.safetensors" if shards == 1 else f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[number::shards]}
        _write_file(
            folder / file, {name: (values.shape, _stored(values, dtype)) for name, values in part.items()}, dtype
        )
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        size = sum(values.size for values in tensors.values()) * ITEM_SIZES[dtype]
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2 if role == "post" else 1}))
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}" * (2 - (role == "base")))


def _write_file(path: Path, tensors: dict[str, tuple[tuple[int, ...], bytes]], dtype: str) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(content)]}
        end += len(content)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(content for _, content in tensors.values()))


def _stored(values: Any, dtype: str) -> bytes:
    """Return float32 values as bytes of the dtype; bfloat16 is cut off, which is as good as rounding here."""
    if dtype == "BF16":
        return bytes((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    return bytes(values.astype(np.float16 if dtype == "F16" else np.float32).tobytes())
