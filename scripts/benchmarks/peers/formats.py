#!/usr/bin/env python3
"""How many bytes other formats take for one pair of bfloat16 models, and whether they give back what they took.

    .venv-peers/bin/python scripts/benchmarks/peers/formats.py BASE POST WORK

BASE and POST are folders with one ``model.safetensors`` each, with the same tensors. Prints one JSON object a format,
as soon as it is known: name, version, group, bytes, seconds (both ways), and whether the round trip was exact. Formats
of the group ``rebuild`` give post back, from base; of ``difference``, Δ rounded to bfloat16, which could be added to
any base, but misses post on its own; of ``alone``, post, from nothing.

Formats that make files are counted by the file, headers and all; those that make bytes, by the bytes, with names,
shapes and tables left out, which is in their favour.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from safetensors.torch import load_file

U16 = NDArray[np.uint16]
Coder = tuple[Callable[[U16], bytes], Callable[[bytes], U16]]
"""Codes one tensor's 16-bit symbols to bytes, and back."""


@dataclass(frozen=True)
class Pair:
    """Two models of equal names and shapes, and a folder for what a format writes."""

    base_folder: Path
    post_folder: Path
    work: Path

    @cached_property
    def base(self) -> dict[str, torch.Tensor]:
        """Base's tensors."""
        return load_file(self.base_folder / "model.safetensors")

    @cached_property
    def post(self) -> dict[str, torch.Tensor]:
        """Post's tensors."""
        return load_file(self.post_folder / "model.safetensors")

    def symbols(self, kind: str) -> list[U16]:
        """Return what a format without a notion of pairs is given to code, tensor by tensor."""
        if kind == "post":
            return [_bits(tensor) for tensor in self.post.values()]
        both = [(self.base[name], tensor) for name, tensor in self.post.items()]
        if kind == "xor":
            return [_bits(base) ^ _bits(post) for base, post in both]
        assert kind == "delta"
        return [_bits((post.float() - base.float()).bfloat16()) for base, post in both]

    @staticmethod
    def file(folder: Path) -> Path:
        """Return the file with the weights."""
        return folder / "model.safetensors"

    def gives_post(self, tensors: dict[str, Any]) -> bool:
        """Whether these are post's tensors, bit for bit."""
        return tensors.keys() == self.post.keys() and all(
            np.array_equal(_bits(tensors[name]), _bits(tensor)) for name, tensor in self.post.items()
        )


def _bits(tensor: Any) -> U16:
    if isinstance(tensor, torch.Tensor):
        tensor = tensor.contiguous().view(torch.int16).numpy()
    return np.ascontiguousarray(tensor).reshape(-1).view(np.uint16)


@dataclass(frozen=True)
class Format:
    """Something to compare with. ``run`` returns bytes, and whether the round trip was exact."""

    name: str
    group: str
    version: str
    run: Callable[[Pair], tuple[int, bool]]


def planes(level: int) -> Coder:
    """Low bytes and high bytes apart, each a zstd frame."""

    def encode(symbols: U16) -> bytes:
        parts = (symbols & 255).astype(np.uint8), (symbols >> 8).astype(np.uint8)
        low, high = (zstandard.compress(part.tobytes(), level) for part in parts)
        return len(low).to_bytes(8, "little") + low + high

    def decode(data: bytes) -> U16:
        cut = 8 + int.from_bytes(data[:8], "little")
        low, high = (np.frombuffer(zstandard.decompress(part), np.uint8) for part in (data[8:cut], data[cut:]))
        both: U16 = low.astype(np.uint16) | np.left_shift(high, 8, dtype=np.uint16)
        return both

    return encode, decode


def whole(level: int) -> Coder:
    """Both bytes as they come, in one zstd frame."""
    return (
        lambda symbols: zstandard.compress(symbols.tobytes(), level),
        lambda data: np.frombuffer(zstandard.decompress(data), np.uint16),
    )


def zipnn() -> Coder:
    """ZipNN's automatic choice for bfloat16."""
    from zipnn import ZipNN

    coder = ZipNN(bytearray_dtype="bfloat16", input_format="byte")
    return (
        lambda symbols: bytes(coder.compress(bytearray(symbols.tobytes()))),
        lambda data: np.frombuffer(coder.decompress(data), np.uint16),
    )


def pcodec() -> Coder:
    """The codec of pcodec at its highest level, on the bits as ordered integers: near numbers become near integers."""
    from pcodec import ChunkConfig
    from pcodec.standalone import simple_compress, simple_decompress

    def encode(symbols: U16) -> bytes:
        ordered = np.where(symbols >> 15, ~symbols, symbols | 0x8000).astype(np.uint16)
        return bytes(simple_compress(ordered, ChunkConfig(compression_level=12)))

    def decode(data: bytes) -> U16:
        ordered = simple_decompress(data)
        symbols: U16 = np.where(ordered >> 15, ordered & 0x7FFF, ~ordered).astype(np.uint16)
        return symbols

    return encode, decode


def coded(kind: str, make: Callable[[], Coder]) -> Callable[[Pair], tuple[int, bool]]:
    """Code every tensor's symbols on its own, and decode them again."""

    def run(pair: Pair) -> tuple[int, bool]:
        encode, decode = make()
        total, exact = 0, True
        for symbols in pair.symbols(kind):
            data = encode(symbols)
            total += len(data)
            exact &= np.array_equal(decode(data), symbols)
        return total, exact

    return run


def arc_v3(pair: Pair) -> tuple[int, bool]:
    """Fireworks' format for updates of models that are being served."""
    import fireworks_delta_compression as fireworks

    diff = pair.work / "arc"
    fireworks.delta_compress_files_to_file(
        src=str(pair.file(pair.base_folder)), dst=str(pair.file(pair.post_folder)), diff_file=str(diff),
        compression_format="arc_v3",
    )  # fmt: skip
    rebuilt = fireworks.delta_decompress_dict_from_file(
        src=load_file(pair.file(pair.base_folder)), diff_file=str(diff), compression_format="arc_v3"
    )
    return diff.stat().st_size, pair.gives_post(rebuilt)


def z4ai(pair: Pair) -> tuple[int, bool]:
    """z4ai's mode for the next checkpoint of a training run."""
    import z4ai as package

    total, exact = 0, True
    for name, post in pair.post.items():
        base, data = _bits(pair.base[name]).tobytes(), _bits(post).tobytes()
        blob = package.compress_delta(data, base, dtype="bf16")
        total += len(blob)
        exact &= bytes(package.decompress_delta(blob, base)) == data
    return total, exact


def bigsmall(pair: Pair) -> tuple[int, bool]:
    """BigSmall's delta of a fine-tune."""
    import bigsmall as package

    diff = pair.work / "delta.bs"
    base, post = pair.file(pair.base_folder), pair.file(pair.post_folder)
    package.compress_delta(post, base, diff, progress=False)
    return diff.stat().st_size, pair.gives_post(package.decompress_delta(diff, base, progress=False))


def reminis(pair: Pair) -> tuple[int, bool]:
    """Delta packs of reminis, made of models in its databases."""
    from reminis.diff import apply_delta, diff_models
    from reminis.safetensors_io import safetensors_to_sqlite, sqlite_to_safetensors

    base, post, pack, rebuilt, out = (
        str(pair.work / name) for name in ("base.db", "post.db", "pack.db", "rebuilt.db", "rebuilt.safetensors")
    )
    safetensors_to_sqlite(str(pair.file(pair.base_folder)), base, verbose=False)
    safetensors_to_sqlite(str(pair.file(pair.post_folder)), post, verbose=False)
    diff_models(base, post, pack, verbose=False)
    apply_delta(base, pack, rebuilt, verbose=False)
    sqlite_to_safetensors(rebuilt, out, verbose=False)
    return os.path.getsize(pack), pair.gives_post(load_file(out))


def patch_from(pair: Pair) -> tuple[int, bool]:
    """``zstd --patch-from``, as hard as it tries without --ultra."""
    diff, out = pair.work / "patch.zst", pair.work / "patched"
    base, post = (str(pair.file(folder)) for folder in (pair.base_folder, pair.post_folder))
    command = ["zstd", "-qq", "-f", "--long=31", f"--patch-from={base}"]
    subprocess.run([*command, "-19", "-T2", post, "-o", str(diff)], check=True)
    subprocess.run([*command, "-d", str(diff), "-o", str(out)], check=True)
    return diff.stat().st_size, pair.gives_post(load_file(out))


def xdelta3(pair: Pair) -> tuple[int, bool]:
    """xdelta3, as it comes."""
    import pyxdelta

    diff, out = str(pair.work / "xdelta"), str(pair.work / "xdelta.out")
    base, post = (str(pair.file(folder)) for folder in (pair.base_folder, pair.post_folder))
    if not (pyxdelta.run(base, post, diff) and pyxdelta.decode(base, diff, out)):
        raise RuntimeError("xdelta3 reports failure")
    return os.path.getsize(diff), pair.gives_post(load_file(out))


def uncompressed(pair: Pair) -> tuple[int, bool]:
    """Δ in the weights' own type, as a plain safetensors file: what `residuals` saves, if told to use bfloat16."""
    from residuals import Residuals
    from residuals.config import build_config

    tensors = {name: (post.float() - pair.base[name].float()).bfloat16() for name, post in pair.post.items()}
    folder = pair.work / "residuals"
    # Its save_pretrained insists on a tokenizer; the weights are saved before it asks for one.
    with contextlib.suppress(ValueError):
        Residuals(tensors, build_config(tensors, None)).save_pretrained(str(folder))
    saved = folder / "model.safetensors"
    back = load_file(saved)
    return saved.stat().st_size, all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def zipnn_delta(pair: Pair) -> tuple[int, bool]:
    """ZipNN's own delta mode."""
    from zipnn import ZipNN

    coder = ZipNN(bytearray_dtype="bfloat16", input_format="byte", delta_compressed_type="byte")
    total, exact = 0, True
    for name, post in pair.post.items():
        base, data = _bits(pair.base[name]).tobytes(), _bits(post).tobytes()
        blob = bytes(coder.compress(bytearray(data), delta_second_data=bytearray(base)))
        total += len(blob)
        exact &= bytes(coder.decompress(blob, delta_second_data=bytearray(base))) == data
    return total, exact


def formats() -> list[Format]:
    """Return them all, the quick ones first."""
    zstd = f"zstd {'.'.join(map(str, zstandard.ZSTD_VERSION))}"
    return [
        Format("XOR planes + zstd-3 (BitX)", "rebuild", zstd, coded("xor", lambda: planes(3))),
        Format("ZipNN, XOR mode", "rebuild", version("zipnn"), zipnn_delta),
        Format("z4ai, delta mode", "rebuild", version("z4ai"), z4ai),
        Format("Fireworks arc_v3", "rebuild", version("fireworks-delta-compression"), arc_v3),
        Format("planes of Δ + zstd-1", "difference", zstd, coded("delta", lambda: planes(1))),
        Format("ZipNN of Δ", "difference", version("zipnn"), coded("delta", zipnn)),
        Format("pcodec of Δ", "difference", version("pcodec"), coded("delta", pcodec)),
        Format("residuals, bf16", "difference", version("residuals"), uncompressed),
        Format("ZipNN of post", "alone", version("zipnn"), coded("post", zipnn)),
        Format("reminis, delta pack", "rebuild", version("reminis"), reminis),
        Format("BigSmall, delta mode", "rebuild", version("bigsmall"), bigsmall),
        Format("zstd-19 of XOR", "rebuild", zstd, coded("xor", lambda: whole(19))),
        Format("zstd-19 of Δ", "difference", zstd, coded("delta", lambda: whole(19))),
        Format("xdelta3", "rebuild", version("pyxdelta"), xdelta3),
        Format("zstd --patch-from", "rebuild", _zstd_version(), patch_from),
    ]


def _zstd_version() -> str:
    found = subprocess.run(["zstd", "--version"], capture_output=True, text=True, check=True).stdout
    return found.split("v", 1)[1].split(",", 1)[0]


def main() -> None:
    """Run every format."""
    base, post, work = (Path(argument) for argument in sys.argv[1:])
    os.environ["BIGSMALL_DISABLE_VERSION_CHECK"] = "1"
    pair = Pair(base, post, work)
    out = sys.stdout
    for each in formats():
        begun = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):  # some of them chat
            nbytes, exact = each.run(pair)
        result = {
            "name": each.name, "group": each.group, "version": each.version, "bytes": nbytes, "exact": exact,
            "seconds": round(time.perf_counter() - begun, 2),
        }  # fmt: skip
        print(json.dumps(result), file=out, flush=True)


if __name__ == "__main__":
    main()
