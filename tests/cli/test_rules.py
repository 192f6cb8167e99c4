"""Rename and skip rules in a file: in order, before the command line's, and wrong ones are named by file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from paramdelta_hub.checkpoints.rules.tensor_rules import Rules
from paramdelta_hub.cli import main
from paramdelta_hub.cli.common import parse_rules
from paramdelta_hub.errors import OptionError, SourceError
from paramdelta_hub.limits import RULES_BYTES
from tests.conftest import Family
from tests.support.models import read_weights, write_model

FILE = r"""
# How a vision model's names become its text model's.

rename ^language_model\.=
  rename	^model\.layers\.(\d+)=layers.\1
skip ^vision_tower\.
skip #|=
rename ^a=b$=c
"""


def test_a_file_of_rules(tmp_path: Path) -> None:
    (tmp_path / "rules").write_text(FILE)
    assert parse_rules((), (), [str(tmp_path / "rules")]) == Rules(
        renames=((r"^language_model\.", ""), (r"^model\.layers\.(\d+)", r"layers.\1"), ("^a=b$", "c")),
        skips=(r"^vision_tower\.", "#|="),
    )


def test_files_come_in_order_and_before_the_command_lines_rules(tmp_path: Path) -> None:
    for name in "xy":
        (tmp_path / name).write_text(f"rename {name}=1\nskip {name}\n")
    rules = parse_rules(["z=1"], ["z"], [str(tmp_path / name) for name in "yx"])
    assert rules == Rules(renames=(("y", "1"), ("x", "1"), ("z", "1")), skips=("y", "x", "z"))


@pytest.mark.parametrize("text", [b"", b"\n\n", b"# nothing\r\n", b"\xef\xbb\xbf# with a mark\n"])
def test_files_without_rules(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "rules").write_bytes(text)
    assert parse_rules((), (), [str(tmp_path / "rules")]) == Rules()


def test_files_as_windows_writes_them(tmp_path: Path) -> None:
    (tmp_path / "rules").write_bytes(b"\xef\xbb\xbfrename a=b\r\nskip c\r\n")
    assert parse_rules((), (), [str(tmp_path / "rules")]) == Rules(renames=(("a", "b"),), skips=("c",))


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("rename a", "OLD=NEW"), ("rename", "OLD=NEW"), ("rename =b", "OLD=NEW"), ("skip", "is not a rule"),
        ("drop x", "is not a rule"), ("--skip x", "is not a rule"), ("renames a=b", "is not a rule"),
        ("skip (", "regular expression"), ("rename (=b", "regular expression"), (r"rename a=\1", "not usable"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_named(tmp_path: Path, line: str, what: str) -> None:
    (tmp_path / "rules").write_text(f"# first\nskip fine\n{line}\nskip fine\n")
    with pytest.raises(OptionError, match=what) as caught:
        parse_rules((), (), [str(tmp_path / "rules")])
    assert caught.value.where == f"{tmp_path / 'rules'}:3"


def test_files_that_cant_be_read(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"#" * (RULES_BYTES + 1))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("missing", "large", "binary", "."):
        with pytest.raises(SourceError) as caught:
            parse_rules((), (), [str(tmp_path / name)])
        assert caught.value.where == str(tmp_path / name)


PIECES = st.sampled_from(["rename ", "skip ", "a=b", "(", "=", "\n", "#", " ", "\t", "\r", "\ufeff"]) | st.text(
    max_size=4
)


@given(st.lists(PIECES, max_size=12).map("".join))
def test_any_text_is_rules_or_an_error_of_ours(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "any-rules"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        rules = parse_rules((), (), [str(file)])
    except (OptionError, SourceError):
        return
    lines = [line.strip() for line in text.removeprefix("\ufeff").split("\n")]
    kept = [line for line in lines if line and not line.startswith("#")]
    assert len(rules.renames) + len(rules.skips) == len(kept)


def test_extract_and_apply_take_rules_from_a_file(family: Family, tmp_path: Path) -> None:
    post = {f"lm.{name}": tensor for name, tensor in read_weights(family.post).items()}
    write_model(tmp_path / "post", {**post, "head.bias": post["lm.model.layers.1.bias"]})
    (tmp_path / "rules").write_text("rename ^lm\\.=\nskip ^head\n")
    delta, out = tmp_path / "d", tmp_path / "out"
    runner = CliRunner()
    common = ["--rules", str(tmp_path / "rules"), "--json"]
    done = runner.invoke(main, ["extract", str(family.base), str(tmp_path / "post"), "-o", str(delta), *common])
    assert done.exit_code == 0, done.output
    assert [item["name"] for item in json.loads(done.stdout)["omissions"]] == ["head.bias"]

    (tmp_path / "rules").write_text("skip layers\\.1\n")
    done = runner.invoke(main, ["apply", str(family.base), str(delta), "-o", str(out), *common, "--skip", "norm"])
    assert done.exit_code == 0, done.output
    skipped = {item["name"] for item in json.loads(done.stdout)["omissions"] if item["reason"] == "skipped by rule"}
    assert {"model.layers.1.bias", "model.layers.1.mlp.weight", "model.norm.weight"} == skipped


def test_a_wrong_rule_ends_with_the_exit_code_of_options(family: Family, tmp_path: Path) -> None:
    (tmp_path / "rules").write_text("skip (\n")
    arguments = ["apply", str(family.base), str(family.delta), "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(main, [*arguments, "--rules", str(tmp_path / "rules")])
    assert done.exit_code == OptionError.exit_code
    assert f"{tmp_path / 'rules'}:1: '(' is not a regular expression" in done.stderr
    assert not (tmp_path / "out").exists()
