"""Format 1 is for ever: golden packages are read and applied, by this version and by the specification's own reader.

They were made once by ``scripts/tools/make_golden.py``, which does not overwrite. Nothing is compared with what would
be written today: libzstd's output differs between versions, what it decodes to does not.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

import paramdelta_hub as pd
from tests.support.models import assert_same, read_weights
from tests.support.spec_reader import SpecPackage, add, cast, fingerprint, read_safetensors, tensor_digest

GOLDEN = Path(__file__).parent / "golden" / "v1"

# Listed, not globbed: a golden package that is gone must fail.
CASES = ("bf16", "dtypes", "fp16", "fp32", "mixed", "renamed")
MODELS = ("base", "post", "target", "expected")


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Path:
    return GOLDEN / str(request.param)


def test_no_case_is_unlisted() -> None:
    assert {path.name for path in GOLDEN.iterdir() if path.is_dir()} == set(CASES)


def listed() -> dict[str, str]:
    """Return the sha256 of every golden file, as ``sha256sum`` lists them."""
    lines = (GOLDEN / "SHA256SUMS").read_text().splitlines()
    return {name: digest for digest, name in (line.split("  ") for line in lines)}


def test_every_byte_is_as_it_was_made() -> None:
    found = {
        path.relative_to(GOLDEN).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in GOLDEN.rglob("*") if path.is_file() and path.name != "SHA256SUMS"
    }  # fmt: skip
    assert found == listed()


def test_the_id_is_the_manifests_digest(case: Path) -> None:
    digest = listed()[f"{case.name}/package/manifest.json"]
    assert pd.inspect(case / "package").id == SpecPackage(case / "package").id == digest


def test_the_script_does_not_overwrite() -> None:
    before = {path: path.stat().st_mtime_ns for path in GOLDEN.rglob("*")}
    command = [sys.executable, "-m", "scripts.tools.make_golden", "bf16"]
    root = Path(__file__).parent.parent
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert run.returncode == 1
    assert "refusing to overwrite bf16" in run.stderr
    assert {path: path.stat().st_mtime_ns for path in GOLDEN.rglob("*")} == before


def test_verifies_against_base_and_post(case: Path) -> None:
    report = pd.verify(case / "package", base=case / "base.safetensors", post=case / "post.safetensors", threads=1)
    assert report.checked_base
    assert report.checked_post


@pytest.mark.parametrize("model", ["target", "base"])
def test_applies_to_the_expected_bits(case: Path, tmp_path: Path, model: str) -> None:
    report = pd.apply(case / f"{model}.safetensors", case / "package", tmp_path / "out", threads=1)
    # Where extraction left tensors out, the result has the target's; where dtypes differ, it has base's dtypes.
    assert report.is_post == (model == "base" and case.name not in ("renamed", "dtypes"))
    if model == "target":
        assert_same(read_weights(tmp_path / "out"), read_weights(case / "expected.safetensors"))


def test_the_specification_alone_gives_the_expected_bits(case: Path) -> None:
    package = SpecPackage(case / "package")
    models = {name: read_safetensors((case / f"{name}.safetensors").read_bytes())[1] for name in MODELS}
    for name, (dtype, shape, values) in models["target"].items():
        record = package.records.get(name)
        result = values if record is None else add(values, [(package, name, 1.0)], dtype)
        assert (dtype, shape, result) == models["expected"][name], name
        if record is not None:
            base_dtype, _, base = models["base"][name]
            assert (record["base_dtype"], record["shape"]) == (base_dtype, shape)
            base = cast(base, base_dtype, record["dtype"]) if record["effect"] == "add" else base
            assert tensor_digest(base, record["dtype"]) == record["base_blake3"]
            assert tensor_digest(add(base, [(package, name, 1.0)]), record["dtype"]) == record["post_blake3"]
    shapes = {name: shape for name, (_, shape, _) in models["base"].items()}
    assert fingerprint(shapes) == package.manifest["architecture"]["fingerprint"]
