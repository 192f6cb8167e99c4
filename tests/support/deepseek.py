"""A model of the size of DeepSeek-V3, of headers only, and the package of a delta of it; and how long plans take.

Names, shapes and the number of files are DeepSeek-V3's. The data are holes: 1.4 TB take a few dozen megabytes of disk,
and whoever reads them gets zeros. In bfloat16, 512 experts of half the width stand for 256, so that there are as many
tensors as the published fp8 weights and their scales make together.

    python -m tests.support.deepseek extract BASE POST OUT
    python -m tests.support.deepseek apply TARGET DELTA OUT

plans in a process of its own, without doing the work, and prints seconds and peak memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import paramdelta_hub as pd
from paramdelta_hub.application.apply import Application
from paramdelta_hub.checkpoints.kinship.lineage import pack_samples
from paramdelta_hub.extraction.extract import Extraction
from paramdelta_hub.fileio.safetensors import ITEM_SIZES, build_header
from paramdelta_hub.tasks.plan import Plan

LAYERS, DENSE, HIDDEN, VOCABULARY = 61, 3, 7168, 129_280
FILES = 163

Tensor = tuple[str, str, tuple[int, ...]]


def tensors(experts: int = 512, fp8: bool = False) -> Iterator[Tensor]:
    """Give (name, dtype, shape) in the order of the files; the last layer predicts the token after the next."""

    def matrix(name: str, rows: int, columns: int) -> Iterator[Tensor]:
        if fp8:
            yield f"{name}.weight", "F8_E4M3", (rows, columns)
            yield f"{name}.weight_scale_inv", "F32", (-(-rows // 128), -(-columns // 128))
        else:
            yield f"{name}.weight", "BF16", (rows, columns)

    def mlp(name: str, width: int) -> Iterator[Tensor]:
        yield from matrix(f"{name}.gate_proj", width, HIDDEN)
        yield from matrix(f"{name}.up_proj", width, HIDDEN)
        yield from matrix(f"{name}.down_proj", HIDDEN, width)

    yield "model.embed_tokens.weight", "BF16", (VOCABULARY, HIDDEN)
    for number in range(LAYERS + 1):
        layer = f"model.layers.{number}"
        if number == LAYERS:
            yield f"{layer}.embed_tokens.weight", "BF16", (VOCABULARY, HIDDEN)
            yield f"{layer}.enorm.weight", "BF16", (HIDDEN,)
            yield f"{layer}.hnorm.weight", "BF16", (HIDDEN,)
            yield f"{layer}.eh_proj.weight", "BF16", (HIDDEN, 2 * HIDDEN)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{layer}.{norm}.weight", "BF16", (HIDDEN,)
        yield f"{layer}.self_attn.q_a_layernorm.weight", "BF16", (1536,)
        yield f"{layer}.self_attn.kv_a_layernorm.weight", "BF16", (512,)
        yield from matrix(f"{layer}.self_attn.q_a_proj", 1536, HIDDEN)
        yield from matrix(f"{layer}.self_attn.q_b_proj", 128 * 192, 1536)
        yield from matrix(f"{layer}.self_attn.kv_a_proj_with_mqa", 576, HIDDEN)
        yield from matrix(f"{layer}.self_attn.kv_b_proj", 128 * 256, 512)
        yield from matrix(f"{layer}.self_attn.o_proj", HIDDEN, 128 * 128)
        if number < DENSE:
            yield from mlp(f"{layer}.mlp", 18_432)
            continue
        yield f"{layer}.mlp.gate.weight", "BF16", (experts, HIDDEN)
        yield f"{layer}.mlp.gate.e_score_correction_bias", "F32", (experts,)
        yield from mlp(f"{layer}.mlp.shared_experts", 2048)
        for expert in range(experts):
            yield from mlp(f"{layer}.mlp.experts.{expert}", 256 * 2048 // experts)
        if number == LAYERS:
            yield f"{layer}.shared_head.norm.weight", "BF16", (HIDDEN,)
            yield f"{layer}.shared_head.head.weight", "BF16", (VOCABULARY, HIDDEN)
    yield "model.norm.weight", "BF16", (HIDDEN,)
    yield "lm_head.weight", "BF16", (VOCABULARY, HIDDEN)


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * ITEM_SIZES[dtype]


def write_sparse(path: Path, entries: Sequence[tuple[str, str, tuple[int, ...], int]], metadata: dict[str, str]) -> int:
    """Write a safetensors file whose data are a hole; return its size."""
    header = build_header(entries, metadata)
    path.write_bytes(header)
    size = len(header) + sum(entry[3] for entry in entries)
    os.truncate(path, size)
    return size


def write_headers(folder: Path, model: Iterable[Tensor], fp8: bool = False) -> Path:
    """Write a model folder: config, index, and 163 files of about the same size."""
    folder.mkdir()
    listed = [(name, dtype, shape, nbytes(dtype, shape)) for name, dtype, shape in model]
    total = sum(entry[3] for entry in listed)
    files: list[list[tuple[str, str, tuple[int, ...], int]]] = [[] for _ in range(FILES)]
    filled = 0
    for entry in listed:
        files[filled * FILES // total].append(entry)
        filled += entry[3]
    weight_map: dict[str, str] = {}
    for number, entries in enumerate(files, start=1):
        file = f"model-{number:05d}-of-{FILES:06d}.safetensors"
        write_sparse(folder / file, entries, {"format": "pt"})
        weight_map |= dict.fromkeys((name for name, *_ in entries), file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config: dict[str, Any] = {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"]}
    if fp8:
        config["quantization_config"] = {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [128, 128],
        }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_package(folder: Path, model: Iterable[Tensor], scratch: Path) -> Path:
    """Write a package for these tensors whose payloads are holes: enough to plan by, and refused by verify.

    Its records are copies of those of a real package of two tensors, so that they are always of today's format.
    """
    made = extracted_in_small(scratch)
    templates = {record["dtype"]: record for record in made["tensors"]}
    folder.mkdir()
    records: list[dict[str, Any]] = []
    shards: list[list[dict[str, Any]]] = []
    filled = 1 << 62
    for name, dtype, shape in model:
        # Half the size, as real deltas have; about 4 GB a shard, as extract makes them of such a model.
        [part] = templates[dtype]["parts"]
        part = part | {"chunks": -(-math.prod(shape) // (1 << 20)), "nbytes": max(nbytes(dtype, shape) // 2, 1)}
        record = templates[dtype] | {"name": name, "shape": list(shape), "parts": [part]}
        if filled > 4 << 30:
            shards.append([])
            filled = 0
        shards[-1].append(record)
        filled += part["nbytes"]
        records.append(record)
    made["shards"] = []
    metadata = {"format": "paramdelta", "format_version": "1"}
    for number, held in enumerate(shards, start=1):
        path = f"delta-{number:05d}-of-{len(shards):05d}.safetensors"
        for record in held:
            record["parts"][0]["shard"] = path
        sizes = {record["name"]: record["parts"][0]["nbytes"] for record in held}
        entries = [(name, "U8", (size,), size) for name, size in sizes.items()]
        size = write_sparse(folder / path, entries, metadata)
        made["shards"].append({"path": path, "size": size, "sha256": "0" * 64})
    values = np.random.default_rng(0).normal(size=256).astype("<f4").view("<u4") >> 16
    samples = {"BF16": values.astype("<u2").view("u1"), "F32": (values << 16).astype("<u4").view("u1")}
    elements = [math.prod(record["shape"]) for record in records]
    lineage = pack_samples(
        {
            record["name"]: (record["dtype"], samples[record["dtype"]][: ITEM_SIZES[record["dtype"]] * min(count, 256)])
            for record, count in zip(records, elements, strict=True)
        }
    )
    made["lineage"] |= {"size": len(lineage), "sha256": hashlib.sha256(lineage).hexdigest()}
    (folder / made["lineage"]["path"]).write_bytes(lineage)
    made["tensors"] = records
    totals = {key: sum(record[key] for record in records) for key in ("changed", "exceptions")}
    made["exactness"] |= {"elements": sum(elements), **totals}
    (folder / "manifest.json").write_text(json.dumps(made))
    return folder


def extracted_in_small(scratch: Path) -> dict[str, Any]:
    """Return the manifest of a real delta with one record a dtype."""
    import torch  # here, for the memory of a process that only plans is measured

    from tests.support.models import write_model

    base = {"a": torch.ones(8, 8, dtype=torch.bfloat16), "b": torch.ones(40)}
    write_model(scratch / "small-base", base)
    write_model(scratch / "small-post", {name: tensor * 1.5 for name, tensor in base.items()})
    pd.extract(scratch / "small-base", scratch / "small-post", scratch / "small-delta", threads=1)
    manifest: dict[str, Any] = json.loads((scratch / "small-delta" / "manifest.json").read_bytes())
    return manifest


def planned(operation: str, paths: list[str]) -> Plan:
    """Return the plan of an operation; nothing of the weights has been read or written yet."""
    base_or_target, post_or_delta, out = paths
    if operation == "extract":
        plan = Extraction(pd.ExtractRequest(base_or_target, post_or_delta)).plan
    else:  # zeros are nobody's kin
        plan = Application(pd.ApplyRequest(base_or_target, ((post_or_delta, 1.0),), force=True), out).plan
    assert plan.digest  # the text is made before the work begins, too
    return plan


def peak() -> int:
    """Return this program's own largest resident size; rusage would count the process that started it, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def main() -> None:
    operation, *paths = sys.argv[1:]
    idle, start, spent = peak(), time.perf_counter(), time.process_time()
    plan = planned(operation, paths)
    report = {
        "seconds": round(time.perf_counter() - start, 2),
        "processor_seconds": round(time.process_time() - spent, 2),
        "peak_mb": peak() >> 20,
        "idle_mb": idle >> 20,
        "tasks": len(plan.tasks),
        "tensors": sum(len(getattr(task, "tensors", ())) for task in plan.tasks),
        "plan_mb": len(plan.text) >> 20,
        "bytes": plan.nbytes,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
