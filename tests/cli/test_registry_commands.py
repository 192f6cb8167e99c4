"""The registry's commands, end to end: a folder in this process, a Hub on loopback from one of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import paramdelta_hub as pd
from paramdelta_hub.cli import main
from paramdelta_hub.environment import REGISTRY_VARIABLE
from paramdelta_hub.registry.cards.generated import END
from tests.conftest import Family
from tests.support import paramdelta as forked
from tests.support.hub import Account, Fault, LoopbackHub
from tests.support.models import assert_same, read_weights
from tests.support.reports import check_report

COMMIT = "0123456789abcdef" * 2 + "01234567"
VERBS = ("publish", "pull", "search", "versions", "link")


def run(*arguments: str | Path, code: int = 0) -> Result:
    found = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert found.exit_code == code, (found.output, found.exception)
    return found


def run_json(*arguments: str | Path, code: int = 0) -> Any:
    return check_report(str(arguments[0]), run(*arguments, "--json", code=code).stdout, failed=code != 0)


@pytest.fixture(autouse=True)
def _no_registry_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(REGISTRY_VARIABLE, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def root(family: Family, tmp_path: Path) -> Path:
    """A registry in a folder that has version 1.0.0 of org/delta."""
    run("publish", family.delta, tmp_path / "registry/org/delta", "-q")
    return tmp_path / "registry"


def another(family: Family, version: str) -> Path:
    out = family.delta.with_name(f"delta-{version}")
    pd.extract(family.base, family.post, out, name="post-delta", version=version, threads=1)
    return out


@pytest.mark.parametrize("verb", VERBS)
def test_help_ends_in_examples(verb: str) -> None:
    text = run(verb, "--help").stdout
    assert f"pd-{verb} " in text.rpartition("Examples:")[2]


def test_exit_codes_are_documented() -> None:
    assert "8 registry" in " ".join(run("--help").stdout.split())


def test_publish_says_what_it_did_and_again_does_nothing(family: Family, tmp_path: Path) -> None:
    where = tmp_path / "registry/org/delta"
    first = run("publish", family.delta, where)
    assert first.stdout.startswith("org/delta 1.0.0 published: ")
    assert pd.inspect(family.delta).id in first.stdout
    again = run("publish", family.delta, "org/delta", "--registry", tmp_path / "registry")
    assert "already published with the same content; nothing was changed" in again.stdout
    assert run_json("publish", family.delta, where)["uploaded"] is False
    assert not run("publish", family.delta, where, "-q").stdout
    card = (where / "1.0.0/README.md").read_text()
    assert "pd-apply NEW_BASE org/delta@1.0.0" in card
    pd.verify(where / "1.0.0", threads=1)


def test_publish_writes_a_card_and_keeps_what_is_yours(family: Family, root: Path) -> None:
    package = another(family, "1.1.0")
    (package / "README.md").write_text("# Mine")
    run("publish", package, "org/delta", "--registry", root)
    card = (root / "org/delta/1.1.0/README.md").read_text()
    assert card.split("---\n")[2].startswith("\n# Mine\n\n<!-- delta:begin ")
    assert (package / "README.md").read_text() == "# Mine"
    # The words of the newest version come along with the next one, whose package has no card yet.
    run("publish", another(family, "1.2.0"), "org/delta", "--registry", root)
    assert "\n# Mine\n\n<!-- delta:begin " in (root / "org/delta/1.2.0/README.md").read_text()


def test_a_version_is_never_replaced_and_never_renamed(family: Family, root: Path) -> None:
    for arguments in ([root / "org/delta", "--version", "1.1.0"], [f"{root}/org/delta@1.1.0"]):
        error = run_json("publish", family.delta, *arguments, code=2)["error"]
        assert "--version 1.1.0" in error["remedy"]
    other = family.delta.with_name("other")
    pd.extract(family.base, family.target, other, name="other", threads=1)
    found = run("publish", other, root / "org/delta", code=8)
    assert "published already, with other content" in found.stderr
    assert run_json("inspect", root / "org/delta")["name"] == "post-delta"


def test_what_cannot_be_published(family: Family, tmp_path: Path) -> None:
    assert run_json("publish", family.base, tmp_path / "r/org/x", code=3)["error"]["kind"] == "package"
    assert run_json("publish", family.delta, "nothing", code=2)["error"]["kind"] == "option"
    assert run_json("publish", family.delta, "org/x", "--registry", tmp_path / "r", "--private", code=2)
    (family.delta / "README.md").write_bytes(b"\xff")
    assert "not UTF-8" in run("publish", family.delta, tmp_path / "r/org/x", code=3).stderr
    (family.delta / "README.md").write_text("---\na: [\n---\n")
    assert "metadata can't be read" in run("publish", family.delta, tmp_path / "r/org/x", code=3).stderr
    assert not (tmp_path / "r").exists()


def test_versions_and_pull(family: Family, root: Path, tmp_path: Path) -> None:
    for version in ("1.10.0", "1.2.0"):
        run("publish", another(family, version), "org/delta", "--registry", root)
    listed = run_json("versions", "org/delta", "--registry", root)["versions"]
    assert [found["version"] for found in listed] == ["1.10.0", "1.2.0", "1.0.0"]
    assert [line.split()[0] for line in run("versions", root / "org/delta").stdout.splitlines()] == [
        "version", "1.10.0", "1.2.0", "1.0.0",
    ]  # fmt: skip
    pulled = run_json("pull", f"{root}/org/delta@1.2.0", "-o", tmp_path / "copy")
    assert (pulled["version"], pulled["id"]) == ("1.2.0", pd.inspect(tmp_path / "copy").id)
    assert pulled["downloaded_nbytes"] > 0
    assert "nothing new" in run("pull", f"{root}/org/delta@1.2.0", "-o", tmp_path / "copy").stdout
    assert run("pull", "org/delta@1.0.0", "--registry", root, "-o", tmp_path / "copy", code=6)
    lower = run("pull", "org/delta@1.0.0", "--registry", root, "-o", tmp_path / "copy", "--allow-downgrade")
    assert lower.stdout.startswith("org/delta 1.0.0 → ")
    pd.verify(tmp_path / "copy", base=family.base, threads=1)


def test_only_a_part_is_pulled(root: Path, tmp_path: Path) -> None:
    run("pull", root / "org/delta", "-o", tmp_path / "copy", "--manifest-only")
    assert sorted(os.listdir(tmp_path / "copy")) == ["manifest.json", "paramdelta.lock"]
    assert pd.inspect(tmp_path / "copy").manifest.version == "1.0.0"
    run("pull", root / "org/delta", "-o", tmp_path / "companions", "--companions-only")
    assert not list((tmp_path / "companions").glob("*.safetensors"))


@pytest.mark.parametrize("arguments", [["pull"], ["versions"], ["inspect"], ["verify"]])
def test_what_is_not_there(arguments: list[str], root: Path) -> None:
    for delta in ("org/nothing@1.0.0", "org/delta@9.0.0")[: 1 if arguments == ["versions"] else 2]:
        error = run_json(*arguments, delta, "--registry", root, code=8)["error"]
        assert error["kind"] == "registry"
        assert error["what"]


@pytest.mark.parametrize(
    "command", [["search"], ["versions", "org/delta"], ["pull", "org/delta"], ["inspect", "org/delta@1.0.0"]]
)
def test_a_registry_that_is_not_there(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = tmp_path / "absent"
    error = run_json(*command, "--registry", absent, code=8)["error"]
    assert (error["kind"], error["where"]) == ("registry", str(absent))
    assert error["what"] == "no registry: no such folder"
    monkeypatch.setenv(REGISTRY_VARIABLE, str(absent))
    assert run_json(*command, code=8)["error"] == error
    assert not absent.exists()


def test_search_judges_every_hit(family: Family, root: Path) -> None:
    stranger = family.delta.with_name("stranger")
    shutil.copytree(root / "org/delta/1.0.0", stranger)
    manifest = json.loads((stranger / "manifest.json").read_text())
    manifest["architecture"]["fingerprint"], manifest["name"] = "0" * 64, "odd one"
    (stranger / "manifest.json").write_bytes(pd.Manifest.model_validate_json(json.dumps(manifest)).to_json())
    run("publish", stranger, "org/stranger", "--registry", root)
    hits = run_json("search", "--registry", root)["hits"]
    assert {hit["repo"] for hit in hits} == {"org/delta", "org/stranger"}
    assert [hit["repo"] for hit in run_json("search", "odd", "--registry", root)["hits"]] == ["org/stranger"]
    (hit,) = run_json("search", "--base", family.target, "--registry", root)["hits"]
    assert (hit["repo"], hit["judgement"]) == ("org/delta", "fits")
    text = run("search", "--base", family.target, "--registry", root).stdout.splitlines()
    assert text[0].split() == ["delta", "version", "base", "size", "license", "judged", "because"]
    assert "fits" in text[1]
    assert run("search", "no such words", "--registry", root).stdout == "no deltas found\n"


def test_search_by_pages(family: Family, root: Path) -> None:
    for number in range(4):
        run("publish", family.delta, f"org/more{number}", "--registry", root)
    seen: list[str] = []
    page: int | None = 0
    while page is not None:
        found = run_json("search", "--registry", root, "--limit", "2", "--skip", str(page))
        seen += [hit["repo"] for hit in found["hits"]]
        page = found["next_skip"]
    assert sorted(seen) == ["org/delta", *(f"org/more{number}" for number in range(4))]
    assert run("search", "--registry", root, "--limit", "2").stdout.endswith("… for more: --skip 2\n")


def test_references_are_taken_wherever_a_delta_is_named(
    family: Family, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_json("inspect", f"{root}/org/delta@1.0.0")["version"] == "1.0.0"
    assert run_json("inspect", f"file://{root}/org/delta")["version"] == "1.0.0"
    assert run_json("verify", "org/delta", "--registry", root, "--base", family.base)["exact"] is True
    run("apply", family.target, "org/delta@1.0.0=0.5", "--registry", root, "-o", tmp_path / "half")
    pd.apply(family.target, pd.WeightedDelta(family.delta, 0.5), tmp_path / "expected", threads=1)
    assert_same(read_weights(tmp_path / "half"), read_weights(tmp_path / "expected"))
    monkeypatch.setenv(REGISTRY_VARIABLE, str(root))
    assert pd.apply(family.base, "org/delta@1.0.0", tmp_path / "post", threads=1).is_post
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(REGISTRY_VARIABLE, "registry/")
    assert run_json("versions", "org/delta")["versions"][0]["version"] == "1.0.0"


def test_a_folder_wins_over_a_repository(
    family: Family, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(another(family, "3.0.0"), tmp_path / "here/org/delta")
    monkeypatch.chdir(tmp_path / "here")
    assert run_json("inspect", "org/delta", "--registry", root)["version"] == "3.0.0"
    assert run_json("inspect", "org/delta@1.0.0", "--registry", root)["version"] == "1.0.0"


@pytest.mark.parametrize("delta", ["./missing", "some/where/missing", "/nowhere/at/all"])
def test_a_folder_that_is_not_there_is_told_as_such(delta: str) -> None:
    assert run_json("inspect", delta, code=3)["error"]["kind"] == "package"


def test_extract_and_publish(family: Family, tmp_path: Path) -> None:
    out, root = tmp_path / "out", tmp_path / "registry"
    told = run_json(
        "extract", family.base, family.post, "-o", out, "--version", "2.0.0", "--publish", "org/x", "--registry", root
    )
    assert told["published"]["version"] == told["version"] == "2.0.0"
    assert run_json("inspect", root / "org/x/2.0.0")["id"] == told["id"]
    # Another delta under the same version: the package stays, and the error says how to go on.
    other, repo = tmp_path / "other", root / "org/x"
    error = run_json(
        "extract", family.base, family.target, "-o", other, "--version", "2.0.0", "--publish", repo, code=8
    )["error"]
    assert f"pd-publish {other} {repo}" in error["remedy"]
    pd.verify(other, threads=1)


def test_a_label_that_cannot_be_is_told_before_the_work(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reg").mkdir()
    for labels, says in (
        (["--publish", "nothing"], "not a delta in a registry"),
        (["--publish", "reg/math"], "did you mean ./reg/ORG/math?"),
        (["--version", "1.0"], "did you mean 1.0.0?"),
        (["--license", "apache2"], "did you mean apache-2.0?"),
        (["--name", ""], "can't be used"),
    ):
        found = run("extract", family.base, family.post, "-o", "out", *labels, code=2)
        assert says in found.stderr
        assert len(found.stderr) < 400
        assert not list(tmp_path.glob("out*"))
    # Before the models are so much as looked at.
    assert "1.0.0?" in run("extract", "absent", "absent", "-o", "out", "--version", "1.0", code=2).stderr


def test_the_python_interface(family: Family, tmp_path: Path) -> None:
    root = tmp_path / "registry"
    published = pd.publish(family.delta, "org/delta", registry=root)
    assert (published.uploaded, published.version) == (True, "1.0.0")
    assert [found.version for found in pd.versions("org/delta", registry=root)] == ["1.0.0"]
    assert pd.pull("org/delta", tmp_path / "copy", registry=root).id == published.id
    (found,) = pd.search(base=family.base, registry=root)
    assert found.repo == "org/delta"
    with pytest.raises(pd.OptionError, match="only deltas on the Hub"):
        pd.link(f"{root}/org/delta", "org/model")


def test_pull_and_search_need_no_client_of_the_hub(root: Path) -> None:
    code = """
import sys
from paramdelta_hub.cli import main
main(["search", "--registry", sys.argv[1]], standalone_mode=False)
main(["verify", sys.argv[1] + "/org/delta"], standalone_mode=False)
assert not {"torch", "huggingface_hub", "fsspec", "transformers", "requests"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code, str(root)], check=True, timeout=60, capture_output=True)


# On a Hub.


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub().running() as hub:
        hub.accounts |= {"hf_me": Account("me", ("org",)), "hf_you": Account("you")}
        yield hub


Paramdelta = Callable[..., tuple[int, Any]]


@pytest.fixture
def paramdelta(hub: LoopbackHub, tmp_path: Path) -> Paramdelta:
    """The command line in a process of its own, as the account ``me``; returns the exit code and the report."""

    def call(*arguments: str | Path, token: str | None = "hf_me", **extra: str) -> tuple[int, Any]:
        environment = hub.environment(tmp_path / "home", token, XDG_CACHE_HOME=str(tmp_path / "cache"), **extra)
        done = forked.paramdelta([*arguments, "--json"], env=environment)
        assert "Traceback" not in done.stderr, done.stderr
        assert "hf_me" not in done.stdout + done.stderr
        return done.returncode, check_report(str(arguments[0]), done.stdout, failed=done.returncode != 0)

    return call


def test_a_delta_goes_by_the_hub(hub: LoopbackHub, paramdelta: Paramdelta, family: Family, tmp_path: Path) -> None:
    code, published = paramdelta("publish", family.delta, "org/delta", "--message", "First")
    assert (code, published["uploaded"]) == (0, True), published
    assert hub.repositories["org/delta"].card["paramdelta"]["version"] == "1.0.0"
    assert paramdelta("publish", family.delta, "org/delta")[1]["uploaded"] is False
    code, found = paramdelta("versions", "org/delta")
    assert [(version["version"], version["revision"]) for version in found["versions"]] == [
        ("1.0.0", published["revision"])
    ]
    (hit,) = paramdelta("search", "--base", family.target)[1]["hits"]
    assert (hit["repo"], hit["judgement"]) == ("org/delta", "fits")
    code, pulled = paramdelta("pull", f"org/delta@{published['revision']}", "-o", tmp_path / "copy")
    assert (code, pulled["id"]) == (0, published["id"])
    code, applied = paramdelta("apply", family.base, "org/delta@1.0.0=1", "-o", tmp_path / "post", token=None)
    assert (code, applied["is_post"]) == (0, True)


def test_inspect_fetches_the_manifest_alone(hub: LoopbackHub, paramdelta: Paramdelta, family: Family) -> None:
    paramdelta("publish", family.delta, "org/delta")
    hub.requests.clear()
    code, report = paramdelta("inspect", "org/delta@1.0.0")
    assert (code, report["version"]) == (0, "1.0.0")
    assert not [path for _, path in hub.requests if ".safetensors" in path]


def test_words_of_the_published_card_survive(hub: LoopbackHub, paramdelta: Paramdelta, family: Family) -> None:
    paramdelta("publish", family.delta, "org/delta")
    card = (
        hub.repositories["org/delta"]
        .head.files["README.md"]
        .content.decode()
        .replace(END, f"{END}\n\nWritten on the Hub.")
    )
    hub.repositories["org/delta"].add({"README.md": card.encode()})
    package = another(family, "1.1.0")
    assert paramdelta("publish", package, "org/delta")[0] == 0
    published = hub.repositories["org/delta"].head.files["README.md"].content.decode()
    assert published.endswith(f"{END}\n\nWritten on the Hub.\n")
    assert published.count(END) == 1


def test_a_card_that_cannot_be_read_is_not_overwritten(
    hub: LoopbackHub, paramdelta: Paramdelta, family: Family
) -> None:
    paramdelta("publish", family.delta, "org/delta")
    before = dict(hub.repositories["org/delta"].head.files)
    hub.faults.append(Fault("status", r"README\.md", 403, times=9))
    code, told = paramdelta("publish", another(family, "1.1.0"), "org/delta")
    assert (code, told["error"]["kind"]) == (8, "registry")
    assert dict(hub.repositories["org/delta"].head.files) == before


def test_licenses_are_asked_of_the_sources(hub: LoopbackHub, paramdelta: Paramdelta, family: Family) -> None:
    for name, license_name in (("base", "gemma"), ("post", "mit")):
        (family.base.parent / name / "README.md").write_text(f"---\nlicense: {license_name}\n---\n# {name}\n")
        hub.add(f"org/{name}", family.base.parent / name)
    out = family.delta.with_name("from-hub")
    code, report = paramdelta("extract", "org/base", "org/post", "-o", out, "--publish", "me/delta", "--private")
    assert code == 0, report
    assert hub.repositories["me/delta"].private
    card = hub.repositories["me/delta"].head.files["README.md"].content.decode()
    assert "Inherited from post: mit." in card
    assert "base is under gemma, post under mit" in card
    assert hub.repositories["me/delta"].card["base_model"] == ["org/base"]
    (hit,) = paramdelta("search", "--base", "org/base")[1]["hits"]
    assert (hit["repo"], hit["judgement"]) == ("me/delta", "same base")
    assert paramdelta("search", "--base", "org/base", token="hf_you")[1]["hits"] == []
    assert paramdelta("pull", "me/delta", token="hf_you")[0] == 8
    # The card of post names the delta; by whom it was taken of, the manifest says.
    code, linked = paramdelta("link", "me/delta", "org/post", "--dry-run")
    assert (code, linked["changed"], linked["commit"]) == (0, True, None)
    assert "what post-training changed in this model" in linked["diff"]
    assert paramdelta("link", "me/delta", "org/post")[1]["commit"]
    assert paramdelta("link", "me/delta", "org/post")[1]["changed"] is False


def test_a_pull_request(hub: LoopbackHub, paramdelta: Paramdelta, family: Family) -> None:
    hub.add("org/delta", None)
    hub.repositories["org/delta"].add({".gitattributes": b""})
    code, told = paramdelta("publish", family.delta, "org/delta", "--create-pr", token="hf_you")
    assert (code, bool(told["pull_request"])) == (0, True), told


@pytest.mark.parametrize("verb", ["pull", "versions", "inspect"])
def test_what_the_hub_has_not(paramdelta: Paramdelta, verb: str) -> None:
    code, told = paramdelta(verb, "org/nothing")
    assert (code, told["error"]["kind"]) == (8, "registry")
    assert told["error"]["remedy"]


def test_offline_is_told(paramdelta: Paramdelta) -> None:
    for arguments in (["search"], ["pull", "org/delta"], ["versions", "org/delta"]):
        code, told = paramdelta(*arguments, HF_HUB_OFFLINE="1")
        assert code == 8, told
        assert "HF_HUB_OFFLINE" in json.dumps(told)
