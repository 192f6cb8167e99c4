"""``pd-publish --dry-run``: what it says is what the real run then does, and it changes nothing."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest
from click.testing import CliRunner

from paramdelta_hub.cli import main
from tests.registry.conftest import Packages
from tests.registry.packages import tree
from tests.support.hub import LoopbackHub
from tests.support.hub.client import Client

NUMBERS = itertools.count()


@dataclass(frozen=True)
class Place:
    """A registry of one kind, and how it is called and looked into."""

    kind: str
    repo: str
    run: Callable[..., tuple[int, Any, str]]
    """Run a command; return its exit code, its report and what it said."""
    files: Callable[[str], dict[str, bytes]]
    """All files of a version, or of the main branch for ``main``."""


@pytest.fixture(params=["hub", "folder", "bucket"])
def place(
    request: pytest.FixtureRequest, hub: LoopbackHub, client: Client, repo: str, endpoint: str, tmp_path: Path
) -> Place:
    root = {"folder": str(tmp_path / "registry"), "bucket": f"s3://deltas/dry-{next(NUMBERS)}"}.get(request.param)
    options = [] if root is None else ["--registry", root]

    def run(*arguments: str | Path) -> tuple[int, Any, str]:
        line = [*map(str, arguments), *options, "--json"]
        if root is None:
            code, out, said = client("command", arguments=line)
        else:
            done = CliRunner().invoke(main, line)
            code, out, said = done.exit_code, done.stdout, done.stderr
        return code, json.loads(out), said

    def files(version: str) -> dict[str, bytes]:
        if request.param == "hub":
            found = hub.repositories.get(repo)
            commit = found and found.resolve(version)
            return {name: blob.content for name, blob in commit.files.items()} if commit else {}
        if request.param == "folder":
            folder = tmp_path / "registry" / repo / version
            return tree(folder) if folder.exists() else {}
        store, at = fsspec.filesystem("s3"), f"{str(root).removeprefix('s3://')}/{repo}/{version}"
        store.invalidate_cache()
        return {path.removeprefix(f"{at}/"): store.cat(path) for path in store.find(at)}

    return Place(request.param, repo, run, files)


def test_what_a_dry_run_says_is_what_is_done(
    hub: LoopbackHub, place: Place, packages: Packages, tmp_path: Path
) -> None:
    for number, (package, version, is_newest) in enumerate(
        ((packages.v1, "1.0.0", True), (packages.v2, "1.10.0", True), (packages.early, "2.0.0-rc.1", False))
    ):
        copy = shutil.copytree(package, tmp_path / f"package-{number}")
        (copy / "README.md").write_text("---\nlanguage: de\n---\n# Mine\n")
        main_before = place.files("main")
        hub.requests.clear()
        code, told, said = place.run("publish", copy, place.repo, "--dry-run")
        assert code == 0, said
        assert (told["dry_run"], told["uploaded"], told["newest"], told["version"]) == (True, True, is_newest, version)
        assert {method for method, _ in hub.requests} <= {"GET", "HEAD"}
        assert place.files(version) == {}
        assert place.files("main") == main_before
        code, done, said = place.run("publish", copy, place.repo)
        assert (code, done["dry_run"], done["id"]) == (0, False, told["id"]), said
        made = place.files(version)
        listed = {file["path"]: file["size"] for file in told["files"]}
        kept = {name for name in made if main_before.get(name) == made[name]} if place.kind == "hub" else set()
        assert listed == {name: len(content) for name, content in made.items() if name not in {*kept, ".gitattributes"}}
        added = [line[1:] for line in told["card_changes"].splitlines()[2:] if line.startswith("+")]
        assert set(added) <= set(made["README.md"].decode().splitlines())
        assert f"# post-delta {version}" in added
        assert (place.files("main") != main_before) == (is_newest and place.kind == "hub")
    code, told, said = place.run("publish", tmp_path / "package-1", place.repo, "--dry-run")
    assert (code, told["uploaded"], told["files"], told["card_changes"]) == (0, False, [], ""), said


def test_a_dry_run_ends_as_the_real_run_would(
    hub: LoopbackHub, bob: Client, place: Place, packages: Packages, tmp_path: Path
) -> None:
    assert place.run("publish", packages.v1, place.repo)[0] == 0
    damaged = shutil.copytree(packages.v2, tmp_path / "damaged")
    (shard,) = damaged.glob("delta-*")
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    clash = shutil.copytree(packages.v2, tmp_path / "clash")
    (clash / "README.md").write_text("---\nlibrary_name: [\n---\n")
    for package in (packages.other, damaged, clash, tmp_path / "nothing"):
        dry, real = (place.run("publish", package, place.repo, *option) for option in (["--dry-run"], []))
        assert dry[0] == real[0] != 0
        assert dry[1]["error"]["what"] == real[1]["error"]["what"]
    if place.kind == "hub":
        for package, code in ((packages.v2, 8), (packages.v1, 0)):  # of which the second is there already
            for option in (["--dry-run"], []):
                line = ["publish", str(package), place.repo, *option]
                assert bob("command", arguments=line)[0] == code


def test_a_dry_run_is_read_by_people(packages: Packages, tmp_path: Path) -> None:
    line = ["publish", str(packages.v1), "org/x", "--registry", str(tmp_path / "registry"), "--dry-run"]
    said = CliRunner().invoke(main, line)
    assert "org/x 1.0.0 would be published" in said.stdout
    assert "manifest.json" in said.stdout
    assert "+# post-delta 1.0.0" in said.stdout
    assert said.stdout.endswith("nothing was changed (--dry-run)\n")
    assert "would publish post-delta 1.0.0 to the folder" in said.stderr
    assert not (tmp_path / "registry").exists()
