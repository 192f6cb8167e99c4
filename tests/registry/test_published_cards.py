"""Cards of deltas on a Hub: what their authors wrote survives, whoever uploaded them; and they are found by words."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

import paramdelta_hub as pd
from paramdelta_hub.registry.cards.generated import without_generated
from tests.registry.conftest import ALICE, Packages
from tests.registry.packages import labelled
from tests.support.hub import Fault, LoopbackHub
from tests.support.hub.client import Client
from tests.support.hub.repositories import metadata
from tests.support.paramdelta import paramdelta

Run = Callable[..., subprocess.CompletedProcess[str]]
NUMBERS = itertools.count()
UPLOAD = """
import sys
from huggingface_hub import HfApi
folder, repo, tag = sys.argv[1:]
HfApi().create_repo(repo)
HfApi().upload_folder(folder_path=folder, repo_id=repo)
if tag:
    HfApi().create_tag(repo, tag=tag)
"""
AUTHORS = """\ufeff
---
# by hand
license: llama3.1    # as Meta has it
license_link: 'LICENSE'
extra_gated_prompt: >-
  Read this
  first.
extra_gated_fields: { Company: text,Country: country }
tags: [ chemistry,text-generation-inference ]
model-index:
- name: m
  results:
    - task: {type: text-generation}
      metrics: [{type: acc, value: .nan}]
---

# Our delta

Trained on a ship.
"""


@pytest.fixture
def environment(hub: LoopbackHub, tmp_path: Path) -> dict[str, str]:
    """That of Alice, on the loopback Hub."""
    return hub.environment(tmp_path / "home", ALICE)


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    """Run a command, as Alice."""

    def call(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = paramdelta(arguments, env=environment)
        assert done.returncode == code, (done.stdout, done.stderr)
        return done

    return call


def card_of(hub: LoopbackHub, repo: str) -> str:
    return hub.repositories[repo].head.files["README.md"].content.decode()


def survives(card: str, end: str = "\n") -> None:
    """Check that a card still has every line of :data:`AUTHORS`, in order; tags are added within their line."""
    theirs = AUTHORS.removeprefix("\ufeff").replace("\n", end).splitlines(keepends=True)
    lines = card.removeprefix("\ufeff").splitlines(keepends=True)
    kept = [line for line in theirs if "tags:" not in line]
    assert [line for line in lines if line in kept and line.strip()] == [line for line in kept if line.strip()]
    assert any(line.endswith("chemistry,text-generation-inference ]" + end) for line in lines)
    assert card.startswith("\ufeff")


@pytest.mark.parametrize("tag", ["", "1.0.0"])
@pytest.mark.parametrize("card", [None, AUTHORS])
def test_a_delta_that_was_uploaded_by_other_means_gets_its_card_and_its_tag(
    hub: LoopbackHub,
    run: Run,
    environment: dict[str, str],
    client: Client,
    repo: str,
    packages: Packages,
    tmp_path: Path,
    card: str | None,
    tag: str,
) -> None:
    package = labelled(packages.v1, tmp_path / "package", "1.0.0", name="Nautical delta")
    if card:
        (package / "README.md").write_bytes(card.encode())
    subprocess.run([sys.executable, "-c", UPLOAD, package, repo, tag], env=environment, timeout=120, check=True)
    before = dict(hub.repositories[repo].tags)
    assert not [hit for hit in client("find", query="nautical") if hit["repo"] == repo]
    run("publish", package, repo)
    made = hub.repositories[repo]
    assert made.tags.keys() == {"1.0.0"}
    assert made.tags["1.0.0"] == before.get("1.0.0", made.head.id), "a tag never moves"
    published = card_of(hub, repo)
    assert metadata(published)["paramdelta"]["version"] == "1.0.0"
    if card:
        survives(published)
        assert metadata(published)["license"] == "llama3.1"
    assert [hit["version"] for hit in client("find", query="nautical") if hit["repo"] == repo] == ["1.0.0"]
    assert client("pull", repo=repo, folder=tmp_path / "copy")["version"] == "1.0.0"
    hub.requests.clear()
    run("publish", package, repo)
    assert not [path for method, path in hub.requests if method == "POST"], "nothing is left to do"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_is_written_on_the_hub_survives_the_next_version(
    hub: LoopbackHub, run: Run, repo: str, packages: Packages, end: str
) -> None:
    run("publish", packages.v1, repo)
    generated = card_of(hub, repo).partition("---\n\n")[2] or card_of(hub, repo)
    begin = generated.index("<!-- delta:begin")
    theirs = AUTHORS + "\n" + generated[begin:] + "\n## Benchmarks\n\nBy hand.\n"
    hub.repositories[repo].add({"README.md": theirs.replace("\n", end).encode()})
    done = run("publish", packages.v2, repo)
    published = card_of(hub, repo)
    survives(published, end)
    assert published.endswith(f"{end}## Benchmarks{end}{end}By hand.{end}")
    assert metadata(published)["paramdelta"]["version"] == "1.10.0"
    assert published.count("<!-- delta:begin") == 1
    assert "1.0.0" not in published.partition("<!-- delta:begin")[2].partition("<!-- delta:end")[0]
    assert "+library_name: paramdelta-hub" in done.stderr, "the difference is told"
    assert f"{hub.endpoint}/{repo}" in done.stderr


@pytest.mark.parametrize("moment", ["GET .*/refs", "POST .*/preupload/", "POST .*/commit/main"])
@pytest.mark.parametrize("before", [AUTHORS, None])
def test_what_is_written_on_the_web_during_a_publication_survives_it(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages, moment: str, before: str | None
) -> None:
    made = hub.add(repo)
    if before is not None:
        made.add({"README.md": before.encode()})
        client("publish_anew", delta=packages.v1, repo=repo)

    def write() -> None:
        card = made.head.files["README.md"].content.decode() if "README.md" in made.head.files else ""
        made.add({"README.md": f"{card}\nWritten on the web.\n".encode()})

    hub.faults = [Fault("intrude", moment, times=2, act=write)]
    done = client("publish_anew", delta=packages.v2, repo=repo)
    assert (done["uploaded"], hub.faults[0].times) == (True, 0)
    card = made.head.files["README.md"].content.decode()
    assert card.count("Written on the web.\n") == 2
    assert "# post-delta 1.10.0" in card
    assert made.tags["1.10.0"] == made.head.id


def test_a_card_that_can_not_be_read_is_named_by_its_place(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages, tmp_path: Path
) -> None:
    package = labelled(packages.v1, tmp_path / "package")
    (package / "README.md").write_text("---\ntags: [\n---\n")
    for published_card in (None, b"# Hi\n"):
        if published_card:
            hub.add(repo).add({"README.md": published_card})
        code, _, said = client("command", arguments=["publish", str(package), repo])
        assert (code, str(package / "README.md") in said) == (3, True), said
    hub.repositories[repo].add({"README.md": (package / "README.md").read_bytes()})
    code, _, said = client("command", arguments=["publish", str(packages.v1), repo])
    assert (code, f"{repo}/README.md" in said) == (3, True), said


def test_edits_of_the_generated_part_are_replaced_only_on_demand(
    hub: LoopbackHub, run: Run, repo: str, packages: Packages
) -> None:
    run("publish", packages.v1, repo)
    edited = card_of(hub, repo).replace("It is not a model by itself.", "It is the best.")
    head = hub.repositories[repo].add({"README.md": edited.encode()})
    done = run("publish", packages.v2, repo, code=2)
    assert "--replace-edits" in done.stderr
    assert hub.repositories[repo].head is head
    run("publish", packages.v2, repo, "--replace-edits")
    assert "It is the best." not in card_of(hub, repo)


def test_the_folders_card_and_the_published_one_are_joined(
    hub: LoopbackHub, run: Run, repo: str, packages: Packages, tmp_path: Path
) -> None:
    run("publish", packages.v1, repo)
    gated = card_of(hub, repo).replace("---\n", "---\nextra_gated_prompt: 'Read this'  # legal\n", 1)
    hub.repositories[repo].add({"README.md": gated.encode()})
    package = labelled(packages.v1, tmp_path / "package", "1.1.0")
    (package / "README.md").write_text("---\nlanguage:\n  - de   # only\ntags: [ships]\n---\n# Mine\n")
    run("publish", package, repo)
    published = card_of(hub, repo)
    assert published.startswith("---\nextra_gated_prompt: 'Read this'  # legal\n")
    assert "\nlanguage:\n  - de   # only\n" in published
    assert "ships" in metadata(published)["tags"]
    assert "\n# Mine\n" in published
    package = labelled(packages.v1, tmp_path / "other", "1.2.0")
    (package / "README.md").write_text("---\nlanguage: en\n---\n# Another\n")
    done = run("publish", package, repo, code=2)
    assert "different language and text" in done.stderr
    assert "--replace-edits" in done.stderr
    run("publish", package, repo, "--replace-edits")
    published = card_of(hub, repo)
    assert metadata(published)["language"] == "en"
    assert "# Another" in published
    assert "# Mine" not in published
    assert metadata(published)["extra_gated_prompt"] == "Read this"


EDITS: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda card: card,
    "text above and below": lambda card: (
        card.replace(b"<!-- delta:begin", b"# Mine\n\n<!-- delta:begin") + b"\nMine.\n"
    ),
    "text in the generated part": lambda card: card.replace(b"It is not a model", b"It is the best, not a model"),
    "the generated part's heading": lambda card: card.replace(b"## Use\n", b"## Use it\n\nCarefully.\n"),
    "markers deleted": lambda card: re.sub(rb"<!-- delta:[^>]*-->\n?", b"", card),
    "one marker deleted": lambda card: card.replace(b"<!-- delta:end -->", b""),
    "line ends": lambda card: card.replace(b"\n", b"\r\n"),
    "a byte order mark": lambda card: b"\xef\xbb\xbf" + card,
    "no UTF-8": lambda card: card + b"\xe9t\xe9\n",
    "metadata": lambda card: card.replace(
        b"---\n", b"---\n# legal\nextra_gated_prompt: 'Read this'\nlicense: mit\n", 1
    ),
    "tags as a map": lambda card: re.sub(rb"tags:\n(- .*\n)+", b"tags: {mine: yes}\n", card),
    "broken metadata": lambda card: card.replace(b"---\n", b"---\na: [\n", 1),
    "a block without an end": lambda card: re.sub(rb"\n---\n", b"\n", card, count=1),
    "another library": lambda card: card.replace(b"library_name: paramdelta-hub", b"library_name: peft  # ours"),
    "a second base": lambda card: card.replace(b"---\n", b"---\nbase_model: [org/other,org/base]\n", 1),
}
"""What a person does to the card on the Hub."""


@pytest.mark.parametrize("edit", EDITS)
def test_a_withdrawal_takes_nothing_of_what_a_person_wrote(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages, edit: str
) -> None:
    for package in (packages.v1, packages.v2):
        client("publish_anew", delta=package, repo=repo)
    made = hub.repositories[repo]
    generated = made.head.files["README.md"].content
    edited = EDITS[edit](generated)
    assert edited != generated or edit == "nothing"
    made.add({"README.md": edited})
    client("yank", delta=repo, version="1.10.0", reason="wrong tokenizer")
    assert made.head.files["manifest.json"].content == (packages.v1 / "manifest.json").read_bytes()
    old = set(generated.replace(b"\r", b"").splitlines())
    theirs = [line for line in edited.replace(b"\r", b"").splitlines() if line not in old]
    between = made.head.files["README.md"].content.replace(b"\r", b"").splitlines()
    assert [line for line in theirs if line not in between] == []
    with suppress(UnicodeDecodeError, ValueError):
        facts = metadata(between and made.head.files["README.md"].content.decode()).get("paramdelta")
        assert facts is None or facts["version"] == "1.0.0"
    client("yank", delta=repo, version="1.10.0", undo=True)
    after = made.head.files["README.md"].content
    if edit == "metadata":  # the generated part says what license the card states
        after, edited = (without_generated(card.decode(), "").encode() for card in (after, edited))
    assert after == edited, "to the byte"
    client("yank", delta=repo, version="1.10.0", reason="wrong tokenizer")
    client("yank", delta=repo, version="1.0.0", reason="that one too")
    after = made.head.files["README.md"].content
    client("yank", delta=repo, version="1.0.0", undo=True)
    assert made.head.files["README.md"].content == after


@pytest.mark.parametrize("kind", ["hub", "folder", "bucket"])
def test_the_words_on_a_withdrawn_version_go_on_to_the_next(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages, tmp_path: Path, endpoint: str, kind: str
) -> None:
    root = {"hub": None, "folder": str(tmp_path / "registry"), "bucket": f"s3://deltas/words-{next(NUMBERS)}"}[kind]
    package = labelled(packages.v1, tmp_path / "package", "1.0.0")
    (package / "README.md").write_text("# Words of mine\n")
    if root is None:
        client("publish_anew", delta=package, repo=repo)
        client("yank", delta=repo, version="1.0.0", reason="wrong")
        client("publish_anew", delta=packages.v2, repo=repo)
        card = card_of(hub, repo)
    else:
        pd.publish(package, repo, registry=root)
        pd.yank(repo, "1.0.0", reason="wrong", registry=root)
        pd.publish(packages.v2, repo, registry=root)
        card = (pd.pull(repo, tmp_path / "copy", registry=root).path / "README.md").read_text()
    assert "# Words of mine" in card
    assert "1.10.0" in card


@pytest.fixture(params=["hub", "folder", "bucket"])
def find(
    request: pytest.FixtureRequest, hub: LoopbackHub, run: Run, client: Client, endpoint: str, tmp_path: Path,
    packages: Packages, monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str], set[str]]:  # fmt: skip
    """Search a registry of each kind that has the same three deltas."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.repositories.clear()
    root = {"folder": str(tmp_path / "registry"), "bucket": f"s3://deltas/words-{next(NUMBERS)}"}.get(request.param)
    for number, (name, tags) in enumerate(
        {"Ships at Sea": "[Nautical, b2]", "Größere Zahlen": "[math]", "Chat": "chemistry"}.items()
    ):
        package = labelled(packages.v1, tmp_path / f"package-{number}", "1.0.0", name=name)
        (package / "README.md").write_text(f"---\ntags: {tags}\n---\n# Words of the text\n")
        if root is None:
            run("publish", package, f"org/delta-{number}")
        else:
            pd.publish(package, f"org/delta-{number}", registry=root)

    def search(query: str) -> set[str]:
        hits = client("find", query=query) if root is None else [vars(hit) for hit in pd.search(query, registry=root)]
        return {hit["repo"].removeprefix("org/delta-") for hit in hits}

    return search


def test_the_same_words_find_the_same_deltas_in_every_registry(find: Callable[[str], set[str]]) -> None:
    for query, found in {
        "": "012",
        "ORG/delta-1": "1",
        "sea ships": "0",
        "SHIP": "0",
        "GRÖSSERE": "1",
        "gro\u0308ßere zahlen": "1",
        "nautical": "0",
        "delta nautical b2": "0",
        "chemistry": "2",
        "post": "012",
        "base math": "1",
        "sea math": "",
        "words of the text": "",
        "poetry": "",
    }.items():
        assert find(query) == set(found), query
