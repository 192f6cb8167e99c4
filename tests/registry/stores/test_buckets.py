"""A registry in a bucket: over real sockets against an S3 server on loopback, and in stores that fail or cheat."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import paramdelta_hub as pd
from paramdelta_hub import limits
from paramdelta_hub.errors import IntegrityError, OptionError, PublishError, RegistryError
from paramdelta_hub.registry.stores.registry import StoreRegistry
from tests.attacks.outcomes import shard_of
from tests.conftest import Family
from tests.registry.packages import altered, id_of, labelled, tree
from tests.registry.racers import DONE, NOTHING_TO_DO, TOLD, Racers

REPO = "acme/instruct"
NUMBERS = itertools.count()


@pytest.fixture
def package(shared_family: Family, tmp_path: Path) -> Path:
    made = labelled(shared_family.delta, tmp_path / "package", name="Instruct delta")
    (made / "README.md").write_text("# Instruct delta\n")
    return made


@pytest.fixture
def bucket(endpoint: str) -> str:
    return f"s3://deltas/registry-{next(NUMBERS)}"


def keys(bucket: str) -> set[str]:
    """Return the names of all objects of a registry."""
    files, root = fsspec.core.url_to_fs(bucket, use_listings_cache=False)
    return {path[len(root) + 1 :] for path in files.find(root)}


def test_everything_over_s3(bucket: str, package: Path, tmp_path: Path) -> None:
    registry = StoreRegistry(bucket)
    published = registry.publish(package, REPO, "1.0.0")
    assert published.uploaded
    assert published.url == f"{bucket}/{REPO}/1.0.0"
    assert not registry.publish(package, REPO, "1.0.0").uploaded
    with pytest.raises(PublishError, match="published already"):
        registry.publish(altered(package, tmp_path / "other"), REPO, "1.0.0")
    registry.publish(labelled(package, tmp_path / "1.1.0", "1.1.0"), REPO, "1.1.0")
    files = {"manifest.json", "README.md", "lineage.safetensors", shard_of(package).name}
    assert keys(bucket) == {
        *(f"{REPO}/{version}/{name}" for version in ("1.0.0", "1.1.0") for name in files),
        *(f"{REPO}/.claims/{name}" for name in ("exclusive", "1.0.0.json", "1.1.0.json")),
    }
    assert [version.version for version in registry.versions(REPO)] == ["1.1.0", "1.0.0"]
    assert [(hit.repo, hit.version) for hit in registry.search("instruct", "base", None)] == [(REPO, "1.1.0")]
    pulled = registry.pull(REPO, "1.0.0", tmp_path / "copy")
    assert {name: text for name, text in tree(pulled.path).items() if name != "paramdelta.lock"} == tree(package)
    assert pd.verify(pulled.path).id == pulled.id == id_of(package)
    assert registry.pull(REPO, "1.0.0", tmp_path / "copy").downloaded_nbytes == 0
    shard_of(tmp_path / "copy").unlink()
    assert registry.pull(REPO, "1.0.0", tmp_path / "copy").downloaded_nbytes == shard_of(package).stat().st_size


def test_what_others_publish_is_seen(bucket: str, package: Path, tmp_path: Path) -> None:
    reader, writer = StoreRegistry(bucket), StoreRegistry(bucket)
    writer.publish(package, "acme/first", "1.0.0")
    assert reader.versions(REPO) == []
    writer.publish(package, REPO, "1.0.0")
    assert [version.version for version in reader.versions(REPO)] == ["1.0.0"]
    writer.publish(labelled(package, tmp_path / "1.1.0", "1.1.0"), REPO, "1.1.0")
    assert reader.pull(REPO, None, tmp_path / "copy").version == "1.1.0"


def test_looking_into_a_bucket_fetches_no_weights(
    bucket: str, package: Path, shared_family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A catalog, a search with predictions and a dry run: a bucket whose weights are gone serves them all."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    StoreRegistry(bucket).publish(package, REPO, "1.0.0")
    files, root = fsspec.core.url_to_fs(bucket, use_listings_cache=False)
    files.rm([path for path in files.find(root) if "/delta-0" in path])
    report = pd.catalog(bucket, tmp_path / "site")
    assert (report.listed_deltas, report.pages) == (1, 2)
    (page,) = (tmp_path / "site" / "deltas").rglob("index.html")
    assert f"{bucket}/{REPO}@1.0.0" in page.read_text()
    (found,) = pd.search(base=str(shared_family.target), registry=bucket)
    request = pd.ApplyRequest(str(shared_family.target), ((f"{bucket}/{REPO}", 1.0),))
    foreseen = pd.preview(request, tmp_path / "out").deltas[0].prediction
    assert found.prediction == foreseen
    assert foreseen.measured is not None


def test_damage_in_the_bucket_is_noticed(bucket: str, package: Path, tmp_path: Path) -> None:
    registry = StoreRegistry(bucket)
    registry.publish(package, REPO, "1.0.0")
    files, root = fsspec.core.url_to_fs(bucket)
    name = f"{root}/{REPO}/1.0.0/{shard_of(package).name}"
    content = files.cat_file(name)
    for damaged in (content[:-1], content + b"x", content[:-1] + b"?", b""):
        files.pipe_file(name, damaged)
        with pytest.raises(IntegrityError, match="delta-00001"):
            registry.pull(REPO, "1.0.0", tmp_path / "copy")
        assert not {shard_of(package).name, "manifest.json"} & tree(tmp_path / "copy").keys()
    files.rm_file(name)
    with pytest.raises(pd.PackageError, match="is missing"):
        registry.pull(REPO, "1.0.0", tmp_path / "copy")


def test_buckets_are_not_made_unasked(endpoint: str, package: Path) -> None:
    with pytest.raises(RegistryError, match="no such bucket"):
        StoreRegistry("s3://detlas/registry").publish(package, REPO, "1.0.0")
    assert not fsspec.filesystem("s3").exists("detlas")
    with pytest.raises(RegistryError, match="no such bucket"):
        StoreRegistry("s3://detlas/registry").pull(REPO, None)


def test_a_server_that_is_not_there(package: Path) -> None:
    code = (
        "import sys; from paramdelta_hub.registry.stores.registry import StoreRegistry;"
        "StoreRegistry(sys.argv[1]).versions('a/b')"
    )
    environment = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "hush"}
    done = subprocess.run(
        [sys.executable, "-c", code, "s3://deltas"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment, "AWS_MAX_ATTEMPTS": "1"},
    )
    assert "RegistryError: s3://deltas/a/b: the request to 127.0.0.1:1 failed" in done.stderr
    assert "hush" not in done.stderr


def test_10_races_on_s3(endpoint: str, bucket: str, package: Path, tmp_path: Path) -> None:
    other = altered(package, tmp_path / "other")
    racers = Racers(AWS_ENDPOINT_URL=endpoint)
    try:
        for number in range(10):
            repo = f"acme/race-{number}"
            jobs = [[bucket, str(made), repo, "1.0.0"] for made in (package, other)]
            assert sorted(racers.ask("publish", *(jobs if number % 2 else jobs[::-1]))) == [DONE, TOLD], number
            pulled = StoreRegistry(bucket).pull(repo, "1.0.0", tmp_path / f"copy-{number}")
            assert pulled.id in (id_of(package), id_of(other))
        job = [bucket, str(package), "acme/equal", "1.0.0"]
        statuses = racers.ask("publish", job, job)
        assert DONE in statuses
        assert set(statuses) <= {DONE, NOTHING_TO_DO}
    finally:
        racers.close()


class Troubled(MemoryFileSystem):  # type: ignore[misc]
    """A store that fails at its n-th write: before it or, with ``half``, after it, as when an answer is lost."""

    protocol = "troubled"
    store: dict[str, Any] = {}  # noqa: RUF012  (what MemoryFileSystem itself does)
    pseudo_dirs: list[str] = [""]  # noqa: RUF012
    fail_at, half, writes = 0, False, 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("troubled://")))

    def _count(self) -> bool:
        kind = type(self)
        kind.writes += 1
        return kind.writes == kind.fail_at

    def _write(self, name: str, *arguments: Any, **options: Any) -> None:
        failing = self._count()
        if failing and not self.half:
            raise ConnectionError("cut")
        getattr(super(), name)(*arguments, **options)
        if failing:
            raise ConnectionError("cut")

    def pipe_file(self, *arguments: Any, **options: Any) -> None:
        self._write("pipe_file", *arguments, **options)

    def put_file(self, *arguments: Any, **options: Any) -> None:
        self._write("put_file", *arguments, **options)


@pytest.fixture
def troubled(monkeypatch: pytest.MonkeyPatch) -> type[Troubled]:
    fsspec.register_implementation("troubled", Troubled, clobber=True)
    monkeypatch.setattr(Troubled, "store", {})
    monkeypatch.setattr(Troubled, "pseudo_dirs", [""])
    for name, value in {"fail_at": 0, "half": False, "writes": 0}.items():
        monkeypatch.setattr(Troubled, name, value)
    return Troubled


@pytest.mark.parametrize("half", [False, True], ids=["not done", "done, but not told"])
def test_cut_at_every_write(troubled: type[Troubled], package: Path, tmp_path: Path, half: bool) -> None:
    """Nothing is visible before everything is there; the same content goes on, other content is told."""
    registry, other = StoreRegistry("troubled://registry"), altered(package, tmp_path / "other")
    registry.publish(package, "acme/counted", "1.0.0")
    count = troubled.writes
    assert count == 7  # the probe twice, the claim, two files, the card, the manifest
    for number in range(1, count + 1):
        repo = f"acme/try-{number}"
        if half and number == 2:  # the second try of the probe, which writes nothing
            continue
        troubled.writes, troubled.fail_at, troubled.half = 0, number, half
        claimed = number > 3 or (number == 3 and half)
        whole = number == count and half
        with pytest.raises(RegistryError, match="ConnectionError"):
            registry.publish(package, repo, "1.0.0")
        assert bool(registry.versions(repo)) == whole
        if claimed:
            with pytest.raises(PublishError, match="published already" if whole else "has claimed this version"):
                registry.publish(other, repo, "1.0.0")
            assert registry.publish(package, repo, "1.0.0").uploaded != whole
            assert registry.pull(repo, None, tmp_path / f"copy-{number}").id == id_of(package)
        else:
            assert registry.publish(other, repo, "1.0.0").uploaded
            assert registry.pull(repo, None, tmp_path / f"copy-{number}").id == id_of(other)


def test_going_on_puts_only_what_is_missing(troubled: type[Troubled], package: Path) -> None:
    registry = StoreRegistry("troubled://registry")
    troubled.fail_at = 5  # the second file
    with pytest.raises(RegistryError):
        registry.publish(package, REPO, "1.0.0")
    troubled.writes = troubled.fail_at = 0
    registry.publish(package, REPO, "1.0.0")
    assert troubled.writes == 5  # the probe, the claim, one file, the card, the manifest


def test_a_store_that_overwrites_is_refused(
    troubled: type[Troubled], package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some accept the request to create a file, and overwrite."""
    create = troubled.pipe_file
    monkeypatch.setattr(troubled, "pipe_file", lambda self, path, value, **_: create(self, path, value))
    with pytest.raises(RegistryError, match="overwrites"):
        StoreRegistry("troubled://registry").publish(package, REPO, "1.0.0")
    assert [name for name in troubled.store if "1.0.0" in name] == []


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_conflicts_told_in_other_ways(
    troubled: type[Troubled], package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    create = troubled.pipe_file

    def other_words(self: Troubled, *arguments: Any, **options: Any) -> None:
        try:
            create(self, *arguments, **options)
        except FileExistsError:
            raise OSError(code, "conflict") from None

    monkeypatch.setattr(troubled, "pipe_file", other_words)
    StoreRegistry("troubled://registry").publish(package, REPO, "1.0.0")
    troubled.store.pop(f"/registry/{REPO}/1.0.0/manifest.json")  # as if it were still under way
    with pytest.raises(PublishError, match="has claimed this version"):
        StoreRegistry("troubled://registry").publish(altered(package, tmp_path / "other"), REPO, "1.0.0")


def test_a_claim_that_is_lost_on_the_way(
    troubled: type[Troubled], package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store without exclusive creation: somebody else's claim comes on top of ours while we put files."""
    put = troubled.put_file

    def late(self: Troubled, *arguments: Any, **options: Any) -> None:
        MemoryFileSystem.pipe_file(self, f"/registry/{REPO}/.claims/1.0.0.json", b'{"id":"another"}')
        put(self, *arguments, **options)

    monkeypatch.setattr(troubled, "put_file", late)
    with pytest.raises(PublishError, match="has claimed this version"):
        StoreRegistry("troubled://registry").publish(package, REPO, "1.0.0")
    assert StoreRegistry("troubled://registry").versions(REPO) == []


@pytest.mark.parametrize(
    ("problem", "says"),
    [
        (PermissionError("token=hush"), "the store does not allow this"),
        (FileNotFoundError("https://host/?signature=hush"), "does not exist"),
        (OSError(5, "hush"), "the request to the store failed \\(OSError\\)"),
        (ValueError("hush"), "the request to the store failed \\(ValueError\\)"),
    ],
)
def test_what_clients_raise_is_told_without_their_words(
    troubled: type[Troubled], package: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception, says: str
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise problem

    monkeypatch.setattr(troubled, "put_file", failing)
    with pytest.raises(RegistryError, match=says) as caught:
        StoreRegistry("troubled://registry").publish(package, REPO, "1.0.0")
    assert caught.value.remedy
    assert "hush" not in str(caught.value)


def test_no_credentials_in_the_address() -> None:
    with pytest.raises(OptionError) as caught:
        StoreRegistry("s3://key:hush@bucket/registry")
    assert "hush" not in str(caught.value)


def test_a_client_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(RegistryError, match="gcsfs"):
        StoreRegistry("gs://bucket/registry")


def test_a_server_that_never_answers_is_named(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=50) as mute:  # it accepts connections, and that is all
        host = f"127.0.0.1:{mute.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}")
        monkeypatch.setattr(limits, "SILENT_SECONDS", 0.6)
        calls: list[Callable[[], object]] = [
            lambda: StoreRegistry("s3://mute/here").versions("org/name"),
            lambda: list(StoreRegistry("s3://mute/here").search(None, None, None)),
            lambda: StoreRegistry("s3://mute/here").pull("org/name", None),
        ]
        for call in calls:
            with pytest.raises(RegistryError, match=f"{host} does not answer"):
                call()
