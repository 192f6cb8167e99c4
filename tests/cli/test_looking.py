"""``pd-inspect`` with reports and comparisons, and ``pd-catalog``: in this process, and of a Hub on loopback."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.cli.test_registry_commands import run, run_json
from tests.conftest import Family
from tests.reports.hostile import Tags
from tests.support.hub import Account, LoopbackHub
from tests.support.paramdelta import paramdelta


def test_help_ends_in_examples() -> None:
    for verb in ("inspect", "catalog"):
        assert f"pd-{verb} " in run(verb, "--help").stdout.rpartition("Examples:")[2]


def test_a_report_of_one(family: Family, tmp_path: Path) -> None:
    text = run("inspect", family.delta, "--html", tmp_path / "r.html").stdout
    assert text.endswith(f"\nwritten  {tmp_path / 'r.html'}\n")
    assert "effective rank  of noise" in text
    assert "3 sampled matrices" in Tags((tmp_path / "r.html").read_bytes()).text
    run("inspect", family.delta, "--html", tmp_path / "r.html", code=6)
    told = run_json("inspect", family.delta, "--html", tmp_path / "r.html", "--overwrite", "--samples", "0")
    assert told["html"] == str(tmp_path / "r.html")
    assert told["spectra"] is None
    assert "Not measured" in Tags((tmp_path / "r.html").read_bytes()).text


def test_without_a_report_no_weights_are_read(family: Family) -> None:
    for shard in family.delta.glob("delta-*.safetensors"):
        shard.unlink()
    assert "exact         base" in run("inspect", family.delta).stdout
    run("inspect", family.delta, "--samples", "2", code=3)


def test_a_comparison(family: Family, tmp_path: Path) -> None:
    text = run("inspect", family.delta, family.delta, "--html", tmp_path / "c.html").stdout
    assert "A × B  1.0000" in text
    assert "outside the layers" in text
    assert "2 deltas compared" in Tags((tmp_path / "c.html").read_bytes()).text
    told = run_json("inspect", family.delta, family.delta)
    assert told["pairs"][0]["cosine"] == pytest.approx(1.0)
    assert told["pairs"][0]["opposite_signs"] == 0.0


def test_what_makes_no_sense_is_refused(family: Family, tmp_path: Path) -> None:
    run("inspect", *[family.delta] * 7, code=2)
    run("inspect", family.delta, family.delta, "--samples", "3", code=2)
    run("inspect", code=2)
    run("inspect", family.delta, tmp_path, code=3)


def test_a_catalog_of_a_folder(family: Family, tmp_path: Path) -> None:
    run("publish", family.delta, tmp_path / "registry/org/delta", "-q")
    text = run("catalog", tmp_path / "registry", "-o", tmp_path / "site").stdout
    assert text.startswith(f"1 delta → {tmp_path / 'site'} (2 pages, ")
    assert run_json("catalog", tmp_path / "registry", "-o", tmp_path / "site", "--overwrite")["pages"] == 2
    run("catalog", tmp_path / "registry", "-o", tmp_path / "site", code=6)


def test_a_catalog_of_the_hub(family: Family, tmp_path: Path) -> None:
    hub = LoopbackHub()
    hub.accounts = {"hf_secret": Account("alice", ("org",))}
    with hub.running():
        environment = {**os.environ, **hub.environment(tmp_path / "home", "hf_secret")}

        def command(*arguments: str | Path) -> str:
            done = paramdelta(arguments, env=environment)
            assert done.returncode == 0, done.stderr
            return done.stdout

        command("publish", family.delta, "org/delta", "-q")
        card = b"---\ntags: [paramdelta]\nparamdelta: {version: ../x, base: '<b>'}\n---\n"
        hub.add("org/claims").add({"README.md": card})
        told = json.loads(command("catalog", "-o", tmp_path / "site", "--json"))
    assert (told["listed_deltas"], told["pages"]) == (2, 2)
    assert list(told["without_report"]) == ["org/claims"]
    index = Tags((tmp_path / "site/index.html").read_bytes())
    assert all(words in index.text for words in ("org/delta", "org/claims", "No report: ", "Of <b>"))
    page = Tags((tmp_path / "site/deltas/org/delta/index.html").read_bytes())
    assert "pd-apply NEW_BASE org/delta@1.0.0" in page.text
