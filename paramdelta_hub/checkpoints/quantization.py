"""Quantized checkpoints: fp8 weights with the scales that belong to them, and what else there is, which is refused.

All supported kinds mean value = code · scale, and differ in names and in how many weights share a scale:

    quant_method          scale of ``x.weight``              one scale for
    fp8                   ``x.weight_scale_inv``             a block (DeepSeek-V3, Qwen3-FP8), or the tensor
    fp8, modelopt         ``x.weight_scale``                 the tensor
    fbgemm_fp8            ``x.weight_scale``                 a row; of stacked experts, also a column
    compressed-tensors    ``x.weight_scale``                 the tensor, a row, or a block

Stacked experts are called ``x_proj`` and ``x_proj_scale_inv`` or ``x_proj_scale``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paramdelta_hub.checkpoints.checkpoint import Checkpoint
from paramdelta_hub.errors import CheckpointError
from paramdelta_hub.fileio.names import shown
from paramdelta_hub.fileio.paths import resolve_inside
from paramdelta_hub.limits import SCALE_BYTES
from paramdelta_hub.numerics.float8 import DECODED, Grid
from paramdelta_hub.numerics.floats import FLOATS

__all__ = ["BLOCK", "ScaledWeight", "find_scales", "quantization_files", "unsupported_reason", "unused_tensors"]

BLOCK = (128, 128)
"""Rows and columns of a block where nothing else is said: DeepSeek-V3's, which engines have kernels for."""
_SCALE_ENDINGS = ("_scale_inv", "_scale")
_OF_ACTIVATIONS = re.compile(
    r"(^|[._])(input_scale|input_scale_ub|activation_scale|output_scale|[qkv]_scale|kv_scale|prob_output_scale)$"
)
_REMEDY = "use the 16-bit release that it was made from"
_METHODS = {
    "gptq": "GPTQ", "awq": "AWQ", "bitsandbytes": "bitsandbytes", "mxfp4": "MXFP4", "eetq": "EETQ", "hqq": "HQQ",
    "torchao": "torchao", "quanto": "Quanto", "aqlm": "AQLM", "vptq": "VPTQ", "spqr": "SpQR", "higgs": "HIGGS",
    "auto-round": "AutoRound", "bitnet": "BitNet", "quark": "Quark",
}  # fmt: skip
_MODELOPT = "hf_quant_config.json"
_PACKED = frozenset({"U8", "I8", "I32"})
_TENSOR_NAME_SIGNS = (
    (re.compile(r"\.(qweight|qzeros|g_idx)$"), "GPTQ or AWQ"),
    (re.compile(r"\.pre_quant_scale$"), "AWQ"),
    (re.compile(r"\.(nested_)?(absmax|quant_map)$|\.quant_state\.bitsandbytes__"), "bitsandbytes in 4 bits"),
    (re.compile(r"\.SCB$"), "bitsandbytes in 8 bits"),
    (re.compile(r"weight_(packed|zero_point|shape|bitmask)$"), "compressed-tensors as packed or shifted integers"),
    (re.compile(r"weight_(scale_2|global_scale)$"), "NVFP4"),
    (re.compile(r"weight[._:]+(qdata|tensor_impl|int_data)$"), "torchao"),
    (re.compile(r"\.weight\._(data|scale|shift|packed)$"), "Quanto"),
)
"""What the names of a model's tensors give away, whatever its config says."""
_WEIGHT_SCALE = re.compile(r"(^|\.)weight_(scale|scale_inv|scales)$|_proj_scale_inv$")


@dataclass(frozen=True)
class ScaledWeight:
    """An fp8 weight, its scales, and how they lie over it. The two may lie in different files."""

    weight: str
    scale: str
    grid: Grid


def find_scales(checkpoint: Checkpoint) -> dict[str, ScaledWeight]:
    """Return every F8_E4M3 and F8_E5M2 weight with its scale, by the weight's name; headers alone are read.

    Whether the scales are finite and above zero, who reads them sees.

    Raises:
        CheckpointError: a weight without a scale, or a scale whose dtype or shape does not fit it.
    """
    scaled_weights, declared = {}, _declared_blocks(checkpoint)
    for name, (file, span) in checkpoint.tensors.items():
        if span.dtype not in DECODED:
            continue
        where = str(file.path)
        if (scale := _scale_of(name, checkpoint)) is None:
            raise CheckpointError(f"tensor {name!r} is {span.dtype}, but has no scale", where=where, remedy=_REMEDY)
        scale_span = checkpoint.tensors[scale][1]
        if scale_span.dtype not in FLOATS:
            raise CheckpointError(f"scale {scale!r} is {scale_span.dtype}, not F32, BF16 or F16", where=where)
        if scale_span.elements * 4 > SCALE_BYTES:
            raise CheckpointError(f"scale {scale!r} has {scale_span.elements} elements, too many to hold", where=where)
        grid = _grid(span.shape, scale_span.shape, declared)
        if grid is None:
            raise CheckpointError(
                f"scale {scale!r} of shape {list(scale_span.shape)} does not fit tensor {name!r} of shape "
                f"{list(span.shape)} in blocks of {' or '.join(f'{height} × {width}' for height, width in declared)}",
                where=where,
                remedy="get the model again, with its own config.json",
            )
        scaled_weights[name] = ScaledWeight(name, scale, grid)
    return scaled_weights


def unused_tensors(checkpoint: Checkpoint, scales: Mapping[str, ScaledWeight]) -> dict[str, str]:
    """Return the tensors that values in bf16 have no use for, each with the reason; none for a model without fp8.

    Those are the scales of weights, and single numbers that scale activations or the key-value cache.
    """
    if not scales:
        return {}
    unused = {scaled.scale: f"a scale, folded into {scaled.weight!r}" for scaled in scales.values()}
    for name, (_, span) in checkpoint.tensors.items():
        if span.elements == 1 and span.dtype in FLOATS and _OF_ACTIVATIONS.search(name):
            unused[name] = "a scale of activations, which only fp8 inference uses"
    return unused


def unsupported_reason(checkpoint: Checkpoint) -> str | None:
    """Return in a sentence how a model is quantized and what to use instead, or None for plain and for fp8 weights.

    Whether fp8 scales fit their weights is for :func:`find_scales` to say.
    """
    reason = next(_reasons(checkpoint), None)
    return reason and "; ".join(reason)


def quantization_files(checkpoint: Checkpoint) -> dict[str, Path]:
    """Return the files beside config.json that say how weights are quantized, by name: for results that stay so.

    Raises:
        CheckpointError: one is a link out of the folder.
    """
    if checkpoint.is_lone_file or not (checkpoint.folder / _MODELOPT).is_file():
        return {}
    return {_MODELOPT: resolve_inside(checkpoint.folder, _MODELOPT, CheckpointError)}


def _reasons(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with a model's quantization and what helps, the config's word first, then the tensors'."""
    settings = _settings(checkpoint)
    for where, setting in settings:
        if (how := _unsupported(setting)) is not None:
            yield f"{where} says that it is quantized by {shown(how)}", _REMEDY
    tensors = {name: span for name, (_, span) in checkpoint.tensors.items()}
    for name, span in tensors.items():
        if method := next((method for sign, method in _TENSOR_NAME_SIGNS if sign.search(name)), None):
            yield f"tensor {name!r} shows that it is quantized by {method}", _REMEDY
        if name.endswith(("_blocks", "_scales")) and span.dtype == "U8":
            yield (
                f"tensor {name!r} shows that it is quantized by MXFP4",
                "use a bf16 copy, which transformers makes with Mxfp4Config(dequantize=True)",
            )
        if span.dtype in _PACKED and any(name + ending in tensors for ending in (*_SCALE_ENDINGS, "_scales")):
            yield f"tensor {name!r} holds scaled integers ({span.dtype})", _REMEDY
        if span.dtype in _PACKED and name.endswith(".W_q"):
            yield f"tensor {name!r} shows that it is quantized by HQQ", _REMEDY
        if span.dtype in DECODED and _scale_of(name, checkpoint) is None:
            yield f"tensor {name!r} is {span.dtype}, but has no scale", _REMEDY
        if span.dtype.startswith("F8_") and span.dtype not in DECODED:
            yield f"tensor {name!r} is {span.dtype}, which can't be added", _REMEDY
    if orphan := next(_orphans(checkpoint), None):
        yield f"tensor {orphan!r} is a scale, but there is no fp8 weight for it", _REMEDY
    if settings and not any(span.dtype in DECODED for span in tensors.values()):
        yield (
            f"{settings[0][0]} says that it is quantized to fp8, but no tensor is",
            "if the weights are right, remove that from the file",
        )


def _scale_of(weight: str, checkpoint: Checkpoint) -> str | None:
    return next((name for ending in _SCALE_ENDINGS if (name := weight + ending) in checkpoint.tensors), None)


def _orphans(checkpoint: Checkpoint) -> Iterator[str]:
    used = {_scale_of(name, checkpoint) for name, (_, span) in checkpoint.tensors.items() if span.dtype in DECODED}
    return (name for name in checkpoint.tensors if _WEIGHT_SCALE.search(name) and name not in used)


def _settings(checkpoint: Checkpoint) -> list[tuple[str, Mapping[str, Any]]]:
    """Return each description of the quantization with the place it was found in."""
    config = checkpoint.config or {}
    inner = config.get("text_config")  # of models that also see or hear
    settings: list[tuple[str, Mapping[str, Any]]] = []
    for holder in (config, inner if isinstance(inner, dict) else {}):
        for key in ("quantization_config", "compression_config"):
            if isinstance(setting := holder.get(key), dict):
                settings.append(("its config.json", setting))
    modelopt = (checkpoint.read_json(_MODELOPT) or {}).get("quantization")
    if isinstance(modelopt, dict) and modelopt.get("quant_algo") is not None:
        settings.append(("its hf_quant_config.json", {**modelopt, "quant_method": "modelopt"}))
    return settings


def _unsupported(setting: Mapping[str, Any]) -> str | None:
    """Return the name of a way of quantizing that is not supported, or None."""
    method = setting.get("quant_method")
    if method in ("fp8", "fbgemm_fp8"):
        block = setting.get("weight_block_size")
        return None if block is None or _block(block) else f"fp8 in odd blocks ({str(block)[:40]})"
    if method == "modelopt":
        algorithm = setting.get("quant_algo")
        return None if algorithm == "FP8" else f"ModelOpt's {str(algorithm)[:40]}"
    if method == "compressed-tensors":
        return _unsupported_compressed(setting)
    if not isinstance(method, str):
        method = "bitsandbytes" if {"load_in_8bit", "load_in_4bit"} & setting.keys() else "an unknown method"
    return _METHODS.get(method, method[:40])


def _unsupported_compressed(setting: Mapping[str, Any]) -> str | None:
    """Look for anything in a compressed-tensors setting that is not value = fp8 code · scale."""
    sparsity, rotation = setting.get("sparsity_config"), setting.get("transform_config")
    if isinstance(sparsity, dict) and sparsity.get("format") not in (None, "dense"):
        return f"compressed-tensors as {str(sparsity['format'])[:40]}"
    if isinstance(rotation, dict) and rotation.get("config_groups"):
        return "compressed-tensors with rotated weights"
    groups = setting.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict) and (weights.get("num_bits"), weights.get("type")) != (8, "float"):
            return f"compressed-tensors as {str(weights.get('type'))[:40]} of {str(weights.get('num_bits'))[:40]} bits"
    layout = setting.get("format")
    return None if layout in (None, "float-quantized", "naive-quantized") else f"compressed-tensors as {layout}"[:80]


def _block(value: object) -> tuple[int, int] | None:
    """Return a block's (rows, columns) from ``[128, 128]`` or ``"128x128"``, or None."""
    if isinstance(value, str):
        value = [int(number) for number in value.split("x") if number.isdecimal() and len(number) < 10]
    if not isinstance(value, list) or len(value) != 2 or not all(type(n) is int and 0 < n < 1 << 30 for n in value):
        return None
    return value[0], value[1]


def _declared_blocks(checkpoint: Checkpoint) -> list[tuple[int, int]]:
    """Return the block sizes that the config names, or DeepSeek-V3's where it names none."""
    values = []
    for _, setting in _settings(checkpoint):
        values.append(setting.get("weight_block_size"))
        groups = setting.get("config_groups")
        for group in groups.values() if isinstance(groups, dict) else ():
            weights = group.get("weights") if isinstance(group, dict) else None
            values.append(weights.get("block_structure") if isinstance(weights, dict) else None)
    return list(dict.fromkeys(block for value in values if (block := _block(value)))) or [BLOCK]


def _grid(weight: tuple[int, ...], scale: tuple[int, ...], declared: list[tuple[int, int]]) -> Grid | None:
    """Return how scales of a shape lie over a weight of a shape, or None if they don't."""
    if len(weight) not in (2, 3) or not all(weight):
        return None
    rows, columns = weight[-2:]
    matrices = weight[0] if len(weight) == 3 else 1
    stack = weight[:-2]
    if all(length == 1 for length in scale):
        return Grid(matrices * rows, columns, (matrices * rows, columns))
    if stack and scale in (stack, (*stack, 1)):
        return Grid(rows, columns, (rows, columns), matrices)
    if scale == (*stack, rows):
        scale = (*scale, 1)
    for block in (*declared, (1, columns), (rows, 1), (rows, columns)):
        if scale == (*stack, -(-rows // block[0]), -(-columns // block[1])):
            return Grid(rows, columns, block, matrices)
    return None
