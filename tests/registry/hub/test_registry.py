"""The Hub as a registry: the real client in a process of its own, over real sockets, against a Hub on loopback."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import paramdelta_hub as pd
from tests.attacks.outcomes import change_manifest
from tests.registry.conftest import ALICE, BOB, Packages
from tests.registry.packages import id_of, labelled, tree
from tests.support.hub import Fault, LoopbackHub, Repository
from tests.support.hub.client import CallError, Client
from tests.support.hub.repositories import Blob
from tests.support.hub.server import SIGNATURE

TYPED = {"registry", "publish", "integrity", "package"}


def published(hub: LoopbackHub, repo: str, *packages: Path) -> Repository:
    """Put versions on the Hub as a publication would, without one."""
    made = hub.repositories.get(repo) or hub.add(repo)
    for package in packages:
        version = json.loads((package / "manifest.json").read_text())["version"]
        made.tags[version] = made.add(dict(tree(package))).id
    return made


def asked(hub: LoopbackHub, method: str, part: str) -> list[str]:
    return [path for verb, path in hub.requests if verb == method and part in path]


def fails(kind: str, words: str, call: Callable[[], object]) -> None:
    """Check that a call ends in one of our errors, in words that help, and without a token in them."""
    with pytest.raises(CallError) as caught:
        call()
    assert caught.value.kind == kind, caught.value
    assert words in caught.value.text
    assert "→" in caught.value.text
    assert ALICE not in caught.value.text
    assert BOB not in caught.value.text
    assert SIGNATURE not in caught.value.text


def holds(copy: Path, package: Path) -> None:
    """Check that a copy is the package, to the byte."""
    theirs = tree(package)
    ours = {name: content for name, content in tree(copy).items() if name in theirs}
    assert ours == theirs


def outcome(call: Callable[[], Any], kinds: set[str]) -> Any:
    """Return what a call returned, or None if it ended in one of the errors of these kinds."""
    try:
        return call()
    except CallError as error:
        if error.kind not in kinds:
            raise
        return None


# Publishing.


def test_publishing_is_one_commit_on_its_parent_and_then_a_tag(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages
) -> None:
    done = client("publish", package=packages.v1, repo=repo, version="1.0.0", message="First")
    made = hub.repositories[repo]
    assert made.tags == {"1.0.0": done["revision"]}
    assert made.head.id == done["revision"]
    assert made.commits[str(made.head.parent)].parent is None  # the repository's own first commit
    assert made.head.title.startswith("First (1.0.0, ")
    assert done["id"] == id_of(packages.v1)
    assert done["uploaded"] is True
    assert done["url"] == f"{hub.endpoint}/{repo}/tree/1.0.0"
    assert not made.private
    names = {name: blob.content for name, blob in made.head.files.items() if name != ".gitattributes"}
    assert names.pop("change.svg").startswith(b"<svg ")
    assert names == tree(packages.v1)


def test_a_cards_picture_is_drawn_when_published_and_comes_with_no_pull(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages, tmp_path: Path
) -> None:
    package = shutil.copytree(packages.v1, tmp_path / "package")
    (package / "change.svg").write_text("<svg><script>alert(1)</script></svg>")
    client("publish", package=package, repo=repo, version="1.0.0")
    picture = hub.repositories[repo].head.files["change.svg"].content
    assert b"script" not in picture
    assert b"Heat map of relative change" in picture
    client("pull", repo=repo, revision="1.0.0", folder=tmp_path / "pulled")
    assert not (tmp_path / "pulled/change.svg").exists()


def test_publishing_equal_content_again_does_nothing(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages
) -> None:
    first = client("publish", package=packages.v1, repo=repo, version="1.0.0")
    client("publish", package=packages.v2, repo=repo, version="1.10.0")
    hub.requests.clear()
    again = client("publish", package=packages.v1, repo=repo, version="1.0.0")
    assert again == {**first, "uploaded": False}
    assert {method for method, _ in hub.requests} == {"GET"}


def test_a_version_is_never_replaced(hub: LoopbackHub, client: Client, repo: str, packages: Packages) -> None:
    client("publish", package=packages.v1, repo=repo, version="1.0.0")
    before = dict(hub.repositories[repo].tags), hub.repositories[repo].head
    fails(
        "publish",
        "a published version is never replaced",
        lambda: client("publish", package=packages.other, repo=repo, version="1.0.0"),
    )
    assert (hub.repositories[repo].tags, hub.repositories[repo].head) == before


def test_a_version_that_is_committed_but_not_tagged_yet_is_taken_too(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages
) -> None:
    hub.add(repo).add(dict(tree(packages.other)))
    fails("publish", "1.0.0", lambda: client("publish", package=packages.v1, repo=repo, version="1.0.0"))
    assert not hub.repositories[repo].tags


def test_a_new_version_takes_away_the_files_of_the_old_one_and_no_others(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages, tmp_path: Path
) -> None:
    old = shutil.copytree(packages.v1, tmp_path / "old")
    (old / "companions").mkdir()
    (old / "companions" / "vocab.txt").write_text("a\nb\n")
    shutil.copy(old / "companions" / "vocab.txt", old / "README.md")
    digest = hashlib.sha256(b"a\nb\n").hexdigest()
    record = {"path": "companions/vocab.txt", "size": 4, "sha256": digest}
    change_manifest(old, lambda manifest: manifest["companions"].append(record))
    client("publish", package=old, repo=repo, version="1.0.0")
    made = hub.repositories[repo]
    made.add({"chart.svg": b"<svg/>"})
    client("publish", package=packages.v2, repo=repo, version="1.10.0")
    assert made.head.files.keys() == {*tree(packages.v2), ".gitattributes", "README.md", "change.svg", "chart.svg"}
    assert "companions/vocab.txt" in made.commits[made.tags["1.0.0"]].files
    assert client("card", repo=repo) == "a\nb\n"


def test_large_files_go_in_parts(hub: LoopbackHub, client: Client, repo: str, packages: Packages) -> None:
    hub.part_bytes, hub._stored = 1000, {}
    client("publish", package=packages.v1, repo=repo, version="1.0.0")
    assert len(asked(hub, "PUT", "part=")) >= 4
    client("pull", repo=repo)


def test_large_files_go_by_xet_and_come_by_xet(
    hub: LoopbackHub, new_client: Callable[..., Client], repo: str, packages: Packages, tmp_path: Path
) -> None:
    hub.xet = tmp_path / "store"
    hub.xet.mkdir()
    for shard in packages.v1.glob("*.safetensors"):
        hub.know(shard)
    publisher, reader, other = (new_client(home=tmp_path / name, HF_HUB_DISABLE_XET="0") for name in ("a", "b", "c"))
    publisher("publish", package=packages.v1, repo=repo, version="1.0.0")
    assert len(asked(hub, "GET", "/xet-write-token/")) == 1
    assert not asked(hub, "PUT", "")
    for into in ({}, {"folder": tmp_path / "copy"}):
        copy = Path(reader("pull", repo=repo, **into)["path"])
        holds(copy, packages.v1)
        pd.verify(copy)
    # What another program downloaded may lie as a link into a store that all repositories share: it becomes a file.
    other("snapshot", repo=repo)
    copy = Path(other("pull", repo=repo)["path"])
    holds(copy, packages.v1)
    pd.verify(copy)
    assert asked(hub, "GET", "/xet-read-token/")
    assert not asked(hub, "GET", "delta-")


def test_what_makes_no_sense_is_refused_before_anything_is_sent(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages, tmp_path: Path
) -> None:
    fails("option", "--version 2.0.0", lambda: client("publish", package=packages.v1, repo=repo, version="2.0.0"))
    fails("option", "repository", lambda: client("publish", package=packages.v1, repo="no-org", version="1.0.0"))
    broken = shutil.copytree(packages.v1, tmp_path / "broken")
    (broken / "delta-00001-of-00001.safetensors").write_bytes(b"damaged")
    fails("integrity", "delta-00001", lambda: client("publish", package=broken, repo=repo, version="1.0.0"))
    assert not hub.requests
    hub.add(repo).add({"config.json": b"{}", "model.safetensors": b"weights"})
    fails("registry", "holds a model", lambda: client("publish", package=packages.v1, repo=repo, version="1.0.0"))
    assert not asked(hub, "POST", "")


def test_private_repositories(
    hub: LoopbackHub, client: Client, bob: Client, new_client: Callable[..., Client], repo: str, packages: Packages
) -> None:
    client("publish", package=packages.v1, repo=repo, version="1.0.0", private=True)
    assert hub.repositories[repo].private
    assert client("pull", repo=repo)["version"] == "1.0.0"
    for stranger in (bob, new_client(None)):
        fails("registry", "or a private one", lambda stranger=stranger: stranger("pull", repo=repo))  # type: ignore[misc]
    hub.repositories[repo].readers.add("bob")
    assert bob("pull", repo=repo)["version"] == "1.0.0"
    hub.repositories[repo].private = False
    fails(
        "registry",
        "is public",
        lambda: client("publish", package=packages.v2, repo=repo, version="1.10.0", private=True),
    )


def test_whoever_may_not_write_can_propose(
    hub: LoopbackHub, client: Client, bob: Client, repo: str, packages: Packages
) -> None:
    fails("registry", "403", lambda: bob("publish", package=packages.v1, repo=repo, version="1.0.0"))
    fails(
        "registry",
        "no such repository",
        lambda: bob("publish", package=packages.v1, repo=repo, version="1.0.0", create_pr=True),
    )
    client("publish", package=packages.v1, repo=repo, version="1.0.0")
    fails("registry", "--create-pr", lambda: bob("publish", package=packages.v2, repo=repo, version="1.10.0"))
    proposed = [
        bob("publish", package=packages.v2, repo=repo, version="1.10.0", create_pr=True)["pull_request"]
        for _ in range(2)
    ]
    made = hub.repositories[repo]
    assert proposed == [f"{hub.endpoint}/{repo}/discussions/1"] * 2
    assert len(made.proposals) == 1
    assert made.tags.keys() == {"1.0.0"}
    made.merge(1)
    head = made.head
    done = client("publish", package=packages.v2, repo=repo, version="1.10.0")
    assert made.tags["1.10.0"] == done["revision"] == head.id == made.head.id


@pytest.mark.parametrize("carried_out", [False, True])
@pytest.mark.parametrize("request_", ["POST .*/commit/", "POST .*/tag/"])
def test_an_interrupted_publication_is_finished_by_the_same_command(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages, request_: str, carried_out: bool
) -> None:
    hub.faults = [Fault("drop", request_, value=not carried_out)]
    fails(
        "registry", "run the command again", lambda: client("publish", package=packages.v1, repo=repo, version="1.0.0")
    )
    done = client("publish", package=packages.v1, repo=repo, version="1.0.0")
    made = hub.repositories[repo]
    assert made.tags == {"1.0.0": done["revision"]}
    assert len(made.commits) == 2
    assert client("pull", repo=repo)["id"] == done["id"]


def test_a_stale_parent_is_read_again(hub: LoopbackHub, client: Client, repo: str, packages: Packages) -> None:
    made = hub.add(repo)
    hub.faults = [Fault("intrude", "POST .*/commit/", act=lambda: made.add({"NOTES.md": b"me too"}), times=2)]
    client("publish", package=packages.v1, repo=repo, version="1.0.0")
    assert {"NOTES.md", "manifest.json"} <= made.head.files.keys()
    assert len(asked(hub, "POST", "/commit/")) == 3
    hub.faults = [Fault("intrude", "POST .*/commit/", act=lambda: made.add({"NOTES.md": b"me too"}), times=99)]
    fails("publish", "keep committing", lambda: client("publish", package=packages.v2, repo=repo, version="1.10.0"))
    assert made.tags.keys() == {"1.0.0"}


def test_a_tag_that_somebody_else_was_faster_to_make(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages
) -> None:
    def intrude() -> None:
        made = hub.repositories[repo]
        made.tags["1.0.0"] = made.add(dict(tree(packages.other))).id

    hub.faults = [Fault("intrude", "POST .*/tag/", act=intrude)]
    fails("publish", "other content", lambda: client("publish", package=packages.v1, repo=repo, version="1.0.0"))
    assert client("pull", repo=repo, revision="1.0.0")["id"] == id_of(packages.other)


def test_what_the_hub_did_not_keep_is_not_tagged(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages
) -> None:
    def lose() -> None:
        made = hub.repositories[repo]
        kept = {name: blob for name, blob in made.head.files.items() if name != "lineage.safetensors"}
        made.commits[made.head.id] = replace(made.head, files=kept)

    hub.faults = [Fault("intrude", "GET .*/revision/.*blobs", act=lose)]
    fails("registry", "no tag was created", lambda: client("publish", package=packages.v1, repo=repo, version="1.0.0"))
    assert not hub.repositories[repo].tags
    client("publish", package=packages.v1, repo=repo, version="1.0.0")
    assert client("pull", repo=repo)["version"] == "1.0.0"


@pytest.mark.slow
def test_of_two_publishers_of_one_version_one_wins_and_the_other_is_told(
    hub: LoopbackHub, client: Client, new_client: Callable[..., Client], repo: str, packages: Packages
) -> None:
    second = new_client()
    for race in range(8):
        name = f"{repo}-{race}"
        client.begin("publish", package=packages.v1, repo=name, version="1.0.0")
        second.begin("publish", package=packages.other, repo=name, version="1.0.0")
        told = [outcome(publisher.end, {"publish"}) for publisher in (client, second)]
        winners = [done["id"] for done in told if done]
        assert len(winners) == 1
        assert client("pull", repo=name, revision="1.0.0")["id"] == winners[0]


@pytest.mark.slow
def test_of_two_publishers_of_equal_content_both_succeed(
    hub: LoopbackHub, client: Client, new_client: Callable[..., Client], repo: str, packages: Packages
) -> None:
    second = new_client()
    for race in range(8):
        name = f"{repo}-{race}"
        for publisher in (client, second):
            publisher.begin("publish", package=packages.v1, repo=name, version="1.0.0")
        revisions = {publisher.end()["revision"] for publisher in (client, second)}
        assert revisions == set(hub.repositories[name].tags.values())


# Pulling.


def test_a_pull_brings_the_newest_version_or_the_one_that_is_named(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages, tmp_path: Path
) -> None:
    made = published(hub, repo, packages.v2, packages.v1, packages.early)
    made.tags["stable"] = made.tags["1.0.0"]
    versions = client("versions", repo=repo)
    assert [found["version"] for found in versions] == ["2.0.0-rc.1", "1.10.0", "1.0.0"]
    assert versions[1]["revision"] == made.tags["1.10.0"]
    for revision, package in {
        None: packages.v2,
        "1.0.0": packages.v1,
        "stable": packages.v1,
        made.tags["1.0.0"]: packages.v1,
        "main": packages.early,
    }.items():
        done = client("pull", repo=repo, revision=revision)
        assert done["id"] == id_of(package), revision
        holds(Path(done["path"]), package)
        into = tmp_path / f"copy-{revision}"
        done = client("pull", repo=repo, revision=revision, folder=into)
        assert done["path"] == str(into)
        holds(into, package)
    assert client("pull", repo=repo)["downloaded_nbytes"] == 0


def test_a_repository_without_versions_gives_its_main_branch(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages
) -> None:
    published(hub, repo, packages.v1).tags.clear()
    assert client("versions", repo=repo) == []
    assert client("pull", repo=repo)["version"] == "1.0.0"


def test_only_what_is_needed_is_fetched(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages, tmp_path: Path
) -> None:
    published(hub, repo, packages.v1)
    for part in ("manifest", "companions"):
        done = client("pull", repo=repo, part=part)
        assert (Path(done["path"]) / "manifest.json").exists()
        client("pull", repo=repo, folder=tmp_path / part, part=part)
        assert {path.name for path in (tmp_path / part).iterdir()} == {"manifest.json", "paramdelta.lock"}
    assert not asked(hub, "GET", ".safetensors")


def test_a_pull_goes_on_file_by_file(
    hub: LoopbackHub, client: Client, new_client: Callable[..., Client], repo: str, packages: Packages, tmp_path: Path
) -> None:
    published(hub, repo, packages.v1)
    for into in ({}, {"folder": tmp_path / "copy"}):
        home = tmp_path / f"hf-{len(into)}"
        hub.faults = [Fault("status", "GET .*lineage.safetensors", 503, times=99)]
        fails("registry", "503", lambda into=into, home=home: new_client(home=home)("pull", repo=repo, **into))  # type: ignore[misc]
        assert not (tmp_path / "copy" / "manifest.json").exists()
        hub.faults, hub.requests = [], []
        done = new_client(home=home)("pull", repo=repo, **into)
        assert asked(hub, "GET", "delta-") == []
        assert len(asked(hub, "GET", "lineage.safetensors")) == 1
        holds(Path(done["path"]), packages.v1)


@pytest.mark.parametrize("into_folder", [False, True])
@pytest.mark.parametrize("name", ["manifest.json", "delta-00001-of-00001.safetensors", "lineage.safetensors"])
def test_damage_on_the_way_is_found_and_mended(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages, tmp_path: Path, name: str, into_folder: bool
) -> None:
    published(hub, repo, packages.v1)
    into = {"folder": tmp_path / "copy"} if into_folder else {}
    hub.faults = [Fault("flip", f"GET .*/{name}", 77, times=2)]
    fails("integrity", "arrived damaged twice", lambda: client("pull", repo=repo, **into))
    if into_folder:
        assert not (tmp_path / "copy" / "manifest.json").exists()
    hub.faults = [Fault("flip", f"GET .*/{name}", 77), Fault("cut", f"GET .*/{name}", 100)]
    holds(Path(client("pull", repo=repo, **into)["path"]), packages.v1)


def test_damage_on_the_disk_is_found_and_mended(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages, tmp_path: Path
) -> None:
    published(hub, repo, packages.v1)
    for into in ({}, {"folder": tmp_path / "copy"}):
        copy = Path(client("pull", repo=repo, revision="1.0.0", **into)["path"])
        for name in ("lineage.safetensors", "manifest.json"):
            content = (copy / name).read_bytes()
            (copy / name).resolve().write_bytes(content[:-2] + b"??")
            client("pull", repo=repo, revision="1.0.0", **into)
            holds(copy, packages.v1)


def test_what_the_cache_has_needs_no_network(
    hub: LoopbackHub, client: Client, new_client: Callable[..., Client], repo: str, packages: Packages, tmp_path: Path
) -> None:
    made = published(hub, repo, packages.v1, packages.v2)
    first = new_client(home=tmp_path / "hf")
    for revision in ("1.0.0", "1.10.0"):
        first("pull", repo=repo, revision=revision)
    hub.requests.clear()
    for revision in ("1.0.0", made.tags["1.10.0"]):
        assert first("pull", repo=repo, revision=revision)["downloaded_nbytes"] == 0
    assert not hub.requests

    offline = new_client(home=tmp_path / "hf", HF_HUB_OFFLINE="1")
    assert offline("pull", repo=repo)["version"] == "1.10.0"
    offline("pull", repo=repo, revision="1.0.0", folder=tmp_path / "copy")
    holds(tmp_path / "copy", packages.v1)
    for call, arguments in {
        "pull": {"repo": "org/never-pulled", "revision": "1.0.0"},
        "versions": {"repo": repo},
        "search": {},
        "publish": {"repo": repo, "package": packages.v1, "version": "1.0.0"},
    }.items():
        fails("registry", "HF_HUB_OFFLINE", lambda call=call, arguments=arguments: offline(call, **arguments))  # type: ignore[misc]
    empty = new_client(HF_HUB_OFFLINE="1")
    fails("registry", "HF_HUB_OFFLINE", lambda: empty("pull", repo=repo))
    assert not hub.requests


def test_a_manifest_in_the_cache_and_no_shards_offline(
    hub: LoopbackHub, new_client: Callable[..., Client], repo: str, packages: Packages, tmp_path: Path
) -> None:
    published(hub, repo, packages.v1)
    new_client(home=tmp_path)("pull", repo=repo, revision="1.0.0", part="manifest")
    offline = new_client(home=tmp_path, HF_HUB_OFFLINE="1")
    assert offline("pull", repo=repo, revision="1.0.0", part="manifest")["version"] == "1.0.0"
    fails("registry", "not in the cache", lambda: offline("pull", repo=repo, revision="1.0.0"))


def test_a_tag_on_another_version_is_refused(hub: LoopbackHub, client: Client, repo: str, packages: Packages) -> None:
    made = published(hub, repo, packages.v1)
    made.tags["3.0.0"] = made.tags["1.0.0"]
    fails("integrity", "holds version 1.0.0", lambda: client("pull", repo=repo, revision="3.0.0"))


def test_files_that_are_not_the_manifests_are_not_even_fetched(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages
) -> None:
    made = published(hub, repo, packages.v1)
    shard = "delta-00001-of-00001.safetensors"
    theirs = tree(packages.other)[shard]
    assert len(theirs) == len(tree(packages.v1)[shard])
    for files in ({shard: Blob(theirs, large=True)}, {shard: Blob(b"x", large=True)}, {}):
        rest = {name: blob for name, blob in made.head.files.items() if name != shard}
        revision = made.commit("main", {**rest, **files}, "swapped").id
        fails("integrity", shard, lambda revision=revision: client("pull", repo=repo, revision=revision))  # type: ignore[misc]
    assert not asked(hub, "GET", shard)


def test_a_folder_keeps_the_version_it_has_unless_another_is_named(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    made = published(hub, repo, packages.v1)
    client("pull", repo=repo, folder=copy)
    lock = json.loads((copy / "paramdelta.lock").read_text())
    assert (lock["registry"], lock["repo"], lock["version"]) == (hub.endpoint, repo, "1.0.0")
    assert (lock["revision"], lock["id"]) == (made.tags["1.0.0"], id_of(packages.v1))
    published(hub, repo, packages.v2)
    fails("destination", "name the version", lambda: client("pull", repo=repo, folder=copy))
    holds(copy, packages.v1)
    client("pull", repo=repo, revision="1.10.0", folder=copy)
    holds(copy, packages.v2)
    fails("destination", "downgrade", lambda: client("pull", repo=repo, revision="1.0.0", folder=copy))
    client("pull", repo=repo, revision="1.0.0", folder=copy, allow_downgrade=True)
    holds(copy, packages.v1)
    made.tags["1.0.0"] = made.add(dict(tree(packages.other))).id
    shutil.rmtree(copy / ".cache")
    fails("integrity", "never replaced", lambda: client("pull", repo=repo, revision=made.tags["1.0.0"], folder=copy))


def test_the_card_goes_with_a_package(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages, tmp_path: Path
) -> None:
    package = labelled(packages.v1, tmp_path / "package")
    (package / "README.md").write_text("---\ntags: [paramdelta]\n---\n# Mine\n")
    client("publish", package=package, repo=repo, version="1.0.0")
    for into in ({}, {"folder": tmp_path / "copy"}):
        holds(Path(client("pull", repo=repo, **into)["path"]), package)
    assert client("card", repo=repo) == (package / "README.md").read_text()
    assert client("card", repo="org/absent") is None
    (package / "README.md").write_text("---\ntags: [\n---\n")
    change_manifest(package, lambda manifest: manifest.update(version="1.0.1"))
    fails("registry", "metadata", lambda: client("publish", package=package, repo=repo, version="1.0.1"))


# Errors.


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "HF_TOKEN"),
        (403, "not allow"),
        (404, "pd-versions"),
        (408, "run the command again"),
        (418, "418"),
        (429, "wait a while"),
        (500, "internal error"),
        (503, "internal error"),
    ],
)
def test_every_status_is_one_clear_error(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages, status: int, words: str
) -> None:
    published(hub, repo, packages.v1)
    hub.faults = [Fault("status", "GET", status, times=99)]
    calls: dict[str, dict[str, Any]] = {"versions": {"repo": repo}, "pull": {"repo": repo}, "search": {}}
    for call, arguments in calls.items():
        fails("registry", "", lambda call=call, arguments=arguments: client(call, **arguments))  # type: ignore[misc]
    if status != 401:  # which the client takes for a repository that is not there, as the Hub answers so
        fails("registry", words, lambda: client("versions", repo=repo))


def test_gated_wrong_token_and_absent(
    hub: LoopbackHub,
    client: Client,
    bob: Client,
    new_client: Callable[..., Client],
    repo: str,
    packages: Packages,
    started: LoopbackHub,
) -> None:
    published(hub, repo, packages.v1).gated = True
    fails("registry", "accept its terms", lambda: bob("pull", repo=repo))
    fails("registry", "accept its terms", lambda: new_client(None)("pull", repo=repo))
    fails("registry", "HF_TOKEN", lambda: new_client("hf_revoked")("pull", repo=repo))
    fails("registry", "no such repository", lambda: client("pull", repo="org/absent"))
    fails("registry", "no such version", lambda: client("pull", repo=repo, revision="9.9.9"))
    hub.add("org/model-only").add({"config.json": b"{}"})
    fails("registry", "no manifest.json", lambda: client("pull", repo="org/model-only"))
    fails("option", "repository", lambda: client("pull", repo="../etc", revision="1.0.0"))
    hub.repositories[repo].readers.add("bob")
    assert bob("pull", repo=repo)["version"] == "1.0.0"


def test_a_hub_that_is_not_there(new_client: Callable[..., Client], repo: str) -> None:
    lost = new_client(HF_ENDPOINT="http://127.0.0.1:9")
    for call in ("versions", "pull"):
        fails("registry", "check the connection", lambda call=call: lost(call, repo=repo))  # type: ignore[misc]


# Everything that can go wrong, by schedule.


def schedule(seed: int, hub: LoopbackHub, repo: str) -> list[Fault]:
    """Return one to three faults that a seed chooses."""
    chance = random.Random(seed)

    def fault() -> Fault:
        kind = chance.choice(["status", "drop", "cut", "flip", "intrude"])
        pattern = chance.choice(["GET", "HEAD", "POST", "PUT", "/commit/", "/tag/", "/lfs/", "manifest", "delta-", "."])
        value = {"status": chance.choice([429, 500, 502, 503, 504]), "drop": chance.randrange(2)}.get(
            kind, chance.randrange(3000)
        )
        times = chance.choice([1, 1, 2, 3, 9])

        def act() -> None:
            if repo in hub.repositories:
                hub.repositories[repo].add({"NOTES.md": b"%d" % chance.randrange(10**6)})

        return Fault(kind, pattern, value, times, act)  # type: ignore[arg-type]

    return [fault() for _ in range(chance.randrange(1, 4))]


SCHEDULES = 200


def test_schedules_of_faults_end_in_success_or_in_one_of_our_errors(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages, tmp_path: Path
) -> None:
    failed = {"publish": 0, "pull": 0}
    for seed in range(SCHEDULES // 2):
        name, copy = f"{repo}-{seed}", tmp_path / str(seed)
        calls: dict[str, dict[str, Any]] = {
            "publish": {"package": packages.v1, "version": "1.0.0"},
            "pull": {"folder": copy} if seed % 2 else {},
        }
        for call, arguments in calls.items():
            hub.faults = schedule(2 * seed + (call == "pull"), hub, name)
            done = outcome(lambda: client(call, repo=name, **arguments), TYPED)  # noqa: B023 - called at once
            if done is None:
                failed[call] += 1
                if call == "pull":
                    assert not (copy / "manifest.json").exists(), seed
                hub.faults = []
                done = client(call, repo=name, **arguments)  # and the same command mends it
            assert done["id"] == id_of(packages.v1), seed
        made = hub.repositories[name]
        assert made.tags.keys() == {"1.0.0"}
        holds(copy if seed % 2 else Path(done["path"]), packages.v1)
    assert min(failed.values()) > SCHEDULES // 15, failed  # or the faults would not have struck


@pytest.mark.parametrize("call", ["publish", "pull", "pull into a folder"])
def test_killed_at_every_request_the_same_command_goes_on(
    hub: LoopbackHub,
    new_client: Callable[..., Client],
    repo: str,
    packages: Packages,
    tmp_path: Path,
    call: str,
) -> None:
    for number in range(1, 40):
        name, home, copy = f"{repo[:40]}-{number}", tmp_path / f"hf{number}", tmp_path / f"copy{number}"
        arguments: dict[str, Any] = {"package": packages.v1, "version": "1.0.0"} if call == "publish" else {}
        arguments |= {"folder": copy} if "folder" in call else {}
        if call != "publish":
            published(hub, name, packages.v1)
        victim = new_client(home=home)
        count = [0]

        def act(victim: Client = victim, number: int = number, count: list[int] = count) -> None:
            count[0] += 1
            if count[0] == number:
                victim.kill()

        hub.faults = [Fault("intrude", ".", act=act, times=1000)]
        victim.begin(call.split()[0], repo=name, **arguments)
        if count[0] < number:
            with suppress(AssertionError):  # it died while we waited
                victim.end()
        hub.faults = []
        done = new_client(home=home)(call.split()[0], repo=name, **arguments)
        assert done["id"] == id_of(packages.v1)
        assert hub.repositories[name].tags.keys() == {"1.0.0"}
        if call != "publish":
            holds(Path(done["path"]), packages.v1)
        if count[0] < number:  # it ended before it could be killed
            assert number > 5
            return
    pytest.fail("the command never ended")
