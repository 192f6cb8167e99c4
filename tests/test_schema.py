"""The published JSON Schemas are the models' own, take real manifests and reports and refuse bad ones."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

from paramdelta_hub.cli import main
from paramdelta_hub.environment import REGISTRY_VARIABLE
from paramdelta_hub.fileio.report import Report
from scripts.tools.make_schema import REPORTS
from tests.conftest import Family
from tests.support.mutations import set_at
from tests.support.reports import check_report
from tests.support.reports import validator as report_validator

ROOT = Path(__file__).parent.parent
SCHEMA = ROOT / "schemas" / "manifest-v1.schema.json"


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads(SCHEMA.read_bytes())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture
def manifest(shared_family: Family) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((shared_family.delta / "manifest.json").read_bytes())
    return found


def test_the_schema_is_generated_from_the_models() -> None:
    check = subprocess.run(
        [sys.executable, "-m", "scripts.tools.make_schema", "--check"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert check.returncode == 0, check.stderr


def test_takes_a_real_manifest(validator: jsonschema.Draft202012Validator, manifest: dict[str, Any]) -> None:
    validator.validate(manifest)


BAD = {
    "another format": set_at("format", "safetensors"),
    "a later version": set_at("format_version", 2),
    "an unknown field": set_at("comment", "hello"),
    "an unknown field of a tensor": set_at("tensors", 0, "note", "hello"),
    "a short digest": set_at("tensors", 0, "base_blake3", "abc"),
    "a digest in capitals": set_at("lineage", "sha256", "A" * 64),
    "a negative count": set_at("tensors", 0, "changed", -1),
    "a fraction of a byte": set_at("shards", 0, "size", 1.5),
    "an unknown effect": set_at("tensors", 0, "effect", "xor"),
    "an inexact delta": set_at("exactness", "exact", False),
    "no semantic version": set_at("version", "latest"),
    "a name of no length": set_at("name", ""),
    "seventeen dimensions": set_at("tensors", 0, "shape", [1] * 17),
    "text for a list": set_at("renames", "a=b"),
}


@pytest.mark.parametrize("mutate", BAD.values(), ids=BAD.keys())
def test_refuses(
    validator: jsonschema.Draft202012Validator, manifest: dict[str, Any], mutate: Callable[[dict[str, Any]], None]
) -> None:
    bad = copy.deepcopy(manifest)
    mutate(bad)
    assert bad != manifest
    assert not validator.is_valid(bad)


@pytest.mark.parametrize("field", ["format", "tensors", "lineage", "license", "configs", "omissions"])
def test_every_field_is_required(
    validator: jsonschema.Draft202012Validator, manifest: dict[str, Any], field: str
) -> None:
    del manifest[field]
    assert not validator.is_valid(manifest)


def test_every_command_has_its_reports() -> None:
    assert REPORTS.keys() == {*main.commands, "error"}
    for name, reports in REPORTS.items():
        assert reports, name
        assert all(issubclass(report, Report) for report in reports), name


PRINTED = {
    "extract": "extract BASE POST -o OUT --rules RULES --publish REGISTRY/org/new",
    "a rank's extract": "extract BASE POST -o OUT --rank 0 --world 1",
    "apply": "apply TARGET DELTA DELTA=0.5 -o OUT --force --weight-map weight=0.5 --rules RULES",
    "apply to base": "apply BASE DELTA -o OUT",
    "a dry run": "apply TARGET DELTA DELTA=0.5 -o OUT --force --dry-run",
    "a rank's apply": "apply TARGET DELTA -o OUT --rank 0 --world 1",
    "verify": "verify DELTA",
    "verify with models": "verify DELTA --base BASE --post POST",
    "inspect": "inspect DELTA --samples 2 --top 3 --html PAGE",
    "compare": "inspect DELTA DELTA --html PAGE",
    "relabel": "relabel DELTA -o OUT --license mit",
    "publish": "publish DELTA REGISTRY/org/delta",
    "publish again": "publish DELTA REGISTRY/org/instruct",
    "pull": "pull REGISTRY/org/instruct -o OUT",
    "search": "search --registry REGISTRY --base TARGET",
    "search for nothing in particular": "search --registry REGISTRY",
    "versions": "versions REGISTRY/org/instruct",
    "yank": "yank REGISTRY/org/instruct 1.0.0 --reason mistaken",
    "catalog": "catalog REGISTRY -o OUT",
}
"""What a command's report can tell; ``link`` needs a Hub, and is checked in tests/cli."""


@pytest.fixture
def places(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.delenv(REGISTRY_VARIABLE, raising=False)
    (tmp_path / "rules").write_text("skip norm\n")
    registry, out = tmp_path / "registry", tmp_path / "out"
    places = {"OUT": out, "REGISTRY": registry, "RULES": tmp_path / "rules", "PAGE": tmp_path / "page.html"}
    names = {name.upper(): path for name, path in vars(family).items()}
    found = {name: str(path) for name, path in {**places, **names}.items()}
    printed(found, "publish DELTA REGISTRY/org/instruct")
    return found


def printed(places: dict[str, str], line: str, code: int = 0) -> Any:
    """Run a command with ``--json``, its words replaced by places, and return the report."""
    words = [places.get(word, word) for word in line.split()]
    words = [word.replace("REGISTRY", places["REGISTRY"]).replace("DELTA=", f"{places['DELTA']}=") for word in words]
    done = CliRunner().invoke(main, [*words, "--json"])
    assert done.exit_code == code, (done.output, done.exception)
    return check_report(words[0], done.stdout, failed=code != 0)


@pytest.mark.parametrize("line", PRINTED.values(), ids=PRINTED.keys())
def test_a_report_is_as_its_schema_says(places: dict[str, str], line: str) -> None:
    assert printed(places, line)


@pytest.mark.parametrize("line", ["extract BASE POST -o OUT", "apply TARGET DELTA -o OUT"])
def test_the_report_of_a_commit(places: dict[str, str], line: str) -> None:
    printed(places, f"{line} --rank 0 --world 1")
    assert printed(places, "commit OUT")["path"] == places["OUT"]


def test_the_report_on_an_applied_model(places: dict[str, str]) -> None:
    applied = printed(places, "apply TARGET DELTA -o OUT")
    verified = printed(places, "verify OUT")
    for same in ("path", "target", "companions", "is_post"):
        assert verified[same] == applied[same], same
    for verified_delta, applied_delta in zip(verified["deltas"], applied["deltas"], strict=True):
        assert verified_delta.items() <= applied_delta.items()


@pytest.mark.parametrize(
    ("line", "code"),
    [("verify TARGET", 3), ("apply STRANGER DELTA -o OUT", 3), ("verify DELTA --base TARGET", 4), ("versions org", 2)],
)
def test_the_report_of_an_error(places: dict[str, str], line: str, code: int) -> None:
    error = printed(places, line, code)["error"]
    assert bool(error["mismatches"]) == (code == 4)


def test_a_report_with_another_field_is_refused(places: dict[str, str]) -> None:
    report = printed(places, "verify DELTA")
    assert not report_validator("verify").is_valid({**report, "package": "x"})
    assert not report_validator("verify").is_valid({name: value for name, value in report.items() if name != "id"})
    assert not report_validator("apply").is_valid(report)
