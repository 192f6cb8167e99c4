"""A result is ready to use: companions of the right model, configs that fit, and a report that says whose they are."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import paramdelta_hub as pd
from paramdelta_hub.application.companions import select_companions, write_companions
from paramdelta_hub.checkpoints.checkpoint import open_checkpoint
from paramdelta_hub.checkpoints.tokens.tokenizer import token_id_warnings
from paramdelta_hub.cli import apply as command
from paramdelta_hub.errors import CheckpointError, OptionError
from tests.support.models import read_weights, tuned, weights, write_model

CONFIG: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 48, "hidden_act": "silu", "rope_theta": 1e4, "eos_token_id": 2,
    "attention_dropout": 0.0, "torch_dtype": "bfloat16",
}  # fmt: skip


def words(name: str) -> bytes:
    """Return a tokenizer: the same words in every model, in other bytes."""
    vocab = {token: number for number, token in enumerate(("a", "b", "</s>", "<end>", "c"))}
    return json.dumps({"model": {"type": "WordLevel", "vocab": vocab, "unk_token": "a"}, "of": name}).encode()


def put(path: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


class Models:
    """Base, post and target with companions of their own, and the delta's package."""

    def __init__(self, root: Path) -> None:
        base = weights(1)
        sides = {"base": base, "post": tuned(base, 2), "target": tuned(base, 3, scale=0.01)}
        configs = {"base": CONFIG, "post": {**CONFIG, "eos_token_id": 3, "attention_dropout": 0.1}, "target": CONFIG}
        self.root = root
        for name, tensors in sides.items():
            write_model(root / name, tensors, config=configs[name])
            put(root / name, {"tokenizer.json": words(name)})
            put(root / name, {"tokenizer_config.json": {"eos_token": "</s>"}, "special_tokens_map.json": {}})
            put(root / name, {"generation_config.json": {"eos_token_id": 2, "top_p": 0.9}})
        put(root / "target", {"preprocessor_config.json": {"size": 1}, "added_tokens.json": {}})
        put(root / "post", {
            "tokenizer_config.json": {"eos_token": {"content": "<end>"}}, "chat_template.jinja": b"{{ messages }}\r\n",
            "generation_config.json": {"eos_token_id": [3, 2], "top_p": 0.9, "max_new_tokens": 9},
            "additional_chat_templates/rag.jinja": b"rag",
        })  # fmt: skip

    def path(self, name: str) -> Path:
        return self.root / name

    def extract(self, name: str = "delta") -> pd.ExtractReport:
        return pd.extract(self.root / "base", self.root / "post", self.root / name, name=name)

    def apply(self, target: str = "target", out: str = "out", **options: Any) -> pd.ApplyReport:
        return pd.apply(self.root / target, self.root / "delta", self.root / out, **options)

    def json(self, name: str) -> Any:
        return json.loads((self.root / "out" / name).read_bytes())

    @property
    def names(self) -> set[str]:
        out = self.root / "out"
        return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


@pytest.fixture
def models(tmp_path: Path) -> Models:
    made = Models(tmp_path)
    made.extract()
    return made


FROM_POST = {
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    "additional_chat_templates/rag.jinja",
}  # fmt: skip
ALWAYS_THERE = {"config.json", "model.safetensors", "paramdelta_provenance.json", "README.md"}


def test_a_package_carries_posts_files_byte_for_byte(models: Models) -> None:
    manifest = pd.inspect(models.path("delta")).manifest
    assert {file.path for file in manifest.companions} == {
        f"companions/{name}" for name in FROM_POST | {"generation_config.json"}
    }
    for file in manifest.companions:
        content = (models.path("delta") / file.path).read_bytes()
        assert content == (models.path("post") / file.path.removeprefix("companions/")).read_bytes()
        assert (file.size, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert pd.verify(models.path("delta"), post=models.path("post"))
    (models.path("delta") / "companions" / "chat_template.jinja").write_bytes(b"{{ messagez }}\r\n")
    with pytest.raises(pd.IntegrityError, match=r"chat_template\.jinja"):
        pd.verify(models.path("delta"))
    with pytest.raises(pd.IntegrityError, match=r"chat_template\.jinja"):
        models.apply()
    assert not models.path("out").exists()


def test_a_result_speaks_as_post_does(models: Models) -> None:
    made = models.apply()
    report = made.companions
    assert models.names == FROM_POST | ALWAYS_THERE | {"generation_config.json", "preprocessor_config.json"}
    for name in FROM_POST:
        assert (models.path("out") / name).read_bytes() == (models.path("post") / name).read_bytes()
    assert models.json("config.json") == {**CONFIG, "eos_token_id": 3, "attention_dropout": 0.1}
    assert list(models.json("config.json")) == list(CONFIG), "the target's order"
    assert models.json("generation_config.json") == {"eos_token_id": [3, 2], "top_p": 0.9, "max_new_tokens": 9}
    assert {file.path: file.source for file in report.files} == {
        **dict.fromkeys(FROM_POST, "delta 1.0.0"),
        "config.json": "target + delta 1.0.0",
        "generation_config.json": "target + delta 1.0.0",
        "preprocessor_config.json": "target",
    }
    for file in report.files:
        assert hashlib.sha256((models.path("out") / file.path).read_bytes()).hexdigest() == file.sha256
    assert models.json("paramdelta_provenance.json")["companions"] == json.loads(
        json.dumps(made.to_json()["companions"])
    )
    assert report.warnings == ()


def test_the_targets_own(models: Models) -> None:
    report = models.apply(companions="target").companions
    own = {path.name for path in models.path("target").iterdir()}
    assert models.names == own | ALWAYS_THERE
    for name in own - {"config.json", "model.safetensors"}:
        assert (models.path("out") / name).read_bytes() == (models.path("target") / name).read_bytes()
    assert models.json("config.json") == {**CONFIG, "attention_dropout": 0.1}, "token ids are the tokenizer's"
    assert "tokenizer is the target's" in report.configs["config.json"].kept["eos_token_id"]


def test_none(models: Models) -> None:
    models.apply(companions="none")
    assert models.names == ALWAYS_THERE
    assert models.json("config.json") == {**CONFIG, "attention_dropout": 0.1}


def test_no_such_mode(models: Models) -> None:
    with pytest.raises(OptionError, match="'post', 'target' or 'none', not 'all'"):
        models.apply(companions="all")


def test_what_does_not_change_is_copied_as_bytes(models: Models) -> None:
    odd = json.dumps({**CONFIG, "attention_dropout": 0.1, "eos_token_id": 3}, indent=7).encode() + b"\n\n"
    put(models.path("target"), {"config.json": odd})
    report = models.apply().companions
    assert (models.path("out") / "config.json").read_bytes() == odd
    assert {file.path: file.source for file in report.files}["config.json"] == "target"


def test_conflicts(models: Models) -> None:
    put(models.path("target"), {"config.json": {**CONFIG, "attention_dropout": 0.3, "eos_token_id": 1}})
    report = models.apply()
    (conflict,) = report.companions.configs["config.json"].conflicts
    assert (conflict.key, conflict.base, conflict.post, conflict.found) == ("attention_dropout", "0.0", "0.1", "0.3")
    assert models.json("config.json") == {**CONFIG, "attention_dropout": 0.3, "eos_token_id": 3}, "post's tokenizer's"
    assert any(line.startswith("conflict: config.json: attention_dropout") for line in report.companions.lines())
    models.apply(prefer="post", overwrite=True)
    assert models.json("config.json")["attention_dropout"] == 0.1


def test_rope_is_posts_only_where_the_weights_are(models: Models) -> None:
    for name, theta in (("post", 1e6), ("target", 1e4)):
        config = json.loads((models.path(name) / "config.json").read_bytes())
        put(models.path(name), {"config.json": {**config, "rope_theta": theta}})
    pd.extract(models.path("base"), models.path("post"), models.path("delta"), name="delta", overwrite=True)
    report = models.apply()
    assert models.json("config.json")["rope_theta"] == 1e4
    assert "positions" in report.companions.configs["config.json"].kept["rope_theta"]
    assert models.apply("base", overwrite=True).is_post
    assert models.json("config.json") == json.loads((models.path("post") / "config.json").read_bytes())


def test_a_post_with_a_template_alone(models: Models) -> None:
    for name in ("tokenizer.json", "special_tokens_map.json", "generation_config.json"):
        (models.path("post") / name).unlink()
    models.extract("alone")
    put(models.path("target"), {"chat_template.json": b"{}"})
    report = pd.apply(models.path("target"), models.path("alone"), models.path("out")).companions
    sources = {file.path: file.source for file in report.files}
    assert sources["chat_template.jinja"] == "alone 1.0.0"
    assert (
        sources["tokenizer_config.json"] == sources["tokenizer.json"] == sources["generation_config.json"] == "target"
    )
    assert "chat_template.json" not in sources
    assert any("no vocabulary" in warning for warning in report.warnings)
    assert models.json("config.json")["eos_token_id"] == 3, "merged, as the tokenizer did not change"


def test_generation_settings_where_the_target_has_none(models: Models) -> None:
    (models.path("target") / "generation_config.json").unlink()
    models.apply()
    ours, theirs = (models.path(name) / "generation_config.json" for name in ("out", "post"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_generation_settings_where_base_is_a_lone_file(models: Models) -> None:
    pd.extract(models.path("base") / "model.safetensors", models.path("post"), models.path("lone"))
    manifest = pd.inspect(models.path("lone")).manifest
    assert manifest.configs == {}
    pd.apply(models.path("target"), models.path("lone"), models.path("out"))
    ours, theirs = (models.path(name) / "generation_config.json" for name in ("out", "post"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_several_deltas(models: Models) -> None:
    """The first that has companions gives them; one that is subtracted, or weighs nothing, gives none."""
    for name in ("bare", "other"):
        write_model(models.path(name), tuned(weights(1), 5), config={**CONFIG, "hidden_act": "gelu", "eos_token_id": 4})
        put(models.path(name), {"tokenizer.json": words(name), "vocab.json": {}} if name == "other" else {})
        pd.extract(models.path("base"), models.path(name), models.path(f"{name}-delta"), name=name)
    deltas = [pd.WeightedDelta(models.path(f"{name}-delta"), 0.1) for name in ("bare", "other")]
    three = [deltas[0], models.path("delta"), deltas[1]]
    report = pd.apply(models.path("target"), three, models.path("out"), force=True).companions
    assert {file.source for file in report.files if file.path in FROM_POST} == {"delta 1.0.0"}
    (warning,) = report.warnings
    assert "other 1.0.0 has other companions, which are not used: tokenizer.json, vocab.json" in warning
    assert models.json("config.json")["eos_token_id"] == 3
    assert models.json("config.json")["hidden_act"] == "gelu"
    for weight in (-1.0, 0.0):
        summands = [pd.WeightedDelta(models.path("delta"), weight), deltas[1]]
        report = pd.apply(models.path("target"), summands, models.path("out"), overwrite=True).companions
        assert {file.source for file in report.files if file.path == "tokenizer.json"} == {"other 1.0.0"}
        assert models.json("config.json")["attention_dropout"] == 0.0


def test_a_target_that_brings_its_own_code(models: Models) -> None:
    config = {**CONFIG, "auto_map": {"AutoModel": "modeling_x.X"}}
    put(models.path("target"), {"config.json": config, "modeling_x.py": b"raise SystemExit"})
    for mode in ("post", "target", "none"):
        with pytest.raises(CheckpointError, match=r"config\.json: refers to code") as caught:
            models.apply(companions=mode)
        assert "--keep-remote-code-of-target" in str(caught.value.remedy)
    assert not models.path("out").exists()
    report = models.apply(keep_remote_code_of_target=True).companions
    assert (models.path("out") / "modeling_x.py").read_bytes() == b"raise SystemExit"
    assert models.json("config.json")["auto_map"] == config["auto_map"]
    assert {file.path: file.source for file in report.files}["modeling_x.py"] == "target"


def test_base_and_post_with_the_same_code(models: Models) -> None:
    """None of it goes into the package, so nothing stands in the way."""
    for name in ("base", "post"):
        config = json.loads((models.path(name) / "config.json").read_bytes())
        put(
            models.path(name),
            {"config.json": {**config, "auto_map": {"AutoModel": "modeling_x.X"}}, "modeling_x.py": b""},
        )
    models.extract("remote")
    assert b"auto_map" not in (models.path("remote") / "manifest.json").read_bytes()
    put(models.path("post"), {"tokenizer_config.json": {"auto_map": {"AutoTokenizer": "x.X"}}})
    with pytest.raises(CheckpointError, match="refers to code"):
        models.extract("worse")
    assert not list(models.root.glob("worse*")), "refused before anything is written"


def test_what_an_interrupted_run_left_is_not_taken_for_a_result(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paramdelta_hub.tasks.workspace import Workspace

    def killed(_: Workspace) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Workspace, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            models.apply()
        with pytest.raises(KeyboardInterrupt):
            models.extract("again")
    (models.path("post") / "chat_template.jinja").unlink()
    assert models.apply(companions="none").resumed_tasks
    assert models.names == ALWAYS_THERE
    models.extract("again")
    pd.verify(models.path("again"))
    assert not (models.path("again") / "companions" / "chat_template.jinja").exists()


def test_a_target_given_as_one_file(models: Models) -> None:
    pd.apply(models.path("target") / "model.safetensors", models.path("delta"), models.path("out"))
    assert models.names == FROM_POST | {"generation_config.json"} | (ALWAYS_THERE - {"config.json"})
    assert read_weights(models.path("out"))


def test_the_command(models: Models) -> None:
    put(
        models.path("target"),
        {"config.json": {**CONFIG, "hidden_act": "gelu", "auto_map": {"AutoModel": "m.X"}}, "m.py": b""},
    )
    arguments = [str(models.path("target")), str(models.path("delta")), "-o", str(models.path("out"))]
    refused = CliRunner().invoke(command, arguments)
    assert refused.exit_code == 3
    options = ["--keep-remote-code-of-target", "--companions", "target", "--prefer", "post"]
    done = CliRunner().invoke(command, [*arguments, *options])
    assert done.exit_code == 0, done.output
    assert "config.json: attention_dropout from delta 1.0.0" in done.output
    done = CliRunner().invoke(command, [*arguments, *options, "--overwrite", "--json"])
    assert json.loads(done.output)["companions"]["mode"] == "target"


TOKENS = {"a": 0, "</s>": 2, "<end>": 3}
GOOD: dict[str, Any] = {"vocab_size": 4, "eos_token_id": [2, 3], "bos_token_id": 0, "pad_token_id": None}


@pytest.mark.parametrize(
    ("config", "generation", "tokenizer", "doubt"),
    [
        (GOOD, {}, {"eos_token": "<end>"}, None),
        (GOOD, {"eos_token_id": 3}, {"eos_token": {"content": "<end>"}}, None),
        ({}, {}, {}, None),
        (GOOD, {"eos_token_id": 4}, {}, "eos_token_id 4 is outside the vocabulary of 4"),
        ({"text_config": {"vocab_size": 3, "eos_token_id": 3}}, {}, {}, "eos_token_id 3 is outside the"),
        (GOOD, {"pad_token_id": -1}, {}, "pad_token_id -1 is outside the vocabulary"),
        (GOOD, {"bos_token_id": 1}, {}, "bos_token_id 1 is not a token"),
        ({**GOOD, "eos_token_id": "2"}, {}, {}, "eos_token_id is not a number"),
        ({**GOOD, "eos_token_id": True}, {}, {}, "eos_token_id is not a number"),
        (
            GOOD,
            {"eos_token_id": 2},
            {"eos_token": "<end>"},
            "generation stops at 2, but the tokenizer's eos_token '<end>' is 3",
        ),
        ({"vocab_size": 4}, {}, {"eos_token": "<end>"}, "generation stops at no id"),
        (GOOD, {}, {"eos_token": "<\x1b[2J>"}, "eos_token '<\\x1b[2J>' is not a token"),
    ],
)
def test_ends_of_turn(
    config: dict[str, Any], generation: dict[str, Any], tokenizer: dict[str, Any], doubt: str | None
) -> None:
    doubts = token_id_warnings(config, generation, tokenizer, TOKENS)
    assert len(doubts) == (doubt is not None)
    assert doubt is None or doubt in doubts[0]
    assert "token of" not in "".join(token_id_warnings(config, generation, tokenizer, None)), (
        "nothing is known of tokens"
    )


def test_doubts_are_reported(models: Models) -> None:
    put(models.path("target"), {"generation_config.json": {"eos_token_id": 40, "bos_token_id": 77}})
    report = models.apply(companions="target").companions
    assert report.warnings == (
        "generation_config.json: bos_token_id 77 is outside the vocabulary of 48 rows",
        "generation_config.json: eos_token_id 40 is not a token of the tokenizer",
        "generation stops at 40, but the tokenizer's eos_token '</s>' is 2",
    )


def test_a_tokenizer_that_can_not_be_read(models: Models) -> None:
    """It is the target's own affair; without rows to place, nobody else looks into it."""
    put(models.path("target"), {"tokenizer.json": b"[]"})
    models.path("out").mkdir()
    report = write_companions(
        select_companions(open_checkpoint(models.path("target")), [], "target"), models.path("out")
    )
    assert report.warnings == ("the tokenizer can't be checked: not a JSON object",)
    assert (models.path("out") / "tokenizer.json").read_bytes() == b"[]"
