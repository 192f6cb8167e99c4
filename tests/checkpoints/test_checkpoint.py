"""Opening models: every layout people have, and a word for each that can't be read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from paramdelta_hub.checkpoints.architecture import architecture_record, fingerprint
from paramdelta_hub.checkpoints.checkpoint import INDEX, open_checkpoint
from paramdelta_hub.checkpoints.companions import model_companions
from paramdelta_hub.checkpoints.files.resolve import resolve
from paramdelta_hub.errors import CheckpointError
from tests.attacks.names import HOSTILE
from tests.support.models import weights, write_model


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_a_folder(tmp_path: Path, shards: int) -> None:
    tensors = weights(0)
    opened = open_checkpoint(write_model(tmp_path / "model", tensors, shards))
    assert set(opened.tensors) == set(tensors)
    assert opened.nbytes == sum(tensor.nbytes for tensor in tensors.values())
    assert len(opened.files) == shards
    assert [index.name for index in opened.indexes] == ([] if shards == 1 else [INDEX])
    assert opened.notes == ()
    assert opened.dtypes["I64"] == 3
    for name, tensor in tensors.items():
        assert opened.tensors[name][1].shape == tuple(tensor.shape)
    assert opened.source.name == "model"


def test_one_file(tmp_path: Path) -> None:
    write_model(tmp_path / "model", weights(0))
    opened = open_checkpoint(tmp_path / "model" / "model.safetensors")
    assert opened.is_lone_file
    assert opened.config is None
    assert model_companions(opened) == {}
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "other.safetensors")
    assert set(open_checkpoint(tmp_path / "model").tensors) == set(weights(0)), "a single file of any name"


def test_a_file_beside_the_models_is_no_part_of_it(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model", weights(0))
    write_model(tmp_path / "x", {"other": torch.ones(2)})
    (tmp_path / "x" / "model.safetensors").rename(path / "optimizer.safetensors")
    assert set(open_checkpoint(path).tensors) == set(weights(0))


Spoil = Callable[[Path], object]


def write(name: str, content: bytes) -> Spoil:
    return lambda path: (path / name).write_bytes(content)


def index(change: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(path: Path) -> None:
        value = json.loads((path / INDEX).read_bytes())
        change(value)
        (path / INDEX).write_text(json.dumps(value))

    return spoil


def remove(pattern: str) -> Spoil:
    return lambda path: [file.unlink() for file in path.glob(pattern)]


def fifo(name: str) -> Spoil:
    def spoil(path: Path) -> None:
        (path / name).unlink(missing_ok=True)
        os.mkfifo(path / name)

    return spoil


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
FIRST = "model-00001-of-00002.safetensors"
SPOILED: dict[str, tuple[Spoil, str]] = {
    "a shard missing": (remove(FIRST), "names 1 missing file"),
    "all shards missing": (remove("*.safetensors"), "names 2 missing file"),
    "an index that is no JSON": (write(INDEX, b"{"), "not JSON"),
    "an index that is a list": (write(INDEX, b"[]"), "no weight_map"),
    "an index of nothing": (write(INDEX, b"{}"), "no weight_map"),
    "a weight map of numbers": (write(INDEX, b'{"weight_map":{"a":1}}'), "no weight_map"),
    "a weight map twice": (write(INDEX, b'{"weight_map":{},"weight_map":{}}'), "occurs twice"),
    "a tensor too many in the index": (index(lambda v: v["weight_map"].update(ghost=FIRST)),
    r"names 1 tensor\(s\) that no file holds: ghost"),
    "a shard in another folder": (index(lambda v: v["weight_map"].update(ghost=f"sub/{FIRST}")), "in another folder"),
    "an empty file": (write(FIRST, b""), "truncated"),
    "half a file": (lambda path: (path / FIRST).write_bytes((path / FIRST).read_bytes()[:-1]), "truncated"),
    "a byte more": (lambda path: (path / FIRST).write_bytes((path / FIRST).read_bytes() + b"x"),
    "follow the last tensor"),
    "a GGUF": (write(FIRST, b"GGUF" + bytes(100)), "GGUF"),
    "a pointer of git-lfs": (write(FIRST, POINTER), "a git-lfs pointer, not the file itself"),
    "an index that is a pointer": (write(INDEX, POINTER), "a git-lfs pointer"),
    "an error page": (write(FIRST, b"<!DOCTYPE html><html></html>"), "header of"),
    "a FIFO": (fifo(FIRST), "not a regular file"),
    "a FIFO as the index": (fifo(INDEX), "not a regular file"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(SPOILED))
def test_what_can_not_be_read(tmp_path: Path, case: str) -> None:
    spoil, match = SPOILED[case]
    path = write_model(tmp_path / "model", weights(0), shards=2)
    spoil(path)
    with pytest.raises(CheckpointError, match=match) as caught:
        open_checkpoint(path)
    assert str(tmp_path) in (caught.value.where or "")


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ([], "an empty folder"), (["README.md"], "no .safetensors file"), (["pytorch_model.bin"], "pickled"),
        (["model.pt"], "pickled"),
        (["model.ckpt"], "pickled"), (["model.gguf"], "GGUF"), (["tf_model.h5"], "no .safetensors file"),
    ],
)  # fmt: skip
def test_folders_without_weights(tmp_path: Path, files: list[str], match: str) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=match) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.remedy


def test_several_files_and_no_index(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model", weights(0), shards=2)
    (path / INDEX).unlink()
    with pytest.raises(CheckpointError, match=f"2 safetensors files, but no {INDEX}"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", ["x.bin", "x.pt", "x.gguf", "x.txt", "x"])
def test_other_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x02.")
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path / name)


def test_nothing_there(tmp_path: Path) -> None:
    for place in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "", ".hidden/x", "a/b/c", "org/name@"):
        with pytest.raises(CheckpointError):
            open_checkpoint(place)


def test_hostile_names_in_an_index(tmp_path: Path) -> None:
    """300 names in the place of a shard: refused before any of them is opened."""
    path = write_model(tmp_path / "model", weights(0), shards=2)
    names = dict.fromkeys(weights(0), "")
    for name in HOSTILE:
        (path / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, name)}))
        with pytest.raises(CheckpointError):
            open_checkpoint(path)


def test_an_index_may_not_reach_into_another_folder(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model", weights(0), shards=2)
    write_model(path / "sub", weights(0))
    (path / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(weights(0), "sub/model.safetensors")}))
    with pytest.raises(CheckpointError):
        open_checkpoint(path)


@pytest.mark.parametrize("content", [b"[]", b"7", b"{", b'{"a":NaN}', b'{"a":1,"a":2}', b"\xff", b'"x"', b"null"])
def test_configs_that_are_none(tmp_path: Path, content: bytes) -> None:
    path = write_model(tmp_path / "model", weights(0))
    (path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        _ = open_checkpoint(path).config
    assert caught.value.where == str(path / "config.json")


def test_fingerprints_are_of_names_and_shapes_alone(tmp_path: Path) -> None:
    tensors = weights(0)
    one = architecture_record(open_checkpoint(write_model(tmp_path / "one", tensors)))
    wide = {name: tensor.double() for name, tensor in reversed(list(tensors.items()))}
    assert architecture_record(open_checkpoint(write_model(tmp_path / "two", wide, 3))).fingerprint == one.fingerprint
    other = {**tensors, "model.norm.weight": torch.ones(17)}
    assert architecture_record(open_checkpoint(write_model(tmp_path / "three", other))).fingerprint != one.fingerprint
    assert fingerprint([("b", (2, 3)), ("a", ())]) == fingerprint([("a", ()), ("b", (2, 3))])
    assert fingerprint([("a", (1,)), ("b", ())]) != fingerprint([("a", ()), ("b", (1,))])


def test_hub_cache_snapshots_are_known_as_such(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--org--some-name" / "snapshots" / commit
    write_model(snapshot, weights(0))
    source = resolve(snapshot)
    assert (source.name, source.commit) == ("org/some-name", commit)
    assert resolve(write_model(tmp_path / "local", weights(0))).commit is None


@pytest.mark.parametrize("change", [
    lambda v: v["weight_map"].pop("model.norm.weight"),
    lambda v: v["weight_map"].update({"model.norm.weight": "model-00002-of-00002.safetensors"}),
], ids=["a tensor too few", "a tensor in the other file"])  # fmt: skip
def test_an_index_that_errs_about_tensors_that_are_there(tmp_path: Path, change: Callable[[Any], object]) -> None:
    """transformers reads all tensors of the files that an index names; so do we, and say what was wrong."""
    path = write_model(tmp_path / "model", weights(0), shards=2)
    index(change)(path)
    opened = open_checkpoint(path)
    assert set(opened.tensors) == set(weights(0))
    (note,) = opened.notes
    assert "model.norm.weight" in note
