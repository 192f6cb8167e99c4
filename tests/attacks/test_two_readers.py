"""Two readers that share no line, and one stranger: what the product accepts, the specification's reader accepts.

A package that two programs read differently is how somebody shows one thing to a checker and another to a user. So
manifests and whole packages are changed at random, with digests that fit, and the product is compared with
``tests/support/spec_reader.py`` and with the published JSON Schema: both accept or both refuse, and what both accept
has the same bits.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
import zstandard

import paramdelta_hub as pd
from paramdelta_hub.codecs import frames
from paramdelta_hub.codecs.by_name import REPLACING, TANS
from paramdelta_hub.errors import PackageError, ParamdeltaError
from paramdelta_hub.package.chunks import Layout
from paramdelta_hub.package.manifest import parse_manifest
from tests.attacks.outcomes import change_manifest, joined, layout_of, replace_payload, reseal, split
from tests.attacks.threats import shows
from tests.conftest import Family
from tests.package.test_manifest import mutate
from tests.support.models import raw, read_weights
from tests.support.spec_reader import RefusedError, SpecPackage, add, check_manifest, parse_json

pytestmark = pytest.mark.usefixtures("no_fsync")
SCHEMA = Path(__file__).parents[2] / "schemas" / "manifest-v1.schema.json"
MANIFESTS, TEXTS, PACKAGES = 3000, 2000, 600

strict = jsonschema.Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
SchemaValidator = jsonschema.validators.extend(jsonschema.Draft202012Validator, type_checker=strict)
"""JSON Schema takes 1.0 for an integer, and cannot be told otherwise; the specification does not (§3.1)."""


@pytest.fixture(scope="module")
def schema() -> Any:
    return SchemaValidator(json.loads(SCHEMA.read_bytes()))


def ours(text: bytes) -> str | None:
    """Return why the product refuses a manifest, or None."""
    try:
        parse_manifest(text)
    except PackageError as error:
        return str(error)
    return None


def theirs(text: bytes, schema: Any) -> str | None:
    """Return why the specification does, by its reader and by its schema: each knows rules that the other can't."""
    try:
        value = parse_json(text)
    except RefusedError as error:
        return str(error)
    if problem := next(schema.iter_errors(value), None):
        return str(problem.message)
    try:
        check_manifest(value)
    except RefusedError as error:
        return str(error)
    return None


def agree(text: bytes, schema: Any) -> bool:
    """Check that the two agree; return whether both accept."""
    one, other = ours(text), theirs(text, schema)
    assert (one is None) == (other is None), (one, other, text)
    return one is None


@shows("hostile manifests", f"{MANIFESTS:,} random changes of values: accepted or refused, as by an independent reader")
def test_manifests(shared_rich: Family, shared_family: Family, schema: Any) -> None:
    source, accepted = random.Random(MANIFESTS), 0
    originals = [json.loads((family.delta / "manifest.json").read_bytes()) for family in (shared_rich, shared_family)]
    for _ in range(MANIFESTS):
        value = copy.deepcopy(source.choice(originals))
        for _ in range(source.randint(1, 2)):
            mutate(value, source)
        accepted += agree(json.dumps(value).encode(), schema)
    assert MANIFESTS / 50 < accepted < MANIFESTS / 2


@shows("hostile manifests", f"{TEXTS:,} random edits of text: likewise")
def test_texts(shared_rich: Family, schema: Any) -> None:
    original = (shared_rich.delta / "manifest.json").read_bytes()
    tokens = [
        b"",
        b" ",
        b"\n",
        b",",
        b'"',
        b"0",
        b"-",
        b"1e9",
        b".0",
        b"\\u0041",
        b"\\ud800",
        b"null",
        b"{}",
        b"[]",
        b"\xff",
    ]
    source, accepted = random.Random(TEXTS), 0
    for _ in range(TEXTS):
        text = bytearray(original)
        for _ in range(source.randint(1, 2)):
            at = source.randrange(len(text))
            text[at : at + source.randrange(3)] = source.choice(tokens)
        accepted += agree(bytes(text), schema)
    assert TEXTS / 50 < accepted < TEXTS / 2


Streams = list[bytes]


def recompressed(stream: bytes, source: random.Random) -> bytes:
    """Return a good frame of other content, where the stream is a frame; else other bytes."""
    try:
        content = bytearray(zstandard.ZstdDecompressor().decompress(stream))
    except zstandard.ZstdError:
        content = bytearray(stream)
    if not content:
        return b""
    for _ in range(source.randint(1, 3)):
        content[source.randrange(len(content))] = source.choice([0, 1, 254, 255, source.randrange(256)])
    if source.random() < 0.2:
        content = content[:-1] if source.random() < 0.5 else content + b"\x00"
    return frames.compress(bytes(content)) if stream[:4] == b"\x28\xb5\x2f\xfd" else bytes(content)


def lie(streams: Streams, source: random.Random) -> Streams:
    """Change one stream, or exchange two."""
    changed, at, other = list(streams), source.randrange(len(streams)), source.randrange(len(streams))
    choices: list[Callable[[], bytes]] = [
        lambda: recompressed(streams[at], source),
        lambda: recompressed(streams[at], source),
        lambda: b"",
        lambda: streams[other],
        lambda: frames.compress(source.randbytes(source.randint(1, 40))),
        lambda: frames.compress(bytes(640)),
        lambda: source.randbytes(source.choice([1, 2, 32, 510, 640, 1280])),
        lambda: streams[at][:-1],
    ]
    changed[at] = source.choice(choices)()
    if source.random() < 0.1:
        changed[at], changed[other] = streams[other], streams[at]
    return changed


def relabel(record: dict[str, Any], source: random.Random) -> None:
    """Change what the manifest says of a tensor."""
    field, value = source.choice(
        [
            ("dtype", source.choice(["BF16", "F16", "I16", "U16", "F32"])),
            ("parts", [record["parts"][0] | {"codec": source.choice([TANS.name, *REPLACING])}]),
            ("parts", [record["parts"][0] | {"chunks": source.choice([0, 2, -1])}]),
            ("parts", source.choice([[], record["parts"] * 2])),
            ("effect", source.choice(["add", "replace"])),
            ("shape", source.choice([[640], [16, 40], [40, 16, 1], [639], [641], [1_048_577], []])),
            ("exceptions", record["exceptions"] + source.choice([-1, 1])),
        ]
    )
    record[field] = value


def read_by_the_specification(delta: Path, target: dict[str, torch.Tensor]) -> dict[str, bytes] | None:
    """Return target ⊕ Δ as the specification's reader has it, or None where it refuses."""
    try:
        package = SpecPackage(delta)
        for name, record in package.records.items():
            dtype, shape = record["dtype"], record["shape"]
            found = {torch.bfloat16: "BF16", torch.int64: "I64", torch.bool: "BOOL"}[target[name].dtype]
            if (dtype, shape) != (found, list(target[name].shape)):
                return None  # §6: a reader must refuse such a target
        return {name: add(raw(target[name]), [(package, name, 1.0)]) for name in package.records}
    except (RefusedError, zstandard.ZstdError):
        return None


@shows("lying packages", f"{PACKAGES:,} packages that lie, all digests made to fit: an independent reader refuses the "
       "same ones, and has the same bits of the others")  # fmt: skip
def test_packages(family: Family, tmp_path: Path) -> None:
    source, accepted, refused = random.Random(0), 0, 0
    original = {path.name: path.read_bytes() for path in family.delta.iterdir()}
    manifest = json.loads(original["manifest.json"])
    records = {record["name"]: record for record in manifest["tensors"] if record["parts"][0]["shard"]}
    models = {model: read_weights(model) for model in (family.base, family.target)}
    for number in range(PACKAGES):
        for name, content in original.items():
            (family.delta / name).write_bytes(content)
        record = records[source.choice(list(records))]
        layout = layout_of(record, record["parts"][0])

        def change(payload: bytes, layout: Layout = layout) -> bytes:
            return joined(lie(split(payload, layout)[0], source))

        if source.random() < 0.85:
            replace_payload(family.delta, record["name"], change)
        if source.random() < 0.25:
            change_manifest(family.delta, lambda found, of=record: relabel_one(found, of["name"], source))  # type: ignore[misc]
            reseal(family.delta)
        model = source.choice(list(models))
        expected = read_by_the_specification(family.delta, models[model])
        if expected is None:
            with pytest.raises(ParamdeltaError):
                pd.apply(model, family.delta, tmp_path / "out", threads=1)
            shutil.rmtree(tmp_path / "out.partial", ignore_errors=True)
            refused += 1
            continue
        pd.apply(model, family.delta, tmp_path / "out", threads=1)
        result = {name: raw(tensor) for name, tensor in read_weights(tmp_path / "out").items()}
        assert digests(result) == digests(expected), (number, record["name"])
        shutil.rmtree(tmp_path / "out")
        accepted += 1
    assert min(accepted, refused) > PACKAGES / 10


def relabel_one(manifest: dict[str, Any], name: str, source: random.Random) -> None:
    record = next(record for record in manifest["tensors"] if record["name"] == name)
    relabel(record, source)
    for field in ("changed", "exceptions"):
        manifest["exactness"][field] = sum(tensor[field] for tensor in manifest["tensors"])
    manifest["exactness"]["elements"] = sum(int(np.prod(tensor["shape"])) for tensor in manifest["tensors"])


def digests(values: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in values.items()}
