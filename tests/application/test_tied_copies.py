"""Models of transformers whose files store a tied tensor once, or under several names: every copy gets the sum."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import paramdelta_hub as pd
from paramdelta_hub.cli import main
from paramdelta_hub.errors import MismatchError
from tests.application.test_vocabularies import write_tokenizer
from tests.support.kinds import BUFFERS, HEADS, NOBODY, ROWS, TIES, kind, remedied, rules_of
from tests.support.models import (
    apply_in,
    assert_same,
    extract_in,
    read_weights,
    reference,
    tuned,
    write_model,
    write_models,
)

pytestmark = pytest.mark.usefixtures("quiet_transformers")
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


@kind(
    TIES,
    "T5, BART, Whisper, GPT-2, BERT, Llama and Qwen3, stored once or under every tied name, in base, post and target",
    works="one tensor of the delta; every copy gets the sum, and transformers answers alike",
)
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


EMBEDDING, HEAD, MATRIX = "model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.weight"
UNTIED, TIED = ({"model_type": "qwen3", "tie_word_embeddings": tied} for tied in (False, True))


def small(seed: int, *names: str, rows: int = 24) -> Tensors:
    noise = torch.Generator().manual_seed(seed)
    return {name: (torch.randn(rows, 8, generator=noise) * 0.5).bfloat16() for name in names}


def without(tensors: Tensors, *names: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


@kind(
    TIES,
    "`--skip` of the copies alone (`lm_head`, `embed_tokens` of T5)",
    works="no effect, and a note: no old embedding stays behind",
)
def test_skipping_copies_alone_changes_nothing(models: Callable[[str], Models], tmp_path: Path) -> None:
    """The way out that people found when copies were refused: it must not leave old embeddings behind."""
    made = models("t5")
    base = made.root / "base-copies"
    report = pd.extract(
        base, made.root / "post", tmp_path / "delta", rules=pd.Rules(skips=("embed_tokens", "lm_head")), threads=1
    )
    assert "lm_head.weight: the same tensor as shared.weight, and is not skipped without it" in report.notes
    assert pd.apply(base, tmp_path / "delta", tmp_path / "out", threads=1).is_post
    found = stored(tmp_path / "out")
    assert_same(found, {key: made.states["post"][key] for key in found})


@kind(
    HEADS,
    'an embedding or reward model without the head that its base has; its config may even say "tied"',
    refused="the head is missing in post, and no tie",
    remedy="`--skip '^lm_head\\.weight$'`: targets keep their own head",
)
@pytest.mark.parametrize("config", [UNTIED, TIED])
def test_a_head_that_post_lacks_is_not_the_embedding(tmp_path: Path, config: dict[str, Any]) -> None:
    """Embedding models often keep the config of their base, and even one that says tied."""
    base = small(0, EMBEDDING, MATRIX, HEAD)
    post, target = without(tuned(base, 1), HEAD), tuned(base, 2)
    write_model(tmp_path / "base", base, config=UNTIED)
    write_model(tmp_path / "post", post, config=config)
    write_model(tmp_path / "target", target, config=UNTIED)
    with pytest.raises(MismatchError) as caught:
        extract_in(tmp_path)
    assert [(m.location, m.kind) for m in caught.value.mismatches] == [(HEAD, "missing")]
    with remedied(caught.value, r"--skip '^lm_head\.weight$'"):
        extract_in(tmp_path, rules=rules_of(caught.value))
        report = apply_in(tmp_path)
        expected = {name: reference(base[name], post[name], target[name]) for name in post}
        assert_same(read_weights(tmp_path / "out"), {**expected, HEAD: target[HEAD]})
    assert any(omission.name == HEAD for omission in report.omissions)
    verified = CliRunner().invoke(main, ["verify", str(tmp_path / "delta"), "--base", str(tmp_path / "base")])
    assert "but for 1 tensor(s) that the delta leaves out" in verified.output


@kind(
    HEADS,
    "a delta of two models without a head, and a target that has one",
    refused="nothing says whose head it is",
    remedy="`--skip '^lm_head\\.weight$'`: the target keeps it",
)
def test_a_delta_without_a_head_and_a_target_with_one(tmp_path: Path) -> None:
    """Two embedding models that do not tie: a target's head is not theirs to change, and a tied target has none."""
    base = small(0, EMBEDDING, MATRIX)
    post, target = tuned(base, 1), {**tuned(base, 2), **small(3, HEAD)}
    write_models(tmp_path, UNTIED, base=base, post=post, target=target)
    extract_in(tmp_path)
    with pytest.raises(MismatchError, match="--skip") as caught:
        apply_in(tmp_path)
    assert [(m.location, m.kind) for m in caught.value.mismatches] == [(HEAD, "missing")]
    with remedied(caught.value, r"--skip '^lm_head\.weight$'"):
        apply_in(tmp_path, rules=rules_of(caught.value))
        expected = {name: reference(base[name], post[name], target[name]) for name in base}
        assert_same(read_weights(tmp_path / "out"), {**expected, HEAD: target[HEAD]})

    tied = {**tuned(base, 4)}
    tied[HEAD] = tied[EMBEDDING].clone()
    write_model(tmp_path / "tied", tied, config=TIED)
    apply_in(tmp_path, "tied", "delta", "both")
    expected = {name: reference(base[name], post[name], tied[name]) for name in base}
    assert_same(read_weights(tmp_path / "both"), {**expected, HEAD: expected[EMBEDDING]})


@kind(
    HEADS,
    "a delta with a head, and an untied target that has none",
    refused="there is nothing to add it to",
    remedy="`--skip '^lm_head\\.weight$'`",
)
def test_a_delta_with_a_head_and_a_target_without_one(tmp_path: Path) -> None:
    base = small(0, EMBEDDING, MATRIX, HEAD)
    post, target = tuned(base, 1), without(tuned(base, 2), HEAD)
    for name, tensors, config in (("base", base, UNTIED), ("post", post, UNTIED), ("target", target, UNTIED)):
        write_model(tmp_path / name, tensors, config=config)
    extract_in(tmp_path)
    with pytest.raises(MismatchError, match="--skip") as caught:
        apply_in(tmp_path)
    with remedied(caught.value, r"--skip '^lm_head\.weight$'"):
        apply_in(tmp_path, rules=rules_of(caught.value))
        assert_same(
            read_weights(tmp_path / "out"), {name: reference(base[name], post[name], target[name]) for name in target}
        )
    write_model(tmp_path / "target", target, config=TIED)
    apply_in(tmp_path, overwrite=True)
    assert_same(
        {HEAD: read_weights(tmp_path / "out")[HEAD]}, {HEAD: reference(base[HEAD], post[HEAD], target[EMBEDDING])}
    )


@kind(
    TIES,
    "copies of a tied tensor that differ",
    works="they are no tie: such a model is not base, and the result is not called post",
)
def test_a_base_whose_copies_differ_is_another_base(tmp_path: Path) -> None:
    base = small(0, EMBEDDING, MATRIX)
    base[HEAD] = base[EMBEDDING].clone()
    write_models(tmp_path, TIED, base=base, post=without(tuned(base, 1), HEAD))
    manifest = extract_in(tmp_path).manifest
    assert manifest.ties == {HEAD: EMBEDDING}
    pd.verify(tmp_path / "delta", base=tmp_path / "base", post=tmp_path / "post")
    write_model(tmp_path / "other", {**base, HEAD: base[HEAD] + 1}, config=TIED)
    with pytest.raises(MismatchError, match="no copy"):
        pd.verify(tmp_path / "delta", base=tmp_path / "other")
    assert not apply_in(tmp_path, "other").is_post


@kind(
    NOBODY,
    "only the embedding grew, or only the head",
    refused="the delta could not be applied to its own base",
    remedy="`--skip '^model\\.embed_tokens\\.weight$'` and `--companions target`; or make them equally long",
)
@pytest.mark.parametrize(("grown", "misfit"), [(EMBEDDING, "rows"), (HEAD, "shape")])
def test_a_delta_that_its_own_base_could_not_take(tmp_path: Path, grown: str, misfit: str) -> None:
    base = small(0, EMBEDDING, MATRIX, HEAD)
    post = tuned(base, 1)
    post[grown] = torch.cat([post[grown], small(5, grown, rows=4)[grown]])
    for name, tensors, tokens in (("base", base, 24), ("post", post, 28)):
        write_model(tmp_path / name, tensors, config=UNTIED)
        write_tokenizer(tmp_path / name, {f"w{row}": row for row in range(tokens)})
    with pytest.raises(MismatchError) as caught:
        extract_in(tmp_path)
    assert [(m.location, m.kind) for m in caught.value.mismatches] == [(grown, misfit)]
    with remedied(caught.value, f"--skip '^{re.escape(grown)}$'"):
        extract_in(tmp_path, rules=rules_of(caught.value))
        report = apply_in(tmp_path, "base", companions="target")
        assert not report.is_post
        assert_same(read_weights(tmp_path / "out"), {**post, grown: base[grown]})


SENTINELS = range(16, 20)


def write_sentinels(root: Path, unnamed: str) -> Tensors:
    """Write three models that trained T5's sentinels, one with a tokenizer that does not name them; return the sum."""
    base = small(0, EMBEDDING, MATRIX, HEAD)
    states = {"base": base, "post": tuned(base, 1), "target": tuned(base, 2)}
    for name, tensors in states.items():
        write_model(root / name, tensors, config=UNTIED)
        write_tokenizer(root / name, {f"w{row}": row for row in range(16 if name == unnamed else SENTINELS.stop)})
    return {name: reference(base[name], states["post"][name], states["target"][name]) for name in base}


@kind(
    ROWS,
    "rows that all three trained, and one tokenizer does not name (T5's sentinels)",
    works="Δ is added, as in all other rows",
)
@pytest.mark.parametrize("unnamed", ["base", "post"])
@pytest.mark.parametrize("companions", ["post", "target"])
def test_rows_that_one_tokenizer_does_not_name(tmp_path: Path, unnamed: str, companions: Any) -> None:
    expected = write_sentinels(tmp_path, unnamed)
    manifest = extract_in(tmp_path).manifest
    assert list(manifest.taken_up.values()) == (list(SENTINELS) if unnamed == "base" else [])
    pd.verify(tmp_path / "delta", base=tmp_path / "base", post=tmp_path / "post")
    assert apply_in(tmp_path, "base", "delta", "rebuilt").is_post
    apply_in(tmp_path, companions=companions)
    assert_same(read_weights(tmp_path / "out"), expected)


@kind(
    ROWS,
    "such rows, if it is the target's tokenizer that does not name them",
    refused="nothing says that they are the words of post's tokenizer",
    remedy="`--companions target`: Δ is added",
)
def test_rows_that_the_targets_tokenizer_does_not_name(tmp_path: Path) -> None:
    expected = write_sentinels(tmp_path, "target")
    extract_in(tmp_path)
    assert apply_in(tmp_path, "base", "delta", "rebuilt").is_post
    with pytest.raises(MismatchError) as caught:
        apply_in(tmp_path)
    with remedied(caught.value, "--companions target"):
        apply_in(tmp_path, companions="target")
        assert_same(read_weights(tmp_path / "out"), expected)


@kind(ROWS, "a new token in a row of padding", works="taken whole")
def test_a_new_token_in_a_row_of_padding_is_taken_whole(tmp_path: Path) -> None:
    """Its row has nothing in common with base's padding."""
    base = small(0, EMBEDDING, MATRIX)
    post, target = tuned(base, 1), tuned(base, 2)
    post[EMBEDDING][20] = small(7, EMBEDDING)[EMBEDDING][0]
    for name, tensors, tokens in (("base", base, 20), ("post", post, 21), ("target", target, 20)):
        write_model(tmp_path / name, tensors, config=TIED)
        write_tokenizer(tmp_path / name, {f"w{row}": row for row in range(tokens)})
    manifest = extract_in(tmp_path).manifest
    assert manifest.taken_up == {}
    apply_in(tmp_path)
    expected = reference(base[EMBEDDING], post[EMBEDDING], target[EMBEDDING])
    expected[20] = post[EMBEDDING][20]
    assert_same({EMBEDDING: read_weights(tmp_path / "out")[EMBEDDING]}, {EMBEDDING: expected})


@kind(BUFFERS, "buffers of another dtype, or broken, in post", works="left out; the target's own stay")
def test_a_broken_buffer_of_post_replaces_nothing(tmp_path: Path) -> None:
    base = small(0, EMBEDDING, MATRIX)
    buffers = {
        "text.position_ids": torch.arange(6)[None],
        "rotary_emb.inv_freq": torch.arange(4).float(),
        "h.0.attn.bias": torch.tril(torch.ones(4, 4)).reshape(1, 1, 4, 4),
        "h.0.attn.masked_bias": torch.tensor(-1e4),
    }
    post, target = tuned(base, 1), tuned(base, 2)
    broken = {name: torch.zeros_like(tensor).half() for name, tensor in buffers.items()}
    write_models(tmp_path, TIED, base={**base, **buffers}, post={**post, **broken}, target={**target, **buffers})
    extract_in(tmp_path)
    apply_in(tmp_path)
    expected = {name: reference(base[name], post[name], target[name]) for name in base}
    assert_same(read_weights(tmp_path / "out"), {**expected, **buffers})

    arguments = [str(tmp_path / "base"), str(tmp_path / "delta"), "-o", str(tmp_path / "again")]
    told = CliRunner().invoke(main, ["apply", *arguments]).output
    assert "so the result is post, bit for bit, but for 4 tensor(s) that the delta leaves out\n" in told
    card = " ".join((tmp_path / "again/README.md").read_text().split())
    assert "this is post, bit for bit, but for 4 tensor(s) that the delta leaves out." in card
    assert pd.verify(tmp_path / "delta", base=tmp_path / "base").left_out == 4
