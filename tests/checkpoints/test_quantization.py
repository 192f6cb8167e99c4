"""fp8 checkpoints in every shape they come in, and what else is quantized, which is refused with a remedy."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_hub.checkpoints.checkpoint import Checkpoint, open_checkpoint
from paramdelta_hub.checkpoints.quantization import BLOCK, ScaledWeight, find_scales, unsupported_reason, unused_tensors
from paramdelta_hub.errors import CheckpointError, MismatchError
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.fileio.safetensors import build_header
from paramdelta_hub.numerics.float8 import Grid
from tests.support.fp8_models import E4M3, E5M2, FP8, quantized, spread
from tests.support.kinds import QUANTIZATION, kind, remedied
from tests.support.models import apply_in, extract_in, from_bits, read_weights, write_model

Tensors = Mapping[str, torch.Tensor]


def model(path: Path, tensors: Tensors, setting: Any = None, shards: int = 1) -> Checkpoint:
    config = {"model_type": "llama"} if setting is None else {"quantization_config": setting}
    return open_checkpoint(write_model(path, tensors, shards, config))


def values_of(checkpoint: Checkpoint, its: ScaledWeight) -> torch.Tensor:
    """What the product makes of a weight: its bytes and its scales', read and multiplied."""
    bits = np.empty(math.prod(its.shape), np.uint16)
    with OpenFiles(CheckpointError) as files:
        source = its.source(checkpoint)
        source.open(files).read(0, bits.view(np.uint8))
    return from_bits(bits, torch.bfloat16).reshape(its.shape)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_deepseek_checkpoint(tmp_path: Path, shards: int) -> None:
    shapes = {
        "model.layers.0.self_attn.q_a_proj.weight": (128, 256), "model.layers.0.mlp.gate_proj.weight": (200, 130),
        "model.layers.1.mlp.experts.0.up_proj.weight": (129, 127), "model.layers.1.mlp.down_proj.weight": (1, 5),
    }  # fmt: skip
    tensors = {"model.embed_tokens.weight": torch.randn(40, 16).bfloat16(), "model.norm.weight": torch.ones(16)}
    for seed, (name, shape) in enumerate(shapes.items()):
        tensors |= quantized(name, shape, seed=seed)
    checkpoint = model(tmp_path / "m", tensors, FP8 | {"activation_scheme": "dynamic", "fmt": "e4m3"}, shards)
    assert unsupported_reason(checkpoint) is None
    found = find_scales(checkpoint)
    assert found.keys() == shapes.keys()
    for name, its in found.items():
        assert (its.weight, its.scale) == (name, f"{name}_scale_inv")
        expected = (tensors[name].float() * spread(tensors[its.scale], BLOCK, shapes[name])).bfloat16()
        assert torch.equal(values_of(checkpoint, its).view(torch.int16), expected.view(torch.int16)), name
    if shards > 1:
        assert any(checkpoint.tensors[a.weight][0] != checkpoint.tensors[a.scale][0] for a in found.values())
    assert unused_tensors(checkpoint, found) == {
        f"{name}_scale_inv": f"a scale, folded into {name!r}" for name in shapes
    }


COMPRESSED = {
    "quant_method": "compressed-tensors", "format": "float-quantized", "sparsity_config": {"format": "dense"},
    "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}},
}  # fmt: skip
COMPRESSED_BLOCKS = {
    "quant_method": "compressed-tensors", "format": "float-quantized",
    "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float", "block_structure": "32x64"}}},
}  # fmt: skip
KINDS: list[tuple[str, Any, tuple[int, ...], tuple[int, ...], str, tuple[int, int]]] = [
    ("a block", FP8, (200, 300), (2, 3), "_scale_inv", (128, 128)),
    ("a block, sized", FP8 | {"weight_block_size": [64, 32]}, (200, 300), (4, 10), "_scale_inv", (64, 32)),
    ("a block, no config", None, (200, 300), (2, 3), "_scale_inv", (128, 128)),
    ("a tensor, no axis", {"quant_method": "fp8"}, (200, 300), (), "_scale_inv", (200, 300)),
    ("a tensor", {"quant_method": "fp8", "weight_block_size": None}, (200, 300), (1,), "_scale", (200, 300)),
    ("a tensor, of experts", {"quant_method": "fp8"}, (4, 20, 30), (1,), "_scale_inv", (80, 30)),
    ("a tensor, ModelOpt", {"quant_method": "modelopt", "quant_algo": "FP8"}, (20, 30), (), "_scale", (20, 30)),
    ("a row", {"quant_method": "fbgemm_fp8"}, (200, 300), (200, 1), "_scale", (1, 300)),
    ("a row, one axis", {"quant_method": "fbgemm_fp8"}, (200, 300), (200,), "_scale", (1, 300)),
    ("a row, square", {"quant_method": "fbgemm_fp8"}, (30, 30), (30, 1), "_scale", (1, 30)),
    ("a column of experts", {"quant_method": "fbgemm_fp8"}, (4, 20, 30), (4, 1, 30), "_scale", (20, 1)),
    ("a row of experts", {"quant_method": "fbgemm_fp8"}, (4, 20, 30), (4, 20, 1), "_scale", (1, 30)),
    ("a row, channels", COMPRESSED, (200, 300), (200, 1), "_scale", (1, 300)),
    ("a block, compressed", COMPRESSED_BLOCKS, (100, 100), (4, 2), "_scale", (32, 64)),
    ("a block of experts", FP8, (3, 200, 300), (3, 2, 3), "_scale_inv", (128, 128)),
    ("an expert", {"quant_method": "fp8"}, (3, 20, 30), (3,), "_scale", (20, 30)),
    ("an expert, all axes", {"quant_method": "fp8"}, (3, 200, 30), (3, 1, 1), "_scale", (200, 30)),
]  # fmt: skip


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind[0])
def test_one_scale_for(tmp_path: Path, kind: Any, scale_dtype: torch.dtype) -> None:
    _, setting, shape, scale_shape, ending, block = kind
    noise = torch.Generator().manual_seed(1)
    name = "model.experts.gate_up_proj" if len(shape) == 3 else "model.up_proj.weight"
    weight = (torch.randn(*shape, generator=noise) * 100).to(E4M3)
    scale = (torch.rand(scale_shape, generator=noise) + 0.01).to(scale_dtype)
    checkpoint = model(tmp_path / "m", {name: weight, name + ending: scale}, setting)
    assert unsupported_reason(checkpoint) is None
    (its,) = find_scales(checkpoint).values()
    assert its.grid.block == block
    stacked = weight.reshape(its.grid.matrices, its.grid.rows, its.grid.columns)
    each = scale.reshape(its.grid.matrices, its.grid.scale_rows, its.grid.scale_shape[1])
    factors = spread(each, block, tuple(stacked.shape))
    expected = (stacked.float() * factors).bfloat16().reshape(shape)
    assert torch.equal(values_of(checkpoint, its), expected)


def test_e5m2_weights_have_scales_too(tmp_path: Path) -> None:
    weight, scale = torch.randn(20, 30).to(E5M2), torch.tensor(0.3)
    checkpoint = model(tmp_path / "m", {"w": weight, "w_scale": scale}, {"quant_method": "fp8"})
    (its,) = find_scales(checkpoint).values()
    assert torch.equal(values_of(checkpoint, its), (weight.float() * scale).bfloat16())


def test_a_lone_file_needs_no_config(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m", quantized("w", (200, 130))) / "model.safetensors"
    checkpoint = open_checkpoint(path)
    assert unsupported_reason(checkpoint) is None
    assert find_scales(checkpoint)["w"].grid == Grid(200, 130, (128, 128))


def test_plain_models_are_left_alone(tmp_path: Path) -> None:
    tensors = {
        "vit.layer_scale": torch.ones(4), "logit_scale": torch.ones(()), "model.steps": torch.tensor([7]), "attn.W_q":
        torch.ones(3, 3), "attn.k_scale": torch.ones(1), "x.scales": torch.ones(3), "w.weight": torch.ones(3, 3),
        "layer.scale": torch.ones(4),
    }  # fmt: skip
    checkpoint = model(tmp_path / "m", tensors)
    assert unsupported_reason(checkpoint) is None
    assert (
        unsupported_reason(open_checkpoint(write_model(tmp_path / "null", tensors, 1, {"quantization_config": None})))
        is None
    )
    assert find_scales(checkpoint) == {}
    assert unused_tensors(checkpoint, {}) == {}


def test_scales_of_activations_are_left_out_if_they_are_single_numbers(tmp_path: Path) -> None:
    single = {
        "a.input_scale": torch.ones(1), "a.activation_scale": torch.tensor(2.0), "self_attn.k_scale": torch.ones(1),
        "self_attn.v_scale": torch.ones(()).bfloat16(), "a.input_scale_ub": torch.ones(1),
        "experts.gate_up_proj_activation_scale": torch.ones(1), "k_proj.output_scale": torch.ones(1),
    }  # fmt: skip
    others = {"b.input_scale": torch.ones(16), "b.layer_scale": torch.ones(1), "norm.weight": torch.ones(1)}
    tensors = {**quantized("a.weight", (20, 30)), **single, **others}
    checkpoint = model(tmp_path / "m", tensors, FP8)
    assert unsupported_reason(checkpoint) is None
    found = unused_tensors(checkpoint, find_scales(checkpoint))
    assert found.keys() == {*single, "a.weight_scale_inv"}
    assert {found[name] for name in single} == {"a scale of activations, which only fp8 inference uses"}


BF16 = {"w.weight": torch.ones(4, 4).bfloat16()}
INT8 = {"w.weight": torch.ones(4, 4, dtype=torch.int8)}
U8 = torch.ones(4, 4, dtype=torch.uint8)
GOOD = quantized("w.weight", (20, 30))
WHERE_IT_CAME_FROM = "use the 16-bit release that it was made from"


def compressed(**changes: Any) -> dict[str, Any]:
    return COMPRESSED | changes


def group(**weights: Any) -> dict[str, Any]:
    return compressed(config_groups={"group_0": {"weights": weights}})


PACKED = {"format": "pack-quantized"}
REFUSED: list[tuple[str, Tensors, Any]] = [
    *((words, BF16, {"quant_method": method}) for words, method in [
        ("GPTQ", "gptq"), ("AWQ", "awq"), ("bitsandbytes", "bitsandbytes"), ("EETQ", "eetq"),
        ("HQQ", "hqq"), ("torchao", "torchao"), ("Quark", "quark"), ("something-new", "something-new"),
        ("an unknown method", ["fp8"]),
    ]),
    ("bitsandbytes", BF16, {"load_in_8bit": True}), ("an unknown method", BF16, {}),
    ("GPTQ or AWQ", {"w.qweight": torch.ones(4, 4, dtype=torch.int32)}, None),
    ("GPTQ or AWQ", {"w.qzeros": torch.ones(4, 4, dtype=torch.int32)}, None),
    ("AWQ", {**BF16, "w.pre_quant_scale": torch.ones(4)}, None),
    ("bitsandbytes in 4 bits", {"w.weight": U8, "w.weight.absmax": torch.ones(2)}, None),
    ("bitsandbytes in 4 bits", {"w.weight": U8, "w.weight.quant_state.bitsandbytes__nf4": torch.ones(2)}, None),
    ("bitsandbytes in 8 bits", {**INT8, "w.SCB": torch.ones(4)}, None),
    ("packed", {"w.weight_packed": torch.ones(4, 4, dtype=torch.int32), "w.weight_scale": torch.ones(4, 1)}, None),
    ("packed or shifted", {**GOOD, "w.weight_zero_point": torch.ones(1)}, None),
    ("NVFP4", {"w.weight": U8, "w.weight_scale": torch.ones(4, 1).to(E4M3), "w.weight_scale_2": torch.ones(1)}, None),
    ("MXFP4, in another layout", {"w.down_proj_blocks": U8, "w.down_proj_scales": U8[0]}, None),
    ("MXFP4, in another layout", {"mlp1_weight.blocks": U8, "mlp1_weight.scales": U8[0]}, None),
    ("scaled integers (I8)", {**INT8, "w.weight_scale": torch.ones(4, 1)}, None),
    ("scaled integers (I8)", {**INT8, "w.weight_scales": torch.ones(4)}, None),
    ("scaled integers (U8)", {"w.weight": U8, "w.weight_scale": torch.ones(())}, None), ("HQQ", {"w.W_q": U8}, None),
    ("torchao", {"w._weight_qdata": INT8["w.weight"]}, None), ("Quanto", {"w.weight._data": INT8["w.weight"]}, None),
    ("F8_E4M3, but has no scale", {"w.weight": torch.ones(4, 4).to(E4M3)}, None),
    ("F8_E5M2, but has no scale", {**GOOD, "v.weight": torch.ones(4, 4).to(E5M2)}, FP8),
    ("F8_E4M3FNUZ, which can't be added", {**GOOD, "v": torch.ones(4).to(torch.float8_e4m3fnuz)}, FP8),
    ("F8_E8M0, which can't be added", {**GOOD, "v": torch.ones(1, 1).to(torch.float8_e8m0fnu)}, FP8),
    ("in the order of a GPU's tiles", {"w.weight": GOOD["w.weight"], "w.weight_scale": U8, "w.comfy_quant": U8}, None),
    ("'w.weight_scale_inv' is a scale, but there is no", {**BF16, "w.weight_scale_inv": torch.ones(1)}, None),
    ("'v.weight_scale' is a scale, but there is no quantized weight", {**GOOD, "v.weight_scale": torch.ones(1)}, FP8),
    ("fp8 in odd blocks ([128])", GOOD, FP8 | {"weight_block_size": [128]}),
    ("fp8 in odd blocks ([128, 0])", GOOD, FP8 | {"weight_block_size": [128, 0]}),
    ("ModelOpt's NVFP4", GOOD, {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
    ("compressed-tensors as pack-quantized", GOOD, compressed(format="pack-quantized")),
    ("compressed-tensors as int of 8 bits", GOOD, group(num_bits=8, type="int")),
    ("with zero points", GOOD, group(num_bits=4, type="int", symmetric=False) | PACKED),
    ("in the order of activations", GOOD, group(num_bits=4, type="int", actorder="group") | PACKED),
    ("compressed-tensors as float of 4 bits", GOOD, group(num_bits=4, type="float")),
    ("as sparse-24-bitmask", GOOD, compressed(sparsity_config={"format": "sparse-24-bitmask"})),
    ("with rotated weights", GOOD, compressed(transform_config={"config_groups": {"R1": {}}})),
]  # fmt: skip


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case[0]}-{case[2] is not None}")
def test_what_is_quantized_in_other_ways_is_refused(tmp_path: Path, case: tuple[str, Tensors, Any]) -> None:
    words, tensors, setting = case
    sentence = unsupported_reason(model(tmp_path / "m", tensors, setting))
    assert sentence is not None
    assert words in sentence
    assert WHERE_IT_CAME_FROM in sentence
    assert (".dequantize().save_pretrained(" in sentence) == ("bitsandbytes" in words)
    assert "\n" not in sentence


@kind(
    QUANTIZATION,
    "GPTQ, AWQ, NVFP4, bitsandbytes, HQQ, torchao, integers with zero points, fp8 without scales …",
    refused="by name: what they stand for is not known to the bit",
    remedy="use the 16-bit release that it was made from",
)
@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case[0]}-{case[2] is not None}")
def test_the_16_bit_release_of_what_is_refused_works(tmp_path: Path, case: tuple[str, Tensors, Any]) -> None:
    """Refused as base, with the remedy in the message; the release in 16 bits is taken in its place."""
    words, tensors, setting = case
    release = {"w.weight": torch.randn(20, 30, generator=torch.Generator().manual_seed(1)).bfloat16()}
    post = {"w.weight": (release["w.weight"].float() * 1.25).bfloat16()}
    model(tmp_path / "quantized", tensors, setting)
    for name, its in (("release", release), ("post", post)):
        write_model(tmp_path / name, its)
    with pytest.raises(MismatchError) as caught:
        extract_in(tmp_path, "quantized")
    [told] = [mismatch.message for mismatch in caught.value.mismatches if mismatch.kind == "quantized"]
    assert words in told
    with remedied(told, WHERE_IT_CAME_FROM):
        extract_in(tmp_path, "release")
        assert apply_in(tmp_path, "release").is_post
        assert torch.equal(read_weights(tmp_path / "out")["w.weight"], post["w.weight"])


def test_a_config_that_says_fp8_of_plain_weights(tmp_path: Path) -> None:
    sentence = unsupported_reason(model(tmp_path / "m", BF16, FP8)) or ""
    assert "says that it is quantized, but no tensor is; if the weights are right" in sentence


def test_configs_may_lie_deeper_or_in_another_file(tmp_path: Path) -> None:
    write_model(tmp_path / "inner", BF16, config={"text_config": {"quantization_config": {"quant_method": "awq"}}})
    assert "its config.json says that it is quantized by AWQ" in (
        unsupported_reason(open_checkpoint(tmp_path / "inner")) or ""
    )
    for algorithm, expected in (("FP8", None), ("W4A8_AWQ", "ModelOpt's W4A8_AWQ"), (None, None)):
        checkpoint = model(tmp_path / str(algorithm), GOOD)
        text = json.dumps({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": algorithm}})
        (checkpoint.folder / "hf_quant_config.json").write_text(text)
        sentence = unsupported_reason(checkpoint)
        assert (expected in sentence) if expected and sentence else sentence is expected


def test_types_of_less_than_a_byte_are_refused_on_opening(tmp_path: Path) -> None:
    for dtype in ("F4", "F6_E2M3", "F6_E3M2"):
        header = build_header([("w", "F8_E8M0", (4,), 4)], {}).replace(b'"F8_E8M0"', f'"{dtype}"'.ljust(9).encode())
        (tmp_path / "model.safetensors").write_bytes(header + bytes(4))
        with pytest.raises(CheckpointError, match=rf"'w' is {dtype}.* less than a byte") as caught:
            open_checkpoint(tmp_path / "model.safetensors")
        assert caught.value.remedy == WHERE_IT_CAME_FROM


@pytest.mark.parametrize("value", [0.0, -0.0, -1.0, float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_scales_are_finite_and_above_zero(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    tensors = quantized("w", (200, 300))
    scale = tensors["w_scale_inv"] = tensors["w_scale_inv"].to(dtype)
    checkpoint = model(tmp_path / "good", tensors, FP8)
    assert values_of(checkpoint, find_scales(checkpoint)["w"]).isfinite().all()
    scale[1, 2] = value
    checkpoint = model(tmp_path / "bad", tensors, FP8)
    with pytest.raises(CheckpointError, match=r"'w_scale_inv' hold .* finite and above 0"):
        values_of(checkpoint, find_scales(checkpoint)["w"])


@pytest.mark.parametrize(
    ("weight", "scale", "setting"),
    [
        ((200, 300), (3, 2), FP8), ((200, 300), (2, 4), FP8), ((200, 300), (300,), FP8), ((200, 300), (0,), FP8),
        ((200, 300), (2, 3), FP8 | {"weight_block_size": [64, 64]}), ((200, 300), (1, 2, 3), FP8), ((30,), (30,), FP8),
        ((4, 20, 30), (20, 1), FP8), ((4, 20, 30), (30,), FP8), ((2, 2, 20, 30), (1,), FP8), ((0, 30), (0, 1), FP8),
    ],
)  # fmt: skip
def test_a_scale_that_does_not_fit(
    tmp_path: Path, weight: tuple[int, ...], scale: tuple[int, ...], setting: Any
) -> None:
    tensors = {"w": torch.zeros(weight).to(E4M3), "w_scale_inv": torch.ones(scale)}
    checkpoint = model(tmp_path / "m", tensors, setting)
    with pytest.raises(CheckpointError) as caught:
        find_scales(checkpoint)
    for words in ("'w'", "'w_scale_inv'", str(list(weight)), str(list(scale))):
        assert words in caught.value.what
    assert caught.value.where
    assert caught.value.remedy


def test_a_scale_of_another_type_or_none_or_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = {"w": torch.zeros(20, 30).to(E4M3)}
    with pytest.raises(CheckpointError, match="'w_scale' is I64, not F32, BF16 or F16"):
        find_scales(model(tmp_path / "type", {**weight, "w_scale": torch.ones(1).long()}))
    with pytest.raises(CheckpointError, match="'w' is F8_E4M3, but has no scale"):
        find_scales(model(tmp_path / "none", weight))
    monkeypatch.setattr("paramdelta_hub.checkpoints.quantization.SCALE_BYTES", 79)
    with pytest.raises(CheckpointError, match="'w_scale' has 20 elements, too many"):
        find_scales(model(tmp_path / "many", {**weight, "w_scale": torch.ones(20, 1)}))


def test_a_file_cut_after_it_was_opened(tmp_path: Path) -> None:
    checkpoint = model(tmp_path / "m", quantized("w", (20, 30)), FP8)
    path = tmp_path / "m" / "model.safetensors"
    path.write_bytes(path.read_bytes()[: checkpoint.tensors["w_scale_inv"][1].start + 1])
    with pytest.raises(CheckpointError, match="truncated"):
        values_of(checkpoint, find_scales(checkpoint)["w"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 1 << 40) | st.sampled_from(["fp8", "float", "8x8", "x", "²x3", "FP8"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from([
        "quant_method", "weight_block_size", "quant_algo", "config_groups", "weights", "block_structure", "format",
        "sparsity_config", "transform_config", "num_bits", "type",
    ]), inner, max_size=4),
    max_leaves=10,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    setting=JSON, method=st.sampled_from(["fp8", "compressed-tensors", "modelopt", 7]), inner=JSON, whole=st.booleans()
)
def test_a_strangers_config_meets_a_verdict_not_a_crash(
    tmp_path_factory: pytest.TempPathFactory, setting: Any, method: Any, inner: Any, whole: bool
) -> None:
    path = tmp_path_factory.mktemp("odd")
    if isinstance(setting, dict) and not whole:
        setting = {**setting, "quant_method": method}
    checkpoint = model(path, GOOD, setting)
    (path / "config.json").write_text(json.dumps({"quantization_config": setting, "text_config": inner}))
    assert unsupported_reason(checkpoint) is None or "; " in str(unsupported_reason(checkpoint))
    try:
        found = ", ".join(find_scales(checkpoint))
    except CheckpointError as error:
        found = error.what
    assert found == "w.weight" or "does not fit" in found


def test_the_generated_checkpoints_are_what_they_claim(tmp_path: Path) -> None:
    """The weights that these tests make are near what they were made of, so that equal mistakes can't hide."""
    original = torch.randn(200, 300, generator=torch.Generator().manual_seed(5)) * 0.02
    checkpoint = model(tmp_path / "m", quantized("w", (200, 300), seed=5), FP8)
    (its,) = find_scales(checkpoint).values()
    error = (values_of(checkpoint, its).float() - original).norm() / original.norm()
    assert 0.02 < error < 0.03
    assert read_weights(tmp_path / "m")["w"].dtype == E4M3
