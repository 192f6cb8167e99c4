"""A registry that is a folder, and what all stores have in common: publish, pull, versions, search."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

import paramdelta_hub as pd
from paramdelta_hub.errors import (
    DestinationError,
    IntegrityError,
    OptionError,
    PackageError,
    PublishError,
    RegistryError,
    SourceError,
    StorageError,
)
from paramdelta_hub.registry.locate import open_registry
from paramdelta_hub.registry.protocol import Registry
from paramdelta_hub.registry.stores.registry import StoreRegistry
from paramdelta_hub.tasks.progress import Progress
from tests.attacks.names import HOSTILE
from tests.attacks.outcomes import change_manifest, reseal, shard_of
from tests.conftest import Family
from tests.registry.packages import altered, id_of, labelled, tree
from tests.registry.racers import DONE, KILLED, NOTHING_TO_DO, TOLD, Racers

REPO = "acme/instruct"
pytestmark = pytest.mark.usefixtures("no_fsync")
NUMBERS = itertools.count()


@pytest.fixture
def package(shared_family: Family, tmp_path: Path) -> Path:
    """Version 1.0.0, with a model card."""
    made = labelled(shared_family.delta, tmp_path / "package", name="Instruct delta")
    (made / "README.md").write_text("# Instruct delta\n")
    return made


@pytest.fixture(params=["folder", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A registry of each kind, empty."""
    return str(tmp_path / "registry") if request.param == "folder" else f"memory://registry-{next(NUMBERS)}"


class Inside:
    """The files of a registry, reached beside it."""

    def __init__(self, root: str) -> None:
        self._files, self._root = fsspec.core.url_to_fs(root)

    def read(self, name: str) -> bytes:
        content: bytes = self._files.cat_file(f"{self._root}/{name}")
        return content

    def write(self, name: str, content: bytes) -> None:
        path = f"{self._root}/{name}"
        self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._files.pipe_file(path, content)

    def remove(self, name: str) -> None:
        self._files.rm_file(f"{self._root}/{name}")

    def names(self) -> set[str]:
        try:
            found = self._files.find(self._root)
        except FileNotFoundError:
            return set()
        return {path[len(self._root) + 1 :] for path in found}


@pytest.fixture
def inside(root: str) -> Inside:
    return Inside(root)


def test_it_is_a_registry(tmp_path: Path) -> None:
    registry: Registry = StoreRegistry(tmp_path)
    assert registry.versions(REPO) == []


def test_published_and_pulled(root: str, package: Path, tmp_path: Path) -> None:
    registry = StoreRegistry(root)
    published = registry.publish(package, REPO, "1.0.0", message="first")
    assert (published.repo, published.version, published.uploaded) == (REPO, "1.0.0", True)
    assert published.id == published.revision == id_of(package)
    assert published.url.endswith(f"/{REPO}/1.0.0")
    pulled = registry.pull(REPO, "1.0.0", tmp_path / "copy")
    assert pulled.path == tmp_path / "copy"
    assert pulled.id == id_of(package)
    assert pulled.downloaded_nbytes == sum(map(len, tree(package).values()))
    lock = json.loads((tmp_path / "copy/paramdelta.lock").read_text())
    assert (lock["repo"], lock["version"], lock["id"]) == (REPO, "1.0.0", id_of(package))
    assert {name: content for name, content in tree(pulled.path).items() if name != "paramdelta.lock"} == tree(package)
    assert pd.verify(pulled.path).id == id_of(package)
    assert registry.pull(REPO, "1.0.0", tmp_path / "copy").downloaded_nbytes == 0


def test_what_is_not_the_packages_stays_at_home(root: str, package: Path, inside: Inside) -> None:
    (package / ".cache").mkdir()
    (package / ".cache/notes").touch()
    (package / ".gitignore").touch()
    (package / "paramdelta.lock").write_text("{}")
    StoreRegistry(root).publish(package, REPO, "1.0.0")
    versions = {name for name in inside.names() if name.startswith(f"{REPO}/1.0.0")}
    files = {"manifest.json", "README.md", "lineage.safetensors", shard_of(package).name}
    assert versions == {f"{REPO}/1.0.0/{name}" for name in files}


def test_a_version_in_a_folder_is_a_package(package: Path, tmp_path: Path) -> None:
    published = StoreRegistry(tmp_path / "registry").publish(package, REPO, "1.0.0")
    assert tree(tmp_path / "registry" / REPO / "1.0.0") == tree(package)
    assert pd.verify(Path(published.url)).id == id_of(package)
    assert os.listdir(tmp_path / "registry" / REPO) == ["1.0.0"]
    pulled = StoreRegistry((tmp_path / "registry").as_uri()).pull(REPO, None)
    assert (pulled.path, pulled.downloaded_nbytes) == (tmp_path / "registry" / REPO / "1.0.0", 0)


def test_equal_content_again_does_nothing(root: str, package: Path, inside: Inside) -> None:
    registry = StoreRegistry(root)
    registry.publish(package, REPO, "1.0.0")
    before = {name: inside.read(name) for name in inside.names()}
    (package / "README.md").write_text("# Another card\n")
    assert not registry.publish(package, REPO, "1.0.0").uploaded
    assert {name: inside.read(name) for name in inside.names()} == before


def test_other_content_is_refused(root: str, package: Path, inside: Inside, tmp_path: Path) -> None:
    registry = StoreRegistry(root)
    registry.publish(package, REPO, "1.0.0")
    before = {name: inside.read(name) for name in inside.names()}
    with pytest.raises(PublishError, match="published already") as caught:
        registry.publish(altered(package, tmp_path / "other"), REPO, "1.0.0")
    assert "--version" in str(caught.value)
    assert {name: inside.read(name) for name in inside.names()} == before


def test_another_version_than_the_manifests_is_refused(root: str, package: Path, inside: Inside) -> None:
    with pytest.raises(OptionError, match=r"version 1\.0\.0, not 1\.1\.0") as caught:
        StoreRegistry(root).publish(package, REPO, "1.1.0")
    assert "--version" in str(caught.value)
    assert not inside.names()


@pytest.mark.parametrize("option", ["private", "create_pr"])
def test_what_only_the_hub_can_do(root: str, package: Path, option: str) -> None:
    with pytest.raises(OptionError):
        StoreRegistry(root).publish(package, REPO, "1.0.0", **{option: True})  # type: ignore[arg-type]


def test_a_package_that_is_not_whole_is_not_published(root: str, package: Path, inside: Inside) -> None:
    shard = shard_of(package)
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    with pytest.raises(IntegrityError):
        StoreRegistry(root).publish(package, REPO, "1.0.0")
    (package / "extra.bin").touch()
    with pytest.raises(IntegrityError):
        StoreRegistry(root).publish(package, REPO, "1.0.0")
    assert not inside.names()


def test_versions_newest_first(root: str, package: Path, inside: Inside, tmp_path: Path) -> None:
    registry = StoreRegistry(root)
    ordered = ["2.0.0-rc.1", "1.10.0", "1.9.0", "1.9.0-rc.2", "1.9.0-rc.1"]
    for version in sorted(ordered):
        registry.publish(labelled(package, tmp_path / version, version), REPO, version)
    inside.write(f"{REPO}/3.0.0/{shard_of(package).name}", b"of a publication that is under way")
    inside.write(f"{REPO}/notes/manifest.json", b"not a version")
    found = registry.versions(REPO)
    assert [version.version for version in found] == ordered
    assert [version.id for version in found] == [id_of(tmp_path / version) for version in ordered]
    assert all(version.revision == version.id for version in found)
    assert all(str(version.created).endswith("+00:00") for version in found)
    assert registry.pull(REPO, None, tmp_path / "newest").version == "1.10.0", "no pre-release unless it is named"
    assert registry.pull(REPO, "2.0.0-rc.1", tmp_path / "named").version == "2.0.0-rc.1"
    assert registry.pull(REPO, id_of(tmp_path / "1.9.0"), tmp_path / "by id").version == "1.9.0"
    with pytest.raises(RegistryError, match=r"no version 3\.0\.0") as caught:
        registry.pull(REPO, "3.0.0", tmp_path / "none")
    assert "published versions: 2.0.0-rc.1, 1.10.0" in str(caught.value)
    with pytest.raises(RegistryError, match="no version 0000"):
        registry.pull(REPO, "0" * 64, tmp_path / "none")
    with pytest.raises(RegistryError, match="no such delta"):
        registry.pull("acme/nothing", None, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_search(root: str, package: Path, inside: Inside, tmp_path: Path) -> None:
    registry = StoreRegistry(root)
    names = {"acme/instruct": "Helpful", "acme/math": "Sums", "beta/Instruct-2": "Chat"}
    for repo, name in names.items():
        for version in ("1.0.0", "1.1.0"):
            made = labelled(package, tmp_path / f"{name}{version}", version, name=name, license="mit")
            registry.publish(made, repo, version)
    manifest = pd.inspect(package).manifest
    inside.write("acme/broken/1.0.0/manifest.json", b"{")
    inside.write("acme/.hidden/1.0.0/manifest.json", (package / "manifest.json").read_bytes())
    hits = list(registry.search(None, None, None))
    assert {hit.repo: hit.title for hit in hits} == names
    assert {(hit.version, hit.license, hit.base, hit.post) for hit in hits} == {("1.1.0", "mit", "base", "post")}
    assert all(hit.revision == id_of(tmp_path / f"{hit.title}1.1.0") for hit in hits)
    assert {hit.nbytes for hit in hits} == {sum(file.size for file in manifest.files)}
    assert [hit.repo for hit in registry.search("INSTRUCT", None, None)] == ["acme/instruct", "beta/Instruct-2"]
    assert [hit.repo for hit in registry.search("sum", None, None)] == ["acme/math"]
    assert len(list(registry.search(None, "base", manifest.architecture.fingerprint))) == 3
    assert not list(registry.search(None, "bas", None))
    assert not list(registry.search(None, None, "0" * 64))


def test_only_the_part_that_is_asked_for(root: str, package: Path, inside: Inside, tmp_path: Path) -> None:
    (package / "companions").mkdir()
    (package / "companions/chat_template.jinja").write_text("{{ messages }}")
    change_manifest(
        package,
        lambda manifest: manifest["companions"].append(
            {"path": "companions/chat_template.jinja", "size": 0, "sha256": "0" * 64}
        ),
    )
    reseal(package)
    registry = StoreRegistry(root)
    registry.publish(package, REPO, "1.0.0")
    out = tmp_path / "copy"
    registry.pull(REPO, "1.0.0", out, part="manifest")
    assert set(tree(out)) == {"manifest.json", "paramdelta.lock"}
    assert registry.pull(REPO, "1.0.0", out, part="companions").downloaded_nbytes == len("{{ messages }}")
    assert set(tree(out)) == {"manifest.json", "paramdelta.lock", "companions/chat_template.jinja"}
    registry.pull(REPO, "1.0.0", out)
    assert pd.verify(out).id == id_of(package)
    inside.write(f"{REPO}/1.0.0/{shard_of(package).name}", b"")
    registry.pull(REPO, "1.0.0", tmp_path / "other", part="companions")
    inside.write(f"{REPO}/1.0.0/companions/chat_template.jinja", b"{{ massages }}")
    with pytest.raises(IntegrityError, match="chat_template"):
        registry.pull(REPO, "1.0.0", tmp_path / "third", part="companions")


def test_without_a_folder_it_comes_to_a_cache(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = f"memory://registry-{next(NUMBERS)}"
    registry = StoreRegistry(root)
    registry.publish(package, REPO, "1.0.0")
    pulled = registry.pull(REPO, None)
    assert pulled.path.is_relative_to(tmp_path / "cache/paramdelta-hub")
    assert pd.verify(pulled.path).id == id_of(package)
    again = registry.pull(REPO, None)
    assert (again.path, again.downloaded_nbytes) == (pulled.path, 0)
    # The store breaks its word; what was pulled as this version once stays what this version is.
    other = altered(package, tmp_path / "other")
    for name, content in tree(other).items():
        Inside(root).write(f"{REPO}/1.0.0/{name}", content)
    with pytest.raises(IntegrityError, match="never replaced"):
        registry.pull(REPO, None)
    assert pd.verify(pulled.path).id == id_of(package)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert registry.pull(REPO, None).path.is_relative_to(tmp_path / "home/.cache/paramdelta-hub")


def test_a_folder_registry_is_checked_where_it_lies(package: Path, tmp_path: Path) -> None:
    registry = StoreRegistry(tmp_path / "registry")
    registry.publish(package, REPO, "1.0.0")
    shard = shard_of(tmp_path / "registry" / REPO / "1.0.0")
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    with pytest.raises(IntegrityError, match="delta-00001"):
        registry.pull(REPO, None)
    registry.pull(REPO, None, part="manifest")


def places(size: int, count: int) -> list[int]:
    """Return so many different offsets of a file, both ends among them."""
    return sorted({round(number * (size - 1) / (count - 1)) for number in range(count)})


def test_cut_at_200_offsets(root: str, package: Path, inside: Inside, tmp_path: Path) -> None:
    registry = StoreRegistry(root)
    registry.publish(package, REPO, "1.0.0")
    name = f"{REPO}/1.0.0/{shard_of(package).name}"
    content = inside.read(name)
    offsets = places(len(content), 200)
    assert len(offsets) == 200
    out = tmp_path / "copy"
    for offset in offsets:
        inside.write(name, content[:offset])
        with pytest.raises(IntegrityError, match=f"ends after {offset} of {len(content)} bytes"):
            registry.pull(REPO, "1.0.0", out)
        assert "manifest.json" not in tree(out)
        assert shard_of(package).name not in tree(out)
        assert not [path for path in tree(out) if path.endswith(".tmp")]
    inside.write(name, content + b"more")
    with pytest.raises(IntegrityError, match="longer than"):
        registry.pull(REPO, "1.0.0", out)
    inside.write(name, content)
    registry.pull(REPO, "1.0.0", out)
    assert pd.verify(out).id == id_of(package)


def test_every_flipped_byte_is_noticed(root: str, package: Path, inside: Inside, tmp_path: Path) -> None:
    registry = StoreRegistry(root)
    registry.publish(package, REPO, "1.0.0")
    name = f"{REPO}/1.0.0/{shard_of(package).name}"
    content = inside.read(name)
    out = tmp_path / "copy"
    for offset in places(len(content), 100):
        inside.write(name, content[:offset] + bytes([content[offset] ^ 4]) + content[offset + 1 :])
        with pytest.raises(IntegrityError):
            registry.pull(REPO, "1.0.0", out)
        assert shard_of(package).name not in tree(out)


def test_swapped_and_missing_files(root: str, package: Path, inside: Inside, tmp_path: Path) -> None:
    registry = StoreRegistry(root)
    registry.publish(package, REPO, "1.0.0")
    registry.publish(altered(package, tmp_path / "later", "1.1.0"), REPO, "1.1.0")
    whole = {name: inside.read(name) for name in inside.names()}
    for name in ("manifest.json", shard_of(package).name):
        for version, other in (("1.0.0", "1.1.0"), ("1.1.0", "1.0.0")):
            inside.write(f"{REPO}/{version}/{name}", whole[f"{REPO}/{other}/{name}"])
            with pytest.raises(IntegrityError):
                registry.pull(REPO, version, tmp_path / f"{name}-{version}")
            inside.write(f"{REPO}/{version}/{name}", whole[f"{REPO}/{version}/{name}"])
    inside.remove(f"{REPO}/1.0.0/lineage.safetensors")
    with pytest.raises(PackageError, match="lineage"):
        registry.pull(REPO, "1.0.0", tmp_path / "missing")


def test_pulling_goes_on_file_by_file(root: str, package: Path, inside: Inside, tmp_path: Path) -> None:
    """What came whole before a failure is not fetched again, by whatever process."""
    registry = StoreRegistry(root)
    registry.publish(package, REPO, "1.0.0")
    content = tree(package)
    inside.write(f"{REPO}/1.0.0/lineage.safetensors", b"")
    with pytest.raises(IntegrityError, match="lineage"):
        registry.pull(REPO, "1.0.0", tmp_path / "copy")
    inside.write(f"{REPO}/1.0.0/lineage.safetensors", content["lineage.safetensors"])
    rest = sum(len(content[name]) for name in ("lineage.safetensors", "README.md", "manifest.json"))
    assert registry.pull(REPO, "1.0.0", tmp_path / "copy").downloaded_nbytes == rest
    shard_of(tmp_path / "copy").write_bytes(b"damaged here")
    assert registry.pull(REPO, "1.0.0", tmp_path / "copy").downloaded_nbytes == shard_of(package).stat().st_size
    assert pd.verify(tmp_path / "copy").id == id_of(package)


def test_hostile_names_in_the_manifest(root: str, package: Path, inside: Inside, tmp_path: Path) -> None:
    registry = StoreRegistry(root)
    registry.publish(package, REPO, "1.0.0")
    text = inside.read(f"{REPO}/1.0.0/manifest.json")
    before = set(tree(tmp_path))
    for position, name in itertools.product(("shards", "companions"), HOSTILE):
        manifest = json.loads(text)
        record = {"path": name, "size": 1, "sha256": "0" * 64}
        manifest[position] = [*manifest[position], record]
        inside.write(f"{REPO}/1.0.0/manifest.json", json.dumps(manifest).encode())
        with pytest.raises(PackageError):
            registry.pull(REPO, "1.0.0", tmp_path / "copy")
    assert set(tree(tmp_path)) == before


def test_hostile_names_of_repositories_and_versions(package: Path, tmp_path: Path) -> None:
    registry = StoreRegistry(tmp_path / "registry")
    registry.publish(package, REPO, "1.0.0")
    before = set(tree(tmp_path))
    for name in HOSTILE:
        with pytest.raises(OptionError):
            registry.pull(f"acme/{name}", None, tmp_path / "copy")
        with pytest.raises(OptionError):
            registry.publish(package, f"{name}/instruct", "1.0.0")
        with pytest.raises(RegistryError):
            registry.pull(REPO, name, tmp_path / "copy")
    assert set(tree(tmp_path)) == before


def test_a_disk_that_is_too_small_is_told_first(root: str, package: Path, inside: Inside, tmp_path: Path) -> None:
    registry = StoreRegistry(root)
    registry.publish(package, REPO, "1.0.0")
    manifest = json.loads(inside.read(f"{REPO}/1.0.0/manifest.json"))
    manifest["shards"][0]["size"] = 1 << 60
    inside.write(f"{REPO}/1.0.0/manifest.json", json.dumps(manifest).encode())
    with pytest.raises(StorageError, match=r"needs 1\.15e\+06 TB"):
        registry.pull(REPO, "1.0.0", tmp_path / "copy")
    assert set(tree(tmp_path / "copy")) == {"paramdelta.lock"}


def test_oversized_manifests_and_companions(root: str, package: Path, inside: Inside, tmp_path: Path) -> None:
    registry = StoreRegistry(root)
    registry.publish(package, REPO, "1.0.0")
    manifest = json.loads(inside.read(f"{REPO}/1.0.0/manifest.json"))
    manifest["companions"] = [{"path": "companions/tokenizer.json", "size": 1 << 30, "sha256": "0" * 64}]
    inside.write(f"{REPO}/1.0.0/manifest.json", json.dumps(manifest).encode())
    with pytest.raises(PackageError, match="the limit is"):
        registry.pull(REPO, "1.0.0", tmp_path / "copy", part="companions")
    inside.write(f"{REPO}/1.0.0/README.md", b"x" * (5 << 20))
    inside.write(f"{REPO}/1.0.0/manifest.json", (package / "manifest.json").read_bytes())
    with pytest.raises(PackageError):
        registry.pull(REPO, "1.0.0", tmp_path / "copy")
    inside.write(f"{REPO}/1.0.0/manifest.json", b" " * (97 << 20))
    with pytest.raises(PackageError):
        registry.pull(REPO, "1.0.0", tmp_path / "copy")


@pytest.mark.parametrize("where", ["companions", "README.md", "lineage.safetensors", "paramdelta.lock"])
def test_links_in_the_folder_are_not_followed(package: Path, tmp_path: Path, where: str) -> None:
    registry = StoreRegistry(tmp_path / "registry")
    registry.publish(package, REPO, "1.0.0")
    out = tmp_path / "copy"
    registry.pull(REPO, "1.0.0", out)
    (tmp_path / "outside").mkdir()
    target = tmp_path / "outside" / "file" if where != "companions" else tmp_path / "outside"
    if where != "companions":
        target.write_text("precious")
    (out / where).unlink(missing_ok=True)
    (out / where).symlink_to(target)
    if where == "README.md":
        with pytest.raises(DestinationError, match="differ from what was pulled"):
            registry.pull(REPO, "1.0.0", out)
        assert (out / where).is_symlink()
    elif where != "companions":
        with pytest.raises(SourceError, match="link"):
            registry.pull(REPO, "1.0.0", out)
    assert [path.read_text() for path in (tmp_path / "outside").iterdir()] == ["precious"] * (where != "companions")


def test_links_in_a_registry_are_not_followed(package: Path, tmp_path: Path) -> None:
    registry = StoreRegistry(tmp_path / "registry")
    registry.publish(package, REPO, "1.0.0")
    version = tmp_path / "registry" / REPO / "1.0.0"
    for name in ("README.md", shard_of(package).name, "manifest.json"):
        shutil.move(version / name, tmp_path / name)
        (version / name).symlink_to(tmp_path / name)
        with pytest.raises(PackageError, match="link"):
            registry.pull(REPO, "1.0.0", tmp_path / f"copy of {name}")
        (version / name).unlink()
        shutil.move(tmp_path / name, version / name)


class Counting(Progress):
    """Adds up what it is told."""

    def __init__(self) -> None:
        self.stages: list[list[object]] = []

    def start(self, what: str, total: int) -> None:
        self.stages.append([what, total, 0])

    def advance(self, nbytes: int) -> None:
        self.stages[-1][2] = int(str(self.stages[-1][2])) + nbytes


def test_progress_is_told_of_every_byte(root: str, package: Path, tmp_path: Path) -> None:
    told = Counting()
    registry = StoreRegistry(root)
    registry.publish(package, REPO, "1.0.0", progress=told)
    registry.pull(REPO, "1.0.0", tmp_path / "copy", progress=told)
    total = sum(file.size for file in pd.inspect(package).manifest.files)
    assert [(total_told, done) for _, total_told, done in told.stages] == [(total, total)] * 3


def test_the_place_is_taken(package: Path, tmp_path: Path) -> None:
    registry = StoreRegistry(tmp_path / "registry")
    (tmp_path / "registry" / REPO / "1.0.0/notes").mkdir(parents=True)
    with pytest.raises(PublishError, match="exists already"):
        registry.publish(package, REPO, "1.0.0")
    assert os.listdir(tmp_path / "registry" / REPO) == ["1.0.0"]


def test_somebody_who_ignores_the_lock_is_not_overwritten(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that somebody makes by hand, between our last look and our rename."""
    rename, other = os.rename, altered(package, tmp_path / "other")

    def late(source: Path, target: Path) -> None:
        shutil.copytree(other, target)
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(PublishError, match="other content"):
        StoreRegistry(tmp_path / "registry").publish(package, REPO, "1.0.0")
    assert tree(tmp_path / "registry" / REPO / "1.0.0") == tree(other)


def test_a_root_that_can_not_be_read_or_written(package: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    registry = StoreRegistry(tmp_path / "file")
    for _ in range(2):
        with pytest.raises(RegistryError, match="a registry must be a folder"):
            registry.publish(package, REPO, "1.0.0")


@pytest.fixture(scope="module")
def racers() -> Iterator[Racers]:
    started = Racers()
    yield started
    started.close()


def test_50_races(package: Path, tmp_path: Path, racers: Racers) -> None:
    """Two publish other content as the same version at the same moment: one wins, the other is told."""
    other = altered(package, tmp_path / "other")
    root = tmp_path / "registry"
    wins = []
    for number in range(50):
        repo = f"acme/race-{number}"
        jobs = [[str(root), str(made), repo, "1.0.0"] for made in (package, other)]
        statuses = racers.ask("publish", *(jobs if number % 2 else jobs[::-1]))
        assert sorted(statuses) == [DONE, TOLD], number
        assert os.listdir(root / repo) == ["1.0.0"]
        wins.append(tree(root / repo / "1.0.0"))
    assert all(win in (tree(package), tree(other)) for win in wins)


def test_races_of_equal_content(package: Path, tmp_path: Path, racers: Racers) -> None:
    """The second finds it done, or is told that somebody is at it; never an error of another kind."""
    for number in range(10):
        job = [str(tmp_path / "registry"), str(package), f"acme/race-{number}", "1.0.0"]
        statuses = racers.ask("publish", job, job)
        assert statuses.count(DONE) == 1
        assert set(statuses) <= {DONE, NOTHING_TO_DO, TOLD}
        assert racers.ask("publish", job) == [NOTHING_TO_DO]


def test_races_of_pulls(package: Path, tmp_path: Path, racers: Racers) -> None:
    StoreRegistry(tmp_path / "registry").publish(package, REPO, "1.0.0")
    for number in range(10):
        job = [str(tmp_path / "registry"), str(tmp_path / f"copy-{number}"), REPO, "1.0.0"]
        assert sorted(racers.ask("pull", job, job)) == [DONE, NOTHING_TO_DO]
        assert pd.verify(tmp_path / f"copy-{number}").id == id_of(package)


def calls(racers: Racers, action: str, job: list[str], report: Path) -> int:
    """Return how many calls that change a file system an undisturbed run makes."""
    assert racers.ask(action, job, report=str(report)) == [DONE]
    return int(report.read_text())


@pytest.mark.parametrize("half", [False, True], ids=["before", "half-way"])
def test_killed_while_publishing(package: Path, tmp_path: Path, racers: Racers, half: bool) -> None:
    """``kill -9`` before, or in the middle of, every call that changes the registry: all is there, or nothing is."""
    other = altered(package, tmp_path / "other")
    count = calls(racers, "publish", [str(tmp_path / "counted"), str(package), REPO, "1.0.0"], tmp_path / "count")
    assert count > 15
    for number in range(1, count + 1):
        root = tmp_path / f"registry-{number}"
        job = [str(root), str(package), REPO, "1.0.0"]
        assert racers.ask("publish", job, report=str(tmp_path / "x"), kill_at=number, half=half) == [KILLED]
        found = root.exists() and StoreRegistry(root).versions(REPO)
        if found:
            assert tree(root / REPO / "1.0.0") == tree(package), number
        another = [str(root), str(other), REPO, "1.0.0"] if number % 2 else job
        expected = package if found or another is job else other
        statuses = racers.ask("publish", another)
        assert statuses == ([NOTHING_TO_DO if another is job else TOLD] if found else [DONE]), number
        assert tree(root / REPO / "1.0.0") == tree(expected), number
        assert not list((root / REPO / "1.0.0").rglob("*.tmp"))
        if not found:
            assert os.listdir(root / REPO) == ["1.0.0"], number


@pytest.mark.parametrize("half", [False, True], ids=["before", "half-way"])
def test_killed_while_pulling(package: Path, tmp_path: Path, racers: Racers, half: bool) -> None:
    registry = str(tmp_path / "registry")
    StoreRegistry(registry).publish(package, REPO, "1.0.0")
    count = calls(racers, "pull", [registry, str(tmp_path / "counted"), REPO, "1.0.0"], tmp_path / "count")
    assert count > 10
    for number in range(1, count + 1):
        out = tmp_path / f"copy-{number}"
        job = [registry, str(out), REPO, "1.0.0"]
        assert racers.ask("pull", job, report=str(tmp_path / "x"), kill_at=number, half=half) == [KILLED]
        if (out / "manifest.json").exists():
            assert pd.verify(out).id == id_of(package)
        assert racers.ask("pull", job)[0] in (DONE, NOTHING_TO_DO)
        assert {name: text for name, text in tree(out).items() if name != "paramdelta.lock"} == tree(package), number


def test_a_failing_disk(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outside: Callable[[], set[str]]
) -> None:
    """ENOSPC at each write, one after the other: a clear error, nothing visible, and going on afterwards."""
    write, left = os.pwrite, [0]

    def failing(*arguments: object) -> int:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(28, "No space left on device")
        return write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "pwrite", failing)
    registry = StoreRegistry(tmp_path / "registry")
    registry.publish(labelled(package, tmp_path / "counted", "0.9.0"), REPO, "0.9.0")
    writes = -left[0]
    assert writes > 3
    for number in range(1, writes + 1):
        left[0] = number
        with pytest.raises(StorageError, match="No space left"):
            registry.publish(labelled(package, tmp_path / f"try-{number}", f"1.1.{number}"), REPO, f"1.1.{number}")
        assert [version.version for version in registry.versions(REPO)] == ["0.9.0"]
        assert not [name for name in outside() if name.endswith(".tmp")]
    left[0] = 0
    assert registry.publish(package, REPO, "1.0.0").uploaded
    assert tree(tmp_path / "registry" / REPO / "1.0.0") == tree(package)


_LIGHT = """
import sys
from paramdelta_hub.registry.cards.generated import END
from paramdelta_hub.registry.locate import open_registry
from paramdelta_hub.registry.stores.registry import StoreRegistry
StoreRegistry(sys.argv[1]).pull(sys.argv[2], None)
print(*sorted(name for name in sys.modules if "." not in name))
"""


def test_a_folder_needs_no_client(package: Path, tmp_path: Path) -> None:
    StoreRegistry(tmp_path / "registry").publish(package, REPO, "1.0.0")
    done = subprocess.run(
        [sys.executable, "-c", _LIGHT, str(tmp_path / "registry"), REPO], capture_output=True, text=True, check=True
    )
    assert not {"fsspec", "huggingface_hub", "s3fs", "torch"} & set(done.stdout.split())


def test_a_folder_with_something_else_is_refused(root: str, package: Path, tmp_path: Path) -> None:
    registry = StoreRegistry(root)
    registry.publish(package, REPO, "1.0.0")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(DestinationError, match="something else"):
        registry.pull(REPO, "1.0.0", tmp_path / "mine")
    assert set(tree(tmp_path / "mine")) == {"thesis.txt"}


def test_the_authors_words_survive_into_a_new_version(root: str, package: Path, tmp_path: Path) -> None:
    """The package of the next version is made afresh, without a card: the published one has the words."""
    registry = open_registry(root)
    assert registry.card("org/delta") is None
    first = labelled(package, tmp_path / "first", "1.0.0")
    pd.publish(first, f"{root}/org/delta")
    card = registry.card("org/delta")
    assert card is not None
    second = labelled(package, tmp_path / "second", "1.1.0")
    words = "Trained on a ship.\n"
    (second / "README.md").write_text(f"{card}\n{words}")
    pd.publish(second, f"{root}/org/delta")
    third = labelled(package, tmp_path / "third", "1.2.0")
    (third / "README.md").unlink()
    pd.publish(third, f"{root}/org/delta")
    assert not (third / "README.md").exists()
    assert words in str(registry.card("org/delta"))
