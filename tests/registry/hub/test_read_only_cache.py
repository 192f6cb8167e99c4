"""A cache of the Hub that can't be written: on a read-only disk, or another account's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import paramdelta_hub as pd
from tests.conftest import Family
from tests.registry.conftest import Packages
from tests.registry.hub.test_registry import holds, published
from tests.registry.test_unreachable import words
from tests.support.hub import LoopbackHub
from tests.support.hub.client import Client

USES = {
    "pull": "pull DELTA",
    "pull a version": "pull DELTA@1.0.0",
    "pull to a folder": "pull DELTA -o OUT",
    "apply": "apply TARGET DELTA -o OUT",
    "apply to a model": "apply MODEL PACKAGE -o OUT",
    "stream": "apply MODEL PACKAGE -o OUT --stream",
    "preview": "apply MODEL DELTA -o OUT --dry-run",
    "extract": "extract MODEL POST -o OUT",
    "verify": "verify DELTA --base MODEL",
    "inspect": "inspect DELTA",
    "relabel": "relabel DELTA -o OUT --version 2.0.0",
    "versions": "versions DELTA",
    "search": "search --base MODEL",
}
Use = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module", params=["read-only disk", "another account's"])
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A folder, and a function after which it can't be written any more."""
    if os.geteuid() or not sys.platform.startswith("linux"):
        pytest.skip("needs root")
    folder = tmp_path_factory.mktemp("home")

    def sealed(*command: str) -> None:
        subprocess.run([*command, folder], check=True)

    if request.param == "another account's":

        def give_away() -> None:
            sealed("chmod", "-R", "a+rX")
            sealed("chown", "-R", "65534")

        yield folder, give_away
        return
    mounting = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("this container may not mount")
    yield folder, lambda: sealed("mount", "-o", "remount,ro")
    sealed("umount")


def of_bucket(home: Path) -> dict[str, str]:
    """Return the environment of a command that uses a bucket."""
    aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    return {**aws, "XDG_CACHE_HOME": str(home / "cache")}


@pytest.fixture(scope="module")
def reader(
    started: LoopbackHub,
    endpoint: str,
    place: tuple[Path, Callable[[], None]],
    new_client: Callable[..., Client],
    packages: Packages,
    shared_family: Family,
) -> Client:
    """A client with a filled cache that it can't write."""
    home, seal = place
    published(started, "org/held", packages.v1)
    for name, folder in {"base": shared_family.base, "post": shared_family.post}.items():
        started.add(f"org/held-{name}", folder)
    filler = new_client(home=home / "hf")
    filler("pull", repo="org/held")
    pd.publish(packages.v1, "org/held", registry="s3://deltas/held")
    bucket = ["pull", "org/held", "--registry", "s3://deltas/held"]
    assert filler("command", arguments=bucket, **of_bucket(home))[0] == 0
    for name in ("base", "post"):
        filler("resolve", model=f"org/held-{name}")
    seal()
    client = new_client(home=home / "hf")
    client("drop_rights")
    return client


@pytest.fixture
def use(reader: Client, packages: Packages, shared_family: Family, tmp_path: Path) -> Use:
    """Run a command of :data:`USES`; return its exit code and what it said."""

    def call(line: str, delta: str = "org/held", model: str = "org/held-base") -> tuple[int, str]:
        names: dict[str, Any] = {"DELTA": delta, "MODEL": model, "POST": "org/held-post", "PACKAGE": packages.v1}
        parts = words(line, TARGET=shared_family.target, OUT=tmp_path / "out", **names)
        code, _, said = reader("command", arguments=parts)
        return code, said

    return call


@pytest.mark.parametrize("name", USES)
def test_what_is_there_is_used(hub: LoopbackHub, use: Use, name: str) -> None:
    assert use(USES[name])[0] == 0


def test_what_is_new_on_the_hub_changes_nothing_for_what_is_there(
    hub: LoopbackHub, client: Client, use: Use, reader: Client, packages: Packages, repo: str
) -> None:
    hub.repositories["org/held"].add({"LICENSE": b"MIT"})
    client("publish_anew", delta=packages.v2, repo="org/held")
    client("yank", delta="org/held", version="1.10.0", reason="wrong tokenizer")
    assert use("pull DELTA")[0] == 0
    assert [version["yanked"] for version in reader("versions", repo="org/held")] == ["wrong tokenizer", None]


def test_a_pull_to_a_folder_needs_no_cache(
    hub: LoopbackHub, client: Client, use: Use, packages: Packages, repo: str, tmp_path: Path
) -> None:
    client("publish_anew", delta=packages.v2, repo=repo)
    assert use("pull DELTA -o OUT", delta=repo)[0] == 0
    holds(tmp_path / "out", packages.v2)
    assert (tmp_path / "out/README.md").read_bytes() == hub.repositories[repo].head.files["README.md"].content


@pytest.mark.parametrize(
    "line", ["pull DELTA", "verify DELTA", "apply MODEL PACKAGE -o OUT", "extract MODEL POST -o OUT"]
)
def test_what_would_have_to_be_stored_says_what_to_set(
    hub: LoopbackHub, use: Use, packages: Packages, shared_family: Family, repo: str, line: str
) -> None:
    published(hub, repo, packages.v1)
    hub.add(f"{repo}-model", shared_family.base)
    code, said = use(line, delta=repo, model=f"{repo}-model")
    assert code == 7, said
    assert "HF_HOME" in said


@pytest.mark.parametrize("line", ["pull DELTA", "verify DELTA", "inspect DELTA", "apply TARGET DELTA -o OUT"])
def test_what_is_there_of_a_bucket_is_used_and_else_it_is_said_what_to_set(
    reader: Client,
    place: tuple[Path, Callable[[], None]],
    packages: Packages,
    shared_family: Family,
    tmp_path: Path,
    line: str,
) -> None:
    for package, repo in ((packages.v1, "org/held"), (packages.v2, f"org/{tmp_path.name}")):
        pd.publish(package, repo, registry="s3://deltas/held")
        parts = words(line, DELTA=repo, TARGET=shared_family.target, OUT=tmp_path / repo)
        parts += ["--registry", "s3://deltas/held"]
        code, _, said = reader("command", arguments=parts, **of_bucket(place[0]))
        assert (code, "XDG_CACHE_HOME" in said) == ((0, False) if repo == "org/held" else (7, True)), said
