"""Adapters as they are stored: what is read, what is refused by name, and remedies that work."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import paramdelta_hub as pd
from paramdelta_hub.checkpoints.checkpoint import open_checkpoint
from paramdelta_hub.errors import CheckpointError
from tests.support.adapters import (
    ATTENTION,
    BF16,
    CONFIG,
    GOOD,
    TOKENS,
    Q,
    Tensors,
    assert_answers,
    assert_post,
    factors,
    normal,
    plus,
    product,
    run_remedy,
    small,
    trained_by_peft,
    write_adapter,
    write_pipeline,
)
from tests.support.kinds import ADAPTERS, kind, remedied
from tests.support.models import apply_in, assert_same, extract_in, read_weights, write_model


def test_what_metadata_says_is_checked_as_a_config_is(tmp_path: Path) -> None:
    base = write_pipeline(tmp_path / "base")
    for told, words in (({"unet.use_dora": True}, "DoRA"), ({"unet.r": 8, "unet.lora_alpha": 8}, "rank 4, but")):
        path = tmp_path / "pytorch_lora_weights.safetensors"
        save_file(factors("unet.down.0.attn.to_q", 16, 16), path, {"lora_adapter_metadata": json.dumps(told)})
        with pytest.raises(CheckpointError, match=words) as caught:
            pd.extract(base, path, tmp_path / "delta")
        assert words != "DoRA" or "fuse_lora" in str(caught.value.remedy)


REFUSED: list[tuple[str, Tensors, dict[str, Any] | None]] = [
    ("DoRA", GOOD, {**CONFIG, "use_dora": True}),
    ("DoRA", {**GOOD, f"{Q}.lora_magnitude_vector": torch.ones(16)}, CONFIG),
    ("kind LOHA", {f"{Q}.hada_w1_a": torch.ones(4, 4)}, {**CONFIG, "peft_type": "LOHA"}),
    ("LoHa", {"lora_unet_a.hada_w1_a": torch.ones(4, 4)}, None),
    ("LoKr", {"lora_unet_a.lokr_w1": torch.ones(4, 4)}, None),
    ("kind IA3", {f"{Q}.ia3_l": torch.ones(4, 4)}, {**CONFIG, "peft_type": "IA3"}),
    ("kind PREFIX_TUNING", {"prompt_embeddings": torch.ones(4, 16)}, {"peft_type": "PREFIX_TUNING"}),
    ("begun with pissa_niter_4", GOOD, {**CONFIG, "init_lora_weights": "pissa_niter_4"}),
    ("target_parameters", GOOD, {**CONFIG, "target_parameters": ["experts.gate_up_proj"]}),
    ("layer_replication", GOOD, {**CONFIG, "layer_replication": [[0, 2]]}),
    ("something_new", GOOD, {**CONFIG, "something_new": 3}),
    (
        "does not fit trainable_token_indices",
        {**GOOD, TOKENS: normal(1, 2, 16)},
        {**CONFIG, "trainable_token_indices": [1]},
    ),
    ("does not fit trainable_token_indices", {TOKENS: normal(1, 1, 16)}, {**CONFIG, "trainable_token_indices": [48]}),
    ("rank 4, but adapter_config.json says 8", GOOD, {**CONFIG, "r": 8}),
    ("has no number as lora_alpha", GOOD, {"peft_type": "LORA", "r": 4}),
    ("without its adapter_config.json", GOOD, None),
    ("lacks one of its two factors", dict([*GOOD.items()][:1]), CONFIG),
    ("saved in pieces", {**GOOD, f"{Q}.lora_A.weight": torch.ones(0)}, CONFIG),
    (
        "holds 2 adapters",
        {f"{Q}.lora_A.one.weight": normal(1, 4, 16), f"{Q}.lora_B.two.weight": normal(1, 16, 4)},
        CONFIG,
    ),
    ("can't be multiplied", {**GOOD, f"{Q}.lora_B.weight": normal(1, 16, 3)}, CONFIG),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case[0])
def test_refused_by_name_with_a_remedy(tmp_path: Path, case: Any) -> None:
    words, tensors, config = case
    write_model(tmp_path / "base", small())
    adapter = write_adapter(tmp_path / "lora", tensors, config)
    with pytest.raises(CheckpointError) as caught:
        pd.extract(tmp_path / "base", adapter, tmp_path / "delta")
    assert words in caught.value.what
    assert caught.value.remedy


INCOMPLETE: dict[str, tuple[Tensors, dict[str, Any] | None, str]] = {
    "no alpha": (GOOD, {"peft_type": "LORA", "r": 4}, "add the lora_alpha that the adapter was trained with"),
    "no config": (GOOD, None, "put the adapter_config.json that belongs to it in the same folder"),
    "one factor": (dict(list(GOOD.items())[:1]), CONFIG, "get the file again"),
    "in pieces": (
        {**GOOD, f"{Q}.lora_A.weight": torch.ones(0)},
        CONFIG,
        "save the adapter again with its parameters gathered",
    ),
}
"""Each with a remedy that leads to the whole adapter."""


@kind(
    ADAPTERS,
    "an adapter without `lora_alpha`, without its config, with one factor of two, or saved in pieces",
    refused="what it adds is not known",
    remedy="complete it, as the error says: the config, the number, the file",
)
@pytest.mark.parametrize("case", INCOMPLETE)
def test_an_adapter_that_is_not_whole(tmp_path: Path, case: str) -> None:
    tensors, config, words = INCOMPLETE[case]
    write_model(tmp_path / "base", small())
    with pytest.raises(CheckpointError) as caught:
        pd.extract(tmp_path / "base", write_adapter(tmp_path / "lora", tensors, config), tmp_path / "delta")
    with remedied(caught.value, words):
        name = f"{ATTENTION.format(0, 'q')}.weight"
        expected = {name: plus(small()[name], product(*GOOD.values(), 1.5))}
        assert_post(tmp_path, small(), write_adapter(tmp_path / "whole", GOOD), expected)


METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "DoRA": ("LoraConfig", {"use_dora": True}),
    "begun with pissa": ("LoraConfig", {"init_lora_weights": "pissa"}),
    "kind LOHA": ("LoHaConfig", {"r": 4}),
    "kind LOKR": ("LoKrConfig", {"r": 4}),
    "kind IA3": ("IA3Config", {"feedforward_modules": ["down_proj"]}),
    "kind VERA": ("VeraConfig", {"r": 4}),
    "kind OFT": ("OFTConfig", {"oft_block_size": 8}),
    "kind ADALORA": ("AdaLoraConfig", {"total_step": 10, "init_r": 4, "target_r": 2}),
}
"""By what the message calls it: PEFT's class, and its settings."""


@kind(
    ADAPTERS,
    "DoRA, LoHa, LoKr, IA3, VeRA, OFT, AdaLoRA, PiSSA",
    refused="by name: it is no scaled product, or it changes base too",
    remedy="the command that merges it with PEFT",
)
@pytest.mark.filterwarnings("ignore")  # of the libraries, about each other
@pytest.mark.parametrize("method", METHODS)
def test_merged_with_peft_as_the_remedy_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """PEFT trains each kind of adapter; the error's command makes a model, whose delta leads to its answers."""
    monkeypatch.chdir(tmp_path)
    kind_of_config, settings = METHODS[method]
    model = trained_by_peft(tmp_path, getattr(peft, kind_of_config)(target_modules=["q_proj", "down_proj"], **settings))
    with pytest.raises(CheckpointError) as caught:
        pd.extract("BASE", "ADAPTER", "delta")
    assert method in caught.value.what
    with remedied(caught.value, "merge it with PEFT, and give OUT", "'BASE'", "'ADAPTER'", "'OUT'"):
        run_remedy(caught.value)
        assert_answers(tmp_path, tmp_path / "OUT", model)


@kind(
    ADAPTERS,
    "an adapter as base or target",
    refused="it has no weights of its own",
    remedy="extract its delta and apply that, or merge it with PEFT",
)
def test_adapters_are_no_models(tmp_path: Path) -> None:
    """As base or target; to verify with one, base is needed too."""
    base, adapter = write_model(tmp_path / "base", small()), write_adapter(tmp_path / "lora", GOOD)
    pd.extract(base, adapter, tmp_path / "delta")
    for call in (
        lambda: pd.extract(adapter, base, tmp_path / "other"),
        lambda: pd.apply(adapter, tmp_path / "delta", tmp_path / "out"),
    ):
        with pytest.raises(CheckpointError, match="a LoRA adapter, not a model") as caught:
            call()
        with remedied(caught.value, f"pd-extract BASE {adapter} -o DELTA, and apply DELTA", "merge_and_unload()"):
            pd.apply(base, tmp_path / "delta", tmp_path / "result", overwrite=True)
            name = f"{ATTENTION.format(0, 'q')}.weight"
            update = plus(small()[name], product(*GOOD.values(), 1.5))
            assert_same(read_weights(tmp_path / "result"), {**small(), name: update})
    with pytest.raises(CheckpointError, match="nothing without its base"):
        pd.verify(tmp_path / "delta", post=adapter)


def test_a_model_that_has_adapters_among_its_weights_is_a_model(tmp_path: Path) -> None:
    """As Phi-4-multimodal's."""
    module = "model.layers.0.self_attn.q_proj"
    base = factors(module, 16, 16, down="lora_A.speech.weight", up="lora_B.speech.weight")
    base[f"{module}.base_layer.weight"] = normal(1, 16, 16, dtype=BF16)
    post = {name: tensor * 2 for name, tensor in base.items()}
    write_model(tmp_path / "base", base, config={"model_type": "phi4mm"})
    write_model(tmp_path / "post", post, config={"model_type": "phi4mm"})
    extract_in(tmp_path)
    apply_in(tmp_path, "base")
    assert_same(read_weights(tmp_path / "out"), post)


def test_a_config_beside_an_adapter_changes_nothing(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", small(), config={"model_type": "llama", "rms_norm_eps": 1e-5})
    adapter = write_adapter(tmp_path / "lora", GOOD)
    (adapter / "config.json").write_text("{}")
    report = pd.extract(base, adapter, tmp_path / "delta")
    assert report.manifest.configs == {}
    pd.apply(base, tmp_path / "delta", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["rms_norm_eps"] == 1e-5


@kind(
    ADAPTERS,
    "a model and an adapter in one folder, as post",
    refused="either may be what was trained",
    remedy="the path of the adapter's file",
)
def test_a_folder_with_a_model_and_an_adapter(tmp_path: Path) -> None:
    base, both = write_model(tmp_path / "base", small()), write_adapter(tmp_path / "lora", GOOD)
    write_model(both, small())
    with pytest.raises(CheckpointError, match="both a model and an adapter") as caught:
        pd.extract(base, both, tmp_path / "delta")
    with remedied(caught.value, f"give the one file {both}/adapter_model.safetensors"):
        pd.extract(base, both / "adapter_model.safetensors", tmp_path / "delta")
        pd.apply(base, tmp_path / "delta", tmp_path / "summed")
        name = f"{ATTENTION.format(0, 'q')}.weight"
        update = plus(small()[name], product(*GOOD.values(), 1.5))
        assert_same(read_weights(tmp_path / "summed"), {**small(), name: update})
    with pytest.raises(CheckpointError, match="both a model and an adapter"):
        pd.verify(tmp_path / "delta", base=base, post=both)
    applied = pd.apply(both, tmp_path / "delta", tmp_path / "out")  # of a target, the adapter is not read
    assert any("adapter_model.safetensors: an adapter" in note for note in applied.notes)


@pytest.mark.parametrize("beside", ["optimizer.safetensors", "checkpoint-5/adapter_model.safetensors"])
def test_what_a_training_leaves_beside_an_adapter_is_not_read(tmp_path: Path, beside: str) -> None:
    base, adapter = write_model(tmp_path / "base", small()), write_adapter(tmp_path / "lora", GOOD)
    expected = pd.extract(base, adapter, tmp_path / "delta").id
    (adapter / beside).parent.mkdir(exist_ok=True)
    shutil.copy(adapter / "adapter_model.safetensors", adapter / beside)
    report = pd.extract(base, adapter, tmp_path / "other")
    assert report.id == expected
    assert any(beside.partition("/")[0] in note for note in report.notes)


@kind(ADAPTERS, "`adapter_model.bin`", refused="a pickle is never opened", remedy="the command that converts it")
def test_the_remedy_for_a_pickled_adapter_works(tmp_path: Path) -> None:
    write_model(tmp_path / "base", small())
    adapter = write_adapter(tmp_path / "lora", GOOD)
    torch.save(GOOD, adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="a pickled adapter") as caught:
        open_checkpoint(adapter)
    with remedied(caught.value, 'python -c "'):
        code = (caught.value.remedy or "").split('python -c "')[1].removesuffix('"')
        subprocess.run([sys.executable, "-c", code], cwd=adapter, check=True)
        assert_same(load_file(adapter / "adapter_model.safetensors"), GOOD)
        pd.extract(tmp_path / "base", adapter, tmp_path / "delta")


def test_the_adapters_own_tokenizer_is_taken(tmp_path: Path) -> None:
    write_model(tmp_path / "base", small())
    adapter = write_adapter(tmp_path / "lora", GOOD)
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    report = pd.extract(tmp_path / "base", adapter, tmp_path / "delta")
    assert [file.path for file in report.manifest.companions] == ["companions/chat_template.jinja"]
