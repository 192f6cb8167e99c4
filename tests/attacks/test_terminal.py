"""Escape sequences, line feeds and invisible characters in a stranger's words, to rewrite a terminal or forge a report.

Every text and every key of a manifest and of a target's configs is spoiled in turn, and everything is run that prints
one. Each is refused, or what is printed has no character that could move a cursor, hide, or begin a line of its own.
"""

from __future__ import annotations

import copy
import json
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import paramdelta_hub as pd
from paramdelta_hub import cli
from paramdelta_hub.errors import PackageError
from tests.attacks.outcomes import change_manifest
from tests.attacks.threats import shows
from tests.conftest import Family
from tests.package.test_manifest import parent, paths

pytestmark = pytest.mark.usefixtures("no_fsync")

LABELS = ("name", "license", "created_by")
EVIL = "x\x1b[2J\x9b31m\u202e\u200b\rerror: 0\n  FORGED yes"
"""Clears a screen in two ways, turns the direction of writing, hides, overwrites a line, and forges one."""


@pytest.mark.parametrize(
    "text", ["x\x1b]0;title\x07", "x\x1b[2J", "mit\n  exact         yes", "x\u202egpj", "\r", "a\x9b31m"]
)
@pytest.mark.parametrize("field", LABELS)
def test_labels_that_rewrite_a_terminal(family: Family, field: str, text: str) -> None:
    change_manifest(family.delta, lambda manifest: manifest.update({field: text}))
    with pytest.raises(PackageError):
        pd.inspect(family.delta)


@pytest.mark.parametrize("field", LABELS)
def test_labels_in_any_script(family: Family, field: str) -> None:
    change_manifest(family.delta, lambda manifest: manifest.update({field: "Δ 模型 é 😀"}))
    assert getattr(pd.inspect(family.delta).manifest, field) == "Δ 模型 é 😀"


def spoiled(value: Any) -> Iterator[Any]:
    """Yield copies in each of which one text, one key, or one key with a value of another type is spoiled."""
    for path in paths(value):
        if not path:
            continue

        def copied(path: tuple[Any, ...] = path) -> tuple[Any, Any]:
            changed = copy.deepcopy(value)
            return changed, parent(changed, path)

        if isinstance(parent(value, path)[path[-1]], str | None):
            changed, place = copied()
            place[path[-1]] = f"{place[path[-1]] or ''}{EVIL}"
            yield changed
        if isinstance(path[-1], str):
            for wrong in (False, True):
                changed, place = copied()
                place[f"{path[-1]}{EVIL}"] = [place.pop(path[-1])] if wrong else place.pop(path[-1])
                yield changed


def output_of(command: click.Command, *arguments: object) -> str:
    """Run a command as on a terminal that shows colours, and return what it printed."""
    done = CliRunner().invoke(command, list(map(str, arguments)), color=True)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.output


def check_clear(output: str) -> None:
    odd = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    bad = [letter for letter in output if letter != "\n" and unicodedata.category(letter) in odd]
    assert not bad, output
    assert not [line for line in output.splitlines() if line.startswith("  FORGED")], output


@shows(
    "forged terminal output", "every text and key of a manifest spoiled, in what pd-inspect, -verify and -apply print"
)
def test_every_word_of_a_manifest(rich: Family, tmp_path: Path) -> None:
    path = rich.delta / "manifest.json"
    out, tried = tmp_path / "out", 0
    for manifest in spoiled(json.loads(path.read_bytes())):
        path.write_text(json.dumps(manifest), encoding="utf-8")
        text = output_of(cli.inspect, rich.delta)
        if not text.startswith("error"):  # else all of them end where this one did
            text += output_of(cli.verify, rich.delta) + output_of(cli.apply, rich.target, rich.delta, "-o", out)
            shutil.rmtree(out, ignore_errors=True)
        check_clear(text)
        tried += 1
    assert tried > 400


QUANTIZED = (
    {"quant_method": "x"},
    {"quant_method": "fp8", "weight_block_size": "x"},
    {"quant_method": "modelopt", "quant_algo": "x"},
    {"quant_method": "compressed-tensors", "format": "x"},
    {"quant_method": "compressed-tensors", "sparsity_config": {"format": "x"}},
    {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": "x", "type": "x"}}}},
)
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "config.json": [
        {
            "model_type": "llama", "architectures": ["X"], "eos_token_id": 7, "tie_word_embeddings": True,
            "text_config": {"model_type": "x", "eos_token_id": 8},
        },
        *({"quantization_config": setting} for setting in QUANTIZED),
    ],
    "generation_config.json": [{"eos_token_id": [7]}, {"auto_map": {"A": "b.C"}}],
    "tokenizer_config.json": [
        {"eos_token": "x", "added_tokens_decoder": {"3": {"content": "w3", "special": True}}},
        {"auto_map": {"A": "b.C"}},
    ],
    "tokenizer.json": [
        {
            "model": {"type": "WordLevel", "vocab": {"w1": 1, "w2": 2, "other": 0}},
            "added_tokens": [{"id": 3, "content": "w3", "special": True}],
        },
    ],
    "model.safetensors.index.json": [{"weight_map": {"model.mlp.weight": "model.safetensors"}}],
}  # fmt: skip


@shows("forged terminal output", f"so of {len(CONFIGS)} files of a target, in what pd-apply prints")
@pytest.mark.parametrize("name", CONFIGS)
def test_every_word_of_a_target(rich: Family, tmp_path: Path, name: str) -> None:
    for config in CONFIGS[name]:
        for value in spoiled(config):
            (rich.target / name).write_text(json.dumps(value), encoding="utf-8")
            for options in ((), ("--keep-remote-code-of-target", "--prefer", "post", "--companions", "target")):
                check_clear(output_of(cli.apply, rich.target, rich.delta, "-o", tmp_path / "out", *options))
                shutil.rmtree(tmp_path / "out", ignore_errors=True)


FILES = [f"{EVIL}{ending}" for ending in (".gguf", ".bin", ".safetensors", ".json", ".py", "")]


@shows("forged terminal output", f"{len(FILES)} file names, in a package and in a target")
@pytest.mark.parametrize("name", FILES, ids=lambda name: name[len(EVIL) :] or "none")
def test_names_of_files(rich: Family, tmp_path: Path, name: str) -> None:
    (rich.delta / name).touch()
    check_clear(output_of(cli.verify, rich.delta))
    (rich.target / "model.safetensors").rename(rich.target / name)
    check_clear(output_of(cli.apply, rich.target, rich.delta, "-o", tmp_path / "out"))
    (rich.target / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    check_clear(output_of(cli.apply, rich.target, rich.delta, "-o", tmp_path / "out"))
