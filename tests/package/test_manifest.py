"""The manifest: strict, closed, coherent; a mutated one is refused with our own error, or means what it says."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paramdelta_hub.errors import PackageError, UnsupportedFormatError
from paramdelta_hub.package import manifest as module
from paramdelta_hub.package.manifest import parse_manifest
from tests.attacks.names import HOSTILE
from tests.attacks.threats import shows
from tests.conftest import Family

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def text(shared_family: Family) -> bytes:
    return (shared_family.delta / "manifest.json").read_bytes()


@pytest.fixture
def value(text: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found


def dumped(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode()


def test_what_is_read_is_what_was_written(text: bytes) -> None:
    manifest, digest = parse_manifest(text)
    assert manifest.to_json() == text
    assert digest == hashlib.sha256(text).hexdigest()


def test_it_is_frozen(text: bytes) -> None:
    manifest, _ = parse_manifest(text)
    with pytest.raises(Exception, match="frozen"):
        manifest.name = "other"  # type: ignore[misc]


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value within."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, child in inner for path in paths(child, (*at, key)))]


def parent(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        value = value[key]
    return value


FREE_FORM = ("configs", "dtypes", "given_up", "taken_up", "ties")


def test_an_unknown_field_anywhere(value: dict[str, Any]) -> None:
    objects = [path for path in paths(value) if not set(path) & {*FREE_FORM, "parameters"}]
    tried = 0
    for path in objects:
        changed = copy.deepcopy(value)
        place = parent(changed, (*path, None))
        if isinstance(place, dict) and (not path or path[-1] not in FREE_FORM):
            place["unheard_of"] = None
            tried += 1
            with pytest.raises(
                PackageError, match=r"unknown ones: 'unheard_of'|have no parameters|parameters\.unheard_of"
            ):
                parse_manifest(dumped(changed))
    assert tried > 15


def test_every_field_is_required(value: dict[str, Any]) -> None:
    for path in paths(value):
        if path and isinstance(path[-1], str) and not set(path[:-1]) & set(FREE_FORM):
            changed = copy.deepcopy(value)
            del parent(changed, path)[path[-1]]
            with pytest.raises(PackageError):
                parse_manifest(dumped(changed))


@pytest.mark.parametrize("wrong", [[], {}, "x", 1.5, -1, True, 2**63, {"a": 1}, [1], ""], ids=repr)
def test_a_wrong_type_anywhere(value: dict[str, Any], wrong: Any) -> None:
    """Strict: no value is taken for one of another type. What passes is a value of the very same type."""
    for path in paths(value):
        if not path or set(path[:-1]) & set(FREE_FORM) or path[-1] in FREE_FORM:
            continue
        changed = copy.deepcopy(value)
        before = parent(changed, path)[path[-1]]
        parent(changed, path)[path[-1]] = wrong
        try:
            parse_manifest(dumped(changed))
        except PackageError:
            continue
        optional_text = before is None and isinstance(wrong, str)
        number = path[-1] in ("base_norm", "delta_norm") and type(wrong) in (int, float)
        empty = wrong in ([], {}) and type(before) is type(wrong)
        flag = path[-1] in ("tied_embeddings", "exact") and wrong is True
        label = isinstance(before, str) and isinstance(wrong, str)
        assert optional_text or number or empty or flag or label, (path, wrong)


CHANGES: dict[str, tuple[Change, str]] = {
    "a dtype that moves cursors": (lambda m: m["base"]["dtypes"].update({"\x1b[2J": 1}), "control characters"),
    "hundreds of dtypes": (lambda m: m["base"]["dtypes"].update({str(i): 1 for i in range(100)}), "the limit is 64"),
    "a token without an id": (lambda m: m["given_up"].update({"a": "x"}), "'a' is too long, or has no count"),
    "a token that is too long": (lambda m: m["given_up"].update({"a" * 1025: 1}), "is too long"),
    "other format": (lambda m: m.update(format="paramdelta2"), "not a paramdelta manifest"),
    "no format": (lambda m: m.pop("format"), "not a paramdelta manifest"),
    "version 0": (lambda m: m.update(format_version=0), "format_version"),
    "version true": (lambda m: m.update(format_version=True), "format_version"),
    "version a text": (lambda m: m.update(format_version="1"), "format_version"),
    "version 1.0": (lambda m: m.update(format_version=1.0), "format_version"),
    "exact 1": (lambda m: m["exactness"].update(exact=1), "must be true"),
    "inexact": (lambda m: m["exactness"].update(exact=False), "exact"),
    "exactness of others": (lambda m: m["exactness"].update(changed=0), "totals differ"),
    "two tensors of a name": (lambda m: m["tensors"].append(m["tensors"][0]), "same name|totals"),
    "bad version": (lambda m: m.update(version="1.0"), "version"),
    "version with zeros": (lambda m: m.update(version="01.0.0"), "version"),
    "version of Arabic digits": (lambda m: m.update(version="1\u0661.0.0"), "version"),
    "version with a line feed": (lambda m: m.update(version="1.0.0\n"), "version"),
    "empty name": (lambda m: m.update(name=""), "name"),
    "long name": (lambda m: m.update(name="x" * 1025), "name"),
    "upper case digest": (lambda m: m["lineage"].update(sha256="A" * 64), "sha256"),
    "short digest": (lambda m: m["lineage"].update(sha256="a" * 63), "sha256"),
    "digest with a line feed": (lambda m: m["lineage"].update(sha256="a" * 64 + "\n"), "sha256"),
    "negative size": (lambda m: m["shards"][0].update(size=-1), "size"),
    "huge size": (lambda m: m["shards"][0].update(size=2**63), "size"),
    "unlisted shard": (lambda m: m["tensors"][0].update(shard="delta-00009-of-00009.safetensors"), "unlisted|shard"),
    "the manifest as a shard": (lambda m: m["shards"][0].update(path="manifest.json"), "collide|shard"),
    "a shard that looks like a model": (lambda m: m["shards"][0].update(path="model.safetensors"), "shard"),
    "a shard twice": (lambda m: m["shards"].append(dict(m["shards"][0])), "collide"),
    "lineage and shard the same": (lambda m: m["lineage"].update(path=m["shards"][0]["path"]), "collide"),
    "companion outside": (lambda m: m["companions"].append({"path": "x.json", "size": 1, "sha256": "0" * 64}),
    "companions/"),
    "code as a companion": (lambda m: m["companions"].append({**m["lineage"], "path": "companions/x.py"}),
    "none of .json"),
    "a config of another name": (lambda m: m["configs"].update({"x.json": {"patch": {}, "reverse": {}}}), "configs"),
    "a config that names code": (lambda m: m["configs"].update({"config.json": {
        "patch": {"a": [{"auto_map": {}}]}, "reverse": {"a": 1}}}), "refers to code"),
    "a config that names code in base": (lambda m: m["configs"].update({"config.json": {
        "patch": {"custom_pipelines": {}}, "reverse": {"custom_pipelines": 1}}}), "refers to code"),
    "a config that can't be undone": (lambda m: m["configs"].update({"config.json": {
        "patch": {"a": 1}, "reverse": {}}}), "different keys"),
    "a config with a key that moves cursors": (lambda m: m["configs"].update({"config.json": {
        "patch": {"a": {"\x1b[2J": 1}}, "reverse": {"a": 1}}}), "control characters"),
    "zero with a payload": (lambda m: part(m).update(codec="zero"), "no payload"),
    "unknown codec": (lambda m: part(m).update(codec="int4"), "unknown codec"),
    "a payload without a digest": (lambda m: part(m).update(blake3=None), "payload is missing"),
    "a part without chunks": (lambda m: part(m).update(chunks=0), "chunks"),
    "a part of more chunks": (lambda m: part(m).update(chunks=2), "as many chunks"),
    "no parts": (lambda m: floats(m).update(parts=[]), "as many chunks"),
    "a part twice": (lambda m: floats(m).update(parts=[part(m)] * 2), "as many chunks"),
    "two parts in a shard": (lambda m: two_parts(floats(m)), "two parts lie in one shard"),
    "integers replaced in part": (lambda m: two_parts(integers(m), zero=True), "as a whole"),
    "unknown dtype": (lambda m: m["tensors"][0].update(dtype="F31"), "dtype"),
    "integers added": (lambda m: integers(m).update(effect="add"), "effect"),
    "floats replaced": (lambda m: floats(m).update(effect="replace"), "effect"),
    "a codec of floats for integers": (lambda m: integers(m)["parts"][0].update(codec="tans"), "none for the effect"),
    "a codec of integers for floats": (lambda m: part(m).update(codec="planes"), "none for the effect"),
    "more changed than there are": (lambda m: m["tensors"][0].update(changed=10**6), "more elements"),
    "too many elements": (lambda m: m["tensors"][0].update(shape=[2**40, 2]), "too many|impossible"),
    "too large a dimension": (lambda m: m["tensors"][0].update(shape=[2**41]), "shape"),
    "rank 17": (lambda m: m["tensors"][0].update(shape=[1] * 17), "shape"),
    "unsafe tensor name": (lambda m: m["tensors"][0].update(name="a\x1b[2Jb"), "unsafe tensor name"),
    "an infinite norm": (lambda m: m["tensors"][0].update(base_norm=-1.0), "base_norm"),
    "a commit that is none": (lambda m: m["base"].update(commit="main"), "commit"),
    "an omission of neither": (lambda m: m["omissions"].append({"name": "x", "side": "none", "reason": "y"}), "side"),
}  # fmt: skip


def integers(value: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(tensor for tensor in value["tensors"] if tensor["dtype"] == "I64")
    return found


def floats(value: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(
        tensor for tensor in value["tensors"] if tensor["dtype"] == "BF16" and tensor["changed"]
    )
    return found


def part(value: dict[str, Any]) -> dict[str, Any]:
    [found] = floats(value)["parts"]
    assert isinstance(found, dict)
    return found


def two_parts(tensor: dict[str, Any], *, zero: bool = False) -> None:
    """Make the tensor one of two chunks."""
    first = tensor["parts"][0]
    empty = {"chunks": 1, "codec": "zero", "shard": None, "nbytes": 0, "blake3": None}
    tensor["shape"] = [(1 << 20) + 1]
    tensor["parts"] = [first | {"chunks": 1}, empty if zero else first | {"chunks": 1}]


@shows("hostile manifests", f"{len(CHANGES)} manifests that contradict themselves or the format: each refused in words")
@pytest.mark.parametrize("case", sorted(CHANGES))
def test_incoherent(value: dict[str, Any], case: str) -> None:
    change, match = CHANGES[case]
    change(value)
    with pytest.raises(PackageError, match=match) as caught:
        parse_manifest(dumped(value), "there/manifest.json")
    assert caught.value.where == "there/manifest.json"


@pytest.mark.parametrize("version", [2, 3, 1000, 2**60])
def test_a_later_format_is_named_as_such(value: dict[str, Any], version: int) -> None:
    value["format_version"] = version
    value["something_new"] = True
    with pytest.raises(UnsupportedFormatError, match=f"format version {version}.*reads up to 1") as caught:
        parse_manifest(dumped(value))
    assert "upgrade" in str(caught.value)


@pytest.mark.parametrize("position", ["shard", "lineage", "companion"])
def test_300_hostile_file_names(value: dict[str, Any], position: str) -> None:
    for name in HOSTILE:
        changed = copy.deepcopy(value)
        if position == "shard":
            old = changed["shards"][0]["path"]
            changed["shards"][0]["path"] = name
            for tensor in changed["tensors"]:
                for part in tensor["parts"]:
                    part["shard"] = name if part["shard"] == old else part["shard"]
        elif position == "lineage":
            changed["lineage"]["path"] = name
        else:
            changed["companions"].append({"path": f"companions/{name}", "size": 1, "sha256": "0" * 64})
        with pytest.raises(PackageError):
            parse_manifest(json.dumps(changed).encode("utf-8", "surrogatepass"))


def test_several_problems_are_listed_at_once(value: dict[str, Any]) -> None:
    value["version"], value["base"]["commit"], value["lineage"]["size"] = "x", "y", -1
    with pytest.raises(PackageError) as caught:
        parse_manifest(dumped(value))
    for field in ("version", "base.commit", "lineage.size"):
        assert field in str(caught.value)


def test_duplicate_keys_nan_and_depth(text: bytes) -> None:
    for damaged, match in (
        (text.replace(b'"license": null', b'"license": null, "license": "mit"'), "occurs twice"),
        (text.replace(b'"patch": {}', b'"patch": {"a": NaN}'), "NaN"),
        (text.replace(b'"patch": {}', b'"patch": {"a": 1e999}'), "overflows"),
        (text.replace(b'"patch": {}', b'"patch": {"a": %s}' % (b"[" * 40 + b"]" * 40)), "nested deeper"),
        (text.replace(b'"patch": {}', b'"patch": {"a": "\\ud800"}'), "surrogate"),
    ):
        assert damaged != text
        with pytest.raises(PackageError, match=match):
            parse_manifest(damaged)


def test_too_large(text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MANIFEST_BYTES", len(text))
    parse_manifest(text)
    with pytest.raises(PackageError, match="too large"):
        parse_manifest(text + b" ")


def test_many_tensors_are_read_in_time(value: dict[str, Any]) -> None:
    """20,000 tensors; nothing in the checks may take the square of that."""
    template = floats(value)
    value["tensors"] = [{**template, "name": f"layers.{number}.weight"} for number in range(20_000)]
    for field, of in (
        ("elements", 0),
        ("changed", template["changed"]),
        ("exceptions", template["exceptions"]),
    ):
        value["exactness"][field] = 20_000 * of
    size = 1
    for length in template["shape"]:
        size *= length
    value["exactness"]["elements"] = 20_000 * size
    start = time.process_time()
    manifest, _ = parse_manifest(dumped(value))
    assert len(manifest.tensors) == 20_000
    assert time.process_time() - start < 5


def mutate(value: dict[str, Any], source: random.Random) -> None:
    """Change one value somewhere: another of the manifest's own values, an odd one, or none."""
    every = [path for path in paths(value) if path]
    path = source.choice(every)
    place, key = parent(value, path), path[-1]
    kind = source.randrange(5)
    odd: list[Any] = [
        None,
        True,
        0,
        -1,
        1,
        2**62,
        2**63,
        1e300,
        -0.0,
        "",
        "x",
        "a" * 64,
        "../x",
        "\ud800",
        [],
        {},
        [[]],
        {"": 0},
    ]
    if kind == 0:
        place[key] = copy.deepcopy(source.choice(odd))
    elif kind == 1:
        other = source.choice(every)
        place[key] = copy.deepcopy(parent(value, other)[other[-1]])
    elif kind == 2:
        del place[key]
    elif kind == 3 and isinstance(place, list):
        place.append(copy.deepcopy(place[key]))
    elif isinstance(place[key], int):
        place[key] += source.choice([-1, 1, 2**40])
    elif isinstance(place[key], str):
        place[key] = place[key][:-1] + source.choice("0aZ/.é\n")
    else:
        place[key] = copy.deepcopy(source.choice(odd))


def test_mutations_raise_nothing_but_package_errors(value: dict[str, Any]) -> None:
    rounds = 4000
    source, accepted = random.Random(rounds), 0
    for _ in range(rounds):
        changed = copy.deepcopy(value)
        for _ in range(source.randint(1, 2)):
            mutate(changed, source)
        try:
            manifest, _ = parse_manifest(json.dumps(changed).encode())
        except PackageError:
            continue
        else:
            accepted += 1
            assert parse_manifest(manifest.to_json())[0] == manifest
    assert 0 < accepted < rounds // 2


def test_edited_text_raises_nothing_but_package_errors(text: bytes) -> None:
    rounds = 10_000
    source, refused = random.Random(rounds), 0
    for _ in range(rounds):
        damaged = bytearray(text)
        for _ in range(source.randint(1, 3)):
            at = source.randrange(len(damaged))
            damaged[at : at + source.randrange(3)] = source.randbytes(source.randrange(3))
        try:
            parse_manifest(bytes(damaged))
        except PackageError:
            refused += 1
    assert refused > rounds / 2


def test_source_paths_are_text_only(value: dict[str, Any], tmp_path: Path) -> None:
    """The names of base's and post's own files are recorded, and never joined to a folder."""
    value["base"]["files"][0]["path"] = "../../etc/passwd"
    manifest, _ = parse_manifest(dumped(value))
    assert "../../etc/passwd" not in {file.path for file in manifest.files}
