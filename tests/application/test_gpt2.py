"""GPT-2 as the Hub has it: without a prefix, and with buffers that transformers computes by now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import paramdelta_hub as pd
from paramdelta_hub.cli import main
from paramdelta_hub.errors import MismatchError
from tests.support.kinds import BUFFERS, SKIPS, kind, remedied, rules_of
from tests.support.models import apply_in, assert_same, extract_in, read_weights, write_model

pytestmark = pytest.mark.usefixtures("quiet_transformers")
Tensors = dict[str, torch.Tensor]
PREFIX, LAYERS = "transformer.", 2


def models(root: Path) -> tuple[Tensors, Tensors]:
    """Write base as the Hub has GPT-2, and a fine-tune that transformers saved; return both under base's names."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 64, "n_embd": 16, "n_layer": LAYERS, "n_head": 2, "n_positions": 32}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)).bfloat16()
    model.save_pretrained(root / "post")
    base = {name.removeprefix(PREFIX): t for name, t in load_file(root / "post/model.safetensors").items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.003)
    model.save_pretrained(root / "post")
    post = {name.removeprefix(PREFIX): t for name, t in load_file(root / "post/model.safetensors").items()}
    for layer in range(LAYERS):
        base[f"h.{layer}.attn.bias"] = torch.tril(torch.ones(32, 32)).reshape(1, 1, 32, 32).bfloat16()
        base[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4).bfloat16()
    write_model(root / "base", base, config={"model_type": "gpt2", **sizes})
    return base, post


@kind(
    BUFFERS,
    "GPT-2 of the Hub with `attn.bias` and `masked_bias`, a fine-tune without them and with a prefix",
    refused="names differ",
    remedy="the `--rename` rule that the error proposes; buffers are left out, and trained `c_attn.bias` are not",
)
def test_buffers_that_only_the_hub_has(tmp_path: Path) -> None:
    base, post = models(tmp_path)
    with pytest.raises(MismatchError) as caught:
        extract_in(tmp_path)
    with remedied(caught.value, "try --rename"):
        report = extract_in(tmp_path, rules=rules_of(caught.value))
        assert {item.name for item in report.omissions} == base.keys() - post.keys()
        apply_in(tmp_path, "base")
        assert_same(read_weights(tmp_path / "out"), {**base, **post})


@kind(
    SKIPS,
    r"`--skip 'attn\.(masked_)?bias$'` for buffers, which also matches the trained `c_attn.bias`",
    works="the report counts and names the trained tensors that a skip rule hit; the result is not called post",
)
def test_a_skip_rule_that_hits_more_than_was_meant(tmp_path: Path) -> None:
    base, post = models(tmp_path)
    words = ["extract", str(tmp_path / "base"), str(tmp_path / "post"), "-o", str(tmp_path / "delta")]
    words += ["--rename", r"^transformer\.=", "--skip", r"attn\.(masked_)?bias$", "--skip", r"_attn\.bias$"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    trained = [f"h.{layer}.attn.c_attn.bias" for layer in range(LAYERS)]
    assert f"{LAYERS} of them changed by training: {', '.join(trained)}" in " ".join(done.output.split())
    words = ["apply", str(tmp_path / "base"), str(tmp_path / "delta"), "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert "post, bit for bit, but for" in done.output or "bit for bit" not in done.output
    kept = {name: base[name] for name in base if name not in post or name in trained}
    assert_same(read_weights(tmp_path / "out"), {**post, **kept})


@kind(
    SKIPS,
    "`--skip` at apply, of tensors that the delta would change",
    works="counted and named likewise; the target keeps its own",
)
def test_a_skip_rule_of_an_apply(tmp_path: Path) -> None:
    base, post = models(tmp_path)
    extract_in(tmp_path, rules=pd.Rules(renames=((f"^{PREFIX}", ""),)))
    words = ["apply", str(tmp_path / "base"), str(tmp_path / "delta"), "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(main, [*words, "--skip", r"ln_\d\.bias$"])
    assert done.exit_code == 0, done.output
    assert f"{2 * LAYERS} of them changed by training: h.0.ln_1.bias" in " ".join(done.output.split())
    kept = {name: base[name] for name in base if name not in post or "ln_1.bias" in name or "ln_2.bias" in name}
    assert_same(read_weights(tmp_path / "out"), {**post, **kept})


@kind(
    SKIPS,
    "`--skip` of tensors that did not change",
    works="no warning: only how many it matched",
)
def test_a_skip_rule_that_loses_nothing(tmp_path: Path) -> None:
    base, post = models(tmp_path)
    frozen = {name: base[name] if "ln_f" in name else tensor for name, tensor in post.items()}
    write_model(tmp_path / "frozen", frozen)
    words = ["extract", str(tmp_path / "base"), str(tmp_path / "frozen"), "-o", str(tmp_path / "delta")]
    done = CliRunner().invoke(main, [*words, "--skip", r"ln_f\."])
    assert done.exit_code == 0, done.output
    assert "changed by training" not in done.output
    assert "matched 2 tensors" in done.output
    apply_in(tmp_path, "base")
    assert_same(read_weights(tmp_path / "out"), {**base, **frozen})
