"""Links, devices, FIFOs, missing, extra and truncated files: no file outside the package is ever read or written."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import paramdelta_hub as pd
from paramdelta_hub.errors import PackageError, SourceError
from tests.attacks.outcomes import (
    apply_is_safe,
    change_manifest,
    not_vouched_for,
    refused_by_verify,
    refused_everywhere,
    reseal,
    shard_of,
)
from tests.attacks.threats import shows
from tests.conftest import Family
from tests.support.models import read_weights

Attack = Callable[[Family, Path], object]


def moved_behind_a_link(name: str) -> Attack:
    """The right content, but somewhere else, behind a link: it could be changed after it was checked."""

    def attack(family: Family, tmp_path: Path) -> None:
        file = shard_of(family.delta) if name == "shard" else family.delta / name
        (tmp_path / "elsewhere").mkdir()
        file.rename(tmp_path / "elsewhere" / file.name)
        file.symlink_to(tmp_path / "elsewhere" / file.name)

    return attack


def replaced(name: str, make: Callable[[Path], object]) -> Attack:
    def attack(family: Family, _: Path) -> None:
        file = shard_of(family.delta) if name == "shard" else family.delta / name
        file.unlink()
        make(file)

    return attack


def bind(path: Path) -> None:
    """Make a socket; its name is short, because the system takes only some hundred characters."""
    here = os.getcwd()
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


ATTACKS: dict[str, Attack] = {
    **{
        f"{name} behind a link": moved_behind_a_link(name) for name in ("shard", "lineage.safetensors", "manifest.json")
    },
    **{
        f"{name} {what}": replaced(name, make)
        for name in ("shard", "lineage.safetensors", "manifest.json")
        for what, make in {
            "missing": lambda path: None,
            "a FIFO": os.mkfifo,
            "a socket": bind,
            "a folder": os.mkdir,
            "a link to a device": lambda path: path.symlink_to("/dev/zero"),
            "a dangling link": lambda path: path.symlink_to("nowhere"),
            "a link to itself": lambda path: path.symlink_to(path.name),
            "empty": lambda path: path.write_bytes(b""),
            "another file": lambda path: path.write_bytes(b"x" * 1000),
        }.items()
    },
}


@shows("links, devices, FIFOs", f"{len(ATTACKS)} layouts of links, devices, FIFOs, sockets, folders: refused at once")
@pytest.mark.parametrize("case", sorted(ATTACKS))
def test_files_that_are_not_what_they_should_be(family: Family, tmp_path: Path, case: str) -> None:
    ATTACKS[case](family, tmp_path)
    start = time.monotonic()
    refused_everywhere(family, tmp_path)
    assert time.monotonic() - start < 60, "nothing waits for a FIFO"


def test_a_link_between_two_files_of_the_package(family: Family, tmp_path: Path) -> None:
    lineage = family.delta / "lineage.safetensors"
    lineage.unlink()
    lineage.symlink_to(shard_of(family.delta).name)
    refused_everywhere(family, tmp_path)


def test_a_hub_cache_layout_is_read(family: Family, tmp_path: Path) -> None:
    """The one exception: the cache's own links, from a snapshot to a blob of the same repository."""
    snapshot = tmp_path / "models--o--n" / "snapshots" / ("a" * 40)
    blobs = tmp_path / "models--o--n" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in family.delta.iterdir():
        shutil.copy(file, blobs / f"blob-{file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/blob-{file.name}")
    pd.verify(snapshot)
    assert pd.apply(family.base, snapshot, tmp_path / "out").is_post
    outside = tmp_path / "outside"
    shutil.copy(shard_of(family.delta), outside)
    link = snapshot / shard_of(family.delta).name
    for goal in (
        outside,
        Path("../../../outside"),
        Path("../../blobs/../../outside"),
        tmp_path / "models--o--n2" / "x",
    ):
        link.unlink()
        link.symlink_to(goal)
        refused_by_verify(snapshot, PackageError)
        assert apply_is_safe(family.base, snapshot, tmp_path / "out2", {}) is not None


EXTRA = (
    "config.json", "model.safetensors", "pytorch_model.bin", "modeling_x.py", "delta-00002-of-00001.safetensors",
    "companions/chat_template.jinja", ".hidden", "a/b/c", "MANIFEST.JSON", "manifest.json.bak", "README.MD",
    "lineage.safetensors.tmp", ".manifest.json.7.tmp", "a/.git/config", "companions/.cache/x",
)  # fmt: skip


@shows("tampering", f"{len(EXTRA)} files that no manifest lists: named, and refused by --strict")
@pytest.mark.parametrize("name", EXTRA)
def test_an_extra_file(family: Family, name: str) -> None:
    """What the manifest does not list is no part of the package."""
    path = family.delta / name
    if path.exists():
        pytest.skip("this file system folds case")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    not_vouched_for(family.delta, name)


def test_an_extra_folder_behind_a_link(family: Family, tmp_path: Path) -> None:
    (family.delta / "companions").symlink_to(tmp_path)
    not_vouched_for(family.delta, "companions")


DEEP = 3000


@shows("links, devices, FIFOs", f"{DEEP} folders in one another: named without going in")
def test_folders_without_end(family: Family) -> None:
    """As deep as no path can be written: a walk that goes in by recursion ends in a crash."""
    inner = os.open(family.delta, os.O_RDONLY)
    for _ in range(DEEP):
        os.mkdir("d", dir_fd=inner)
        outer, inner = inner, os.open("d", os.O_RDONLY, dir_fd=inner)
        os.close(outer)
    os.close(inner)
    try:
        not_vouched_for(family.delta, "d/d/d/d")
    finally:  # no library can remove it by its path either
        top, number = family.delta / "d", 0
        while (top / "d").exists():
            (top / "d").rename(family.delta / f"{number}")
            top.rmdir()
            top = (family.delta / f"{number}").rename(family.delta / "d")
            number += 1
        top.rmdir()


@pytest.mark.parametrize(
    "name", ["README.md", "manifest.json.sig", ".gitattributes", ".git/config", ".cache/huggingface/x"]
)
def test_what_may_lie_beside(family: Family, name: str) -> None:
    (family.delta / name).parent.mkdir(parents=True, exist_ok=True)
    (family.delta / name).write_bytes(b"x")
    pd.verify(family.delta)


CUTS = 200


@shows("cut downloads, corrupt files", f"shard, lineage file and manifest cut at {CUTS} places and more: refused")
@pytest.mark.parametrize("name", ["shard", "lineage.safetensors", "manifest.json"])
def test_truncated_at_200_places(family: Family, tmp_path: Path, name: str, no_fsync: None) -> None:
    """A download that was cut: at the first and last bytes, and evenly between."""
    path = shard_of(family.delta) if name == "shard" else family.delta / name
    content = path.read_bytes()
    size = len(content)
    cuts = sorted({*range(20), *range(size - 21, size), *(size * part // 170 for part in range(170))})
    assert len(cuts) >= CUTS
    for number, end in enumerate(cuts):
        path.write_bytes(content[:end])
        if name == "manifest.json" and end == size - 1:
            continue  # without its last line feed it is another manifest of the same content
        refused_by_verify(family.delta)
        if number % 5 == 0:
            assert apply_is_safe(family.base, family.delta, tmp_path / "out", {}) is not None


@pytest.mark.parametrize("name", ["shard", "lineage.safetensors"])
def test_truncated_while_being_read(family: Family, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the sizes were checked, the file shrinks: an error, where a mapped file would kill the process."""
    from paramdelta_hub.package.package import Package

    path = shard_of(family.delta) if name == "shard" else family.delta / name
    check, content = Package._check_size, path.read_bytes()

    def check_then_cut(self: Package, file: str, promised: int) -> None:
        check(self, file, promised)
        if file == path.name:
            path.write_bytes(content[:-30])

    monkeypatch.setattr(Package, "_check_size", check_then_cut)
    refused_by_verify(family.delta)
    path.write_bytes(content)
    if name == "shard":
        assert isinstance(apply_is_safe(family.base, family.delta, tmp_path / "out", {}), SourceError)


def test_trailing_bytes_even_if_the_manifest_knows_of_them(family: Family, tmp_path: Path) -> None:
    with shard_of(family.delta).open("ab") as file:
        file.write(b"more")
    reseal(family.delta)
    refused_everywhere(family, tmp_path, match="follow the last tensor")


def test_a_terabyte_that_is_not_there(family: Family, tmp_path: Path) -> None:
    """A sparse file can be as large as it likes: what is read into memory has a cap, whatever the manifest says."""
    path = family.delta / "lineage.safetensors"
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    start = time.monotonic()
    refused_everywhere(family, tmp_path)
    change_manifest(family.delta, lambda manifest: manifest["lineage"].update(size=1 << 40))
    refusal = apply_is_safe(family.base, family.delta, tmp_path / "out", read_weights(family.post))
    assert isinstance(refusal, SourceError)
    assert time.monotonic() - start < 60
