"""Weights of 4 and 8 bits with scales by blocks, against transformers' and torch's own values."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import paramdelta_hub as pd
from paramdelta_hub.checkpoints.architecture import architecture_record
from paramdelta_hub.checkpoints.checkpoint import open_checkpoint
from paramdelta_hub.checkpoints.logical import logical_model
from paramdelta_hub.errors import CheckpointError, OptionError
from paramdelta_hub.fileio.open_files import OpenFiles
from tests.support.chunks import set_chunk_elements
from tests.support.fp8_models import E4M3, FP8, spread
from tests.support.kinds import QUANTIZATION, kind, remedied
from tests.support.models import (
    TORCH,
    apply_in,
    assert_same,
    extract_in,
    from_bits,
    read_weights,
    write_model,
    write_models,
)

MXFP4 = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}
EXPERTS = "model.layers.0.mlp.experts."


def noise(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def read(path: Path, name: str, pieces: int = 1) -> torch.Tensor:
    """What the product makes of a tensor, read in so many pieces."""
    tensor = logical_model(open_checkpoint(path)).tensors[name]
    bits = np.empty(tensor.elements, np.uint16)
    with OpenFiles(CheckpointError) as files:
        values = tensor.source.open(files)
        cuts = np.linspace(0, tensor.elements, pieces + 1).astype(int).tolist()
        for start, stop in itertools.pairwise(cuts):
            values.read(start, bits[start:stop].view(np.uint8))
    return from_bits(bits, TORCH[tensor.dtype]).reshape(tensor.shape)


def mxfp4(shape: tuple[int, int, int], seed: int, name: str = f"{EXPERTS}gate_up_proj") -> dict[str, torch.Tensor]:
    """Codes and exponents of experts (experts, rows, columns)."""
    experts, rows, columns = shape
    blocks = torch.randint(0, 256, (experts, rows, columns // 32, 16), dtype=torch.uint8, generator=noise(seed))
    scales = torch.randint(118, 126, (experts, rows, columns // 32), dtype=torch.uint8, generator=noise(seed + 1))
    return {f"{name}_blocks": blocks, f"{name}_scales": scales}


def mxfp4_values(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    values: torch.Tensor = convert_moe_packed_tensors(blocks, scales)
    return values


@pytest.mark.parametrize("pieces", [1, 7, 400])
def test_mxfp4_is_what_transformers_makes_of_it(tmp_path: Path, pieces: int) -> None:
    tensors = mxfp4((3, 10, 96), 1)
    tensors[f"{EXPERTS}gate_up_proj_scales"][0, 0] = torch.tensor([0, 3, 250], dtype=torch.uint8)
    write_model(tmp_path, tensors, config=MXFP4)
    values = read(tmp_path, f"{EXPERTS}gate_up_proj", pieces)
    assert_same({"w": values}, {"w": mxfp4_values(*tensors.values())})
    assert values.shape == (3, 96, 10)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_range_of_mxfp4(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path, tensors = tmp_path_factory.mktemp("mx"), mxfp4((2, 5, 64), 2)
    write_model(path, tensors, config=MXFP4)
    expected = mxfp4_values(*tensors.values()).reshape(-1)
    tensor = logical_model(open_checkpoint(path)).tensors[f"{EXPERTS}gate_up_proj"]
    with OpenFiles(CheckpointError) as files:
        values = tensor.source.open(files)
        for _ in range(4):
            start = data.draw(st.integers(0, tensor.elements))
            bits = np.empty(data.draw(st.integers(0, tensor.elements - start)), np.uint16)
            values.read(start, bits.view(np.uint8))
            assert torch.equal(from_bits(bits, torch.bfloat16), expected[start : start + bits.size])


def test_the_exponent_that_is_nan_is_refused(tmp_path: Path) -> None:
    tensors = mxfp4((1, 4, 32), 3)
    tensors[f"{EXPERTS}gate_up_proj_scales"][0, 2, 0] = 255
    write_model(tmp_path, tensors, config=MXFP4)
    with pytest.raises(CheckpointError, match="gate_up_proj_scales' hold NaN"):
        read(tmp_path, f"{EXPERTS}gate_up_proj")


def gpt_oss(seed: int) -> dict[str, torch.Tensor]:
    """A model with quantized experts, and what is not quantized beside them."""
    return {
        "model.embed_tokens.weight": torch.randn(40, 64, generator=noise(seed)).bfloat16(),
        **mxfp4((4, 96, 64), seed),
        f"{EXPERTS}gate_up_proj_bias": torch.randn(4, 96, generator=noise(seed + 5)).bfloat16(),
        **mxfp4((4, 64, 32), seed + 7, f"{EXPERTS}down_proj"),
        "model.layers.0.mlp.router.weight": torch.randn(4, 64, generator=noise(seed + 9)).bfloat16(),
    }


def trained(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Nearly the same model: one in 16 bytes of codes is another, and what is not quantized moved a little."""
    post = {}
    for number, (name, tensor) in enumerate(tensors.items()):
        if name.endswith("_blocks"):
            other = torch.randint(0, 256, tensor.shape, dtype=torch.uint8, generator=noise(number))
            post[name] = torch.where(torch.rand(tensor.shape, generator=noise(number)) < 1 / 16, other, tensor)
        elif name.endswith("_scales"):
            post[name] = tensor
        else:
            post[name] = (tensor.float() + torch.randn(tensor.shape, generator=noise(number)) / 16).to(tensor.dtype)
    return post


def dequantized(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    plain = {}
    for name, tensor in tensors.items():
        if name.endswith("_blocks"):
            stem = name.removesuffix("_blocks")
            plain[stem] = mxfp4_values(tensor, tensors[f"{stem}_scales"])
        elif not name.endswith("_scales"):
            plain[name] = tensor
    return plain


@kind(QUANTIZATION, "MXFP4 (gpt-oss), as base, post and target", works="as transformers reads it; the result in bf16")
@pytest.mark.parametrize("post_is_quantized", [True, False])
def test_gpt_oss_as_base_post_and_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, post_is_quantized: bool
) -> None:
    set_chunk_elements(monkeypatch, 1000)
    base = gpt_oss(10)
    post = trained(base)
    plain = dequantized(post)
    write_model(tmp_path / "base", base, 2, MXFP4)
    write_model(tmp_path / "post", post if post_is_quantized else plain, config=MXFP4 if post_is_quantized else {})
    report = extract_in(tmp_path)
    left_out = {omission.name for omission in report.omissions}
    assert {f"{EXPERTS}down_proj_blocks", f"{EXPERTS}down_proj_scales"} <= left_out
    assert any("read with their scales" in note for note in report.notes)
    pd.verify(tmp_path / "delta", base=tmp_path / "base", post=tmp_path / "post")
    applied = apply_in(tmp_path, "base")
    assert applied.is_post
    assert_same(read_weights(tmp_path / "out"), plain)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(plain)
    with pytest.raises(OptionError):
        apply_in(tmp_path, "base", "delta", "fp8", dtype="float8_e4m3fn")


def test_a_quantized_copy_has_the_fingerprint_of_a_plain_one(tmp_path: Path) -> None:
    quantized = gpt_oss(10)
    plain = {name: torch.zeros(tensor.shape) for name, tensor in dequantized(quantized).items()}
    copies = [write_model(tmp_path / "a", quantized, 2, MXFP4), write_model(tmp_path / "b", plain)]
    records = [architecture_record(open_checkpoint(copy)) for copy in copies]
    assert records[0].fingerprint == records[1].fingerprint


E8M0 = torch.float8_e8m0fnu


@kind(
    QUANTIZATION, "scales that are powers of two (E8M0), by block or 32 neighbours", works="the values that torch has"
)
@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize(("block", "shape"), [((1, 32), (40, 96)), ((1, 32), (7, 40)), ((128, 128), (200, 300))])
def test_scales_that_are_powers_of_two(
    tmp_path: Path, as_bytes: bool, block: tuple[int, int], shape: tuple[int, int]
) -> None:
    weight = (torch.randn(*shape, generator=noise(1)) * 100).to(E4M3)
    counts = (-(-shape[0] // block[0]), -(-shape[1] // block[1]))
    exponents = torch.randint(110, 130, counts, dtype=torch.uint8, generator=noise(2))
    exponents[0, 0] = 0
    scale = exponents if as_bytes else exponents.view(E8M0)
    setting = FP8 if block == (128, 128) else {"quant_method": "mxfp8"}
    write_model(tmp_path, {"w.weight": weight, "w.weight_scale_inv": scale}, config={"quantization_config": setting})
    expected = (weight.float() * spread(exponents.view(E8M0), block, shape)).bfloat16()
    assert_same({"w": read(tmp_path, "w.weight", 3)}, {"w": expected})


@kind(
    QUANTIZATION,
    "`--dtype float8_e4m3fn` on a target with powers of two",
    refused="no such scales are made",
    remedy="remove `--dtype`: the result is bf16",
)
def test_fp8_targets_with_powers_of_two_stay_bf16(tmp_path: Path) -> None:
    weight = torch.randn(64, 64, generator=noise(1)).to(E4M3)
    plain = {"w.weight": weight.bfloat16(), "n.weight": torch.ones(64).bfloat16()}
    write_models(tmp_path, base=plain, post={**plain, "w.weight": plain["w.weight"] * 1.5})
    extract_in(tmp_path)
    target = {
        "w.weight": weight,
        "w.weight_scale_inv": torch.full((1, 1), 127, dtype=torch.uint8),
        "n.weight": plain["n.weight"],
    }
    write_model(tmp_path / "target", target, config={"quantization_config": FP8})
    with pytest.raises(OptionError, match="powers of two") as caught:
        apply_in(tmp_path, dtype="float8_e4m3fn")
    with remedied(caught.value, "remove --dtype; the result's weights are then bf16"):
        assert apply_in(tmp_path).is_post
        assert_same(read_weights(tmp_path / "out"), {**plain, "w.weight": plain["w.weight"] * 1.5})


@kind(
    QUANTIZATION,
    "`scale_weight` and others in ComfyUI's single files",
    works="read with their scales; marks and scales of activations are left out, and listed",
)
@pytest.mark.parametrize("scale_shape", [(), (1,), (24, 1)])
@pytest.mark.parametrize("name", ["scale_weight", "scale", "weight_scale", "weight_scale_inv"])
def test_scales_by_every_name(tmp_path: Path, name: str, scale_shape: tuple[int, ...]) -> None:
    """As ComfyUI has them: a single file, no config, a mark, and scales of activations."""
    weight = (torch.randn(24, 40, generator=noise(1)) * 100).to(E4M3)
    scale = torch.rand(scale_shape, generator=noise(2)) + 0.01
    plain = {"n.weight": torch.randn(24, generator=noise(3)).half(), "x.bias": torch.ones(3).bfloat16()}
    quantized = {
        "x.weight": weight,
        f"x.{name}": scale,
        "x.scale_input": torch.ones(()),
        "scaled_fp8": torch.empty(2).to(E4M3),
    }
    save_file({**plain, **quantized}, tmp_path / "m.safetensors")
    values = (weight.float() * scale).bfloat16()
    assert_same({"x": read(tmp_path / "m.safetensors", "x.weight")}, {"x": values})
    save_file({**plain, "x.weight": values * 2}, tmp_path / "post.safetensors")
    report = extract_in(tmp_path, "m.safetensors", "post.safetensors")
    assert {omission.name for omission in report.omissions} == {f"x.{name}", "x.scale_input", "scaled_fp8"}
    apply_in(tmp_path, "m.safetensors")
    assert_same(read_weights(tmp_path / "out"), {**plain, "x.weight": values * 2})


def packed(
    shape: tuple[int, int], group: int, bits: int, dtype: torch.dtype, seed: int
) -> tuple[dict[str, torch.Tensor], torch.Tensor, dict[str, Any]]:
    """Tensors of compressed-tensors' pack-quantized, the values they stand for, and the setting."""
    rows, columns = shape
    offset = 1 << bits - 1
    codes = torch.randint(-offset, offset, shape, generator=noise(seed))
    scale = (torch.rand(rows, columns // group, generator=noise(seed + 1)) * 0.1 + 0.001).to(dtype)
    words = (codes + offset).reshape(rows, -1, 32 // bits)
    shifted = (words << torch.arange(0, 32, bits)).sum(-1)  # int64, then as signed int32
    tensors = {
        "w.weight_packed": torch.where(shifted >= 1 << 31, shifted - (1 << 32), shifted).to(torch.int32),
        "w.weight_scale": scale,
        "w.weight_shape": torch.tensor(shape),
    }
    values = (codes.to(dtype) * scale.repeat_interleave(group, 1)).to(
        torch.float16 if dtype == torch.float16 else torch.bfloat16
    )
    strategy = "channel" if group == columns else "group"
    weights = {
        "num_bits": bits, "type": "int", "symmetric": True, "strategy": strategy, "actorder": None,
        "group_size": None if group == columns else group,
    }  # fmt: skip
    setting = {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": weights}},
    }  # fmt: skip
    return tensors, values, {"quantization_config": setting}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 96), (8, 32), (4, 16)])
def test_packed_integers(tmp_path: Path, bits: int, group: int, dtype: torch.dtype) -> None:
    tensors, values, config = packed((20, 96), group, bits, dtype, 5)
    write_model(tmp_path, tensors, config=config)
    for pieces in (1, 77):
        assert_same({"w": read(tmp_path, "w.weight", pieces)}, {"w": values})


@kind(QUANTIZATION, "int4 and int8 of compressed-tensors, symmetric", works="code · scale, in bf16")
def test_packed_integers_as_target(tmp_path: Path) -> None:
    tensors, values, config = packed((20, 96), 32, 4, torch.bfloat16, 5)
    other = {"n.weight": torch.ones(7).bfloat16()}
    write_model(tmp_path / "base", {**tensors, **other}, config=config)
    write_model(tmp_path / "post", {"w.weight": values * 1.25, **other}, config={})
    report = extract_in(tmp_path)
    assert {omission.name for omission in report.omissions} == set(tensors)
    assert apply_in(tmp_path, "base").is_post
    assert_same(read_weights(tmp_path / "out"), {"w.weight": values * 1.25, **other})
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_a_packed_weight_of_another_shape_than_it_says(tmp_path: Path) -> None:
    tensors, _, config = packed((20, 96), 96, 4, torch.bfloat16, 5)
    write_model(tmp_path, {**tensors, "w.weight_shape": torch.tensor([20, 90])}, config=config)
    with pytest.raises(CheckpointError, match=r"weight_shape is \[20, 90\]"):
        read(tmp_path, "w.weight")


@pytest.mark.parametrize("extra", ["w.weight_zero_point", "w.weight_g_idx"])
def test_packed_integers_with_more_to_them_are_refused(tmp_path: Path, extra: str) -> None:
    tensors, _, config = packed((20, 96), 32, 4, torch.bfloat16, 5)
    write_model(tmp_path, {**tensors, extra: torch.zeros(3, 3, dtype=torch.int32)}, config=config)
    assert "compressed-tensors as packed or shifted integers" in str(
        logical_model(open_checkpoint(tmp_path)).unsupported
    )


def test_every_code_has_its_value() -> None:
    from transformers.integrations.mxfp4 import FP4_VALUES

    from paramdelta_hub.numerics.packed import TABLES, power_scales

    assert TABLES["F4_E2M1"].tolist() == list(FP4_VALUES)
    assert math.copysign(1, TABLES["F4_E2M1"][8]) == -1
    codes = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(torch.from_numpy(power_scales(codes.numpy()))[:255], codes.view(E8M0).float()[:255])
    assert np.isnan(power_scales(codes.numpy())[255])
