"""Companions come by an allow-list, as bytes, never through a link, and never with code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paramdelta_hub.checkpoints.checkpoint import open_checkpoint
from paramdelta_hub.checkpoints.companions import code_files, kind_of, model_companions, post_companions
from paramdelta_hub.errors import CheckpointError
from tests.support.models import weights, write_model

CARRIED = {
    "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates/rag.jinja", "vocab.txt", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json",
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
}  # fmt: skip
OWN = {"config.json", "modules.json", "sentence_bert_config.json", "1_Pooling/config.json", "10_Dense/config.json"}
NEVER = {
    "modeling_x.py", "configuration_x.py", "pytorch_model.bin", "x.pt", "x.pkl", "training_args.bin", "x.sh", "x.so",
    "x.exe", "x.dll", "x.jar", "x.ipynb", "x.html", "x.js", "setup.py", "conftest.py", "Makefile", ".env", ".bashrc",
    "README.md", "x.ckpt", "optimizer.pt", "scheduler.pt", "rng_state.pth", "x.h5", "x.msgpack", "x.onnx", "x.npz",
    "x.npy", "x.joblib", "x.zip", "x.tar", "x.tar.gz", "x.whl", "x.yaml", "x.toml", "x.cfg", "x.ini", "x.bat", "x.ps1",
    "x.rb", "x.pl", "config.json.bak", "aconfig.json", "1_Pooling/evil.py",
    "1_Pooling/README.md", "1_Pooling/model.safetensors.index.json", "1_Pooling/.x.json",
    "additional_chat_templates/x.py", "chat_template.py",
    "additional_chat_templates/x/y.jinja", "tokenizer.json.py", "tokenizer.py", "additional_chat_templates/.x.jinja",
    "custom_generate/generate.py", "tokenizer.pkl", "chat_template.html", "vocab.bin",
}  # fmt: skip


OF_NO_COMPONENT = {"1_pooling/config.json", "x_Pooling/config.json", "1_Pooling/x/config.json", "logs/events.json"}
"""In folders that are no part of the model."""


def model_with(path: Path, *names: str, content: bytes = b"{}") -> Path:
    write_model(path, weights(0), config={})
    for name in names:
        (path / name).parent.mkdir(exist_ok=True, parents=True)
        (path / name).write_bytes(content)
    return path


def test_the_allow_list(tmp_path: Path) -> None:
    opened = open_checkpoint(model_with(tmp_path / "model", *CARRIED, *OWN, *NEVER, *OF_NO_COMPONENT))
    assert len(NEVER) >= 40
    assert set(model_companions(opened)) == CARRIED | OWN
    assert set(post_companions(opened)) == CARRIED
    assert list(post_companions(opened)) == sorted(CARRIED)


@pytest.mark.parametrize("name", sorted(NEVER))
def test_names_of_no_kind(name: str) -> None:
    assert kind_of(name) is None


def test_a_lone_file_has_none(tmp_path: Path) -> None:
    opened = open_checkpoint(model_with(tmp_path / "model", *CARRIED) / "model.safetensors")
    assert model_companions(opened) == post_companions(opened) == {}


@pytest.mark.parametrize("goal", ["/etc/passwd", "../secret"])
@pytest.mark.parametrize("name", ["tokenizer.json", "additional_chat_templates/rag.jinja"])
def test_a_link_out_of_the_folder(tmp_path: Path, goal: str, name: str) -> None:
    """It would be copied into the result, and published with it."""
    (tmp_path / "secret").write_text("key")
    path = model_with(tmp_path / "model")
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).symlink_to(goal if goal.startswith("/") else tmp_path / "secret")
    with pytest.raises(CheckpointError, match="symbolic link"):
        model_companions(open_checkpoint(path))


def test_a_folder_of_templates_that_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.jinja").write_text("key")
    path = model_with(tmp_path / "model")
    (path / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="symbolic link"):
        model_companions(open_checkpoint(path))


CODE = {"auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}}


@pytest.mark.parametrize(
    "name",
    ["tokenizer_config.json", "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json",
     "generation_config.json"],
)  # fmt: skip
@pytest.mark.parametrize("value", [CODE, {"image_processor": CODE}, {"a": [CODE]}, {"custom_pipelines": {"x": 1}}])
def test_a_package_takes_nothing_that_names_code(tmp_path: Path, name: str, value: object) -> None:
    path = model_with(tmp_path / "model", name, content=json.dumps(value).encode())
    with pytest.raises(CheckpointError, match="refers to code") as caught:
        post_companions(open_checkpoint(path))
    assert name in str(caught.value.where)
    assert "extract" in str(caught.value.remedy)


def test_words_that_look_like_code_are_words(tmp_path: Path) -> None:
    """A vocabulary may hold any word; and an empty map names nothing."""
    path = model_with(tmp_path / "model", "vocab.json", "added_tokens.json", content=b'{"auto_map": 3}')
    (path / "tokenizer.json").write_text('{"model": {"vocab": {"auto_map": 3}}}')
    (path / "tokenizer_config.json").write_text('{"auto_map": {}, "eos_token": "auto_map"}')
    assert "vocab.json" in post_companions(open_checkpoint(path))


def test_configs_that_are_not_json(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not JSON"):
        post_companions(open_checkpoint(model_with(tmp_path / "model", "tokenizer_config.json", content=b"{")))


def test_the_targets_own_code(tmp_path: Path) -> None:
    path = model_with(tmp_path / "model", "modeling_x.py", "also.py", ".hidden.py", "sub/x.py", "not-a-module.py")
    opened = open_checkpoint(path)
    config = {
        "auto_map": {"AutoModel": "modeling_x.Model", "AutoConfig": "org/name--other.Config", "x": ["also.A", None]}
    }
    assert set(code_files(opened, [json.dumps(config).encode()])) == {"modeling_x.py", "also.py"}
    missing = {"auto_map": {"AutoModel": "gone.Model"}}
    with pytest.raises(CheckpointError, match=r"there is no gone\.py"):
        code_files(opened, [json.dumps(missing).encode()])
    (path / "link.py").symlink_to("/etc/passwd")
    with pytest.raises(CheckpointError, match="symbolic link"):
        code_files(opened, [])
