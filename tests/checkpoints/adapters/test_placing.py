"""Adapters in base's names: prefixes, kohya's and diffusers' names, pipelines, tied heads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import paramdelta_hub as pd
from paramdelta_hub.errors import CheckpointError, MismatchError
from tests.support.adapters import (
    ATTENTION,
    BF16,
    PIPELINE,
    PREFIX,
    assert_answers,
    assert_post,
    factors,
    kohya,
    normal,
    plus,
    product,
    run_remedy,
    small,
    trained_by_peft,
    write_adapter,
    write_pipeline,
)
from tests.support.kinds import ADAPTERS, kind, remedied, rules_of
from tests.support.models import apply_in, assert_same, extract_in, read_weights, write_model


@kind(ADAPTERS, "a base whose names have another prefix", works="found, if only one fits")
@pytest.mark.parametrize("prefix", ["", "model.language_model.", "language_model.model."])
def test_base_may_have_another_prefix(tmp_path: Path, prefix: str) -> None:
    base, q = small(prefix=prefix), ATTENTION.format(0, "q")
    name = f"{q}.weight".replace("model.", prefix, 1)
    tensors = {**factors(PREFIX + q, 16, 16), f"{PREFIX}model.norm.weight": normal(3, 16)}
    expected = {
        name: plus(base[name], product(*list(tensors.values())[:2], 1.5)),
        f"{prefix}norm.weight": normal(3, 16).to(BF16),
    }
    assert_post(tmp_path, base, write_adapter(tmp_path / "lora", tensors), expected)


@kind(ADAPTERS, "names that may mean two tensors of base", refused="nothing says which", remedy="`--rename '^OLD=NEW'`")
def test_a_name_that_can_mean_two_tensors_is_refused_until_renamed(tmp_path: Path) -> None:
    base = {f"{tower}.layers.0.attn.q_proj.weight": normal(5, 16, 16, dtype=BF16) for tower in ("vision", "text")}
    write_model(tmp_path / "base", base)
    tensors = factors(f"{PREFIX}layers.0.attn.q_proj", 16, 16)
    adapter = write_adapter(tmp_path / "lora", tensors)
    with pytest.raises(CheckpointError, match=r"may be any of base's '(text|vision)\..* '(text|vision)\.") as caught:
        pd.extract(tmp_path / "base", adapter, tmp_path / "delta")
    with remedied(caught.value, "--rename '^OLD=NEW'"):
        name = "text.layers.0.attn.q_proj.weight"
        expected = {name: plus(base[name], product(*tensors.values(), 1.5))}
        report = assert_post(tmp_path, base, adapter, expected, rules=pd.Rules(renames=[("^layers", "text.layers")]))
        assert report.rules[0].tensors == 1


@kind(
    ADAPTERS,
    "an adapter of tensors that base lacks",
    refused="each is listed",
    remedy="`--skip REGEX`; `--carry REGEX` for a whole tensor",
)
def test_what_base_does_not_have_is_listed_or_skipped(tmp_path: Path) -> None:
    base, q = small(), ATTENTION.format(0, "q")
    write_model(tmp_path / "base", base)
    tensors = {
        **factors(PREFIX + q, 16, 16),
        **factors(f"{PREFIX}vision.proj", 9, 7),
        f"{PREFIX}score.weight": normal(4, 2, 16),
    }
    adapter = write_adapter(tmp_path / "lora", tensors)
    with pytest.raises(MismatchError) as caught:
        pd.extract(tmp_path / "base", adapter, tmp_path / "delta")
    assert {problem.location for problem in caught.value.mismatches} == {"vision.proj.weight", "score.weight"}
    with remedied(caught.value, "leave some out with --skip", "store whole tensors with --carry"):
        rules = pd.Rules(skips=[r"^vision\."], carries=[r"^score\."])
        report = pd.extract(tmp_path / "base", adapter, tmp_path / "delta", rules=rules)
        assert [(item.name, item.side) for item in report.omissions] == [("vision.proj.weight", "post")]
        apply_in(tmp_path, "base")
        update = plus(base[f"{q}.weight"], product(*list(tensors.values())[:2], 1.5))
        assert_same(read_weights(tmp_path / "out"), {**base, f"{q}.weight": update, "score.weight": normal(4, 2, 16)})


@kind(ADAPTERS, "kohya's files for a single-file checkpoint", works="names looked up in base; scale `alpha` / rank")
def test_kohya_files_of_a_checkpoint_in_one_file(tmp_path: Path) -> None:
    unet, text = "model.diffusion_model.input_blocks.1.1", "cond_stage_model.transformer.text_model.encoder.layers.0"
    base = {
        f"{unet}.transformer_blocks.0.attn1.to_q.weight": normal(1, 16, 16, dtype=torch.float16),
        f"{unet}.proj_in.weight": normal(2, 8, 6, 3, 3, dtype=torch.float16),
        f"{text}.mlp.fc1.weight": normal(3, 12, 16, dtype=torch.float16),
    }
    write_model(tmp_path / "base", base)
    tensors = {
        **kohya("lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q", 16, 16, 2.0, 10),
        **kohya("lora_unet_input_blocks_1_1_proj_in", 8, 6, 1.0, 20, 3, 3),
        **kohya("lora_te_text_model_encoder_layers_0_mlp_fc1", 12, 16, None, 30),
    }
    save_file(tensors, tmp_path / "style.safetensors")
    scales = iter((0.5, 0.25, 1.0))
    expected = {
        name: plus(
            weight, product(normal(seed, 4, *weight.shape[1:]), normal(seed + 1, weight.shape[0], 4), next(scales))
        )
        for (name, weight), seed in zip(base.items(), (10, 20, 30), strict=True)
    }
    assert_post(tmp_path, base, tmp_path / "style.safetensors", expected)


@kind(ADAPTERS, "`pytorch_lora_weights.safetensors` of diffusers", works="scale 1")
@pytest.mark.parametrize("kinds", [{}, {"down": "lora.down.weight", "up": "lora.up.weight"}])
def test_diffusers_files_of_one_component(tmp_path: Path, kinds: dict[str, str]) -> None:
    base = {"blocks.0.attn.to_q.weight": normal(1, 16, 16, dtype=BF16), "proj.weight": normal(2, 4, 16, dtype=BF16)}
    tensors = factors("transformer.blocks.0.attn.to_q", 16, 16, **kinds)
    (tmp_path / "lora").mkdir()
    save_file(tensors, tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    name = "blocks.0.attn.to_q.weight"
    assert_post(tmp_path, base, tmp_path / "lora", {name: plus(base[name], product(*tensors.values(), 1.0))})


@pytest.mark.parametrize("kind", ["diffusers", "kohya", "metadata"])
def test_adapters_of_a_whole_pipeline(tmp_path: Path, kind: str) -> None:
    """Each component has its own names, and in diffusers' metadata its own scale."""
    base = write_pipeline(tmp_path / "base")
    if kind == "kohya":
        modules = ("lora_unet_down_0_attn_to_q", "lora_te1_text_model_encoder_layers_0_mlp_fc1",
                   "lora_te2_text_model_encoder_layers_0_mlp_fc1")  # fmt: skip
        tensors = {}
        for seed, module in enumerate(modules):
            tensors |= kohya(module, 16, 16, 2.0, 50 + 2 * seed)
        scales = [0.5] * 3
    else:
        modules = ("unet.down.0.attn.to_q", "text_encoder.text_model.encoder.layers.0.mlp.fc1",
                   "text_encoder_2.text_model.encoder.layers.0.mlp.fc1")  # fmt: skip
        tensors = {}
        for seed, module in enumerate(modules):
            tensors |= factors(module, 16, 16, seed=50 + 2 * seed)
        scales = [1.0] * 3
    metadata = {}
    if kind == "metadata":
        told = {"unet.lora_alpha": 8, "unet.r": 4, "text_encoder.lora_alpha": 2, "text_encoder.peft_type": "LORA"}
        told |= {"text_encoder_2.lora_alpha": 4, "text_encoder_2.use_rslora": True, "unet.init_lora_weights": True}
        metadata = {"lora_adapter_metadata": json.dumps(told)}
        scales = [2.0, 0.5, 2.0]
    path = tmp_path / "pytorch_lora_weights.safetensors"
    save_file(tensors, path, metadata=metadata)
    pd.extract(base, path, tmp_path / "delta")
    pd.verify(tmp_path / "delta", base=base, post=path)
    assert pd.apply(base, tmp_path / "delta", tmp_path / "out").is_post
    for seed, (name, scale) in enumerate(zip(PIPELINE, scales, strict=True)):
        update = product(normal(50 + 2 * seed, 4, 16), normal(51 + 2 * seed, 16, 4), scale)
        [file] = (tmp_path / "out" / name.partition("/")[0]).glob("*.safetensors")
        assert_same(load_file(file), {name.partition("/")[2]: plus(PIPELINE[name], update)})


@pytest.mark.parametrize("tied", [True, False])
def test_one_copy_of_a_tied_embedding(tmp_path: Path, tied: bool) -> None:
    """An adapter of the head leaves the embedding alone, whatever the config says."""
    base = {**small(), "lm_head.weight": small()["model.embed_tokens.weight"]}
    write_model(tmp_path / "base", base, config={"tie_word_embeddings": tied})
    tensors = factors(f"{PREFIX}lm_head", 48, 16)
    pd.extract(tmp_path / "base", write_adapter(tmp_path / "lora", tensors), tmp_path / "delta")
    assert apply_in(tmp_path, "base").is_post
    expected = {**base, "lm_head.weight": plus(base["lm_head.weight"], product(*tensors.values(), 1.5))}
    assert_same(read_weights(tmp_path / "out"), expected)


TIED: dict[str, dict[str, Any]] = {
    "LoRA of the head": {"target_modules": ["q_proj", "lm_head"]},
    "LoRA of both": {"target_modules": ["q_proj", "lm_head", "embed_tokens"]},
    "LoRA of both, tied": {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    "the head saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "both saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
}
EMBEDDING_ALONE: dict[str, dict[str, Any]] = {
    "LoRA of the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "the embedding saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
}


@kind(
    ADAPTERS,
    "LoRA or a saved copy of a head that base ties to its embedding, or of both",
    works="each for itself, as it was trained: the result has a head of its own, and answers as PEFT's model",
)
@pytest.mark.filterwarnings("ignore")  # of the libraries, about each other
@pytest.mark.parametrize(
    ("case", "copies"),
    [*((case, True) for case in [*TIED, *EMBEDDING_ALONE]), *((case, False) for case in TIED)],
)
def test_adapters_of_tied_heads(tmp_path: Path, case: str, copies: bool) -> None:
    config = peft.LoraConfig(r=4, **(TIED | EMBEDDING_ALONE)[case])
    assert_answers(tmp_path, tmp_path / "ADAPTER", trained_by_peft(tmp_path, config, tied=True, copies=copies))


@kind(
    ADAPTERS,
    "LoRA or a saved copy of the embedding alone, where base ties its head and stores only the embedding",
    refused="the head was not trained, and has no name in base",
    remedy="the command that gives the head a copy of its own, for BASE",
)
@pytest.mark.filterwarnings("ignore")  # of the libraries, about each other
@pytest.mark.parametrize("case", EMBEDDING_ALONE)
def test_adapters_of_an_embedding_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.chdir(tmp_path)
    model = trained_by_peft(tmp_path, peft.LoraConfig(r=4, **EMBEDDING_ALONE[case]), tied=True)
    with pytest.raises(CheckpointError, match="but not the output head, which base ties to it") as caught:
        pd.extract("BASE", "ADAPTER", "delta")
    with remedied(caught.value, "give UNTIED as BASE", "'BASE'"):
        run_remedy(caught.value)
        (tmp_path / "BASE").rename("TIED")
        (tmp_path / "UNTIED").rename("BASE")
        assert_answers(tmp_path, tmp_path / "ADAPTER", model)


@kind(
    ADAPTERS,
    "LoRA of T5's `shared`, of which encoder and decoder hold copies of their own",
    refused="PEFT trained what the model does not use",
    remedy=r"`--skip '^shared\.weight$'`",
)
@pytest.mark.filterwarnings("ignore")  # of the libraries, about each other
def test_an_adapter_of_what_t5_does_not_use(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
    t5 = transformers.T5ForConditionalGeneration
    torch.manual_seed(0)
    t5(transformers.T5Config(**sizes, decoder_start_token_id=0)).save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=4, target_modules=["q", "shared"])
    model = peft.get_peft_model(t5.from_pretrained(tmp_path / "base"), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(tmp_path / "lora")
    with pytest.raises(CheckpointError, match="neither encoder nor decoder uses") as caught:
        extract_in(tmp_path, "base", "lora")
    with remedied(caught.value, r"--skip '^shared\.weight$'"):
        extract_in(tmp_path, "base", "lora", rules=rules_of(caught.value), force=True)
        apply_in(tmp_path, "base", force=True)
        ids = torch.arange(3, 11)[None]
        with torch.no_grad():
            models = [t5.from_pretrained(tmp_path / name).eval() for name in ("base", "out")]
            base, result, wanted = (m(input_ids=ids, decoder_input_ids=ids).logits for m in (*models, model.eval()))
        assert (base - wanted).abs().max() > 0
        assert (result - wanted).abs().max() < (base - wanted).abs().max() / 50


@kind(
    ADAPTERS,
    "`trainable_token_indices` of an embedding that base ties and stores twice",
    refused="PEFT changes both copies, and saves one",
    remedy="the command that merges it with PEFT",
)
@pytest.mark.filterwarnings("ignore")  # of the libraries, about each other
def test_rows_of_an_embedding_that_is_stored_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[3, 4])
    model = trained_by_peft(tmp_path, config, tied=True, copies=True)
    with pytest.raises(CheckpointError, match="of which it holds a copy") as caught:
        pd.extract("BASE", "ADAPTER", "delta")
    with remedied(caught.value, "merge it with PEFT, and give OUT"):
        run_remedy(caught.value)
        assert_answers(tmp_path, tmp_path / "OUT", model)
