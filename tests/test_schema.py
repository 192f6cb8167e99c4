"""The published JSON Schema is the models' own, takes real manifests and refuses bad ones."""

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

from tests.conftest import Family
from tests.support.mutations import set_at

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
