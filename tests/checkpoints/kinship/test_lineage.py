"""Lineage: which values of base are kept, and what they say about a target."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_hub.checkpoints.checkpoint import open_checkpoint
from paramdelta_hub.checkpoints.kinship.lineage import (
    LineageMatch,
    choose_evenly,
    compare_samples,
    pack_samples,
    sample,
    sample_runs,
    unpack_samples,
)
from paramdelta_hub.checkpoints.logical import logical_model
from paramdelta_hub.errors import CheckpointError, PackageError
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.limits import (
    KIN_CORRELATION,
    LINEAGE_RUN_LENGTH,
    LINEAGE_RUNS,
    REMOTE_LINEAGE_RUNS,
    REMOTE_LINEAGE_TENSORS,
)
from tests.support.models import TORCH, raw, tuned, weights, write_model, write_models


@pytest.mark.parametrize("elements", [0, 1, 255, 256, 257, 271, 272, 273, 1000, 10**6, 2**40])
def test_runs_lie_inside(elements: int) -> None:
    for name in ("a", "model.layers.0.weight", "模型"):
        runs = sample_runs(name, elements)
        assert runs == sample_runs(name, elements)
        assert all(0 <= run.start <= run.stop <= elements for run in runs)
        total = sum(run.stop - run.start for run in runs)
        assert total == min(elements, LINEAGE_RUNS * LINEAGE_RUN_LENGTH)
        assert [run.start for run in runs] == sorted(run.start for run in runs)


def test_the_draw_is_part_of_the_format() -> None:
    """Written down, because a reader that draws otherwise compares apples with pears."""
    import hashlib

    draws = np.frombuffer(hashlib.shake_128(b"model.norm.weight").digest(128), "<u8").tolist()
    expected = sorted(draw % (5000 - 15) for draw in draws)
    assert [run.start for run in sample_runs("model.norm.weight", 5000)] == expected
    assert sample_runs("a", 5000) != sample_runs("b", 5000)


def samples(model: Path) -> dict[str, tuple[str, np.ndarray]]:
    with OpenFiles(CheckpointError) as files:
        return {
            name: (tensor.dtype, sample(name, tensor, files))
            for name, tensor in logical_model(open_checkpoint(model)).tensors.items()
            if tensor.dtype in TORCH and tensor.elements
        }


def lineage(base: Path, target: Path) -> LineageMatch:
    return compare_samples(samples(base), logical_model(open_checkpoint(target)).tensors)


def test_samples_are_the_tensors_values(tmp_path: Path) -> None:
    tensor = torch.arange(3000, dtype=torch.float32)
    taken = samples(write_model(tmp_path / "m", {"w": tensor}))["w"][1].view("<f4")
    assert taken.tolist() == [float(at) for run in sample_runs("w", 3000) for at in range(run.start, run.stop)]


def test_pack_and_unpack(tmp_path: Path) -> None:
    taken = samples(write_model(tmp_path / "m", weights(0)))
    packed = pack_samples(taken)
    found = unpack_samples(packed, "it")
    assert found.keys() == taken.keys()
    for name, (dtype, values) in taken.items():
        assert found[name][0] == dtype
        assert np.array_equal(found[name][1], values)
    assert unpack_samples(pack_samples({}), "it") == {}
    for end in range(len(packed)):
        with pytest.raises(PackageError):
            unpack_samples(packed[:end], "it")
    with pytest.raises(PackageError):
        unpack_samples(packed + b"x", "it")
    with pytest.raises(PackageError):
        unpack_samples(b"\xff" * 16, "it")


def test_samples_of_other_types_are_refused() -> None:
    from paramdelta_hub.fileio.safetensors import build_header

    with pytest.raises(PackageError, match="holds I64"):
        unpack_samples(build_header([("a", "I64", (1,), 8)], {}) + bytes(8), "it")


def test_kin_and_strangers(tmp_path: Path) -> None:
    base = weights(1)
    models = {
        "base": base, "tuned": tuned(base, 2), "far": tuned(base, 3, scale=0.03), "stranger": weights(2),
        "negative": {name: -t if t.is_floating_point() else t for name, t in base.items()},
    }  # fmt: skip
    for name, tensors in models.items():
        write_model(tmp_path / name, tensors)
    same = lineage(tmp_path / "base", tmp_path / "base")
    assert same.same_values
    assert same.correlation == pytest.approx(1.0)
    close, far = lineage(tmp_path / "base", tmp_path / "tuned"), lineage(tmp_path / "base", tmp_path / "far")
    assert close.is_related
    assert far.is_related
    assert not close.same_values
    assert close.correlation is not None
    assert far.correlation is not None
    assert 1 > close.correlation > 0.99 > far.correlation > KIN_CORRELATION
    for name in ("stranger", "negative"):
        assert not lineage(tmp_path / "base", tmp_path / name).is_related


def test_vectors_do_not_count_where_there_are_matrices(tmp_path: Path) -> None:
    """Norms of unrelated models resemble one another."""
    norm = torch.linspace(0.5, 1.5, 100)
    noise = [torch.randn(40, 40, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    for name, matrix in zip(("a", "b"), noise, strict=True):
        write_model(tmp_path / name, {"norm": norm, "w": matrix})
    found = lineage(tmp_path / "a", tmp_path / "b")
    assert not found.is_related
    assert found.tensors == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, 1.0])
def test_what_can_not_be_compared_is_not_kin(tmp_path: Path, value: float) -> None:
    write_models(
        tmp_path,
        base={"w": torch.randn(10, 10, generator=torch.Generator().manual_seed(0))},
        target={"w": torch.full((10, 10), value)},
    )
    found = lineage(tmp_path / "base", tmp_path / "target")
    assert found.correlation is None
    assert not found.is_related
    assert str(found) == "nothing to compare"


def test_tiny_and_constant_models_are_kin_to_themselves_alone(tmp_path: Path) -> None:
    write_models(tmp_path, base={"w": torch.ones(3)}, other={"w": torch.ones(3) * 2})
    assert lineage(tmp_path / "base", tmp_path / "base").is_related
    assert not lineage(tmp_path / "base", tmp_path / "other").is_related
    assert not compare_samples({}, logical_model(open_checkpoint(tmp_path / "base")).tensors).is_related


def test_where_every_run_is_a_request_few_are_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = {f"{number:03d}": torch.randn(40, 40) for number in range(100)} | {"small": torch.randn(4, 4, 4)}
    write_models(
        tmp_path, base=base, tuned={name: value + 0.1 * torch.randn(value.shape) for name, value in base.items()}
    )
    taken, reads = samples(tmp_path / "base"), []

    class Counted(OpenFiles):
        def read(self, path: str, position: int, out: np.ndarray) -> None:
            reads.append((position, out.size))
            super().read(path, position, out)

    for name in ("base", "tuned"):
        tensors = logical_model(open_checkpoint(tmp_path / name)).tensors
        reads.clear()
        with Counted(CheckpointError) as files:
            found = compare_samples(taken, tensors, files)
        assert found.tensors == REMOTE_LINEAGE_TENSORS
        assert len(set(reads)) == len(reads) <= REMOTE_LINEAGE_TENSORS * REMOTE_LINEAGE_RUNS
        assert found.same_values == (name == "base")
        assert found.correlation == pytest.approx(1.0 if name == "base" else 1 / math.sqrt(1.01), abs=1e-3)
    unknown = {name: (dtype, values[:-4]) for name, (dtype, values) in taken.items()}
    with OpenFiles(CheckpointError) as files:
        assert compare_samples(unknown, tensors, files).correlation is None, "samples that no honest package has"


def test_correlation_is_pearsons(tmp_path: Path) -> None:
    a = torch.randn(20, 12, generator=torch.Generator().manual_seed(5))
    b = a + 0.7 * torch.randn(20, 12, generator=torch.Generator().manual_seed(6))
    write_models(tmp_path, a={"w": a}, b={"w": b})
    expected = np.corrcoef(a.double().reshape(-1), b.double().reshape(-1))[0, 1]
    assert lineage(tmp_path / "a", tmp_path / "b").correlation == pytest.approx(expected, abs=1e-12)
    assert raw(a) != raw(b)


LAYERS, SIDE = 4, 40


def layers(seed: int, count: int = LAYERS) -> dict[str, torch.Tensor]:
    """Square matrices of several layers, and a norm that says nothing."""
    noise = torch.Generator().manual_seed(seed)
    kinds = ("q_proj", "o_proj", "gate_proj", "up_proj")
    model = {
        f"model.layers.{layer}.{kind}.weight": torch.randn(SIDE, SIDE, generator=noise)
        for layer in range(count)
        for kind in kinds
    }
    return {**model, "model.norm.weight": torch.ones(SIDE)}


def compared(root: Path, base: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> LineageMatch:
    write_models(root, base=base, target=target)
    return lineage(root / "base", root / "target")


def test_half_strangers_are_refused_whatever_the_mean_says(tmp_path: Path) -> None:
    base, other = layers(1), layers(2)
    strange = list(base)[: 2 * LAYERS]
    found = compared(tmp_path, base, {**base, **{name: other[name] for name in strange}})
    assert found.is_foreign
    assert not found.is_related
    assert {each.name for each in found.foreign} == set(strange)
    assert found.foreign_share == pytest.approx(0.5)
    assert all(abs(each.correlation) < 0.3 and each.hint is None for each in found.foreign)
    assert found.correlation == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_one_or_a_few_are_named_and_not_refused(tmp_path: Path, count: int) -> None:
    base, other = layers(1), layers(2)
    strange = ["model.layers.0.q_proj.weight", "model.layers.1.o_proj.weight", "model.layers.3.up_proj.weight"][:count]
    found = compared(tmp_path, base, {**base, **{name: other[name] for name in strange}})
    assert found.is_related
    assert {each.name for each in found.foreign} == set(strange)
    assert found.correlation == pytest.approx(1.0)
    note = found.foreign_note("base")
    assert note is not None
    assert all(name in note for name in strange)


@pytest.mark.parametrize("tensors", [1, 2, 3])
def test_one_alone_is_refused_only_where_it_is_most_of_the_model(tmp_path: Path, tensors: int) -> None:
    base = dict(list(layers(1).items())[:tensors])
    name = next(iter(base))
    found = compared(tmp_path, base, {**base, name: layers(2)[name]})
    assert [each.name for each in found.foreign] == [name]
    assert found.is_related == (tensors > 1)


def test_a_transposed_matrix_is_recognized(tmp_path: Path) -> None:
    base = layers(3)
    name = "model.layers.2.o_proj.weight"
    found = compared(tmp_path, base, {**base, name: base[name].T + 0.05 * torch.randn(SIDE, SIDE)})
    assert [(each.name, each.hint) for each in found.foreign] == [(name, "rows and columns are exchanged")]
    assert found.is_related
    assert found.options_to_try is None


def test_a_kind_that_is_foreign_in_every_layer_is_refused(tmp_path: Path) -> None:
    """A twelfth of the parameters, and a model that talks garbage: all its matrices of one kind have another layout."""
    base = layers(4) | {f"model.layers.{n}.down_proj.weight": torch.randn(SIDE, 8 * SIDE) for n in range(LAYERS)}
    others = {name: value.T for name, value in base.items() if "o_proj" in name}
    found = compared(tmp_path, base, {**base, **others})
    assert found.foreign_share < 0.1
    assert found.foreign_kinds == ("model.layers.*.o_proj.weight",)
    assert not found.is_related
    assert "model.layers.*.o_proj.weight" in found.foreign_words()
    assert found.options_to_try == "--layout 'transpose o_proj.weight'"
    others.popitem()
    found = compared(tmp_path, base, {**base, **others})
    assert found.options_to_try is None
    assert (len(found.foreign), found.foreign_kinds, found.is_related) == (LAYERS - 1, (), True)


def test_tensors_that_have_changed_places_are_recognized(tmp_path: Path) -> None:
    base = layers(5)
    swapped = dict(base)
    for layer in range(LAYERS):
        one, other = (f"model.layers.{layer}.{kind}.weight" for kind in ("gate_proj", "up_proj"))
        swapped[one], swapped[other] = base[other], base[one]
    found = compared(tmp_path, base, tuned(swapped, 6))
    assert not found.is_related
    hints = {each.name: each.hint for each in found.foreign}
    assert len(hints) == 2 * LAYERS
    assert hints["model.layers.1.gate_proj.weight"] == "its values are in model.layers.1.up_proj.weight"
    assert hints["model.layers.1.up_proj.weight"] == "its values are in model.layers.1.gate_proj.weight"
    assert found.exchanged == ("gate_proj", "up_proj")
    assert found.options_to_try == (
        r"--rename '\bgate_proj\b=exchanged' --rename '\bup_proj\b=gate_proj' --rename '\bexchanged\b=up_proj'"
    )


def test_new_heads_are_named(tmp_path: Path) -> None:
    """Of one matrix or of two layers: a classifier is trained from nothing."""
    noise = torch.Generator().manual_seed(9)
    bodies = layers(6), tuned(layers(6), 7)
    names = ("classifier.0.weight", "classifier.2.weight", "score.weight")
    base, post = ({**body, **{name: torch.randn(20, SIDE, generator=noise) for name in names}} for body in bodies)
    found = compared(tmp_path, base, post)
    assert {each.name for each in found.foreign} == set(names)
    assert found.foreign_kinds == ()
    assert found.is_related


def test_what_says_nothing_is_not_compared(tmp_path: Path) -> None:
    """Constants but for rounding, tiny tensors, and zeros: kin may be uncorrelated there."""
    noise = torch.Generator().manual_seed(10)

    def odd() -> dict[str, torch.Tensor]:
        return {
            "near.one": (1 + 0.004 * torch.randn(SIDE, SIDE, generator=noise)),
            "ones": torch.ones(SIDE, SIDE),
            "zeros": torch.zeros(SIDE, SIDE),
            "tiny": torch.randn(5, 6, generator=noise),
        }

    found = compared(tmp_path, {**layers(1), **odd()}, {**tuned(layers(1), 2), **odd(), "zeros": torch.randn(40, 40)})
    assert found.tensors == 4 * LAYERS
    assert found.foreign == ()
    assert found.is_related


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0])
def test_padding_does_not_count(tmp_path: Path, value: float) -> None:
    """Half of the rows hold it, on either side: the others tell."""
    base = {"model.embed_tokens.weight": torch.randn(400, 32, generator=torch.Generator().manual_seed(11))}
    kin, stranger = tuned(base, 12, scale=0.1), {name: torch.randn(400, 32) for name in base}
    for side in (base, kin, stranger):
        side["model.embed_tokens.weight"] = side["model.embed_tokens.weight"].clone()
    base["model.embed_tokens.weight"][200:] = value
    kin["model.embed_tokens.weight"][100:150] = value
    found = compared(tmp_path, base, kin)
    assert found.foreign == ()
    assert found.correlation is not None
    assert found.correlation > 0.9
    assert all(math.isfinite(distance) for distance in found.distances.values())
    assert not compared(tmp_path, base, stranger).is_related


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    strength=st.floats(0.0, 1.2),
    scale=st.sampled_from([1.0, 0.02]),
    kept=st.sampled_from(["float32", "bfloat16", "four bits"]),
)
def test_far_kin_are_kin(
    tmp_path_factory: pytest.TempPathFactory, seed: int, strength: float, scale: float, kept: str
) -> None:
    """Δ as large as base and larger, rounded to 16 bits, or to 16 levels in blocks of 32: nothing is foreign."""
    noise = torch.Generator().manual_seed(seed)
    base = {name: scale * value for name, value in layers(seed, 2).items() if value.dim() > 1}
    target = {
        name: value + strength * scale * torch.randn(value.shape, generator=noise) for name, value in base.items()
    }
    if kept == "bfloat16":
        target = {name: value.bfloat16() for name, value in target.items()}
    if kept == "four bits":
        for name, value in target.items():
            blocks = value.reshape(-1, 32)
            step = blocks.abs().amax(1, keepdim=True) / 7
            target[name] = ((blocks / step).round() * step).reshape(value.shape)
    found = compared(tmp_path_factory.mktemp("kin"), base, target)
    assert found.foreign == ()
    assert found.is_related


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([1.0, 0.02]), mean=st.sampled_from([0.0, 0.5]))
def test_strangers_are_foreign(tmp_path_factory: pytest.TempPathFactory, seed: int, scale: float, mean: float) -> None:
    base, other = ({n: scale * (t + mean) for n, t in layers(s, 2).items() if t.dim() > 1} for s in (seed, seed + 1))
    found = compared(tmp_path_factory.mktemp("strangers"), base, other)
    assert found.is_foreign
    assert len(found.foreign) == found.tensors


def test_a_choice_is_not_of_one_kind() -> None:
    """224 matrices, seven kinds in each of 32 layers: every seventh would be of one kind."""
    names = [f"layers.{layer}.{kind}" for layer in range(32) for kind in "qkvogud"]
    chosen = choose_evenly(names, REMOTE_LINEAGE_TENSORS)
    assert len(chosen) == len(set(chosen)) == REMOTE_LINEAGE_TENSORS
    assert chosen == sorted(chosen, key=names.index)
    assert {name.rpartition(".")[2] for name in chosen} == set("qkvogud")
    assert choose_evenly(names, 224) == names
