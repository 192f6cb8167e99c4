"""Tensors of any rank: stacked experts, fused projections, convolutions. Only the order of the elements counts."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import paramdelta_hub as pd
from paramdelta_hub.limits import CHUNK_ELEMENTS, LINEAGE_RUN_LENGTH, LINEAGE_RUNS, TENSOR_RANK
from tests.support.models import (
    TORCH,
    apply_in,
    assert_same,
    extract_in,
    read_weights,
    reference,
    tuned,
    write_model,
    write_models,
)

SHAPES = {
    "model.layers.0.mlp.experts.gate_up_proj": (8, 32, 48),
    "model.layers.0.mlp.experts.gate_up_proj_bias": (8, 48),
    "model.layers.0.mlp.experts.down_proj": (3, 700, 600),  # its chunks end within an expert, and within a row
    "model.layers.0.self_attn.qkv_proj.weight": (96, 32),
    "model.layers.0.self_attn.sinks": (4,),
    "patch_embed.proj.weight": (24, 3, 2, 6, 6),
    "conv.weight": (16, 8, 3, 3),
    "scale": (),
    "nothing": (4, 0, 7),
    "deep": (2,) * 6 + (1,) * (TENSOR_RANK - 6),
}


def test_the_shapes_are_the_interesting_ones() -> None:
    assert math.prod(SHAPES["model.layers.0.mlp.experts.down_proj"]) > CHUNK_ELEMENTS
    assert CHUNK_ELEMENTS % 600
    assert CHUNK_ELEMENTS % (700 * 600)
    assert {len(shape) for shape in SHAPES.values()} >= {0, 1, 2, 3, 4, 5, TENSOR_RANK}
    assert math.prod(SHAPES["patch_embed.proj.weight"]) > LINEAGE_RUNS * LINEAGE_RUN_LENGTH


@pytest.mark.parametrize("shards", [1, 4])
def test_tensors_of_every_rank(tmp_path: Path, dtype_name: str, shards: int) -> None:
    noise = torch.Generator().manual_seed(7)
    base = {name: (torch.randn(shape, generator=noise) * 0.05).to(TORCH[dtype_name]) for name, shape in SHAPES.items()}
    post, target = tuned(base, 1), tuned(base, 2, scale=0.01)
    for name, tensors in {"base": base, "post": post, "target": target}.items():
        write_model(tmp_path / name, tensors, shards if name != "post" else 1)
    report = extract_in(tmp_path)
    assert {record.name: record.shape for record in report.manifest.tensors} == SHAPES
    pd.verify(tmp_path / "delta", base=tmp_path / "base", post=tmp_path / "post")

    assert apply_in(tmp_path, "base", "delta", "rebuilt").is_post
    assert_same(read_weights(tmp_path / "rebuilt"), post)
    apply_in(tmp_path)
    expected = {name: reference(base[name], post[name], target[name]) for name in SHAPES}
    assert_same(read_weights(tmp_path / "out"), expected)


def test_the_same_elements_in_another_shape_do_not_fit(tmp_path: Path) -> None:
    """Stacked experts and the same bytes laid flat are not the same tensor, and transposed ones are not either."""
    experts = torch.ones(4, 8, 6)
    write_models(
        tmp_path,
        base={"experts": experts, "other": torch.ones(2, 3)},
        post={"experts": experts.reshape(32, 6), "other": torch.ones(3, 2)},
    )
    with pytest.raises(pd.MismatchError) as caught:
        extract_in(tmp_path)
    assert {(mismatch.location, mismatch.kind) for mismatch in caught.value.mismatches} == {
        ("experts", "shape"),
        ("other", "shape"),
    }
