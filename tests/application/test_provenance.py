"""What a result says it is made of, and the check that it still is that; what others' tools read about it."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from click.testing import CliRunner, Result
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement

import paramdelta_hub as pd
from paramdelta_hub.cli import main
from paramdelta_hub.fileio.durable import file_digest
from paramdelta_hub.outputs.applied_model import verify_result
from paramdelta_hub.package.provenance import PROVENANCE_NAME, parse_provenance
from paramdelta_hub.verification.attestations import bill_of_materials, statement
from tests.conftest import Family, make_family
from tests.support.fp8_models import FP8, quantize
from tests.support.models import read_weights, weights, write_model
from tests.support.mutations import set_at

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789" * 4


def run(*arguments: str | Path, code: int = 0) -> Result:
    found = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert found.exit_code == code, (found.output, found.exception)
    return found


def refuses(out: Path, *expected: tuple[str, str]) -> None:
    """Check that the verification names just these: (tensor or file, kind)."""
    with pytest.raises(pd.MismatchError) as caught:
        verify_result(out, threads=1)
    assert {(mismatch.location, mismatch.kind) for mismatch in caught.value.mismatches} == set(expected)
    assert caught.value.remedy


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result in three shards, with a template from post; no test may change it."""
    root = tmp_path_factory.mktemp("sharded")
    family = make_family(root, shards=3)
    (family.post / "chat_template.jinja").write_text("{{ messages }}")
    pd.extract(family.base, family.post, root / "speaking", name="speaking", threads=1)
    deltas = [pd.WeightedDelta(root / "speaking", 0.5), pd.WeightedDelta(family.delta, -0.25)]
    factors = pd.WeightMap((("mlp", 2.0),))
    pd.apply(
        family.target, deltas, root / "out", weight_map=factors, rules=pd.Rules(skips=("bias",)), threads=1, force=True
    )
    return root / "out"


@pytest.fixture
def out(sharded: Path, tmp_path: Path) -> Path:
    """The same, this test's own."""
    shutil.copytree(sharded, tmp_path / "out")
    return tmp_path / "out"


def change(out: Path, mutate: Callable[[dict[str, Any]], object]) -> None:
    path = out / PROVENANCE_NAME
    value = json.loads(path.read_bytes())
    mutate(value)
    path.write_text(json.dumps(value))


def span_of(out: Path, tensor: str) -> tuple[Path, int]:
    """Return the file of a tensor, and the place of its first byte there."""
    index = json.loads((out / "model.safetensors.index.json").read_bytes())
    file = out / index["weight_map"][tensor]
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return file, 8 + length + int(json.loads(content[8 : 8 + length])[tensor]["data_offsets"][0])


def test_a_result_is_what_it_says(sharded: Path) -> None:
    report = pd.verify_result(sharded, threads=2)
    provenance = report.provenance
    assert provenance.created_by == f"paramdelta-hub {pd.__version__}"
    assert [(delta.name, delta.weight) for delta in provenance.deltas] == [("speaking", 0.5), ("post-delta", -0.25)]
    assert [delta.id for delta in provenance.deltas] == [
        pd.inspect(sharded.parent / name).id for name in ("speaking", "delta")
    ]
    assert (provenance.target.name, provenance.deltas[0].base.name, provenance.deltas[0].post.name) == (
        "target", "base", "post",
    )  # fmt: skip
    assert [(rule.pattern, rule.factor) for rule in provenance.weight_map] == [("mlp", 2.0)]
    assert provenance.skips == ("bias",)
    tensors = read_weights(sharded)
    assert {name: tensor.shape for name, tensor in provenance.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }
    assert report.nbytes == sum(tensor.nbytes for tensor in tensors.values())
    assert json.loads(json.dumps(report.to_json()))["tensors"] == len(tensors)


def test_the_command_tells_a_result_from_a_delta(sharded: Path) -> None:
    told = run("verify", sharded).stdout
    assert told.startswith(f"{sharded}: matches its provenance (7 tensors, ")
    assert "  delta   +0.5 × speaking 1.0.0 (id " in told
    assert "  by      paramdelta-hub " in told
    assert json.loads(run("verify", sharded, "--json").stdout)["whole"] is True
    assert run("verify", sharded.parent / "speaking").stdout.startswith(f"{sharded.parent}/speaking: complete (")
    for arguments in (["--base", sharded], ["--require-signature"], ["--trusted-key", sharded]):
        assert "some of the options can't be used with it" in run("verify", sharded, *arguments, code=2).stderr
    assert (
        "some of the options can't be used with it"
        in run("verify", sharded.parent / "speaking", "--bom", "x.cdx.json", code=2).stderr
    )
    with pytest.raises(pd.CheckpointError, match="not an applied model"):
        pd.verify_result(sharded.parent / "target")


def test_commits_of_models_on_the_hub_are_named(family: Family, tmp_path: Path) -> None:
    def cached(model: Path, name: str) -> Path:
        folder = tmp_path / f"models--org--{name}/snapshots/{COMMIT}"
        shutil.copytree(model, folder)
        return folder

    base, post, target = (cached(family.base.parent / name, name) for name in ("base", "post", "target"))
    pd.extract(base, post, tmp_path / "delta", threads=1)
    pd.apply(target, tmp_path / "delta", tmp_path / "out", threads=1)
    provenance = verify_result(tmp_path / "out", threads=1).provenance
    (delta,) = provenance.deltas
    named = {model.name: model.commit for model in (provenance.target, delta.base, delta.post)}
    assert named == {"org/base": COMMIT, "org/post": COMMIT, "org/target": COMMIT}
    assert f"target  org/target at {COMMIT[:12]}" in run("verify", tmp_path / "out").stdout


@pytest.mark.parametrize("tensor", ["model.embed_tokens.weight", "model.layers.1.bias", "model.mask"])
def test_a_changed_bit_names_its_tensor(tensor: str, out: Path) -> None:
    file, start = span_of(out, tensor)
    content = bytearray(file.read_bytes())
    content[start] ^= 1
    file.write_bytes(content)
    refuses(out, (tensor, "digest"))
    error = json.loads(run("verify", out, "--json", code=4).stdout)["error"]
    assert error["mismatches"][0]["location"] == tensor


def test_everything_that_is_wrong_is_told_at_once(out: Path) -> None:
    tensors = read_weights(out)
    for file in (*out.glob("model*.safetensors"), out / "model.safetensors.index.json"):
        file.unlink()
    del tensors["model.steps"]
    tensors["model.norm.weight"] = tensors["model.norm.weight"].view(torch.float16)  # the same bytes, other values
    tensors["model.layers.0.mlp.weight"] = tensors["model.layers.0.mlp.weight"].reshape(16, 40)
    tensors["model.layers.1.bias"] += 1
    tensors["model.extra"] = torch.ones(2)
    write_model(out, tensors)
    (out / "chat_template.jinja").write_text("{{ messagez }}")
    (out / "config.json").unlink()
    (out / "modeling.py").write_text("import os")
    refuses(
        out,
        ("model.steps", "missing"),
        ("model.norm.weight", "shape"),
        ("model.layers.0.mlp.weight", "shape"),
        ("model.layers.1.bias", "digest"),
        ("model.extra", "unlisted"),
        ("chat_template.jinja", "digest"),
        ("config.json", "missing"),
        ("modeling.py", "unlisted"),
    )


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "adapter_config.json", "tokenizer.json", "x/y/z.py", "a/b/c/d/e/f.txt"],
)
def test_a_file_that_a_library_could_load_does_not_slip_in(name: str, out: Path) -> None:
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text("evil")
    shown = "a/b/c/d" if name.startswith("a/") else name
    refuses(out, (shown, "unlisted"))


def test_a_single_file_beside_the_shards_is_what_libraries_would_load(out: Path) -> None:
    """transformers prefers ``model.safetensors`` to the index, so that nothing of what was promised would be loaded."""
    promised = [(name, "missing") for name in read_weights(out)]
    beside = [(path.name, "unlisted") for path in out.glob("model*-of-*.safetensors")]
    write_model(out, {"x": torch.ones(1)})
    refuses(out, ("x", "unlisted"), ("model.safetensors.index.json", "unlisted"), *promised, *beside)


def test_what_people_add_may_lie_beside(out: Path) -> None:
    for name in ("LICENSE", "NOTICE.txt", "USE_POLICY.md", "model.sig", "out.intoto.jsonl", "out.cdx.json"):
        (out / name).write_text("words")
    for name in (".git/config", ".cache/huggingface/x", ".gitattributes"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("words")
    (out / "README.md").write_text("# Mine")
    verify_result(out, threads=1)


def test_a_resharded_copy_is_still_the_result(out: Path) -> None:
    tensors = read_weights(out)
    for file in (*out.glob("model*.safetensors"), out / "model.safetensors.index.json"):
        file.unlink()
    write_model(out, tensors)
    verify_result(out, threads=1)


def test_links_of_the_hub_s_cache_are_followed(out: Path, tmp_path: Path) -> None:
    """As the client's cache has them: every file a link to a blob."""
    snapshot, blobs = tmp_path / f"models--me--out/snapshots/{COMMIT}", tmp_path / "models--me--out/blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in out.iterdir():
        digest, _ = file_digest(file)
        shutil.move(file, blobs / digest)
        (snapshot / file.name).symlink_to(blobs / digest)
    verify_result(snapshot, digest_files=True, threads=1)


# The file itself.


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads((ROOT / "schemas/provenance-v1.schema.json").read_bytes())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_schema_takes_what_apply_writes(sharded: Path, validator: jsonschema.Draft202012Validator) -> None:
    value = json.loads((sharded / PROVENANCE_NAME).read_bytes())
    validator.validate(value)
    for name in value:
        lacking = {key: there for key, there in value.items() if key != name}
        assert not validator.is_valid(lacking)
        with pytest.raises(pd.CheckpointError):
            parse_provenance(json.dumps(lacking).encode())


def test_that_of_an_fp8_result(tmp_path: Path, validator: jsonschema.Draft202012Validator) -> None:
    """With tensors of kinds that are not summed, scales, and what requantizing lost."""

    def model(name: str, seed: int, scale: float) -> Path:
        base, noise = weights(1), torch.Generator().manual_seed(seed)
        tensors = {}
        for key, tensor in base.items():
            moved = tensor
            if tensor.is_floating_point():
                moved = (tensor.float() + scale * torch.randn(tensor.shape, generator=noise)).to(tensor.dtype)
            tensors[key] = moved
            if "mlp" in key:
                tensors[key], tensors[f"{key}_scale_inv"] = quantize(moved.float(), (128, 128))
        return write_model(tmp_path / name, tensors, config={"model_type": "x", "quantization_config": FP8})

    base, post, target = model("base", 1, 0.0), model("post", 2, 0.01), model("target", 3, 0.01)
    pd.extract(base, post, tmp_path / "delta", threads=1)
    for dtype in ("bfloat16", "float8_e4m3fn"):
        pd.apply(target, tmp_path / "delta", tmp_path / dtype, dtype=dtype, threads=1)
        validator.validate(json.loads((tmp_path / dtype / PROVENANCE_NAME).read_bytes()))
        provenance = verify_result(tmp_path / dtype, threads=1).provenance
        assert (provenance.requantization is not None) == (dtype == "float8_e4m3fn")
        assert provenance.tensors["model.layers.0.mlp.weight"].dtype == ("BF16" if dtype == "bfloat16" else "F8_E4M3")


BAD = {
    "another format": set_at("format", "paramdelta"),
    "a later version": set_at("format_version", 2),
    "an unknown field": set_at("comment", "hello"),
    "an unknown field of a delta": set_at("deltas", 0, "note", "hello"),
    "no deltas": set_at("deltas", []),
    "a short id": set_at("deltas", 0, "id", "abc"),
    "a weight in words": set_at("deltas", 0, "weight", "half"),
    "a path upward": set_at("companions", "files", 0, "path", "../../etc/passwd"),
    "a path that moves the cursor": set_at("companions", "files", 0, "path", "a\x1b[2Jb"),
    "a tensor that moves the cursor": set_at(
        "tensors", "a\x1b[2Jb", {"dtype": "BF16", "shape": [], "blake3": "0" * 64}
    ),
    "a negative size": set_at("companions", "files", 0, "size", -1),
    "a digest in capitals": set_at("tensors", "model.norm.weight", "blake3", "A" * 64),
    "a name of no length": set_at("target", "name", ""),
    "seventeen dimensions": set_at("tensors", "model.norm.weight", "shape", [1] * 17),
}
BEYOND_SCHEMAS = {"a path upward", "a path that moves the cursor", "a tensor that moves the cursor"}


@pytest.mark.parametrize("why", BAD)
def test_refuses(why: str, out: Path, validator: jsonschema.Draft202012Validator) -> None:
    change(out, BAD[why])
    with pytest.raises(pd.CheckpointError) as caught:
        verify_result(out, threads=1)
    assert "\x1b" not in str(caught.value)
    if why not in BEYOND_SCHEMAS:
        assert not validator.is_valid(json.loads((out / PROVENANCE_NAME).read_bytes()))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_changed_provenance_is_refused_or_says_nothing_else(sharded: Path, data: st.DataObject) -> None:
    """Whatever stands where something else stood: parsed, it differs, or it is refused, and by an error of ours."""
    text = (sharded / PROVENANCE_NAME).read_bytes()
    value = json.loads(text)
    nodes = [((key,), value[key]) for key in value]
    for path, node in nodes:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        nodes += [((*path, key), child) for key, child in items]
    path, old = data.draw(st.sampled_from(nodes))
    new = data.draw(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({})
    )
    mutated = copy.deepcopy(value)
    set_at(*path, new)(mutated)
    try:
        found = parse_provenance(json.dumps(mutated).encode())
    except pd.CheckpointError:
        return
    assert (found == parse_provenance(text)) == (new == old)


def test_rubbish_is_refused(out: Path) -> None:
    for text in (
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"format": "paramdelta-provenance", "format_version": 1.0}',
        b"[" * 9999,
    ):
        (out / PROVENANCE_NAME).write_bytes(text)
        with pytest.raises(pd.CheckpointError):
            verify_result(out, threads=1)


# For others' tools.


@pytest.fixture(scope="module")
def pinned(sharded: Path) -> pd.ResultReport:
    """A report as of models on the Hub."""
    report = verify_result(sharded, digest_files=True, threads=1)
    provenance = report.provenance

    def on_hub(model: Any) -> Any:
        return model.model_copy(update={"name": f"org/{model.name}", "commit": COMMIT})

    deltas = [d.model_copy(update={"base": on_hub(d.base), "post": on_hub(d.post)}) for d in provenance.deltas]
    told = provenance.model_copy(update={"target": on_hub(provenance.target), "deltas": tuple(deltas)})
    return report.model_copy(update={"provenance": told})


def test_a_statement_by_the_library_s_own_check(pinned: pd.ResultReport) -> None:
    text = statement(pinned)
    assert statement(pinned) == text, "no time in it"
    read = Statement.copy_from_pb(json_format.Parse(text, statement_pb2.Statement()))
    read.validate()
    json_format.ParseDict(json_format.MessageToDict(read.pb.predicate), provenance_pb2.Provenance())
    value = json.loads(text)
    assert value["predicateType"] == "https://slsa.dev/provenance/v1"
    subjects = {subject["name"]: subject["digest"]["sha256"] for subject in value["subject"]}
    files = {path.name for path in pinned.path.iterdir()} - {"README.md"}
    assert subjects == {name: file_digest(pinned.path / name)[0] for name in files}
    build = value["predicate"]["buildDefinition"]
    assert build["externalParameters"]["weight_map"] == [{"pattern": "mlp", "factor": 2.0}]
    assert [delta["weight"] for delta in build["externalParameters"]["deltas"]] == [0.5, -0.25]
    target, *rest = build["resolvedDependencies"]
    assert target == {
        "name": "org/target", "uri": f"pkg:huggingface/org/target@{COMMIT}", "digest": {"gitCommit": COMMIT},
    }  # fmt: skip
    ids = [delta.id for delta in pinned.provenance.deltas]
    assert [found["digest"]["sha256"] for found in rest if "sha256" in found["digest"]] == ids
    assert {found["name"] for found in rest} == {"speaking 1.0.0", "post-delta 1.0.0", "org/base", "org/post"}


def test_a_bill_of_materials_by_the_library_s_own_check(pinned: pd.ResultReport) -> None:
    text = bill_of_materials(pinned).decode()
    assert bill_of_materials(pinned).decode() == text, "no time in it"
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    value = json.loads(text)
    model = value["metadata"]["component"]
    assert (model["type"], model["name"]) == ("machine-learning-model", "out")
    assert {file["name"] for file in model["components"]} == {file.path for file in pinned.files}
    assert {component["name"] for component in value["components"]} == {"org/target", "speaking", "post-delta"}
    depends = {found["ref"]: found.get("dependsOn") for found in value["dependencies"]}
    assert depends["result"] == ["delta-1", "delta-2", "target"]
    (speaking,) = (component for component in value["components"] if component["name"] == "speaking")
    assert {"name": "paramdelta:weight", "value": "0.5"} in speaking["properties"]
    assert speaking["hashes"] == [{"alg": "SHA-256", "content": pinned.provenance.deltas[0].id}]
    references = [found["bom-ref"] for found in (model, *model["components"], *model["pedigree"]["ancestors"])]
    references += [found["bom-ref"] for found in value["components"]]
    assert len(set(references)) == len(references)


def test_both_of_a_result_of_local_models_with_one_delta_twice(family: Family, tmp_path: Path) -> None:
    deltas = [pd.WeightedDelta(family.delta, 0.5), pd.WeightedDelta(family.delta, 0.5)]
    pd.apply(family.target, deltas, tmp_path / "out", threads=1, force=True)
    files = [tmp_path / "attest/out.intoto.json", tmp_path / "attest/out.cdx.json"]
    files[0].parent.mkdir()
    run("verify", tmp_path / "out", "--statement", files[0], "--bom", files[1])
    Statement.copy_from_pb(json_format.Parse(files[0].read_bytes(), statement_pb2.Statement())).validate()
    dependencies = json.loads(files[0].read_bytes())["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert [found["name"] for found in dependencies] == ["post-delta 1.0.0"], "nothing pins the others"
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(files[1].read_text()) is None
    assert len(json.loads(files[1].read_bytes())["components"]) == 3


def test_nothing_is_stated_of_a_result_that_is_wrong(out: Path, tmp_path: Path) -> None:
    (out / "modeling.py").write_text("import os")
    run("verify", out, "--statement", tmp_path / "s.intoto.json", "--bom", tmp_path / "b.cdx.json", code=4)
    assert not list(tmp_path.glob("*.json"))


def test_where_they_may_be_written(out: Path, tmp_path: Path) -> None:
    assert "can't be written into the model's folder" in run("verify", out, "--bom", out / "bom.json", code=2).stderr
    run("verify", out, "--bom", out / "model.cdx.json", "--statement", out / "model.intoto.json", "-q")
    assert run("verify", out)
    assert json.loads(run("verify", out, "--bom", tmp_path / "no/b.json", "--json", code=7).stdout)["error"][
        "kind"
    ] == ("storage")


@pytest.mark.parametrize(
    ("option", "library"), [("--statement", "in_toto_attestation.v1.statement"), ("--bom", "cyclonedx.model.bom")]
)
def test_without_the_extra_it_says_what_to_install(
    option: str, library: str, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    told = run("verify", out, "--statement", tmp_path / "s.json", option, tmp_path / "x.json", code=2).stderr
    assert "paramdelta-hub[attest]" in told
    assert not list(tmp_path.glob("*.json")), "both or none"
    run("verify", out)
