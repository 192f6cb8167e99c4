"""A package with everything that a package can hold, and the models it belongs to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

import paramdelta_hub as pd
from paramdelta_hub.tasks import plan
from tests.conftest import Family
from tests.support.models import write_model

WORDS = [f"w{row}" for row in range(12)]
TEMPLATE = b"{{ messages[0]['content'] }}"


def with_tokenizer(folder: Path, tokens: list[str], tensors: Mapping[str, torch.Tensor], **config: object) -> Path:
    """Write a model whose tokenizer gives its tokens' places as ids."""
    write_model(folder, tensors, config={"model_type": "llama", **config})
    table = {token: row for row, token in enumerate(tokens)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordLevel", "vocab": table}}))
    return folder


def make_rich(root: Path) -> Family:
    """Write models that differ in all that a manifest records, and extract their delta into several shards.

    Rows in another order, a new token, a token given up, a head untied, a classifier carried, a tensor renamed, one
    left out, integers replaced, a norm unchanged, a config and generation settings changed, a tokenizer and a template.
    """
    noise = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 0.05) -> torch.Tensor:
        return torch.randn(*shape, generator=noise) * scale

    embed, mlp = normal(12, 8), normal(9, 8)
    rest = {"model.norm.weight": torch.ones(8).bfloat16(), "model.steps": torch.tensor([7, 8])}
    base = {"model.embed_tokens.weight": embed.bfloat16(), "model.mlp.weight": mlp.bfloat16(), **rest}
    order = [*WORDS[11:0:-1], "new"]  # w0 is given up
    rows = torch.cat([embed.flip(0)[:11], normal(1, 8)])
    post = {
        "body.embed_tokens.weight": (rows + normal(12, 8, scale=0.003)).bfloat16(),
        "body.mlp.weight": (mlp + normal(9, 8, scale=0.003)).bfloat16(),
        "body.norm.weight": rest["model.norm.weight"],
        "body.steps": torch.tensor([1, 2]),
        "body.extra": torch.ones(2),
        "lm_head.weight": (rows + normal(12, 8, scale=0.003)).bfloat16(),
        "score.weight": normal(2, 8).bfloat16(),
    }
    post["body.mlp.weight"][3, 3] = -0.0  # an exception
    target = {
        name: (tensor.float() + normal(*tensor.shape, scale=0.01)).bfloat16() if tensor.dim() == 2 else tensor
        for name, tensor in base.items()
    }
    made = Family(
        with_tokenizer(root / "base", WORDS, base, tie_word_embeddings=True, eos_token_id=2),
        with_tokenizer(root / "post", order, post, tie_word_embeddings=False, eos_token_id=3),
        with_tokenizer(root / "target", WORDS, target, tie_word_embeddings=True, eos_token_id=2),
        root / "delta",
    )
    (made.post / "chat_template.jinja").write_bytes(TEMPLATE)
    (made.post / "generation_config.json").write_text('{"eos_token_id": 3}')
    rules = pd.Rules(renames=(("^body", "model"),), skips=("extra",), carries=("^score",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "TASK_BYTES_MIN", 1)
        pd.extract(made.base, made.post, made.delta, rules=rules, license="mit", threads=1)
    return made


@pytest.fixture(scope="session")
def shared_rich(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """The rich package, which no test may change."""
    return make_rich(tmp_path_factory.mktemp("rich"))


@pytest.fixture
def rich(shared_rich: Family, tmp_path: Path) -> Family:
    """The rich package, this test's own."""
    root = tmp_path / "rich"
    shutil.copytree(shared_rich.base.parent, root)
    return Family(root / "base", root / "post", root / "target", root / "delta")
