"""Apply: promise 2, target ⊕ Δ is the published formula to the bit; so are weights and sums of several."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import paramdelta_hub as pd
from paramdelta_hub.errors import DestinationError, LineageError, NotFiniteError, OptionError
from paramdelta_hub.limits import CHUNK_ELEMENTS
from paramdelta_hub.numerics.compiled import SLICE
from tests.conftest import Family
from tests.support.chunks import set_chunk_elements
from tests.support.digests import tensor_digest
from tests.support.kinds import KINSHIP, NOT_FINITE, kind, remedied
from tests.support.models import (
    TORCH,
    WIDE,
    apply_in,
    assert_same,
    extract_in,
    raw,
    read_weights,
    reference,
    to_bits,
    tuned,
    weights,
    write_model,
    write_models,
)

Tensors = dict[str, torch.Tensor]


def summed(target: torch.Tensor, pairs: Sequence[tuple[torch.Tensor, torch.Tensor, float]]) -> torch.Tensor:
    """Σ in the wide type, in order, every product and every sum rounded; the result rounded once."""
    wide = WIDE[target.dtype]
    total = target.to(wide)
    for base, post, weight in pairs:
        delta = post.to(wide) - base.to(wide)
        total = total + (delta if weight == 1.0 else delta * torch.tensor(weight, dtype=wide))
    return total.to(target.dtype)


def trio(
    seed: int, dtype: torch.dtype, elements: int, scale: float = 0.02
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return base, post and target of one ancestry, with some zeros, sign changes and large steps among them."""
    noise = torch.Generator().manual_seed(seed)
    base = torch.randn(elements, generator=noise).to(dtype)
    post = (base.double() * (1 + scale * torch.randn(elements, generator=noise).double())).to(dtype)
    target = (base.double() + scale * torch.randn(elements, generator=noise).double()).to(dtype)
    step = max(elements // 37, 1)
    base[::step], post[1::step], target[2::step] = 0.0, 0.0, 0.0
    post[3::step] = -post[3::step]
    post[4::step] = -0.0
    target[5::step] = -0.0
    base[6::step] = -0.0
    post[7::step] = base[7::step] * 300
    target[8::step] = target[8::step] * 1e-3
    return base, post, target


def extracted(root: Path, name: str, base: Tensors, post: Tensors) -> Path:
    write_model(root / f"{name}-base", base)
    write_model(root / f"{name}-post", post)
    pd.extract(root / f"{name}-base", root / f"{name}-post", root / name)
    return root / name


@pytest.mark.parametrize("seed", range(4))
def test_one_delta_is_the_formula(tmp_path: Path, dtype_name: str, seed: int) -> None:
    dtype = TORCH[dtype_name]
    shapes = {"a": 40_000, "b": 64 * SLICE + 1, "c": 777}
    models = {name: trio(seed * 10 + number, dtype, size) for number, (name, size) in enumerate(shapes.items())}
    base, post, target = ({name: tensors[side] for name, tensors in models.items()} for side in range(3))
    delta = extracted(tmp_path, "delta", base, post)
    write_model(tmp_path / "target", target, shards=2)
    report = pd.apply(tmp_path / "target", delta, tmp_path / "out")
    assert not report.is_post
    assert_same(read_weights(tmp_path / "out"), {name: reference(*tensors) for name, tensors in models.items()})


@pytest.mark.slow
@pytest.mark.parametrize("elements", [CHUNK_ELEMENTS + 1, 2 * CHUNK_ELEMENTS, 3 * CHUNK_ELEMENTS - SLICE - 1])
def test_several_chunks(tmp_path: Path, dtype_name: str, elements: int) -> None:
    base, post, target = trio(elements, TORCH[dtype_name], elements)
    delta = extracted(tmp_path, "delta", {"w": base}, {"w": post})
    write_model(tmp_path / "target", {"w": target})
    pd.apply(tmp_path / "target", delta, tmp_path / "out")
    assert_same(read_weights(tmp_path / "out"), {"w": reference(base, post, target)})
    pd.apply(tmp_path / "target", pd.WeightedDelta(delta, -0.5), tmp_path / "half")
    assert_same(read_weights(tmp_path / "half"), {"w": summed(target, [(base, post, -0.5)])})


@pytest.mark.parametrize("weight", [0.5, -1.0, 2.0, 1 / 3, 1e-3, -0.25, 1.0000001])
def test_weights(tmp_path: Path, dtype_name: str, weight: float) -> None:
    base, post, target = trio(7, TORCH[dtype_name], 30_000)
    delta = extracted(tmp_path, "delta", {"w": base}, {"w": post})
    write_model(tmp_path / "target", {"w": target})
    for name, model in (("target", target), ("delta-base", base)):
        pd.apply(tmp_path / name, pd.WeightedDelta(delta, weight), tmp_path / f"{name}-out")
        assert_same(read_weights(tmp_path / f"{name}-out"), {"w": summed(model, [(base, post, weight)])})


def test_a_sum_of_three_is_accumulated_in_order(tmp_path: Path, dtype_name: str) -> None:
    dtype = TORCH[dtype_name]
    base, _, target = trio(20, dtype, 30_000)
    pairs = []
    for number, weight in enumerate((0.5, -1.0, 1.0)):
        post = (
            base.double() + 0.05 * torch.randn(30_000, generator=torch.Generator().manual_seed(number)).double()
        ).to(dtype)
        pairs.append((base, post, weight))
        extracted(tmp_path, f"delta{number}", {"w": base}, {"w": post})
    write_model(tmp_path / "target", {"w": target})
    results = {}
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        deltas = [pd.WeightedDelta(tmp_path / f"delta{number}", pairs[number][2]) for number in order]
        out = tmp_path / f"out{order}"
        report = pd.apply(tmp_path / "target", deltas, out)
        results[order] = read_weights(out)
        assert_same(results[order], {"w": summed(target, [pairs[number] for number in order])})
        assert [delta.weight for delta in report.deltas] == [pairs[number][2] for number in order]
        assert not report.is_post
    if dtype_name != "F32":  # in float64 the order can hardly be seen after rounding to float32
        same = raw(results[0, 1, 2]["w"]) == raw(results[2, 1, 0]["w"])
        other = summed(target, pairs)
        assert same == (raw(other) == raw(summed(target, pairs[::-1])))


def test_the_same_delta_twice_is_two_sums(tmp_path: Path) -> None:
    base, post, target = trio(33, torch.bfloat16, 5000)
    delta = extracted(tmp_path, "delta", {"w": base}, {"w": post})
    write_model(tmp_path / "target", {"w": target})
    pd.apply(tmp_path / "target", [delta, delta], tmp_path / "out", force=True)
    assert_same(read_weights(tmp_path / "out"), {"w": summed(target, [(base, post, 1.0)] * 2)})


def test_exceptions_are_for_base_alone(tmp_path: Path, dtype_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk that is base's own gives post, −0 and all; in a chunk with one other element the plain sum stands."""

    set_chunk_elements(monkeypatch, 256)
    base, post, _ = trio(44, TORCH[dtype_name], 1024)
    post[::100] = -0.0
    base[50] = post[50] = -0.0
    target = base.clone()
    target[300] = 5.0  # in the second of four chunks
    delta = extracted(tmp_path, "delta", {"w": base}, {"w": post})
    write_model(tmp_path / "target", {"w": target})
    pd.apply(tmp_path / "target", delta, tmp_path / "out")
    result = read_weights(tmp_path / "out")["w"]
    expected = post.clone()
    expected[256:512] = reference(base, post, target)[256:512]
    assert_same({"w": result}, {"w": expected})
    assert not torch.equal(torch.signbit(reference(base, post, target)), torch.signbit(expected)), (
        "the sum alone loses −0"
    )


def test_exceptions_are_not_used_in_sums_and_weighted_deltas(tmp_path: Path) -> None:
    base, post, _ = trio(45, torch.bfloat16, 3000)
    post[::100] = -0.0
    delta = extracted(tmp_path, "delta", {"w": base}, {"w": post})
    for number, weights_of in enumerate(((0.5, 0.5), (1.0, 1.0), (2.0,))):
        deltas = [pd.WeightedDelta(delta, weight) for weight in weights_of]
        pd.apply(tmp_path / "delta-base", deltas, tmp_path / f"out{number}", force=True)
        expected = summed(base, [(base, post, weight) for weight in weights_of])
        assert_same(read_weights(tmp_path / f"out{number}"), {"w": expected})


@pytest.mark.parametrize("weight", [1.0, -1.0, 0.5])
def test_an_unchanged_tensor_adds_zero_of_the_weights_sign(tmp_path: Path, weight: float) -> None:
    """(post − base) is +0, weight · (+0) has the weight's sign, and −0 + (+0) is +0, as the formula has it."""
    base, target = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([-0.0, 0.0, 5.0])
    delta = extracted(tmp_path, "delta", {"w": base, "v": base}, {"w": base, "v": base + 1})
    write_model(tmp_path / "target", {"w": target, "v": base})
    pd.apply(tmp_path / "target", pd.WeightedDelta(delta, weight), tmp_path / "out", force=True)
    result = read_weights(tmp_path / "out")["w"]
    assert to_bits(result).tolist() == to_bits(summed(target, [(base, base, weight)])).tolist()


def test_fine_layouts_and_threads_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from paramdelta_hub.tasks import plan

    monkeypatch.setattr(plan, "TASK_BYTES_MIN", 1)
    base = weights(1)
    delta = extracted(tmp_path, "delta", base, tuned(base, 2))
    target = tuned(base, 3, scale=0.01)
    found = []
    for shards, threads in ((1, 1), (1, 4), (4, 1), (4, 3)):
        out = tmp_path / f"out{shards}{threads}"
        write_model(tmp_path / f"target{shards}", target, shards)
        pd.apply(tmp_path / f"target{shards}", delta, out, threads=threads)
        found.append(read_weights(out))
    for other in found[1:]:
        assert_same(found[0], other)


def test_the_result_has_the_targets_layout(family: Family, tmp_path: Path) -> None:
    target = tmp_path / "sharded"
    write_model(
        target, read_weights(family.target), shards=3, config={"model_type": "llama", "torch_dtype": "bfloat16"}
    )
    (target / "tokenizer.json").write_bytes(b'{"a":  1}')
    (target / "modeling_evil.py").write_text("raise SystemExit")
    (target / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    pd.apply(target, family.delta, tmp_path / "out")
    for name in ("model.safetensors.index.json", "config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (target / name).read_bytes()
    assert not {"modeling_evil.py", "pytorch_model.bin"} & {path.name for path in (tmp_path / "out").iterdir()}
    for path in target.glob("*.safetensors"):
        ours, theirs = (file.read_bytes() for file in (tmp_path / "out" / path.name, path))
        length = int.from_bytes(ours[:8], "little")
        assert ours[: 8 + length] == theirs[: 8 + length], "the header is the target's, to the byte"
        with safe_open(path, "pt") as before, safe_open(tmp_path / "out" / path.name, "pt") as after:
            assert before.metadata() == after.metadata()
    assert sorted(path.name for path in tmp_path.glob("*.partial")) == []


def test_what_the_delta_does_not_cover_is_kept(tmp_path: Path) -> None:
    base = weights(4)
    post = tuned(base, 5)
    write_models(tmp_path, base=base, post=post)
    extract_in(tmp_path, rules=pd.Rules(skips=("layers",)))
    report = apply_in(tmp_path, "base")
    expected = {name: base[name] if "layers" in name else post[name] for name in base}
    assert_same(read_weights(tmp_path / "out"), expected)
    assert {omission.name for omission in report.omissions} == {name for name in base if "layers" in name}


def test_report_and_provenance(family: Family, tmp_path: Path) -> None:
    import hashlib

    report = pd.apply(family.target, [pd.WeightedDelta(family.delta, 0.5)], tmp_path / "out")
    told = json.loads(json.dumps(report.to_json()))
    assert told["is_post"] is False
    assert told["changed_tensors"] + told["kept_tensors"] == len(read_weights(family.target))
    provenance = json.loads((tmp_path / "out" / "paramdelta_provenance.json").read_bytes())
    assert provenance["deltas"][0]["weight"] == 0.5
    assert provenance["deltas"][0]["id"] == hashlib.sha256((family.delta / "manifest.json").read_bytes()).hexdigest()
    assert str(tmp_path) not in json.dumps(provenance), "no path, so that equal inputs give an equal file"
    for name, tensor in read_weights(tmp_path / "out").items():
        assert provenance["tensors"][name]["blake3"] == tensor_digest(raw(tensor), tensor.element_size())


@kind(
    NOT_FINITE,
    "NaN in the target where Δ is not 0; sums that overflow",
    refused="the result would be useless there",
    remedy="`--skip REGEX` keeps the target's; or a smaller weight",
)
@pytest.mark.parametrize("where", ["target", "sum"])
def test_what_would_not_be_finite_is_refused(tmp_path: Path, dtype_name: str, where: str) -> None:
    dtype = TORCH[dtype_name]
    largest = torch.finfo(dtype).max
    base, post, target = trio(9, dtype, 3000)
    if where == "target":
        target[7], target[8], target[9] = math.nan, math.inf, -math.inf
    else:
        base[7:10], post[7:10] = 0.0, torch.tensor([largest, -largest, largest / 2]).to(dtype)
        target[7:10] = torch.tensor([largest / 2, -largest / 2, largest / 4]).to(dtype)
    delta = extracted(tmp_path, "delta", {"w": base, "v": base}, {"w": post, "v": base})
    write_model(tmp_path / "target", {"w": target, "v": base})
    with pytest.raises(NotFiniteError) as caught:
        pd.apply(tmp_path / "target", delta, tmp_path / "out", force=True)
    (mismatch,) = caught.value.mismatches
    assert mismatch.location == "w"
    assert str(3 if where == "target" else 2) in mismatch.message
    assert not (tmp_path / "out").exists()
    with remedied(caught.value, "leave the tensors out with --skip REGEX"):
        pd.apply(tmp_path / "target", delta, tmp_path / "skipped", rules=pd.Rules(skips=("w",)), force=True)
        assert_same(read_weights(tmp_path / "skipped"), {"w": target, "v": base})
    if where == "sum":
        with remedied(caught.value, "use a smaller weight"):
            pd.apply(tmp_path / "target", (delta, 0.25), tmp_path / "less", force=True)
            assert_same(
                read_weights(tmp_path / "less"),
                {"w": summed(target, [(base, post, 0.25)]), "v": summed(base, [(base, base, 0.25)])},
            )


@kind(NOT_FINITE, "NaN in the target where Δ is 0", works="the target's bits stay")
@pytest.mark.parametrize("weight", [1.0, 0.5, -2.0])
def test_where_nothing_is_added_the_target_keeps_what_is_not_finite(
    tmp_path: Path, dtype_name: str, weight: float
) -> None:
    """Whether base was finite there or not; and a finite target stays finite where base and post hold NaN."""
    dtype = TORCH[dtype_name]
    base, post, target = trio(9, dtype, 3000)
    base[:20] = post[:20] = math.nan
    base[20:40] = post[20:40] = 0.25
    target[:10] = torch.linspace(1, 2, 10).to(dtype)
    target[10:30], target[30:40] = -math.inf, math.nan
    delta = extracted(tmp_path, "delta", {"w": base, "same": base}, {"w": post, "same": base})
    write_model(tmp_path / "target", {"w": target, "same": target})
    pd.apply(tmp_path / "target", pd.WeightedDelta(delta, weight), tmp_path / "out", force=True)
    result = read_weights(tmp_path / "out")
    assert_same({name: result[name][:40] for name in result}, dict.fromkeys(result, target[:40]))
    assert torch.isfinite(result["w"][40:]).all()
    two = [pd.WeightedDelta(delta, weight), pd.WeightedDelta(delta, 0.25)]
    pd.apply(tmp_path / "target", two, tmp_path / "sum", force=True)
    assert_same({"w": read_weights(tmp_path / "sum")["w"][:40]}, {"w": target[:40]})
    target[40] = math.nan  # here Δ is not 0
    write_model(tmp_path / "target", {"w": target, "same": target})
    with pytest.raises(NotFiniteError) as caught:
        pd.apply(tmp_path / "target", pd.WeightedDelta(delta, weight), tmp_path / "refused", force=True)
    assert [(m.location, m.message.split()[0]) for m in caught.value.mismatches] == [("w", "1")]


def test_a_sum_that_just_stays_finite(tmp_path: Path, dtype_name: str) -> None:
    dtype = TORCH[dtype_name]
    largest = torch.finfo(dtype).max
    base, post = torch.zeros(64, dtype=dtype), torch.full((64,), largest, dtype=dtype)
    delta = extracted(tmp_path, "delta", {"w": base}, {"w": post})
    target = torch.full((64,), largest * 2.0**-14, dtype=dtype)  # less than half a unit in the last place
    target = torch.minimum(target, torch.tensor(largest * torch.finfo(dtype).eps / 8).to(dtype))
    write_model(tmp_path / "target", {"w": target})
    pd.apply(tmp_path / "target", delta, tmp_path / "out", force=True)
    assert_same(read_weights(tmp_path / "out"), {"w": reference(base, post, target)})
    assert torch.isfinite(read_weights(tmp_path / "out")["w"]).all()


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf, 1e39, -1e300])
def test_weights_that_are_no_numbers(family: Family, tmp_path: Path, weight: float) -> None:
    with pytest.raises(OptionError):
        pd.apply(family.target, pd.WeightedDelta(family.delta, weight), tmp_path / "out")
    with pytest.raises(OptionError):
        pd.WeightMap((("x", weight),))


def test_no_delta_at_all(family: Family, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no delta"):
        pd.apply(family.target, [], tmp_path / "out")


def test_out_is_taken(family: Family, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(DestinationError, match="exists already"):
        pd.apply(family.target, family.delta, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    pd.apply(family.target, family.delta, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_target_given_as_one_file(family: Family, tmp_path: Path) -> None:
    report = pd.apply(family.base / "model.safetensors", family.delta, tmp_path / "out")
    assert report.is_post
    assert_same(read_weights(tmp_path / "out"), read_weights(family.post))


@kind(
    KINSHIP,
    "a target that is no kin to base",
    refused="mean correlation near 0",
    remedy="a target made from the delta's base; or `--force`",
)
def test_kin_and_strangers(family: Family, tmp_path: Path) -> None:
    write_model(tmp_path / "stranger", weights(999))
    with pytest.raises(LineageError) as caught:
        pd.apply(tmp_path / "stranger", family.delta, tmp_path / "out")
    assert abs(caught.value.correlation) < 0.2
    assert not (tmp_path / "out").exists()
    with remedied(caught.value, "choose a target that was made from the delta's base"):
        pd.apply(family.target, family.delta, tmp_path / "right")
        base, post, target = (read_weights(path) for path in (family.base, family.post, family.target))
        sums = {n: reference(base[n], post[n], t) if t.is_floating_point() else post[n] for n, t in target.items()}
        assert_same(read_weights(tmp_path / "right"), sums)
    assert "--force" in str(caught.value)
    report = pd.apply(tmp_path / "stranger", family.delta, tmp_path / "out", force=True)
    assert report.deltas[0].lineage.forced
    assert (
        json.loads((tmp_path / "out" / "paramdelta_provenance.json").read_bytes())["deltas"][0]["lineage"]["forced"]
        is True
    )
    assert not pd.apply(family.target, family.delta, tmp_path / "kin", force=True).deltas[0].lineage.forced
