"""What other people and other tools do with a delta on the Hub: files that they add, and copies that they make."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import paramdelta_hub as pd
from tests.conftest import Family
from tests.registry.conftest import Packages
from tests.registry.hub.test_registry import fails, holds, published
from tests.registry.packages import id_of, tree
from tests.registry.test_unreachable import words
from tests.support.hub import Fault, LoopbackHub
from tests.support.hub.client import Client
from tests.support.models import assert_same, read_weights

ADDED = {
    "LICENSE": b"Apache",
    "images/loss.png": b"\x89PNG",
    ".eval_results/mmlu.yaml": b"- task: mmlu\n",
    "config.json": b"{}",
    "delta-Q4.gguf": b"GGUF",
    "notes with a space.md": b"hello",
}
"""Files that people add on the web."""


def downloaded(client: Client, repo: str, folder: Path) -> Path:
    """Download a repository as ``hf download --local-dir`` does."""
    return Path(client("snapshot", repo=repo, local_dir=folder))


def cloned(hub: LoopbackHub, repo: str, folder: Path) -> Path:
    """Make what ``git clone`` makes: the files, .gitattributes and .git."""
    for name, blob in hub.repositories[repo].head.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(blob.content)
    subprocess.run(["git", "init", "-q", folder], check=True)
    return folder


def test_copies_that_other_tools_make_verify(
    hub: LoopbackHub, client: Client, new_client: Callable[..., Client], repo: str, packages: Packages, tmp_path: Path
) -> None:
    published(hub, repo, packages.v1).add(ADDED)
    copies = [
        downloaded(client, repo, tmp_path / "local"),
        cloned(hub, repo, tmp_path / "clone"),
        Path(client("snapshot", repo=repo)),
        Path(new_client(HF_HUB_DISABLE_SYMLINKS="1")("snapshot", repo=repo)),
    ]
    assert not (copies[3] / "manifest.json").is_symlink()
    for copy in copies:
        report = pd.verify(copy, threads=1)
        assert set(report.beside) == set(ADDED)
        assert report.id == id_of(packages.v1)
        with pytest.raises(pd.IntegrityError, match=r"not vouched for: .*LICENSE"):
            pd.verify(copy, strict=True, threads=1)
    assert pd.verify(Path(client("pull", repo=repo)["path"]), threads=1).id == id_of(packages.v1)
    assert pd.verify(packages.v1, strict=True, threads=1).beside == ()
    (copies[0] / ".cache/mine").write_text("not of the Hub's client")
    assert ".cache/mine" in pd.verify(copies[0], threads=1).beside


def test_a_clone_without_git_lfs_is_told_what_it_lacks(
    hub: LoopbackHub, repo: str, packages: Packages, tmp_path: Path
) -> None:
    published(hub, repo, packages.v1)
    clone = cloned(hub, repo, tmp_path / "clone")
    (shard,) = clone.glob("delta-*.safetensors")
    shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n")
    with pytest.raises(pd.PackageError, match="git lfs pull"):
        pd.verify(clone, threads=1)


def test_what_people_add_stays_and_stops_no_version(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages, tmp_path: Path
) -> None:
    client("publish", package=packages.v1, repo=repo, version="1.0.0")
    made = hub.repositories[repo]
    made.add(ADDED)
    package = shutil.copytree(packages.v2, tmp_path / "package")
    (package / "TODO").write_text("mine")
    client("publish", package=package, repo=repo, version="1.10.0")
    assert {name: made.head.files[name].content for name in ADDED} == ADDED
    assert "TODO" not in made.head.files
    holds(Path(client("pull", repo=repo)["path"]), packages.v2)
    copy = downloaded(client, repo, tmp_path / "local")
    client("publish", package=copy, repo=f"{repo}-again", version="1.10.0")
    assert client("pull", repo=f"{repo}-again")["id"] == id_of(packages.v2)


def test_a_flipped_byte_in_a_cache_without_links_is_mended(
    hub: LoopbackHub, new_client: Callable[..., Client], repo: str, packages: Packages
) -> None:
    published(hub, repo, packages.v1)
    client = new_client(HF_HUB_DISABLE_SYMLINKS="1")
    for part in ("package", "package", "manifest"):
        for name in sorted(tree(packages.v1)):
            copy = Path(client("pull", repo=repo, revision="1.0.0", part=part)["path"])
            content = (copy / name).read_bytes()
            at = len(content) // 2
            (copy / name).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        done = client("pull", repo=repo, revision="1.0.0")
        assert done["id"] == id_of(packages.v1)
        holds(copy, packages.v1)
    assert os.listdir(copy)


def test_files_beside_a_package_stop_no_local_registry(packages: Packages, tmp_path: Path, endpoint: str) -> None:
    package = shutil.copytree(packages.v1, tmp_path / "package")
    for name, content in ADDED.items():
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_bytes(content)
    for number, root in enumerate((tmp_path / "registry", "s3://deltas/other-hands")):
        notes = pd.publish(package, "acme/math", registry=root).notes
        assert any("LICENSE" in note for note in notes)
        copy = pd.pull("acme/math", tmp_path / f"copy{number}", registry=root).path
        assert tree(copy).keys() - {"README.md", "paramdelta.lock"} == tree(packages.v1).keys() - {"README.md"}
        if number == 0:  # people can put files there
            (tmp_path / "registry/acme/math/1.0.0/LICENSE").write_text("MIT")
            assert pd.verify("acme/math", registry=root, threads=1).beside == ("LICENSE",)


BARE: list[set[str]] = [{"info"}, {"info", "paths"}, {"info", "paths", "tree"}, {"info", "paths", "tree", "head"}]


@pytest.mark.parametrize("bare", BARE)
def test_a_hub_whose_listing_has_no_digests(
    hub: LoopbackHub,
    client: Client,
    new_client: Callable[..., Client],
    shared_family: Family,
    repo: str,
    packages: Packages,
    bare: set[str],
) -> None:
    hub.bare = bare
    for package, version in ((packages.v2, "1.10.0"), (packages.v1, "1.0.0")):
        client("publish_anew", delta=package, repo=repo)
        assert not client("publish_anew", delta=package, repo=repo)["uploaded"]
        assert client("pull", repo=repo, revision=version)["id"] == id_of(package)
    fails("publish", "other content", lambda: client("publish_anew", delta=packages.other, repo=repo))
    hub.faults = [Fault("flip", "GET .*/delta-", 77)]
    copy = Path(new_client()("pull", repo=repo)["path"])
    assert pd.verify(copy, threads=1).id == id_of(packages.v2)
    hub.faults = []
    made = hub.repositories[repo]
    for undo, package in ((False, packages.v1), (True, packages.v2)):
        client("yank", delta=repo, version="1.10.0", reason=None if undo else "wrong", undo=undo)
        assert client("pull", repo=repo)["id"] == id_of(package)
        files = {name: made.head.files[name].content for name in tree(package) if name != "README.md"}
        assert files == {name: content for name, content in tree(package).items() if name != "README.md"}


@pytest.mark.parametrize("bare", BARE)
def test_a_model_on_a_hub_whose_listing_has_no_digests(
    hub: LoopbackHub,
    new_client: Callable[..., Client],
    shared_family: Family,
    repo: str,
    tmp_path: Path,
    bare: set[str],
) -> None:
    hub.add(repo, shared_family.target)
    client = new_client()
    whole = client("describe_base", model=repo)
    hub.bare = bare
    assert client("describe_base", model=repo) == whole
    for number, options in enumerate((["--stream"], [])):
        line = ["apply", repo, str(shared_family.delta), "-o", str(tmp_path / f"out{number}"), *options]
        code, _, said = client("command", arguments=line)
        if "head" in bare and options:
            assert (code, "no sha256" in said, "download the model" in said) == (3, True, True), said
            continue
        assert code == 0, said
        pd.apply(shared_family.target, shared_family.delta, tmp_path / f"expected{number}", threads=1)
        assert_same(read_weights(tmp_path / f"out{number}"), read_weights(tmp_path / f"expected{number}"))


def test_a_card_that_can_not_be_had_blocks_no_pull(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages
) -> None:
    published(hub, repo, packages.v1).add({"README.md": b"# Hi"})
    made = hub.repositories[repo]
    made.tags["1.0.0"] = made.head.id
    hub.faults = [Fault("status", "GET .*/README.md", 404, times=99)]
    pulled = client("pull", repo=repo)
    assert pulled["id"] == id_of(packages.v1)
    assert "the card could not be had" in pulled["notes"][0]
    hub.faults = []


MIRRORED = {
    "pull": "pull DELTA -o OUT",
    "versions": "versions DELTA",
    "verify": "verify DELTA --base BASE",
    "inspect": "inspect DELTA@1.0.0",
    "relabel": "relabel DELTA -o OUT --version 2.0.0",
    "apply": "apply TARGET DELTA -o OUT",
    "stream": "apply TARGET DELTA -o OUT --stream",
    "preview": "apply TARGET DELTA -o OUT --dry-run",
    "extract": "extract BASE POST -o OUT",
    "search": "search --base TARGET",
}


@pytest.mark.parametrize("name", MIRRORED)
def test_models_and_deltas_come_through_a_mirror_that_takes_nothing(
    hub: LoopbackHub, new_client: Callable[..., Client], shared_family: Family, repo: str, tmp_path: Path, name: str
) -> None:
    """As olah 0.5.4: a listing without digests, and no POST."""
    published(hub, repo, shared_family.delta)
    models = {"BASE": shared_family.base, "POST": shared_family.post, "TARGET": shared_family.target}
    for model, folder in models.items():
        hub.add(f"{repo}-{model}", folder)
    hub.bare = {"info"}
    hub.faults = [Fault("status", "^POST ", 405, times=999)]
    client, out = new_client(), tmp_path / "out"
    line = words(MIRRORED[name], DELTA=repo, OUT=out, **{model: f"{repo}-{model}" for model in models})
    code, _, said = client("command", arguments=line)
    assert code == 0, said
    if name in ("apply", "stream"):
        pd.apply(shared_family.target, shared_family.delta, tmp_path / "expected", threads=1)
        assert_same(read_weights(out), read_weights(tmp_path / "expected"))
    elif name == "extract":
        assert pd.verify(out, base=shared_family.base, post=shared_family.post, threads=1).checked_base
    code, _, said = client("command", arguments=["publish", str(shared_family.delta), f"{repo}-new"])
    assert (code, "405" in said) == (8, True)
    hub.faults = []


def test_a_version_comes_through_a_mirror_that_lists_no_tags(
    hub: LoopbackHub, new_client: Callable[..., Client], shared_family: Family, repo: str, tmp_path: Path
) -> None:
    published(hub, repo, shared_family.delta)
    hub.faults = [Fault("status", "^GET .*/refs", 404, times=999)]
    code, _, said = new_client()("command", arguments=["pull", f"{repo}@1.0.0", "-o", str(tmp_path / "copy")])
    assert code == 0, said
    pd.verify(tmp_path / "copy", threads=1)
    code, _, said = new_client()("command", arguments=["pull", f"{repo}-none@1.0.0", "-o", str(tmp_path / "none")])
    assert (code, "no such repository" in said) == (8, True), said
    hub.faults = []
