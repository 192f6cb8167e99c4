"""Models of transformers whose files store a tied tensor once, or under several names: every copy gets the sum."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import paramdelta_hub as pd
from tests.support.models import assert_same, reference

Tensors = dict[str, torch.Tensor]
SMALL = {"vocab_size": 64, "d_model": 16, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
ENCODER_DECODER = {
    **SMALL,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 32,
    "decoder_start_token_id": 2,
}
LAYERS = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "pad_token_id": 0,
}
KINDS: dict[str, tuple[str, str, dict[str, Any], tuple[str, ...]]] = {
    "t5": (
        "T5Config",
        "T5ForConditionalGeneration",
        {**SMALL, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2},
        ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"),
    ),
    "bart": (
        "BartConfig",
        "BartForConditionalGeneration",
        ENCODER_DECODER,
        (
            "model.shared.weight",
            "model.encoder.embed_tokens.weight",
            "model.decoder.embed_tokens.weight",
            "lm_head.weight",
        ),
    ),
    "whisper": (
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        {**ENCODER_DECODER, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16},
        ("model.decoder.embed_tokens.weight", "proj_out.weight"),
    ),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"vocab_size": 64, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32},
        ("transformer.wte.weight", "lm_head.weight"),
    ),
    "bert": (
        "BertConfig",
        "BertForMaskedLM",
        {**LAYERS, "max_position_embeddings": 32},
        ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    ),
    "llama": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {**LAYERS, "tie_word_embeddings": True},
        ("model.embed_tokens.weight", "lm_head.weight"),
    ),
    "qwen3": (
        "Qwen3Config",
        "Qwen3ForCausalLM",
        {**LAYERS, "num_key_value_heads": 1, "head_dim": 8, "tie_word_embeddings": True},
        ("model.embed_tokens.weight", "lm_head.weight"),
    ),
}
"""Configuration class, model class, sizes, and the names of the tied tensor."""


class Models:
    """Base, post and a new base of one kind, as modules and as files with and without the copies."""

    def __init__(self, root: Path, kind: str) -> None:
        import transformers

        config_name, self.model_name, sizes, self.tied = KINDS[kind]
        self.root = root
        self.config = getattr(transformers, config_name)(**sizes)
        self.states: dict[str, Tensors] = {}
        torch.manual_seed(0)
        model = self._model_class(self.config)
        for number, name in enumerate(("base", "post", "target")):
            torch.manual_seed(number)
            with torch.no_grad():
                for tensor in model.parameters():
                    tensor.add_(torch.randn_like(tensor) * 0.02)
            model.save_pretrained(root / name)
            self.states[name] = {key: tensor.clone() for key, tensor in model.state_dict().items()}
            self._write(f"{name}-copies", self.states[name])
            model = self._model_class.from_pretrained(root / "base")

    @property
    def _model_class(self) -> Any:
        import transformers

        return getattr(transformers, self.model_name)

    def _write(self, name: str, tensors: Tensors) -> None:
        self.config.architectures = [self.model_name]
        self.config.save_pretrained(self.root / name)
        save_file({key: t.contiguous() for key, t in tensors.items()}, self.root / name / "model.safetensors")

    def logits(self, folder: Path) -> torch.Tensor:
        """Return what a folder's model answers."""
        model = self._model_class.from_pretrained(folder).eval()
        ids = torch.arange(3, 11)[None]
        with torch.no_grad():
            if "Whisper" in self.model_name:
                sounds = torch.linspace(-1, 1, 8 * 32).reshape(1, 8, 32)
                answer = model(input_features=sounds, decoder_input_ids=ids)
            elif hasattr(model, "get_decoder") and self.config.is_encoder_decoder:
                answer = model(input_ids=ids, decoder_input_ids=ids)
            else:
                answer = model(input_ids=ids)
        logits: torch.Tensor = answer.logits
        return logits


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """Without bars and advice, and only one thread, for sums in one order."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Models]:
    made: dict[str, Models] = {}

    def make(kind: str) -> Models:
        if kind not in made:
            made[kind] = Models(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return make


def stored(folder: Path) -> Tensors:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("base_copies", "post_copies"), [(True, False), (False, True), (True, True)])
def test_every_copy_gets_the_sum(
    models: Callable[[str], Models], tmp_path: Path, kind: str, base_copies: bool, post_copies: bool
) -> None:
    made = models(kind)
    base = made.root / ("base-copies" if base_copies else "base")
    post = made.root / ("post-copies" if post_copies else "post")
    assert all((name in stored(made.root / "base-copies")) for name in made.tied)
    assert sum((name in stored(made.root / "base")) for name in made.tied) == 1

    report = pd.extract(base, post, tmp_path / "delta", threads=1)
    names = [record.name for record in report.manifest.tensors]
    assert [name for name in names if name in made.tied] == [made.tied[0]], "the copies are one tensor of the delta"
    assert pd.verify(tmp_path / "delta", base=base, post=post).exact

    for name in ("base", "base-copies"):
        done = pd.apply(made.root / name, tmp_path / "delta", tmp_path / f"rebuilt-{name}", threads=1)
        found = stored(tmp_path / f"rebuilt-{name}")
        assert found.keys() == stored(made.root / name).keys()
        assert_same(found, {key: made.states["post"][key] for key in found})
        assert torch.equal(made.logits(tmp_path / f"rebuilt-{name}"), made.logits(made.root / "post"))
        assert done.is_post
    assert not torch.equal(made.logits(made.root / "base"), made.logits(made.root / "post"))

    for name in ("target", "target-copies"):
        pd.apply(made.root / name, tmp_path / "delta", tmp_path / f"out-{name}", threads=1)
        found = stored(tmp_path / f"out-{name}")
        states = made.states
        expected = {key: reference(states["base"][key], states["post"][key], states["target"][key]) for key in found}
        assert_same(found, expected)
        copies = [found[key] for key in made.tied if key in found]
        assert all(torch.equal(copy, copies[0]) for copy in copies)
    assert torch.equal(made.logits(tmp_path / "out-target"), made.logits(tmp_path / "out-target-copies"))
