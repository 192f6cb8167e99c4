"""NaN, infinities and overflow: a sum that is not finite is refused by tensor and count, for each dtype.

A delta can be made so that base ⊕ Δ is fine and another target overflows; nobody should get such weights unawares.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import paramdelta_hub as pd
from paramdelta_hub.codecs.by_name import TANS
from paramdelta_hub.errors import NotFiniteError, PackageError
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.numerics.differences import Difference, Statistics
from paramdelta_hub.numerics.floats import FLOATS
from paramdelta_hub.package.chunks import encode_added
from paramdelta_hub.package.shard import ShardWriter
from paramdelta_hub.package.tensor_delta import StoredDelta, StoredPart
from paramdelta_hub.transforms.sum import Addend, TensorSum
from tests.attacks.threats import shows
from tests.support.models import TORCH, read_weights, write_model


@pytest.fixture
def delta(tmp_path: Path, dtype_name: str) -> Path:
    dtype = TORCH[dtype_name]
    base = torch.linspace(-1, 1, 4096).to(dtype)
    post = base.clone()
    post[100], post[200] = torch.finfo(dtype).max, torch.finfo(dtype).min
    write_model(tmp_path / "base", {"w": base, "calm": base})
    write_model(tmp_path / "post", {"w": post, "calm": base / 2})
    pd.extract(tmp_path / "base", tmp_path / "post", tmp_path / "delta")
    return tmp_path / "delta"


@shows(
    "NaN, Inf, overflow",
    f"a target that holds them where Δ is not 0, in each of {len(TORCH)} dtypes: refused by tensor and count",
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("count", [1, 3])
def test_a_target_that_holds_them(tmp_path: Path, delta: Path, value: float, count: int) -> None:
    target = read_weights(tmp_path / "base")
    target["calm"][5 : 5 + count] = value
    write_model(tmp_path / "target", target)
    with pytest.raises(NotFiniteError) as caught:
        pd.apply(tmp_path / "target", delta, tmp_path / "out")
    assert [(m.location, m.message.split()[0]) for m in caught.value.mismatches] == [("calm", str(count))]
    assert not (tmp_path / "out").exists()


@shows("NaN, Inf, overflow", f"sums that overflow, in each of {len(TORCH)} dtypes, also with force: likewise")
def test_a_sum_that_overflows(tmp_path: Path, delta: Path) -> None:
    target = read_weights(tmp_path / "base")
    dtype = target["w"].dtype
    target["w"][100] = torch.tensor(torch.finfo(dtype).max / 4).to(dtype)
    target["w"][200] = torch.tensor(torch.finfo(dtype).min / 4).to(dtype)
    write_model(tmp_path / "target", target)
    with pytest.raises(NotFiniteError, match="not finite") as caught:
        pd.apply(tmp_path / "target", delta, tmp_path / "out", force=True)
    assert [(m.location, m.message.split()[0]) for m in caught.value.mismatches] == [("w", "2")]


@pytest.mark.parametrize("weight", [2.0, 10.0, -3.0])
def test_a_weight_that_overflows(tmp_path: Path, delta: Path, weight: float) -> None:
    with pytest.raises(NotFiniteError) as caught:
        pd.apply(tmp_path / "base", pd.WeightedDelta(delta, weight), tmp_path / "out")
    assert "w" in {m.location for m in caught.value.mismatches}
    assert "smaller weight" in str(caught.value)


def test_infinities_that_meet(tmp_path: Path, delta: Path) -> None:
    """Two deltas whose products overflow with unlike signs make NaN, and that is seen too."""
    deltas = [pd.WeightedDelta(delta, 10.0), pd.WeightedDelta(delta, -10.0)]
    if next(iter(read_weights(tmp_path / "base").values())).dtype != torch.bfloat16:
        pytest.skip("the wide type holds these products")
    with pytest.raises(NotFiniteError):
        pd.apply(tmp_path / "base", deltas, tmp_path / "out", force=True)


def test_on_base_itself_the_largest_values_are_reached(tmp_path: Path, delta: Path) -> None:
    assert pd.apply(tmp_path / "base", delta, tmp_path / "out").is_post


def test_a_refused_run_is_refused_again_and_leaves_no_result(tmp_path: Path, delta: Path) -> None:
    """Nothing that a refused run left behind makes the next one pass."""
    for _ in range(3):
        with pytest.raises(NotFiniteError):
            pd.apply(tmp_path / "base", pd.WeightedDelta(delta, 2.0), tmp_path / "out")
        assert not (tmp_path / "out").exists()


@shows("NaN, Inf, overflow", "an exception of NaN, on base itself: refused by tensor and count")
@pytest.mark.parametrize("unchanged", [False, True])
def test_an_exception_that_is_not_finite(tmp_path: Path, dtype_name: str, unchanged: bool) -> None:
    """No honest writer lists one; it must not make up for a value that is counted, nor pass for one that is kept."""
    kind = FLOATS[dtype_name]
    base = np.zeros(100, kind.bits)
    if unchanged:
        base[7] = kind.infinity
    post = base.copy()
    post[7] = kind.infinity + 1
    found = Difference(np.zeros(base.size, kind.wide), np.array([7]), Statistics())
    shard = ShardWriter(tmp_path / "x.safetensors", ["w"])
    payload = shard.payload("w")
    payload.append(encode_added(found, base, post))
    nbytes, digest = payload.finish()
    shard.close()
    path = tmp_path / "x.safetensors"
    part = StoredPart(1, TANS.name, str(path), path.stat().st_size - nbytes, nbytes, digest)
    delta = StoredDelta(name="w", dtype=dtype_name, elements=100, effect="add", parts=(part,), base_digest="")
    with OpenFiles(PackageError) as shards, TensorSum(dtype_name, [Addend(delta, 1.0)], shards) as total:
        total.add(base.view(np.uint8).copy())
        assert total.not_finite == 1
