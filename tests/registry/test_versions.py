"""Which version is the newest, on the Hub, in a folder and in a bucket: the highest release that is not withdrawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import paramdelta_hub as pd
from tests.registry.conftest import Packages
from tests.registry.hub.test_registry import fails, outcome
from tests.registry.packages import id_of, labelled, tree
from tests.support.hub import Fault, LoopbackHub
from tests.support.hub.client import Client
from tests.support.hub.repositories import Blob


def test_a_back_port_and_a_candidate_are_tags_and_leave_main_as_it_is(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages, tmp_path: Path
) -> None:
    client("publish_anew", delta=packages.v2, repo=repo)
    made = hub.repositories[repo]
    head = made.head
    for package, version in ((packages.v1, "1.0.0"), (packages.early, "2.0.0-rc.1")):
        done = client("publish_anew", delta=package, repo=repo)
        assert done["uploaded"] is True
        assert made.tags[version] == done["revision"] != head.id
        assert client("pull", repo=repo, revision=version)["id"] == id_of(package)
        assert not client("publish_anew", delta=package, repo=repo)["uploaded"]
    assert made.head is head
    assert made.branches.keys() == {"main"}
    assert client("pull", repo=repo)["version"] == "1.10.0"
    assert [hit["version"] for hit in client("find", query=repo.split("/")[1])] == ["1.10.0"]
    assert "1.10.0" in client("card", repo=repo)
    client("publish_anew", delta=labelled(packages.v1, tmp_path / "v3", "2.0.0"), repo=repo)
    assert made.head.id == made.tags["2.0.0"]


def test_a_killed_back_port_is_finished_by_the_same_command(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages
) -> None:
    client("publish_anew", delta=packages.v2, repo=repo)
    for request in ("POST .*/branch/", "POST .*/commit/", "POST .*/tag/", "DELETE .*/branch/"):
        hub.faults = [Fault("drop", request)]
        outcome(lambda: client("publish_anew", delta=packages.v1, repo=repo), {"registry"})
    hub.faults = []
    client("publish_anew", delta=packages.v1, repo=repo)
    assert hub.repositories[repo].tags.keys() == {"1.0.0", "1.10.0"}
    assert client("pull", repo=repo, revision="1.0.0")["id"] == id_of(packages.v1)


def test_a_version_that_is_published_before_a_higher_one_is_tagged_takes_nothing_from_it(
    hub: LoopbackHub, client: Client, new_client: Callable[..., Client], repo: str, packages: Packages
) -> None:
    client("publish_anew", delta=packages.v1, repo=repo)
    made, another = hub.repositories[repo], new_client()
    others = [
        lambda: another("publish_anew", delta=labelled(packages.v1, made_at / "v", "1.5.0"), repo=repo),
        lambda: another("yank", delta=repo, version="1.0.0", reason="wrong"),
    ]
    made_at = packages.v1.parent / repo.replace("/", "-")
    hub.faults = [Fault("intrude", "POST .*/tag/", act=lambda: [act() for act in others])]
    client("publish_anew", delta=packages.v2, repo=repo)
    assert made.tags.keys() == {"1.0.0", "1.5.0", "1.10.0"}
    assert made.head.files["manifest.json"].content == (packages.v2 / "manifest.json").read_bytes()
    assert client("pull", repo=repo)["version"] == "1.10.0"


def test_a_branch_that_is_called_like_a_version_is_none(
    hub: LoopbackHub, client: Client, new_client: Callable[..., Client], repo: str, packages: Packages, tmp_path: Path
) -> None:
    client("publish_anew", delta=packages.v1, repo=repo)
    made = hub.repositories[repo]
    for package, name in ((packages.other, "1.0.0"), (packages.v2, "1.10.0")):
        files = {file: Blob(content, file.endswith(".safetensors")) for file, content in tree(package).items()}
        made.commit(name, {**made.head.files, **files}, "a branch")
    for _ in range(2):  # the second time from the cache
        for reader in (client, new_client()):
            assert reader("pull", repo=repo, revision="1.0.0")["id"] == id_of(packages.v1)
    offline = new_client(home=tmp_path / "hf")
    assert offline("pull", repo=repo, revision="1.0.0")["id"] == id_of(packages.v1)
    offline = new_client(home=tmp_path / "hf", HF_HUB_OFFLINE="1")
    assert offline("pull", repo=repo, revision="1.0.0")["id"] == id_of(packages.v1)
    fails("registry", "no such version", lambda: client("pull", repo=repo, revision="1.10.0"))
    assert [version["version"] for version in client("versions", repo=repo)] == ["1.0.0"]
    for dry_run in (True, False):
        publish = {"delta": packages.v2, "repo": repo, "dry_run": dry_run}
        fails("registry", "a branch is called 1.10.0", lambda publish=publish: client("publish_anew", **publish))
    assert made.tags.keys() == {"1.0.0"}


def test_a_tag_that_was_set_by_hand_on_something_else_stops_no_withdrawal(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages
) -> None:
    for package in (packages.v1, packages.v2):
        client("publish_anew", delta=package, repo=repo)
    made = hub.repositories[repo]
    made.tags |= {"9.9.9": next(iter(made.commits)), "9.9.8": made.tags["1.0.0"]}
    head = made.head.files["manifest.json"]
    for version, undo in (("1.0.0", False), ("1.0.0", True), ("9.9.9", False), ("9.9.9", True), ("9.9.9", False)):
        client("yank", delta=repo, version=version, reason=None if undo else "by hand", undo=undo)
        assert made.head.files["manifest.json"] == head
    client("yank", delta=repo, version="9.9.8", reason="by hand")
    assert client("pull", repo=repo)["version"] == "1.10.0"


def test_a_version_that_was_withdrawn_by_hand_hides_no_other(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages
) -> None:
    for package in (packages.v1, packages.v2):
        client("publish_anew", delta=package, repo=repo)
    hub.repositories[repo].add({".yanked-1.10.0.json": b"it was wrong"})
    assert [version["yanked"] for version in client("versions", repo=repo)] == ["no reason given", None]
    assert [hit["version"] for hit in client("find", query=repo.split("/")[1])] == ["1.0.0"]
    hub.repositories[repo].add({".yanked-1.0.0.json": b""})
    assert client("find", query=repo.split("/")[1]) == []
    client("yank", delta=repo, version="1.0.0", undo=True)
    assert client("pull", repo=repo)["version"] == "1.0.0"
    assert "# post-delta 1.0.0" in client("card", repo=repo)


WRITTEN_BY_HAND: dict[str, Callable[[Path], object]] = {
    "too large": lambda path: path.write_bytes(b"x" * 9000),
    "no JSON": lambda path: path.write_bytes(b"wrong tokenizer"),
    "of another editor": lambda path: path.write_bytes(b'\xef\xbb\xbf{"reason": "wrong tokenizer"}\r\n'),
    "a folder": lambda path: path.mkdir(),
    "a link": lambda path: path.symlink_to("/etc/hostname"),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
}


@pytest.mark.parametrize("kind", WRITTEN_BY_HAND)
def test_a_version_that_was_withdrawn_by_hand_is_withdrawn_whatever_the_file_is(
    packages: Packages, tmp_path: Path, kind: str
) -> None:
    root, repo = tmp_path / "registry", "acme/math"
    for package in (packages.v1, packages.v2):
        pd.publish(package, repo, registry=root)
    WRITTEN_BY_HAND[kind](root / repo / ".yanked-1.10.0.json")
    reason = "wrong tokenizer" if kind == "of another editor" else "no reason given"
    assert [version.yanked for version in pd.versions(repo, registry=root)] == [reason, None]
    assert pd.pull(repo, tmp_path / "newest", registry=root).version == "1.0.0"
    pulled = pd.pull(f"{repo}@1.10.0", tmp_path / "named", registry=root)
    assert pulled.notes == (f"{repo} 1.10.0 was withdrawn by its publisher: {reason}",)
    assert [hit.version for hit in pd.search(registry=root)] == ["1.0.0"]


def test_what_a_version_was_before_is_shown_where_it_costs_nothing(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages, tmp_path: Path
) -> None:
    again = pd.relabel(packages.v1, tmp_path / "again", version="1.1.0").path
    for package in (packages.v1, again):
        pd.publish(package, repo, registry=tmp_path / "registry")
        client("publish_anew", delta=package, repo=repo)
    found = pd.versions(repo, registry=tmp_path / "registry")
    assert [[e.id for e in version.relabeled_from] for version in found] == [[id_of(packages.v1)], []]
    line = ["versions", repo, "--registry", str(tmp_path / "registry")]
    code, shown, _ = client("command", arguments=line)
    assert (code, "relabeled from" in shown, "post-delta 1.0.0" in shown) == (0, True, True)
    code, shown, _ = client("command", arguments=line[:2])
    assert (code, "relabeled from" in shown) == (0, False)
    broken = tmp_path / "registry" / repo / "1.0.0" / "manifest.json"
    broken.write_text("{}")
    assert [version.version for version in pd.versions(repo, registry=tmp_path / "registry")] == ["1.1.0", "1.0.0"]


def test_a_version_is_withdrawn_and_comes_back_on_the_hub(
    hub: LoopbackHub, client: Client, bob: Client, repo: str, packages: Packages
) -> None:
    for package in (packages.v1, packages.v2):
        client("publish_anew", delta=package, repo=repo)
    made = hub.repositories[repo]
    made.add({"LICENSE": b"MIT"})
    tags = dict(made.tags)
    done = client("yank", delta=repo, version="1.10.0", reason="wrong tokenizer")
    assert (done["changed"], done["newest"]) == (True, "1.0.0")
    assert not client("yank", delta=repo, version="1.10.0", reason="wrong tokenizer")["changed"]
    assert made.tags == tags
    assert made.head.files["manifest.json"].content == (packages.v1 / "manifest.json").read_bytes()
    assert made.head.files["LICENSE"].content == b"MIT"
    for reader in (client, bob):
        assert reader("pull", repo=repo)["version"] == "1.0.0"
        found = {version["version"]: version["yanked"] for version in reader("versions", repo=repo)}
        assert found == {"1.10.0": "wrong tokenizer", "1.0.0": None}
        pulled = reader("pull", repo=repo, revision="1.10.0")
        assert pulled["id"] == id_of(packages.v2)
        assert pulled["notes"] == [f"{repo} 1.10.0 was withdrawn by its publisher: wrong tokenizer"]
    assert [hit["version"] for hit in client("find", query=repo.split("/")[1])] == ["1.0.0"]
    assert "1.0.0" in client("card", repo=repo)
    client("yank", delta=repo, version="1.0.0", reason="worse")
    fails("registry", "all versions are withdrawn", lambda: client("pull", repo=repo))
    assert not client("find", query=repo.split("/")[1])
    client("yank", delta=repo, version="1.0.0", undo=True)
    assert client("yank", delta=repo, version="1.10.0", undo=True)["newest"] == "1.10.0"
    assert client("pull", repo=repo)["version"] == "1.10.0"
    assert not client("pull", repo=repo, revision="1.0.0")["notes"]
    names = made.head.files.keys()
    assert not [name for name in names if "yanked" in name]
    assert made.head.files["manifest.json"].content == (packages.v2 / "manifest.json").read_bytes()
    fails("registry", "no version 9.9.9", lambda: client("yank", delta=repo, version="9.9.9", reason="x"))
    fails("option", "reason", lambda: client("yank", delta=repo, version="1.0.0"))
    fails("registry", "403", lambda: bob("yank", delta=repo, version="1.0.0", reason="not mine"))


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_a_version_is_withdrawn_and_comes_back_in_a_folder_and_in_a_bucket(
    packages: Packages, tmp_path: Path, endpoint: str, kind: str
) -> None:
    root = str(tmp_path / "registry") if kind == "folder" else "s3://deltas/withdrawn"
    for package in (packages.v2, packages.v1, packages.early):
        pd.publish(package, "acme/math", registry=root)
    assert pd.pull("acme/math", tmp_path / "a", registry=root).version == "1.10.0"
    done = pd.yank("acme/math", "1.10.0", reason="wrong tokenizer", registry=root)
    assert (done.changed, done.newest) == (True, "1.0.0")
    assert not pd.yank("acme/math", "1.10.0", reason="wrong tokenizer", registry=root).changed
    assert pd.pull("acme/math", tmp_path / "b", registry=root).version == "1.0.0"
    found = {version.version: version.yanked for version in pd.versions("acme/math", registry=root)}
    assert found == {"2.0.0-rc.1": None, "1.10.0": "wrong tokenizer", "1.0.0": None}
    pulled = pd.pull("acme/math@1.10.0", tmp_path / "c", registry=root)
    assert pulled.notes == ("acme/math 1.10.0 was withdrawn by its publisher: wrong tokenizer",)
    assert [hit.version for hit in pd.search("math", registry=root)] == ["1.0.0"]
    for version in ("1.0.0", "2.0.0-rc.1"):
        pd.yank("acme/math", version, reason="worse", registry=root)
    with pytest.raises(pd.RegistryError, match="all versions are withdrawn"):
        pd.pull("acme/math", tmp_path / "d", registry=root)
    assert not list(pd.search("math", registry=root))
    assert pd.yank("acme/math", "1.10.0", undo=True, registry=root).newest == "1.10.0"
    assert not pd.pull("acme/math@1.10.0", tmp_path / "c", registry=root).notes
    with pytest.raises(pd.RegistryError, match=r"no version 9\.9\.9"):
        pd.yank("acme/math", "9.9.9", reason="x", registry=root)
    with pytest.raises(pd.RegistryError, match="no registry"):
        pd.yank("acme/math", "1.0.0", reason="x", registry=tmp_path / "nothing")
