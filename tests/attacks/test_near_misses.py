"""The wrong target: thirty models that almost fit. None may take a delta in silence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import paramdelta_hub as pd
from paramdelta_hub.errors import CheckpointError, LineageError, MismatchError, ParamdeltaError
from tests.attacks.threats import shows
from tests.conftest import Family
from tests.support.models import read_weights, weights, write_model

Tensors = dict[str, torch.Tensor]
EMBED, MLP, BIAS, NORM = (
    "model.embed_tokens.weight", "model.layers.0.mlp.weight", "model.layers.1.bias", "model.norm.weight",
)  # fmt: skip
OTHER = "model.layers.1.mlp.weight"


def put(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: change(tensors[name])}


def floats(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: change(t) if t.is_floating_point() else t for name, t in tensors.items()}


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def shuffled(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.reshape(-1)
    return flat[torch.randperm(flat.numel(), generator=torch.Generator().manual_seed(1))].reshape(tensor.shape)


NEAR_MISSES: dict[str, tuple[Callable[[Tensors], Tensors], type[ParamdeltaError]]] = {
    "a row less": (put(EMBED, lambda t: t[:-1]), MismatchError),
    "a row more": (put(EMBED, lambda t: torch.cat([t, t[:1]])), MismatchError),
    "padded to a multiple of 64": (put(EMBED, lambda t: torch.nn.functional.pad(t, (0, 0, 0, 16))), MismatchError),
    "transposed": (put(MLP, lambda t: t.T.contiguous()), MismatchError),
    "flattened": (put(MLP, lambda t: t.reshape(-1)), MismatchError),
    "an axis more": (put(NORM, lambda t: t[None]), MismatchError),
    "a scalar for a vector": (put(NORM, lambda t: t[0]), MismatchError),
    "one in float64": (put(BIAS, torch.Tensor.double), MismatchError),
    "integers of another width": (put("model.steps", torch.Tensor.int), MismatchError),
    "integers as floats": (put("model.steps", torch.Tensor.bfloat16), MismatchError),
    "a mask as bytes": (put("model.mask", lambda t: t.to(torch.uint8)), MismatchError),
    "one in float8": (put(MLP, lambda t: t.to(torch.float8_e4m3fn)), MismatchError),
    "a bias missing": (without(BIAS), MismatchError),
    "a layer missing": (lambda t: {k: v for k, v in t.items() if "layers.1" not in k}, MismatchError),
    "a head of another width": (lambda t: {**t, "lm_head.weight": t[EMBED][:, :-1].clone()}, MismatchError),
    "a layer more": (lambda t: {**t, "model.layers.2.mlp.weight": t[MLP].clone()}, MismatchError),
    "a bias more": (lambda t: {**t, "model.layers.0.bias": t[BIAS].clone()}, MismatchError),
    "another prefix": (lambda t: {k.replace("model.", "transformer."): v for k, v in t.items()}, MismatchError),
    "no prefix": (lambda t: {k.removeprefix("model."): v for k, v in t.items()}, MismatchError),
    "a name in capitals": (lambda t: {k.replace("mlp", "MLP"): v for k, v in t.items()}, MismatchError),
    "layers counted from one": (
        lambda t: {k.replace("layers.1", "layers.2").replace("layers.0", "layers.1"): v for k, v in t.items()},
        MismatchError,
    ),
    "names with a space": (lambda t: {f"{k} ": v for k, v in t.items()}, MismatchError),
    "scales of a quantized weight": (lambda t: {**t, "model.layers.0.mlp.weight_scale_inv": torch.ones(1)},
    MismatchError),
    "trained apart": (lambda t: {**weights(4711), "model.norm.weight": t[NORM]}, LineageError),
    "elements shuffled": (floats(shuffled), LineageError),
    "rows reversed": (floats(lambda t: t.flip(0)), LineageError),
    "columns rolled": (floats(lambda t: t.roll(1, -1)), LineageError),
    "negated": (floats(lambda t: -t), LineageError),
    "all zeros": (floats(torch.zeros_like), LineageError),
    "all ones": (floats(torch.ones_like), LineageError),
    "noise ten times as loud as the model": (
        floats(lambda t: (t.float() + 0.5 * torch.randn(t.shape,
        generator=torch.Generator().manual_seed(2))).bfloat16()),
        LineageError,
    ),
}  # fmt: skip


@shows(
    "wrong target", f"{len(NEAR_MISSES)} models that almost fit: refused, with every misfit, before anything is written"
)
@pytest.mark.parametrize("case", sorted(NEAR_MISSES))
def test_tensors_that_almost_fit(family: Family, tmp_path: Path, case: str) -> None:
    change, error = NEAR_MISSES[case]
    write_model(tmp_path / "near", change(read_weights(family.base)), config={"model_type": "llama"})
    with pytest.raises(error) as caught:
        pd.apply(tmp_path / "near", family.delta, tmp_path / "out")
    assert type(caught.value) is error
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists(), "refused before anything is written"


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": {"quant_method": "gptq", "bits": 4}}, {"quantization_config": {"quant_method": "fp8"}},
        {"quantization_config": {"load_in_8bit": True}},
    ],
    ids=str,
)  # fmt: skip
def test_a_config_that_says_quantized(family: Family, tmp_path: Path, config: dict[str, object]) -> None:
    write_model(tmp_path / "near", read_weights(family.base), config=config)
    with pytest.raises(MismatchError) as caught:
        pd.apply(tmp_path / "near", family.delta, tmp_path / "out")
    assert [mismatch.kind for mismatch in caught.value.mismatches] == ["quantized"]


def no_weights(path: Path) -> None:
    (path / "model.safetensors").unlink()


def a_pickle(path: Path) -> None:
    no_weights(path)
    (path / "pytorch_model.bin").write_bytes(b"\x80\x02.")


def a_gguf(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"GGUF\3\0\0\0" + bytes(100))


def half_a_file(path: Path) -> None:
    content = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(content[: len(content) // 2])


def an_index_that_lies(path: Path) -> None:
    shard = (path / "model.safetensors").rename(path / "model-00001-of-00001.safetensors").name
    names = dict.fromkeys([*read_weights(path), "model.ghost"], shard)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def an_index_that_names_outside(path: Path) -> None:
    names = dict.fromkeys(read_weights(path), "../outside.safetensors")
    (path / "model.safetensors").rename(path.parent / "outside.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def an_adapter(path: Path) -> None:
    (path / "model.safetensors").rename(path / "adapter_model.safetensors")


def a_config_that_is_no_json(path: Path) -> None:
    (path / "config.json").write_text("{'a': 1}")


def two_files(path: Path) -> None:
    shutil.copy(path / "model.safetensors", path / "x.safetensors")
    (path / "model.safetensors").rename(path / "y.safetensors")


UNREADABLE = (
    no_weights, a_pickle, a_gguf, half_a_file, an_index_that_lies, an_index_that_names_outside, an_adapter,
    a_config_that_is_no_json, two_files,
)  # fmt: skip


@shows("wrong target", f"{len(UNREADABLE)} folders that are no such model: refused")
@pytest.mark.parametrize("spoil", UNREADABLE, ids=lambda spoil: spoil.__name__)
def test_targets_that_can_not_be_read(family: Family, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    spoil(family.base)
    with pytest.raises(CheckpointError) as caught:
        pd.apply(family.base, family.delta, tmp_path / "out")
    assert caught.value.where or "outside" in caught.value.what
    assert not (tmp_path / "out").exists()


def test_the_delta_as_a_target_and_the_target_as_a_delta(family: Family, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="delta package, but a model is needed"):
        pd.apply(family.delta, family.delta, tmp_path / "out")
    with pytest.raises(pd.PackageError, match="looks like a model"):
        pd.apply(family.base, family.base, tmp_path / "out")
    with pytest.raises(pd.PackageError, match="no such delta package"):
        pd.apply(family.base, tmp_path / "nowhere", tmp_path / "out")


def test_force_is_for_lineage_alone(family: Family, tmp_path: Path) -> None:
    """What does not fit does not fit, whatever the user insists on."""
    write_model(tmp_path / "near", put(EMBED, lambda t: t[:-1])(read_weights(family.base)))
    with pytest.raises(MismatchError):
        pd.apply(tmp_path / "near", family.delta, tmp_path / "out", force=True)
