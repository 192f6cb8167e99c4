"""Large tensors are divided among tasks: each part is a shard's, and the whole is what one task would have made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import paramdelta_hub as pd
from paramdelta_hub.limits import CHUNK_ELEMENTS
from paramdelta_hub.package.package import open_package
from paramdelta_hub.tasks import plan
from tests.support.models import assert_same, read_weights, reference, write_model

COUNT = 5 * CHUNK_ELEMENTS + 12_345
"""Elements of a tensor of six chunks."""


def changed(base: torch.Tensor, first: int, last: int, factor: float) -> torch.Tensor:
    """Return base with the elements of some chunks multiplied, one of them to −0, which no sum reaches."""
    post = base.clone()
    place = slice(first * CHUNK_ELEMENTS, last * CHUNK_ELEMENTS)
    post[place] = (base[place].double() * factor).to(base.dtype)
    post[first * CHUNK_ELEMENTS + 5] = -0.0
    return post


@pytest.fixture
def models(tmp_path: Path, dtype_name: str) -> Path:
    """Base, two posts and a target; of the large tensor, the posts change chunks 1 to 3, and 2 to 5."""
    dtype = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[dtype_name]
    noise = torch.Generator().manual_seed(1)
    large = (torch.randn(COUNT, generator=noise) * 0.05).to(dtype)
    large[large.abs() < 1e-6] = 1.0  # −0 is an exception even where nothing changed
    small = torch.linspace(-1, 1, 300).to(dtype)
    codes = torch.arange(COUNT, dtype=torch.int16)
    base = {"a.weight": large, "b.weight": small, "c.codes": codes}
    posts = {
        "post": {"a.weight": changed(large, 1, 3, 1.01), "b.weight": small * 2, "c.codes": codes.clone()},
        "other": {"a.weight": changed(large, 2, 6, 0.97), "b.weight": small + 1, "c.codes": codes},
    }
    posts["post"]["c.codes"][7] = -3
    target = {"a.weight": (large.double() * 1.02).to(dtype), "b.weight": small, "c.codes": codes}
    for name, model in {"base": base, "target": target, **posts}.items():
        write_model(tmp_path / name, model)
    return tmp_path


@pytest.fixture(params=[1 << 20, 3 << 20, 1 << 40], ids=["small tasks", "large tasks", "one task"])
def division(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    size: int = request.param
    monkeypatch.setattr(plan, "TASK_BYTES_MIN", size)
    monkeypatch.setattr(plan, "TASK_BYTES_MAX", size)
    return size


def test_parts_of_a_tensor(models: Path, division: int) -> None:
    manifest = pd.extract(models / "base", models / "post", models / "delta", threads=2).manifest
    record = next(tensor for tensor in manifest.tensors if tensor.name == "a.weight")
    assert sum(part.chunks for part in record.parts) == 6
    assert record.exceptions >= 1
    if division == 1 << 40:
        assert [(part.chunks, part.codec) for part in record.parts] == [(6, "tans")]
        return
    assert len(manifest.shards) > 1
    assert [part.codec for part in record.parts][-1] == "zero"
    codes = next(tensor for tensor in manifest.tensors if tensor.name == "c.codes")
    assert [part.chunks for part in codes.parts] == [6], "replaced as a whole"


def test_what_is_made_of_parts(models: Path, division: int) -> None:
    """Verified, added to base, to another target, in a sum of two that are divided otherwise, and read as tensors."""
    pd.extract(models / "base", models / "post", models / "delta", threads=2)
    pd.verify(models / "delta", base=models / "base", post=models / "post", threads=2)
    assert pd.apply(models / "base", models / "delta", models / "out", threads=2).is_post
    base, post, other, target = (read_weights(models / name) for name in ("base", "post", "other", "target"))
    assert_same(read_weights(models / "out"), post)
    pd.apply(models / "target", models / "delta", models / "ported", threads=3)
    ported = read_weights(models / "ported")
    assert_same(ported, {
        name: post[name] if name == "c.codes" else reference(base[name], post[name], target[name]) for name in post
    })  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "TASK_BYTES_MAX", 5 << 20)
        patch.setattr(plan, "TASK_BYTES_MIN", 5 << 20)
        pd.extract(models / "base", models / "other", models / "second", threads=2)
    pd.apply(models / "target", [(models / "delta", 0.5), models / "second"], models / "both", threads=2)
    wide = torch.float64 if target["a.weight"].dtype == torch.float32 else torch.float32
    first, second = (side["a.weight"].to(wide) - base["a.weight"].to(wide) for side in (post, other))
    total = (target["a.weight"].to(wide) + 0.5 * first) + second
    assert torch.equal(read_weights(models / "both")["a.weight"], total.to(target["a.weight"].dtype))
    assert torch.equal(dict(pd.tensors(models / "delta"))["a.weight"], first)


def test_dividing_changes_no_digest(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for number, size in enumerate((1 << 20, 1 << 40)):
        monkeypatch.setattr(plan, "TASK_BYTES_MIN", size)
        monkeypatch.setattr(plan, "TASK_BYTES_MAX", size)
        manifest = pd.extract(models / "base", models / "post", models / f"delta{number}", threads=2).manifest
        found.append([
            tensor.model_dump(exclude={"parts"}) | {"chunks": sum(part.chunks for part in tensor.parts)}
            for tensor in manifest.tensors
        ])  # fmt: skip
        assert open_package(models / f"delta{number}").manifest.content_id == manifest.content_id
    assert found[0] == found[1]


def test_values_that_are_not_finite_are_counted_over_all_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "TASK_BYTES_MIN", 1 << 20)
    base, post = torch.ones(3 * CHUNK_ELEMENTS).bfloat16(), torch.ones(3 * CHUNK_ELEMENTS).bfloat16()
    post[:: CHUNK_ELEMENTS // 2] = torch.inf
    base[5] = torch.nan
    write_model(tmp_path / "base", {"w": base})
    write_model(tmp_path / "post", {"w": post})
    with pytest.raises(pd.errors.NotFiniteError) as caught:
        pd.extract(tmp_path / "base", tmp_path / "post", tmp_path / "delta", threads=2)
    [mismatch] = caught.value.mismatches
    assert "1 in base, 6 in post" in mismatch.message
