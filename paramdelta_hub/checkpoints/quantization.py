"""Quantized checkpoints: weights with the scales that belong to them, and what else there is, which is refused.

All supported kinds mean value = code · scale, and differ in names, in codes, and in how many weights share a scale:

    quant_method          codes        scale                            one scale for
    fp8                   8-bit float  ``x.weight_scale_inv``           a block (DeepSeek-V3, Qwen3-FP8), or the tensor
    fp8, modelopt         8-bit float  ``x.weight_scale``               the tensor
    fbgemm_fp8            8-bit float  ``x.weight_scale``               a row; of stacked experts, also a column
    compressed-tensors    8-bit float  ``x.weight_scale``               the tensor, a row, or a block
    none (ComfyUI)        8-bit float  ``x.scale_weight``               the tensor, or a row
    mxfp8                 8-bit float  any of these, as E8M0            32 neighbours, or a block
    mxfp4 (gpt-oss)       E2M1         ``x_scales`` of ``x_blocks``     32 neighbours
    compressed-tensors    4-bit int    ``x.weight_scale``               neighbours in a row (``group_size``), or a row

Stacked experts are called ``x_proj`` and ``x_proj_scale_inv`` or ``x_proj_scale``. E8M0 scales are powers of two, as
F8_E8M0 or U8. Integers are those of ``pack-quantized``, symmetric: eight in an int32, ``x.weight_packed``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paramdelta_hub.checkpoints.checkpoint import Checkpoint
from paramdelta_hub.checkpoints.dequantized import Dequantized, Mxfp4
from paramdelta_hub.checkpoints.stored import Stored
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
_E8M0 = frozenset({"F8_E8M0", "U8"})
_MARKS = re.compile(r"(^|\.)(scaled_fp8|comfy_quant)$")
"""Tensors by which ComfyUI knows fp8."""
_OF_ACTIVATIONS = re.compile(
    r"(^|[._])(scale_input|input_scale|input_scale_ub|activation_scale|output_scale|[qkv]_scale|kv_scale|prob_output_scale)$"
)
_REMEDY = "use the 16-bit release that it was made from"
_BITSANDBYTES_REMEDY = (
    f"{_REMEDY}, or dequantize it, and give OUT: "
    'python -c "from transformers import AutoModelForCausalLM as Model; '
    "Model.from_pretrained('MODEL').dequantize().save_pretrained('OUT')\""
)
_METHODS = {
    "gptq": "GPTQ", "awq": "AWQ", "bitsandbytes": "bitsandbytes", "eetq": "EETQ", "hqq": "HQQ",
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
_WEIGHT_SCALE = re.compile(r"(^|\.)(weight_(scale|scale_inv|scales)|scale_weight)$|_proj_scale_inv$")


@dataclass(frozen=True)
class ScaledWeight:
    """A quantized weight, its scales, and how they lie over it. The two may lie in different files."""

    weight: str
    scale: str
    grid: Grid
    code: str
    """What its codes stand for: a key of :data:`~paramdelta_hub.numerics.packed.TABLES`."""
    name: str
    """Of the values: the weight's, unless that is one of packed codes."""
    shape: tuple[int, ...]
    """Of the values."""
    dtype: str = "BF16"
    """Of the values."""
    shape_name: str | None = None
    """Of the tensor that holds its shape."""

    def source(self, checkpoint: Checkpoint) -> Dequantized | Mxfp4:
        """Return how the values are read."""
        codes, scale = (Stored.of(*checkpoint.tensors[name]) for name in (self.weight, self.scale))
        if self.code == "F4_E2M1":
            return Mxfp4(codes, scale, self.scale, self.grid.rows, self.grid.columns)
        shape = Stored.of(*checkpoint.tensors[self.shape_name]) if self.shape_name else None
        return Dequantized(codes, scale, self.scale, self.grid, self.code, self.dtype, shape)


def find_scales(checkpoint: Checkpoint) -> dict[str, ScaledWeight]:
    """Return every quantized weight with its scale, by the name of what holds its codes; headers alone are read.

    Whether the scales are finite and above zero, who reads them sees.

    Raises:
        CheckpointError: a weight without a scale, or a scale whose dtype or shape does not fit it.
    """
    scaled_weights, its = {}, _Quantized(checkpoint)
    declared, groups = its.declared_blocks(), its.group_sizes()
    for name, (file, span) in checkpoint.tensors.items():
        if its.is_mxfp4(name):
            scaled_weights[name] = _mxfp4(name, span.shape)
            continue
        packed = its.is_packed(name)
        if _MARKS.search(name) or not (packed or span.dtype in DECODED):
            continue
        where = str(file.path)
        if (scale := its.scale_of(name)) is None:
            raise CheckpointError(f"tensor {name!r} is {span.dtype}, but has no scale", where=where, remedy=_REMEDY)
        scale_span = its.tensors[scale]
        powers = scale_span.dtype in _E8M0
        if scale_span.dtype not in FLOATS and (packed or not powers):
            raise CheckpointError(f"scale {scale!r} is {scale_span.dtype}, not F32, BF16 or F16", where=where)
        if scale_span.elements * 4 > SCALE_BYTES:
            raise CheckpointError(f"scale {scale!r} has {scale_span.elements} elements, too many to hold", where=where)
        shape = (*span.shape[:-1], span.shape[-1] * (32 // (its.bits or 32))) if packed else span.shape
        blocks = [*declared, *((1, group) for group in groups), *([(1, 32)] if powers else [])]
        grid = _grid(shape, scale_span.shape, blocks)
        if grid is None:
            raise CheckpointError(
                f"scale {scale!r} of shape {list(scale_span.shape)} does not fit tensor {name!r} of shape "
                f"{list(shape)} in blocks of {' or '.join(f'{height} × {width}' for height, width in blocks)}",
                where=where,
                remedy="get the model again, with its own config.json",
            )
        if packed:
            stem, dtype = name.removesuffix("_packed"), "F16" if scale_span.dtype == "F16" else "BF16"
            scaled = ScaledWeight(name, scale, grid, f"I{its.bits}", stem, shape, dtype, f"{stem}_shape")
        else:
            scaled = ScaledWeight(name, scale, grid, span.dtype, name, shape)
        scaled_weights[name] = scaled
    return scaled_weights


def unused_tensors(checkpoint: Checkpoint, scales: Mapping[str, ScaledWeight]) -> dict[str, str]:
    """Return the tensors that dequantized values have no use for, each with the reason; none for a plain model.

    Those are the scales of weights and what belongs to them, marks of ComfyUI, and single numbers that scale
    activations or the key-value cache.
    """
    if not scales:
        return {}
    unused = {scaled.scale: f"a scale, folded into {scaled.name!r}" for scaled in scales.values()}
    for scaled in scales.values():
        if scaled.name != scaled.weight:
            unused[scaled.weight] = f"codes, read with their scales as {scaled.name!r}"
        if scaled.shape_name:
            unused[scaled.shape_name] = f"the shape of {scaled.name!r}"
    for name, (_, span) in checkpoint.tensors.items():
        if span.elements == 1 and span.dtype in FLOATS and _OF_ACTIVATIONS.search(name):
            unused[name] = "a scale of activations, which only fp8 inference uses"
        if _MARKS.search(name):
            unused[name] = "a mark of fp8 for ComfyUI"
    return unused


def unsupported_reason(checkpoint: Checkpoint) -> str | None:
    """Return in a sentence how a model is quantized and what to use instead, or None for those that can be read.

    Whether scales fit their weights is for :func:`find_scales` to say.
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
    its = _Quantized(checkpoint)
    tensors = its.tensors
    for where, setting in its.settings:
        if (how := _unsupported(setting)) is not None:
            yield f"{where} says that it is quantized by {shown(how)}", _remedy(how)
    known = {name for name in tensors if its.is_packed(name) or its.is_mxfp4(name)}
    known |= {f"{name.removesuffix('_packed')}_shape" for name in known}
    known |= {f"{name.removesuffix('_blocks')}_scales" for name in known}
    codes = known & tensors.keys()
    for name, span in tensors.items():
        if name in known:
            continue
        if method := next((method for sign, method in _TENSOR_NAME_SIGNS if sign.search(name)), None):
            yield f"tensor {name!r} shows that it is quantized by {method}", _remedy(method)
        if name.endswith(("_blocks", "_scales", ".blocks", ".scales")) and span.dtype == "U8":
            yield (
                f"tensor {name!r} shows that it is quantized by MXFP4, in another layout than transformers' gpt-oss",
                _REMEDY,
            )
        if span.dtype in _PACKED and any(name + ending in tensors for ending in (*_SCALE_ENDINGS, "_scales")):
            yield f"tensor {name!r} holds scaled integers ({span.dtype})", _REMEDY
        if span.dtype in _PACKED and name.endswith(".W_q"):
            yield f"tensor {name!r} shows that it is quantized by HQQ", _REMEDY
        if name.endswith("comfy_quant") and its.is_swizzled(name):
            yield f"tensor {name!r} shows ComfyUI's scales in the order of a GPU's tiles", _REMEDY
        if _MARKS.search(name):
            continue
        if span.dtype in DECODED:
            codes.add(name)
            if its.scale_of(name) is None:
                yield f"tensor {name!r} is {span.dtype}, but has no scale", _REMEDY
        elif span.dtype.startswith("F8_") and not its.is_exponent(name):
            yield f"tensor {name!r} is {span.dtype}, which can't be added", _REMEDY
    if orphan := next(its.orphans(), None):
        yield f"tensor {orphan!r} is a scale, but there is no quantized weight for it", _REMEDY
    if its.settings and not codes:
        yield (
            f"{its.settings[0][0]} says that it is quantized, but no tensor is",
            "if the weights are right, remove that from the file",
        )


def _remedy(method: str) -> str:
    return _BITSANDBYTES_REMEDY if method.startswith("bitsandbytes") else _REMEDY


class _Quantized:
    """How a checkpoint may be quantized, by its config and by names, dtypes and shapes."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.tensors = {name: span for name, (_, span) in checkpoint.tensors.items()}
        self.settings = _settings(checkpoint)
        widths = (_one_width(setting) for _, setting in self.settings)
        self.bits = next((bits for bits in widths if bits is not None), None)
        """Of the integers that are packed, as the config says."""

    def scale_of(self, weight: str) -> str | None:
        """Return the name of a weight's scale, if there is one."""
        stem = weight.removesuffix("_packed")
        names = [stem + ending for ending in _SCALE_ENDINGS]
        if stem == "weight" or stem.endswith(".weight"):
            names += [stem.removesuffix("weight") + ending for ending in ("scale_weight", "scale")]
        return next((name for name in names if name in self.tensors), None)

    def is_packed(self, name: str) -> bool:
        """Whether a tensor holds symmetric integers of compressed-tensors that can be read."""
        stem, codes, shape = name.removesuffix("_packed"), self.tensors[name], None
        if stem != name:
            shape = self.tensors.get(f"{stem}_shape")
        return (
            shape is not None
            and (codes.dtype, len(codes.shape)) == ("I32", 2)
            and shape.shape == (2,)
            and shape.dtype in ("I64", "I32")
            and f"{stem}_zero_point" not in self.tensors
            and f"{stem}_g_idx" not in self.tensors
            and self.scale_of(name) is not None
            and self.bits in (4, 8)
        )

    def is_mxfp4(self, name: str) -> bool:
        """Whether a tensor holds the codes of experts as transformers' gpt-oss has them."""
        stem, codes = name.removesuffix("_blocks"), self.tensors[name]
        scales = self.tensors.get(f"{stem}_scales")
        return (
            stem != name
            and scales is not None
            and stem not in self.tensors
            and (codes.dtype, len(codes.shape), codes.shape[-1:]) == ("U8", 4, (16,))
            and codes.elements > 0
            and scales.dtype in _E8M0
            and scales.shape == codes.shape[:-1]
        )

    def is_exponent(self, name: str) -> bool:
        """Whether an F8_E8M0 tensor is the scale of a weight that can be read."""
        weights = re.sub(r"_scale(_inv)?$", "", name), re.sub(r"scale(_weight)?$", "weight", name)
        return self.tensors[name].dtype == "F8_E8M0" and any(
            self.tensors[weight].dtype in DECODED and self.scale_of(weight) == name
            for weight in weights
            if weight in self.tensors
        )

    def is_swizzled(self, mark: str) -> bool:
        """Whether the scales of a weight that ComfyUI marks are not single numbers, whose order it changes."""
        scale = self.scale_of(mark.removesuffix("comfy_quant") + "weight")
        return scale is None or self.tensors[scale].elements != 1

    def orphans(self) -> Iterator[str]:
        """Return the scales that belong to no weight."""
        codes = (name for name, span in self.tensors.items() if span.dtype in DECODED or self.is_packed(name))
        used = set(map(self.scale_of, codes))
        return (name for name in self.tensors if _WEIGHT_SCALE.search(name) and name not in used)

    def group_sizes(self) -> list[int]:
        """Return how many neighbours in a row share a scale, as the config says; none where it does not."""
        groups = (_weight_settings(setting) for _, setting in self.settings)
        sizes = [weights.get("group_size") for group in groups for weights in group]
        return list(dict.fromkeys(size for size in sizes if isinstance(size, int) and 0 < size < 1 << 30))

    def declared_blocks(self) -> list[tuple[int, int]]:
        """Return the block sizes that the config names, or DeepSeek-V3's where it names none."""
        values = []
        for _, setting in self.settings:
            values.append(setting.get("weight_block_size"))
            values += [weights.get("block_structure") for weights in _weight_settings(setting)]
        return list(dict.fromkeys(block for value in values if (block := _block(value)))) or [BLOCK]


def _mxfp4(name: str, shape: tuple[int, ...]) -> ScaledWeight:
    matrices, rows, groups, _ = shape
    stem, columns = name.removesuffix("_blocks"), 32 * groups
    grid = Grid(rows, columns, (1, 32), matrices)
    return ScaledWeight(name, f"{stem}_scales", grid, "F4_E2M1", stem, (matrices, columns, rows))


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
    if method == "mxfp4":
        return None
    if method in ("fp8", "fbgemm_fp8", "mxfp8"):
        block = setting.get("weight_block_size")
        return None if block is None or _block(block) else f"fp8 in odd blocks ({str(block)[:40]})"
    if method == "modelopt":
        algorithm = setting.get("quant_algo")
        return None if algorithm in ("FP8", "MXFP8") else f"ModelOpt's {str(algorithm)[:40]}"
    if method == "compressed-tensors":
        return _unsupported_compressed(setting)
    if not isinstance(method, str):
        method = "bitsandbytes" if {"load_in_8bit", "load_in_4bit"} & setting.keys() else "an unknown method"
    return _METHODS.get(method, method[:40])


def _unsupported_compressed(setting: Mapping[str, Any]) -> str | None:
    """Look for anything in a compressed-tensors setting that is not value = code · scale."""
    sparsity, rotation = setting.get("sparsity_config"), setting.get("transform_config")
    if isinstance(sparsity, dict) and sparsity.get("format") not in (None, "dense"):
        return f"compressed-tensors as {str(sparsity['format'])[:40]}"
    if isinstance(rotation, dict) and rotation.get("config_groups"):
        return "compressed-tensors with rotated weights"
    layout = setting.get("format")
    for weights in _weight_settings(setting):
        kind, bits = weights.get("type"), weights.get("num_bits")
        integers = kind == "int" and bits in (4, 8) and layout == "pack-quantized"
        if (bits, kind) != (8, "float") and not integers:
            return f"compressed-tensors as {str(kind)[:40]} of {str(bits)[:40]} bits"
        if integers and weights.get("symmetric") is False:
            return "compressed-tensors as integers with zero points"
        if integers and weights.get("actorder") == "group":
            return "compressed-tensors as integers in the order of activations"
        if integers and weights.get("strategy") not in (None, "group", "channel", "tensor"):
            return f"compressed-tensors as integers by {str(weights.get('strategy'))[:40]}"
    known = (None, "float-quantized", "naive-quantized", "mxfp8-quantized", "pack-quantized")
    if layout == "pack-quantized" and _one_width(setting) is None:
        return "compressed-tensors as pack-quantized, without one width for all integers"
    return None if layout in known else f"compressed-tensors as {layout}"[:80]


def _weight_settings(setting: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    groups = setting.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict):
            yield weights


def _one_width(setting: Mapping[str, Any]) -> int | None:
    """Return the bits of all integers of a compressed-tensors setting; None if they differ, or none is named."""
    widths = [weights.get("num_bits") for weights in _weight_settings(setting) if weights.get("type") == "int"]
    return widths[0] if widths and isinstance(widths[0], int) and all(width == widths[0] for width in widths) else None


def _block(value: object) -> tuple[int, int] | None:
    """Return a block's (rows, columns) from ``[128, 128]`` or ``"128x128"``, or None."""
    if isinstance(value, str):
        value = [int(number) for number in value.split("x") if number.isdecimal() and len(number) < 10]
    if not isinstance(value, list) or len(value) != 2 or not all(type(n) is int and 0 < n < 1 << 30 for n in value):
        return None
    return value[0], value[1]


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
