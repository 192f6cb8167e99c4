"""Make a base, a post-trained model and a new base of any size, to measure with where no real ones can be had.

    python -m scripts.tools.generate OUT [--layers 16] [--shards 5] [--seed 0] [--delta 0.03] [--only base post]

Writes OUT/base, OUT/post and OUT/target: bfloat16 models with Llama-3.2-1B's shapes and as many layers as asked for.
16 layers are Llama-3.2-1B itself (1.24 B parameters, 2.47 GB a model), 77 layers are four times as much (9.89 GB).
Weights are Gaussian; post and target differ from base by Gaussian deltas of their own, 3 % of the weights' standard
deviation, as in real pairs (Llama-3.1-8B and Mistral: 1.5 to 5 %; the target as if pre-training had gone on).

Every value depends on the seed, the tensor's name and its place in the tensor, and on nothing else: not on shards,
threads, the number of layers, or the models made beside it: where the disk is small, they can be made and deleted one
after another. (NumPy may change its generators between releases, though it has rarely done so.) A model appears when it
is complete; what is there already is left alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ROLES", "Recipe", "generate"]

ROLES = ("base", "post", "target")
STAMP = "generated.json"
CHUNK = 1 << 20
"""Elements drawn from one random stream. Part of the result: another value gives other weights."""
BLOCK = 1 << 16
"""Elements computed at a time: small enough that the buffers stay in cache."""
WEIGHT_STD, NORM_STD = 0.02, 0.1

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Recipe:
    """What to make. The defaults are Llama-3.2-1B."""

    layers: int = 16
    shards: int = 5
    seed: int = 0
    delta: float = 0.03
    """Standard deviation of the deltas, as a share of the tensor's own."""
    vocab: int = 128256
    hidden: int = 2048
    intermediate: int = 8192
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 64

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every tensor, in the order of the model. The output head is tied to the embeddings."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield "model.embed_tokens.weight", (self.vocab, self.hidden)
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            yield prefix + "input_layernorm.weight", (self.hidden,)
            yield prefix + "mlp.down_proj.weight", (self.hidden, self.intermediate)
            yield prefix + "mlp.gate_proj.weight", (self.intermediate, self.hidden)
            yield prefix + "mlp.up_proj.weight", (self.intermediate, self.hidden)
            yield prefix + "post_attention_layernorm.weight", (self.hidden,)
            yield prefix + "self_attn.k_proj.weight", (keys, self.hidden)
            yield prefix + "self_attn.o_proj.weight", (self.hidden, queries)
            yield prefix + "self_attn.q_proj.weight", (queries, self.hidden)
            yield prefix + "self_attn.v_proj.weight", (keys, self.hidden)
        yield "model.norm.weight", (self.hidden,)

    def config(self) -> dict[str, Any]:
        """Return ``config.json``."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 128000,
            "eos_token_id": 128001,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": self.vocab,
        }


@dataclass(frozen=True)
class Piece:
    """A run of at most ``CHUNK`` elements of one tensor, and where it goes in its shard."""

    tensor: str
    number: int
    elements: int
    file: str
    position: int


def generate(out: Path, recipe: Recipe, threads: int | None = None, roles: Sequence[str] = ROLES) -> bool:
    """Write the models of these roles into ``out``; return False if all were there already.

    Memory is constant: about seven megabytes a thread, whatever the size of the models.

    Raises:
        FileExistsError: ``out`` exists and holds something else.
    """
    wanted = json.dumps(asdict(recipe), indent=2) + "\n"
    stamp = out / STAMP
    if not out.exists():
        out.mkdir(parents=True)
        stamp.write_text(wanted)
    elif not stamp.is_file() or stamp.read_text() != wanted:
        raise FileExistsError(f"{out} exists and was not made with these settings: remove it, or choose another place")
    partial = {role: out / f"{role}.partial" for role in roles if not (out / role).is_dir()}
    shards = _cut(list(recipe.tensors()), recipe.shards)
    pieces: list[Piece] = []
    for role, folder in partial.items():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        _write_configs(folder, role, recipe, shards)
    for file, tensors in shards.items():
        header, starts, size = _layout(tensors)
        for folder in partial.values():
            with (folder / file).open("wb") as stream:
                stream.write(header)
                stream.truncate(size)
        for name, shape in tensors:
            elements = int(np.prod(shape))
            pieces += [
                Piece(name, number, min(CHUNK, elements - start), file, starts[name] + 2 * start)
                for number, start in enumerate(range(0, elements, CHUNK))
            ]
    if partial:
        with ThreadPoolExecutor(threads or os.cpu_count()) as pool:  # NumPy draws and computes without the GIL
            for _ in pool.map(lambda piece: _write(piece, recipe, partial), pieces):
                pass
    for role, folder in partial.items():
        os.rename(folder, out / role)
    return bool(partial)


def _write(piece: Piece, recipe: Recipe, folders: dict[str, Path]) -> None:
    """Compute a piece of the models that have a folder here, and write it into their files."""
    mean, std = (1.0, NORM_STD) if piece.tensor.endswith("norm.weight") else (0.0, WEIGHT_STD)
    roles = ["base", *(role for role in folders if role != "base")]  # the others are drawn around base
    generators = {role: _generator(recipe.seed, role, piece) for role in roles}
    results = {role: np.empty(piece.elements, np.uint16) for role in roles}
    drawn, base, rounding = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.uint32)
    for start in range(0, piece.elements, BLOCK):
        size = min(BLOCK, piece.elements - start)
        values, ours, odd = drawn[:size], base[:size], rounding[:size]
        for role in roles:
            generators[role].standard_normal(out=values, dtype=np.float32)
            values *= np.float32(std if role == "base" else std * recipe.delta)
            values += np.float32(mean) if role == "base" else ours
            result = results[role][start : start + size]
            _to_bfloat16(values, odd, result)
            if role == "base":  # the others differ from what base's file holds, not from what was drawn
                np.left_shift(result, 16, out=ours.view(np.uint32), dtype=np.uint32)
    for role, folder in folders.items():
        with (folder / piece.file).open("r+b", buffering=0) as stream:
            stream.seek(piece.position)
            data = results[role].data.cast("B")
            while data:
                data = data[stream.write(data) :]


def _to_bfloat16(values: F32, scratch: npt.NDArray[np.uint32], out: npt.NDArray[np.uint16]) -> None:
    """Round finite float32 values to bfloat16, to nearest, ties to even; ``values`` is used up.

    Args:
        values: what to round, contiguous.
        scratch: as many, for what comes between.
        out: as many, receives the bits.
    """
    bits = values.view(np.uint32)
    np.right_shift(bits, 16, out=scratch)
    scratch &= 1
    scratch += 0x7FFF
    bits += scratch
    out[:] = bits.view(np.uint16)[_HIGH_HALF::2]


_HIGH_HALF = 1 if sys.byteorder == "little" else 0


def _generator(seed: int, role: str, piece: Piece) -> np.random.Generator:
    key = hashlib.sha256(f"{seed}/{role}/{piece.tensor}/{piece.number}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))


def _cut(tensors: list[tuple[str, tuple[int, ...]]], shards: int) -> dict[str, list[tuple[str, tuple[int, ...]]]]:
    """Distribute the tensors, in order, to files of about equal size."""
    if not 1 <= shards <= len(tensors):
        raise ValueError(f"{len(tensors)} tensors can't be cut into {shards} shards")
    total, before = sum(int(np.prod(shape)) for _, shape in tensors), 0
    groups: list[list[tuple[str, tuple[int, ...]]]] = [[] for _ in range(shards)]
    for name, shape in tensors:
        elements = int(np.prod(shape))
        groups[min(shards - 1, (before + elements // 2) * shards // total)].append((name, shape))
        before += elements
    groups = [group for group in groups if group]
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{number:05d}-of-{len(groups):05d}.safetensors": group for number, group in enumerate(groups, 1)}


def _layout(tensors: list[tuple[str, tuple[int, ...]]]) -> tuple[bytes, dict[str, int], int]:
    """Return a safetensors file's header, where in the file each tensor starts, and the file's size."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset, offsets = 0, {}
    for name, shape in tensors:
        end = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offsets[name], offset = offset, end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of eight bytes
    data = 8 + len(text)
    return struct.pack("<Q", len(text)) + text, {name: data + at for name, at in offsets.items()}, data + offset


def _write_configs(
    folder: Path, role: str, recipe: Recipe, shards: dict[str, list[tuple[str, tuple[int, ...]]]]
) -> None:
    # As in the real release, post-training taught the model new ends of a turn.
    end = [128001, 128008, 128009] if role == "post" else 128001
    files: dict[str, dict[str, Any]] = {
        "config.json": {**recipe.config(), "eos_token_id": end},
        "generation_config.json": {"bos_token_id": 128000, "do_sample": True, "eos_token_id": end},
    }
    if len(shards) > 1:
        total = sum(2 * int(np.prod(shape)) for tensors in shards.values() for _, shape in tensors)
        weight_map = {name: file for file, tensors in shards.items() for name, _ in tensors}
        files["model.safetensors.index.json"] = {"metadata": {"total_size": total}, "weight_map": weight_map}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    assert __doc__
    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--layers", type=int, default=Recipe.layers, help="transformer blocks (default: %(default)s)")
    parser.add_argument("--shards", type=int, default=Recipe.shards, help="files a model (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="default: %(default)s")
    parser.add_argument("--delta", type=float, default=Recipe.delta, help="delta's size (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=ROLES, default=ROLES, help="models to make (default: all)")
    parser.add_argument("--threads", type=int, help="default: one a processor")
    arguments = vars(parser.parse_args())
    out, threads, roles = arguments.pop("out"), arguments.pop("threads"), arguments.pop("only")
    recipe, started = Recipe(**arguments), time.perf_counter()
    try:
        made = generate(out, recipe, threads, roles)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    parameters = sum(int(np.prod(shape)) for _, shape in recipe.tensors())
    took = f"made in {time.perf_counter() - started:.0f} s" if made else "was there already"
    size = f"{parameters / 1e9:.2f} B parameters, {2 * parameters / 1e9:.2f} GB each"
    print(f"{out}: {', '.join(roles)}, {size}; {took}")


if __name__ == "__main__":
    main()
