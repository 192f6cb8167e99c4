"""Slips of the hand at a registry: what was meant is asked, what lies there stays, and what happens is said first."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import fsspec
import pytest

import paramdelta_hub as pd
from paramdelta_hub.environment import REGISTRY_VARIABLE
from paramdelta_hub.registry.locate import registry_root
from paramdelta_hub.registry.stores.registry import StoreRegistry
from tests.attacks.outcomes import change_manifest, reseal, shard_of
from tests.conftest import Family
from tests.registry.packages import altered, labelled, tree
from tests.slips.table import AREAS, slip
from tests.support import paramdelta as forked
from tests.support.hub import Account, LoopbackHub
from tests.support.hub.client import CallError, Client

_, _, _, REGISTRIES, _, NAMES = AREAS
REPO = "acme/instruct"
TOKEN = "hf_somebody"
NUMBERS = itertools.count()
pytestmark = pytest.mark.usefixtures("no_fsync")


class Notes(pd.Progress):
    """Keeps what is said, and whether it was said before a registry held anything."""

    def __init__(self, looks: Callable[[], bool] = lambda: False) -> None:
        self.said: list[str] = []
        self.too_late = False
        self._looks = looks

    def note(self, text: str) -> None:
        self.said.append(text)
        self.too_late |= self._looks()


@pytest.fixture(autouse=True)
def _nothing_is_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(REGISTRY_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def package(shared_family: Family, tmp_path: Path) -> Path:
    return labelled(shared_family.delta, tmp_path / "package", name="minilm-sre")


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    made = LoopbackHub()
    made.accounts = {TOKEN: Account("me", ("acme",))}
    with made.running():
        yield made


@pytest.fixture(scope="module")
def client(hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with Client(hub.environment(tmp_path_factory.mktemp("hf"), TOKEN)) as started:
        yield started


# A registry that is not there.


def absent(root: str, says: str) -> None:
    """Check that whatever looks for something in a registry says that it is not there, and where."""
    for look in (
        lambda: list(pd.search(registry=root)),
        lambda: pd.versions(REPO, registry=root),
        lambda: pd.pull(REPO, registry=root),
        lambda: pd.inspect(f"{REPO}@1.0.0", registry=root),
        lambda: pd.catalog(root, "site"),
    ):
        with pytest.raises(pd.RegistryError, match=says) as caught:
            look()
        assert caught.value.exit_code == 8
        assert caught.value.where == root
        assert caught.value.remedy


def test_a_folder_that_is_not_there(tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "registry"
    absent(str(root), "no such folder")
    assert not root.exists()
    notes = Notes(root.exists)
    pd.publish(package, REPO, registry=root, progress=notes)
    assert notes.said == [f"publishing minilm-sre 1.0.0 to the folder {root}/{REPO} (a new registry)"]
    assert not notes.too_late
    assert [hit.repo for hit in pd.search(registry=root)] == [REPO]


def test_an_empty_folder_is_an_empty_registry(tmp_path: Path, package: Path) -> None:
    root = tmp_path / "registry"
    root.mkdir()
    (root / ".keep").touch()
    assert list(pd.search(registry=root)) == []
    assert StoreRegistry(root).versions(REPO) == []
    with pytest.raises(pd.RegistryError, match="no such delta"):
        pd.pull(REPO, registry=root)
    notes = Notes()
    pd.publish(package, REPO, registry=root, progress=notes)
    assert notes.said == [f"publishing minilm-sre 1.0.0 to the folder {root}/{REPO}"]


@slip(REGISTRIES, "search where other things lie, or one folder too deep", "exit 8: not a registry, and what it holds")
def test_a_folder_of_other_things_is_no_registry(
    tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "registry"
    pd.publish(package, REPO, registry=root)
    (tmp_path / "thesis/part/one").mkdir(parents=True)
    (tmp_path / "thesis/part/one/chapter.tex").touch()
    absent(str(root / "acme"), "not a registry; it holds instruct")
    absent(str(package), "not a registry; it holds .*manifest")
    absent(str(tmp_path / "thesis"), "not a registry; it holds part")
    # A publication that was cut off has left what it takes to go on.
    (tmp_path / "cut" / REPO / "1.0.0.partial").mkdir(parents=True)
    assert list(pd.search(registry=tmp_path / "cut")) == []
    pd.publish(package, REPO, registry=f"memory://shape-{next(NUMBERS)}/registry")
    absent(f"memory://shape-{next(NUMBERS) - 1}", "not a registry; it holds registry")
    notes = Notes()
    pd.publish(package, REPO, registry=tmp_path / "thesis", progress=notes)
    place = f"the folder {tmp_path}/thesis/{REPO} (a folder that holds other things)"
    assert notes.said == [f"publishing minilm-sre 1.0.0 to {place}"]


@slip(REGISTRIES, "publish into a package, a result or a catalog", "refused: it would break it")
def test_what_we_made_is_no_registry_to_publish_to(
    tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pd.publish(package, REPO, registry="registry")
    for folder, mark in (("result", "paramdelta_provenance.json"), ("site", "paramdelta_catalog.json")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / mark).write_text("{}")
    (tmp_path / "link").symlink_to("package")
    before = tree(tmp_path)
    for repo, registry in (
        ("org/math", "package"), ("org/math", "package/inside"), ("org/math", "link"), ("./package/math", None),
        ("./package/org/math", None), (f"registry/{REPO}/1.0.0/org/math", None), ("org/math", "result"),
        ("org/math", "site"), ("org/math", f"file://{tmp_path}/site/below"),
    ):  # fmt: skip
        notes = Notes()
        with pytest.raises(pd.PublishError, match="publishing into it would break it") as caught:
            pd.publish(package, repo, registry=registry, progress=notes)
        assert caught.value.remedy
        assert not notes.said
    assert tree(tmp_path) == before
    assert not pd.publish(package, REPO, registry="registry").uploaded, "again does nothing, as ever"


@slip(REGISTRIES, "a file in place of a registry", "exit 8, told as such")
@pytest.mark.parametrize("below", ["", "/deeper"])
def test_a_file_in_place_of_the_folder(
    tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    root = f"{tmp_path}/file{below}"
    absent(root, "a registry must be a folder")
    with pytest.raises(pd.RegistryError, match="a registry must be a folder"):
        pd.publish(package, REPO, registry=root)
    assert (tmp_path / "file").read_text() == "mine"


@slip(REGISTRIES, "a bucket, or a prefix in one, that is not there", "exit 8")
def test_a_prefix_and_a_bucket_that_are_not_there(
    endpoint: str,
    tmp_path: Path,
    package: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    root = f"s3://deltas/none-{next(NUMBERS)}"
    absent(root, "there is nothing")
    absent("s3://detlas/registry", "no such bucket")
    absent("s3://detlas", "no such bucket")
    notes = Notes()
    pd.publish(package, REPO, registry=root, progress=notes)
    pd.publish(labelled(package, tmp_path / "next", "1.1.0"), REPO, registry=root, progress=notes)
    assert notes.said == [
        f"publishing minilm-sre 1.0.0 to {root}/{REPO} (a new registry)",
        f"publishing minilm-sre 1.1.0 to {root}/{REPO}",
    ]
    file = f"{root}/{REPO}/1.0.0/manifest.json"
    absent(file, "a registry must be a folder")
    fsspec.filesystem("s3").mkdir("empty")
    assert list(pd.search(registry="s3://empty")) == []


# A registry that is no name of one.


@slip(REGISTRIES, '`--registry ""`, as of a variable that is not set', "refused: it is not taken for the Hub")
@pytest.mark.parametrize(
    "root", ["", " ", "s3://", "s3:///deltas", "S3://", "hf://", "hf://acme", "file://", "FILE://x"]
)
def test_a_registry_that_names_no_place(
    tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    for call in (
        lambda: list(pd.search(registry=root)),
        lambda: pd.versions(REPO, registry=root),
        lambda: pd.pull(REPO, registry=root),
        lambda: pd.catalog(root, "site"),
        lambda: pd.inspect(f"{REPO}@1.0.0", registry=root),
        lambda: pd.publish(package, REPO, registry=root),
    ):
        with pytest.raises(pd.OptionError) as caught:
            call()
        assert caught.value.remedy
    assert tree(tmp_path) == before


def test_a_registry_by_its_file_url(tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "a registry"
    pd.publish(package, REPO, registry=root)
    for scheme in ("file", "FILE", "File"):
        url = f"{scheme}://{tmp_path}/a%20registry"
        assert [found.repo for found in pd.search(registry=url)] == [REPO]
        assert pd.pull(REPO, registry=url).version == pd.pull(f"{url}/{REPO}").version == "1.0.0"
        assert pd.catalog(url, tmp_path / scheme).listed_deltas == 1
    monkeypatch.setenv(REGISTRY_VARIABLE, "")
    assert registry_root(None) is None
    assert registry_root("/") == registry_root("file:///") == "/"


# A folder of the same name as an organization.


def test_a_folder_here_is_not_published_to_the_hub(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reg").mkdir()
    with pytest.raises(pd.OptionError, match="is a folder here") as caught:
        pd.publish(package, "reg/math")
    assert "did you mean ./reg/ORG/math?" in str(caught.value)
    assert "hf://reg/math" in str(caught.value)
    assert pd.publish(package, "reg/math", registry=tmp_path / "other").uploaded, "another registry is named"
    monkeypatch.setenv(REGISTRY_VARIABLE, str(tmp_path / "third"))
    assert pd.publish(package, "reg/math").uploaded


def paramdelta(
    hub: LoopbackHub, tmp_path: Path, *arguments: str | Path, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in ``tmp_path``, on the Hub."""
    return forked.paramdelta(arguments, env=hub.environment(tmp_path / "home", TOKEN, **extra), cwd=tmp_path)


def test_the_hub_by_its_own_name(hub: LoopbackHub, package: Path, tmp_path: Path, shared_family: Family) -> None:
    (tmp_path / "acme").mkdir()
    done = paramdelta(hub, tmp_path, "publish", "package", "acme/math")
    assert done.returncode == 2, done.stderr
    assert "hf://acme/math" in done.stderr
    assert "acme/math" not in hub.repositories
    done = paramdelta(hub, tmp_path, "publish", "package", "hf://acme/math")
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"publishing minilm-sre 1.0.0 to {hub.endpoint}/acme/math (public, a new repository)\n"
    for command in (["pull"], ["verify"], ["inspect"]):
        done = paramdelta(hub, tmp_path, *command, "hf://acme/math@1.0.0", **{REGISTRY_VARIABLE: "acme"})
        assert done.returncode == 0, done.stderr
    base = str(shared_family.base)
    for command in (
        ["apply", base, "hf://acme/math@1.0.0=1", "-o", "post"],
        ["relabel", "hf://acme/math@1.0.0", "-o", "relabeled", "--version", "2.0.0"],
        ["versions", "hf://acme/math"],
    ):
        done = paramdelta(hub, tmp_path, *command)
        assert done.returncode == 0, done.stderr
    assert pd.inspect(tmp_path / "relabeled").manifest.version == "2.0.0"
    # To read, the Hub is asked; only where it has nothing, the folder is named.
    assert paramdelta(hub, tmp_path, "versions", "acme/math").returncode == 0
    for command in ("pull", "versions", "inspect"):
        done = paramdelta(hub, tmp_path, command, "acme/nothing")
        assert done.returncode == 8, done.stderr
        assert "did you mean ./acme/ORG/nothing?" in done.stderr
        assert "did you mean" not in paramdelta(hub, tmp_path, command, "hf://acme/nothing").stderr
        assert "did you mean" not in paramdelta(hub, tmp_path, command, "other/nothing").stderr
    offline = paramdelta(hub, tmp_path, "versions", "acme/math", HF_HUB_OFFLINE="1")
    assert offline.returncode == 8
    assert "unset HF_HUB_OFFLINE; or did you mean ./acme/ORG/math?" in offline.stderr


# Where it goes, and who will see it.


@slip(REGISTRIES, "publish to the wrong place, or publicly", "place and visibility are printed before anything is sent")
def test_place_and_visibility_come_first(hub: LoopbackHub, package: Path, tmp_path: Path) -> None:
    arguments = ["publish", "package", "acme/hidden", "--private"]
    address = f"{hub.endpoint}/acme/hidden"
    first = paramdelta(hub, tmp_path, *arguments, "--json")
    assert first.stderr == f"publishing minilm-sre 1.0.0 to {address} (private, a new repository)\n"
    labelled(package, tmp_path / "next", "1.1.0")
    done = paramdelta(hub, tmp_path, "publish", "next", "acme/hidden")
    assert done.stderr == f"publishing minilm-sre 1.1.0 to {address} (private)\n"
    assert paramdelta(hub, tmp_path, *arguments).stderr == "", "nothing is sent: it is published already"
    labelled(package, tmp_path / "last", "1.2.0")
    assert paramdelta(hub, tmp_path, "publish", "last", "acme/hidden", "-q").stderr == ""


# The package's folder.


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return content and time of change of every file, and the times of folders."""
    return {
        str(path.relative_to(folder)): (path.read_bytes() if path.is_file() else b"", path.stat().st_mtime_ns)
        for path in [folder, *sorted(folder.rglob("*"))]
    }


@pytest.fixture
def key(tmp_path: Path) -> Path:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "key.pem").write_bytes(pem)
    return tmp_path / "key.pem"


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("kind", ["folder", "bucket", "hub"])
def test_publishing_leaves_the_folder_as_it_is(
    hub: LoopbackHub, package: Path, tmp_path: Path, key: Path, kind: str, signed: bool
) -> None:
    (package / "README.md").write_text("My own words.\n")
    shutil.copytree(package, tmp_path / "again")
    before = state(package)
    sign = ["--sign", "key.pem"] if signed else []
    repo = f"acme/left-{next(NUMBERS)}"
    if kind == "hub":
        done = paramdelta(hub, tmp_path, "publish", "package", repo, *sign)
        assert done.returncode == 0, done.stderr
        published = {name: file.content for name, file in hub.repositories[repo].head.files.items()}
    else:
        root = str(tmp_path / "registry") if kind == "folder" else f"memory://left-{next(NUMBERS)}"
        pd.publish(package, repo, registry=root, sign=key if signed else None)
        copy = pd.pull(repo, tmp_path / "copy", registry=root)
        published = tree(copy.path)
    assert b"My own words." in published["README.md"]
    assert ("manifest.json.sig" in published) == signed
    assert state(package) == before
    # Nor does a publication that fails.
    other = tmp_path / "again"
    shard_of(other).write_bytes(b"damaged")
    before = state(other)
    if kind == "hub":
        assert paramdelta(hub, tmp_path, "publish", "again", repo, *sign).returncode == 3
    else:
        with pytest.raises(pd.IntegrityError):
            pd.publish(other, "acme/other", registry=root, sign=key if signed else None)
    assert state(other) == before


_ALL_IMPORTED = """
import importlib, os, pkgutil, sys
import paramdelta_hub as pd
import ruamel.yaml
from huggingface_hub import ModelCard, ModelCardData, constants  # nobody may be able to read what is imported later

for module in pkgutil.walk_packages(pd.__path__, "paramdelta_hub."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""
_AS_NOBODY = f"""{_ALL_IMPORTED}

child = os.fork()
if not child:
    os.seteuid(65534)
    try:
        open(os.path.join(sys.argv[1], "new"), "w")
    except PermissionError:
        pd.publish(sys.argv[1], "acme/instruct", registry=sys.argv[2])
        os._exit(0)
    os._exit(98)
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def open_to_all(folder: Path) -> None:
    """Let another user come to a folder of pytest's, which it keeps from others."""
    for parent in (folder, *folder.parents):
        if parent.stat().st_mode & 0o005 != 0o005:
            parent.chmod(parent.stat().st_mode | 0o055)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_publishing_from_a_folder_that_can_not_be_written(package: Path, tmp_path: Path) -> None:
    for path in package.rglob("*"):
        path.chmod(0o444)
    package.chmod(0o555)
    open_to_all(tmp_path)
    (tmp_path / "registry").mkdir()
    (tmp_path / "registry").chmod(0o777)
    command = [sys.executable, "-c", _AS_NOBODY, str(package), str(tmp_path / "registry")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "registry" / REPO / "1.0.0/README.md").exists()


_UNREADABLE = f"""{_ALL_IMPORTED}
from paramdelta_hub.cli import main

os.chdir(sys.argv[1])
for command in (
    ["apply", "base", "priv/delta", "-o", "out"], ["inspect", "priv/delta"], ["verify", "priv/delta"],
    ["relabel", "priv/delta", "-o", "out", "--version", "2.0.0"], ["publish", "priv/delta", "org/name"],
    ["publish", "delta", "priv/name"], ["versions", "priv/delta"],
):
    child = os.fork()
    if not child:
        os.setuid(65534)
        main(command)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(command[0], status)
"""


@slip(NAMES, "a delta in a folder that may not be read", "told as such, not blamed on the Hub")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_above_that_can_not_be_read(package: Path, tmp_path: Path, shared_family: Family) -> None:
    shutil.copytree(shared_family.base, tmp_path / "base")
    shutil.copytree(package, tmp_path / "delta")
    shutil.copytree(package, tmp_path / "priv/delta")
    open_to_all(tmp_path / "base")
    open_to_all(tmp_path / "delta")
    for path in [*(tmp_path / "base").rglob("*"), *(tmp_path / "delta").rglob("*")]:
        path.chmod(path.stat().st_mode | 0o055)
    (tmp_path / "priv").chmod(0o700)
    done = subprocess.run(
        [sys.executable, "-c", _UNREADABLE, str(tmp_path)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    commands = ["apply", "inspect", "verify", "relabel", "publish", "publish", "versions"]
    assert done.stdout.split() == [word for name in commands for word in (name, "3")], done.stderr
    assert done.stderr.count("error: priv/") == done.stderr.count("Permission denied") == len(commands), done.stderr
    assert "HF_HUB_OFFLINE" not in done.stderr


# A license that goes.


@slip(NAMES, "the next version without a license, or with another", "told while it is published")
def test_a_license_that_changes_is_told(package: Path, tmp_path: Path) -> None:
    root = tmp_path / "registry"
    for version, license_name, says, lines in (
        ("1.0.0", "apache-2.0", None, []),
        ("1.1.0", "Apache-2.0", None, []),
        ("1.2.0", None, "version 1.1.0 has Apache-2.0, 1.2.0 has none", ["-license: apache-2.0"]),
        ("1.3.0", None, None, []),
        ("1.4.0", "mit", None, ["+license: mit"]),
        ("1.5.0", "gpl-3.0", "version 1.4.0 has mit, 1.5.0 has gpl-3.0", ["-license: mit", "+license: gpl-3.0"]),
    ):
        notes = Notes()
        made = labelled(package, tmp_path / version, version, license=license_name)
        published = pd.publish(made, REPO, registry=root, progress=notes)
        assert list(published.notes) == notes.said[:-1]
        expected = [f"the license changes: {says}"] if says else []
        assert notes.said[: len(expected)] == expected
        shown = [line for note in notes.said[len(expected) : -1] for line in note.splitlines() if "license:" in line]
        assert shown == lines
    taken, notes = labelled(package, tmp_path / "taken", "1.4.0", license="isc"), Notes()
    with pytest.raises(pd.PublishError, match="published already, with other content"):
        pd.publish(taken, REPO, registry=root, progress=notes)
    assert not notes.said, "nothing is published, so nothing changes"


def test_a_license_that_changes_is_told_on_the_hub(hub: LoopbackHub, package: Path, tmp_path: Path) -> None:
    import json

    labelled(package, tmp_path / "one", "1.0.0", license="mit")
    labelled(package, tmp_path / "two", "1.1.0")
    assert json.loads(paramdelta(hub, tmp_path, "publish", "one", "acme/licensed", "--json").stdout)["notes"] == []
    done = paramdelta(hub, tmp_path, "publish", "two", "acme/licensed", "--json")
    told = "the license changes: version 1.0.0 has mit, 1.1.0 has none"
    note, change = json.loads(done.stdout)["notes"]
    assert note == told
    assert "\n-license: mit" in change
    assert told in done.stderr


# A disk that fails while a delta comes.

_FAILING = """
import errno, sys
import huggingface_hub.file_download as downloads

def http_get(*arguments, **options):
    raise OSError(getattr(errno, sys.argv[1]), "the disk")

downloads.http_get = http_get
from paramdelta_hub.cli import main

main(sys.argv[2:])
"""


@slip(NAMES, "a full disk while a model is downloaded", "exit 7, not blamed on the Hub")
@pytest.mark.parametrize("code", ["ENOSPC", "EROFS", "EIO"])
def test_a_failing_disk_is_not_blamed_on_the_hub(
    hub: LoopbackHub, client: Client, package: Path, tmp_path: Path, code: str
) -> None:
    with suppress(CallError):
        client("publish", package=package, repo="acme/disk", version="1.0.0")
    done = subprocess.run(
        [sys.executable, "-c", _FAILING, code, "pull", "acme/disk"],
        cwd=tmp_path,
        env=hub.environment(tmp_path / "home", TOKEN, PYTHONPATH=os.getcwd()),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 7, done.stderr
    assert "storing a download from the Hub failed" in done.stderr


# A copy that its owner has changed.


@pytest.fixture
def root(package: Path, tmp_path: Path) -> Path:
    """Versions 1.0.0, which has a companion of its own, and 1.1.0, each with a card."""
    first = tmp_path / "first"
    shutil.copytree(package, first)
    (first / "companions").mkdir()
    (first / "companions/chat_template.jinja").write_text("{{ messages }}")
    change_manifest(
        first,
        lambda manifest: manifest["companions"].append(
            {"path": "companions/chat_template.jinja", "size": 0, "sha256": "0" * 64}
        ),
    )
    reseal(first)
    pd.publish(first, REPO, registry=tmp_path / "registry")
    pd.publish(altered(package, tmp_path / "second", "1.1.0"), REPO, registry=tmp_path / "registry")
    return tmp_path / "registry"


CHANGED = ["README.md", "manifest.json.sig", "companions/chat_template.jinja", "manifest.json", "shard"]


@slip(REGISTRIES, "pull another version over a copy that was edited", "refused, the edited files named")
@pytest.mark.parametrize("name", CHANGED)
def test_another_version_takes_nothing_that_its_owner_changed(root: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "copy"
    pd.pull(f"{REPO}@1.0.0", out, registry=root)
    path = shard_of(out) if name == "shard" else out / name
    path.write_bytes(b"mine")
    before = tree(out)
    with pytest.raises(pd.DestinationError, match="differ from what was pulled") as caught:
        pd.pull(f"{REPO}@1.1.0", out, registry=root)
    assert path.name in caught.value.what
    assert "another folder" in str(caught.value.remedy)
    assert tree(out) == before
    path.unlink()
    assert pd.pull(f"{REPO}@1.1.0", out, registry=root).version == "1.1.0"
    assert not (out / "companions/chat_template.jinja").exists()


def test_a_file_of_ones_own_under_a_name_of_the_next_version(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    pd.pull(f"{REPO}@1.1.0", out, registry=root)
    (out / "companions").mkdir()
    (out / "companions/chat_template.jinja").write_text("mine")
    with pytest.raises(pd.DestinationError, match="chat_template"):
        pd.pull(f"{REPO}@1.0.0", out, registry=root, allow_downgrade=True)
    assert (out / "companions/chat_template.jinja").read_text() == "mine"


def test_the_same_version_again_repairs_and_keeps_what_is_yours(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    pd.pull(f"{REPO}@1.0.0", out, registry=root)
    whole = tree(out)
    shard_of(out).write_bytes(b"damaged")
    (out / "companions/chat_template.jinja").write_text("damaged")
    (out / "README.md").unlink()
    pd.pull(f"{REPO}@1.0.0", out, registry=root)
    assert tree(out) == whole
    (out / "README.md").write_text("my notes")
    with pytest.raises(pd.DestinationError, match=r"README\.md"):
        pd.pull(f"{REPO}@1.0.0", out, registry=root)
    assert (out / "README.md").read_text() == "my notes"
    # What brings no card asks for none, and forgets nothing.
    pd.pull(f"{REPO}@1.0.0", out, registry=root, part="companions")
    (out / "README.md").write_bytes(whole["README.md"])
    pd.pull(f"{REPO}@1.0.0", out, registry=root, part="manifest")
    pd.pull(f"{REPO}@1.1.0", out, registry=root)


@slip(REGISTRIES, "pull the same version over a companion that was edited", "refused, the file named")
def test_the_same_version_again_takes_no_companion_that_was_edited(root: Path, tmp_path: Path) -> None:
    out, name = tmp_path / "copy", "companions/chat_template.jinja"
    pd.pull(f"{REPO}@1.0.0", out, registry=root)
    (out / name).write_text("{{ my_messages }}")
    shard_of(out).write_bytes(b"damaged")
    (out / "paramdelta.lock").rename(tmp_path / "lock")
    for has_lock in (False, True):
        if has_lock:
            (tmp_path / "lock").rename(out / "paramdelta.lock")
        before = tree(out)
        with pytest.raises(pd.DestinationError, match=f"would be lost: {name}") as caught:
            pd.pull(f"{REPO}@1.0.0", out, registry=root)
        assert caught.value.remedy == "move them elsewhere, or delete them to fetch them again"
        assert tree(out) == before
    pd.pull(f"{REPO}@1.0.0", out, registry=root, part="manifest")
    (out / name).unlink()
    pd.pull(f"{REPO}@1.0.0", out, registry=root)
    assert (out / name).read_text() == "{{ messages }}"
    # What a cache holds is nobody's own.
    address = f"memory://edited-{next(NUMBERS)}"
    pd.publish(tmp_path / "first", REPO, registry=address)
    cached = pd.pull(REPO, registry=address).path
    (cached / name).write_text("{{ my_messages }}")
    pd.pull(REPO, registry=address)
    assert (cached / name).read_text() == "{{ messages }}"


def test_a_copy_from_the_hub_keeps_what_its_owner_changed(
    hub: LoopbackHub, client: Client, package: Path, tmp_path: Path
) -> None:
    repo, out = f"acme/kept-{next(NUMBERS)}", tmp_path / "copy"
    (package / "README.md").write_text("Of the first.\n")
    client("publish", package=package, repo=repo, version="1.0.0")
    client("publish", package=altered(package, tmp_path / "next", "1.1.0"), repo=repo, version="1.1.0")
    client("pull", repo=repo, revision="1.0.0", folder=out)
    for name in ("README.md", shard_of(out).name):
        kept = (out / name).read_bytes()
        (out / name).write_bytes(b"mine")
        with pytest.raises(CallError, match="differ from what was pulled") as caught:
            client("pull", repo=repo, revision="1.1.0", folder=out)
        assert caught.value.kind == "destination"
        assert (out / name).read_bytes() == b"mine"
        (out / name).write_bytes(kept)
    assert client("pull", repo=repo, revision="1.1.0", folder=out)["version"] == "1.1.0"


def test_a_card_of_ones_own_in_a_copy_made_by_hand(root: Path, tmp_path: Path) -> None:
    (tmp_path / "first/README.md").write_text("my notes")
    with pytest.raises(pd.DestinationError, match=r"README\.md"):
        pd.pull(f"{REPO}@1.0.0", tmp_path / "first", registry=root)
    assert (tmp_path / "first/README.md").read_text() == "my notes"


def test_a_pull_cut_between_card_and_lock_is_no_change_of_the_owner(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published card of the same version changes, as a mirror's does, and the pull that brings it dies."""
    out = tmp_path / "copy"
    pd.pull(f"{REPO}@1.0.0", out, registry=root)
    (root / REPO / "1.0.0/README.md").write_text("another card")

    class Killed(BaseException):
        """Passes through every handler, as death does."""

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("paramdelta_hub.registry.stores.registry.receive", die)
        with pytest.raises(Killed):
            pd.pull(f"{REPO}@1.0.0", out, registry=root)
    pd.pull(f"{REPO}@1.0.0", out, registry=root)
    assert (out / "README.md").read_text() == "another card"


# Where a copy must not come.


@slip(REGISTRIES, "pull into the registry itself", "refused")
def test_a_copy_is_not_mixed_up_with_a_registry(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(root)
    for out, how in (
        (root, "is"), (tmp_path / "link", "is"), (root / "acme/copy", "lies inside"), (root / "copy", "lies inside"),
        ("link/copy", "lies inside"), (tmp_path, "contains"), (".", "contains"),
    ):  # fmt: skip
        for delta, registry in ((REPO, root), (f"{root}/{REPO}", None), (f"file://{root}/{REPO}", None)):
            with pytest.raises(pd.DestinationError, match=f"{how} the registry"):
                pd.pull(delta, out, registry=registry)
    monkeypatch.setenv(REGISTRY_VARIABLE, str(root))
    other = StoreRegistry(tmp_path / "other")
    other.publish(tmp_path / "first", REPO, "1.0.0")
    with pytest.raises(pd.DestinationError, match="lies inside the registry"):
        pd.pull(f"{tmp_path}/other/{REPO}", root / "copy")
    shutil.rmtree(tmp_path / "other")
    assert tree(tmp_path) == before


@slip(REGISTRIES, "pull into the home folder", "refused")
def test_a_copy_does_not_come_to_the_home_folder(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for out in ("~", home, f"{home}/."):
        with pytest.raises(pd.DestinationError, match="home folder"):
            pd.pull(REPO, out, registry=root)
    assert not list(home.iterdir())


def test_a_tilde_is_the_home_folder_everywhere(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: Path, shared_family: Family
) -> None:
    """Quoted, the shell leaves it to us."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copytree(package, home / "package")
    shutil.copytree(shared_family.base, home / "base")
    shutil.copy(key, home)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    pd.publish("~/package", REPO, registry="~/registry", sign="~/key.pem")
    pd.publish("~/package", f"~/second/{REPO}")
    assert (home / "registry" / REPO).is_dir()
    assert (home / "second" / REPO).is_dir()
    assert len(pd.versions(REPO, registry="~/registry")) == len(pd.versions(f"~/second/{REPO}")) == 1
    assert [found.judgement for found in pd.search(registry="~/registry", base="~/base")] == ["fits"]
    assert pd.pull(REPO, "~/copy", registry="~/registry").path == home / "copy"
    pd.catalog("~/registry", "~/site")
    assert (home / "site/index.html").exists()
    monkeypatch.setenv(REGISTRY_VARIABLE, "~/registry")
    assert len(pd.versions(REPO)) == 1
    assert not (tmp_path / "~").exists()
