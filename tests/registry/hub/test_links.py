"""Links: a delta named on its models' cards, by commit or by pull request, once."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from paramdelta_hub.errors import OptionError, SourceError
from paramdelta_hub.registry.hub.links import BEGIN, END, LINK_KEY, add_link, remove_link
from paramdelta_hub.registry.names import is_repo
from tests.registry.cards.test_front_matter import as_the_client_reads, cards, equal
from tests.registry.conftest import ALICE, Packages
from tests.registry.hub.test_registry import asked, fails, published
from tests.support.hub import Fault, LoopbackHub
from tests.support.hub.client import Client
from tests.support.hub.repositories import metadata
from tests.support.paramdelta import paramdelta

CARD = "---\n# by hand\nlicense: mit   # kept\ntags:\n- a\n---\n\n# A model\n\nText.\n"
NAMES = st.from_regex(r"[a-z][a-z0-9]{0,8}/[a-z][a-z0-9-]{0,8}[a-z0-9]", fullmatch=True).filter(is_repo)


def after(card: str, *deltas: str) -> str:
    for delta in deltas:
        card = add_link(card, "org/model", delta, "post").after
    return card


def test_a_section_and_a_key_are_all_that_changes() -> None:
    edit = add_link(CARD, "org/model", "org/delta", "base")
    removed = [line for line in edit.diff.splitlines()[2:] if line.startswith("-")]
    added = [line[1:] for line in edit.diff.splitlines()[2:] if line.startswith("+")]
    assert not removed
    assert added[:2] == [f"{LINK_KEY}:", "- org/delta"]
    assert added[3] == BEGIN
    assert added[-1] == END
    assert any("https://huggingface.co/org/delta" in line for line in added)
    assert metadata(edit.after) == {"license": "mit", "tags": ["a"], LINK_KEY: ["org/delta"]}
    assert edit.diff.startswith("--- org/model/README.md\n")


def test_several_deltas_share_a_section_in_order() -> None:
    card = after(CARD, "org/z", "org/a", "org/m", "org/a")
    assert metadata(card)[LINK_KEY] == ["org/a", "org/m", "org/z"]
    assert card.count(BEGIN) == card.count(END) == 1
    assert [card.index(f"- [org/{name}]") for name in "amz"] == sorted(card.index(f"- [org/{n}]") for n in "amz")
    assert after(CARD, "org/m", "org/z", "org/a") == card


def test_text_below_the_section_stays_below() -> None:
    card = after(CARD, "org/a") + "\nMore, by hand.\n"
    changed = after(card, "org/b")
    assert changed.endswith("\nMore, by hand.\n")
    assert changed.startswith("---\n# by hand\nlicense: mit   # kept\n")


@pytest.mark.parametrize("card", ["", "# No metadata\n", "---\n---\nEmpty.\n", "---\nlicense: mit\n---", "no newline"])
def test_cards_with_little_in_them(card: str) -> None:
    changed = after(card, "org/delta")
    assert metadata(changed)[LINK_KEY] == ["org/delta"]
    assert BEGIN in changed
    assert after(changed, "org/delta") == changed
    for line in card.splitlines():
        assert line in changed.splitlines()


@given(st.text(alphabet=st.characters(exclude_characters="-\r"), max_size=200), st.lists(NAMES, min_size=1, max_size=4))
def test_linking_again_changes_nothing_and_all_else_stays(text: str, deltas: list[str]) -> None:
    card = f"---\nlicense: mit\n---\n{text}"
    changed = after(card, *deltas)
    assert after(changed, *deltas) == changed
    assert add_link(changed, "org/model", deltas[0], "post").diff == ""
    assert yaml.safe_load(changed.split("---\n")[1])[LINK_KEY] == sorted(set(deltas))
    assert text in changed
    for delta in set(deltas):
        changed = remove_link(changed, "org/model", delta).after
    assert changed == card


@given(cards(), st.lists(NAMES, min_size=1, max_size=3, unique=True))
def test_any_card_is_as_it_was_when_the_links_are_removed(card: str, deltas: list[str]) -> None:
    try:
        before, text = as_the_client_reads(card)
    except yaml.YAMLError:
        return
    if not isinstance(before, dict):
        with pytest.raises(SourceError):
            after(card, *deltas)
        return
    changed = after(card, *deltas)
    data, below = as_the_client_reads(changed)
    assert data.pop(LINK_KEY) == sorted(deltas)
    assert equal(data, before)
    assert text in below
    for delta in deltas:
        changed = remove_link(changed, "org/model", delta).after
    assert changed == card


def test_line_ends_stay_what_they_are() -> None:
    changed = after(CARD.replace("\n", "\r\n"), "org/delta")
    assert changed.replace("\r\n", "").count("\n") == 0
    assert changed.replace("\r\n", "\n") == after(CARD, "org/delta")


@pytest.mark.parametrize(
    ("card", "words"),
    [
        (f"{BEGIN}\n", "markers"),
        (f"{END}\n{BEGIN}\n", "markers"),
        (f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n", "markers"),
        ("---\nlicense: mit\n", "no end"),
        (f"---\n{LINK_KEY}: {{a: b}}\n---\n", "plain list"),
    ],
)
def test_cards_that_can_not_be_written_into_are_left_alone(card: str, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        add_link(card, "org/model", "org/delta", "post")


def test_what_somebody_wrote_into_our_section_stays() -> None:
    card = after(CARD, "org/m").replace("\n\n- [org/m]", "\n\nWe like these:\n\n- [org/m]")
    changed = after(card, "org/a")
    assert "\n\nWe like these:\n\n- [org/a]" in changed
    for delta in ("org/a", "org/m"):
        changed = remove_link(changed, "org/model", delta).after
    assert "We like these:" in changed
    assert "org/a" not in changed
    assert LINK_KEY not in changed


@pytest.mark.parametrize("start", ["\n", "\ufeff", "\n \n", "\ufeff\r\n"])
def test_a_card_that_does_not_begin_with_its_metadata_keeps_it(start: str) -> None:
    card = start + "---\nlicense: llama3\nextra_gated_prompt: Read this\n---\n# M\n"
    changed = after(card, "org/delta")
    assert changed.startswith(start + "---\nlicense: llama3\n")
    assert metadata(changed)["license"] == "llama3"
    assert metadata(changed)[LINK_KEY] == ["org/delta"]


def test_names_that_make_no_sense() -> None:
    for delta in ("org/model", "delta", "org/a](javascript:x)", "org/a\n- b"):
        with pytest.raises(OptionError):
            add_link(CARD, "org/model", delta, "post")


# On the Hub.


@pytest.fixture
def delta(hub: LoopbackHub, repo: str, packages: Packages) -> str:
    hub.add(f"{repo}-delta", packages.v1)
    return f"{repo}-delta"


def test_ones_own_card_is_changed_directly_and_once(hub: LoopbackHub, client: Client, repo: str, delta: str) -> None:
    made = hub.add(repo)
    made.add({"README.md": CARD.encode(), "config.json": b"{}"})
    shown = client("link", repo=repo, delta=delta, role="post", dry_run=True)
    assert not asked(hub, "POST", "")
    assert f"]({hub.endpoint}/{delta})" in shown["diff"], "of the Hub in use"
    done = client("link", repo=repo, delta=delta, role="post")
    assert done["diff"] == shown["diff"]
    assert done["commit"] == made.head.id
    published = made.head.files["README.md"].content.decode()
    assert published.replace(hub.endpoint, "https://huggingface.co") == after(CARD, delta)
    assert made.head.files["config.json"].content == b"{}"
    again = client("link", repo=repo, delta=delta, role="post")
    assert (again["diff"], again["commit"], again["pull_request"]) == ("", None, None)
    del hub.repositories[delta]
    shown = client("link", repo=repo, delta=delta, remove=True, dry_run=True)
    assert made.head.files["README.md"].content.decode() == published
    done = client("link", repo=repo, delta=delta, remove=True)
    assert (done["diff"], done["commit"]) == (shown["diff"], made.head.id)
    assert made.head.files["README.md"].content == CARD.encode()
    again = client("link", repo=repo, delta=delta, remove=True)
    assert (again["diff"], again["commit"]) == ("", None)


def test_somebody_elses_card_gets_one_pull_request(hub: LoopbackHub, client: Client, repo: str, delta: str) -> None:
    theirs = hub.add(f"them/{repo.split('/')[1]}")
    theirs.add({"README.md": CARD.encode()})
    for _ in range(2):
        done = client("link", repo=theirs.name, delta=delta, role="base")
        assert done["pull_request"] == f"{hub.endpoint}/{theirs.name}/discussions/1"
        assert done["commit"] is None
    assert len(theirs.proposals) == 1
    assert theirs.head.files["README.md"].content.decode() == CARD
    theirs.merge(1)
    assert client("link", repo=theirs.name, delta=delta, role="base")["diff"] == ""
    assert client("link", repo=theirs.name, delta=delta, remove=True)["pull_request"].endswith("/discussions/2")
    theirs.merge(2)
    assert theirs.head.files["README.md"].content.decode() == CARD


def test_a_pull_request_can_be_asked_for_or_refused(
    hub: LoopbackHub, client: Client, bob: Client, repo: str, delta: str
) -> None:
    made = hub.add(repo)
    made.add({"README.md": CARD.encode()})
    assert client("link", repo=repo, delta=delta, role="result", create_pr=True)["pull_request"]
    assert made.head.files["README.md"].content == CARD.encode()
    fails("registry", "403", lambda: bob("link", repo=repo, delta=delta, role="result", create_pr=False))


def test_a_card_that_changes_meanwhile_is_read_again(hub: LoopbackHub, client: Client, repo: str, delta: str) -> None:
    made = hub.add(repo)
    made.add({"README.md": CARD.encode()})
    act = lambda: made.add({"README.md": b"# Theirs\n"})  # noqa: E731
    hub.faults = [Fault("intrude", "POST .*/commit/", act=act)]
    client("link", repo=repo, delta=delta, role="post")
    assert "# Theirs" in made.head.files["README.md"].content.decode()
    assert delta in made.head.files["README.md"].content.decode()


def test_what_is_not_there_can_not_be_linked(hub: LoopbackHub, client: Client, repo: str, delta: str) -> None:
    hub.add(repo).add({"README.md": CARD.encode()})
    fails("registry", "no such repository", lambda: client("link", repo=repo, delta="org/absent", role="post"))
    fails("registry", "no such repository", lambda: client("link", repo="org/absent", delta=delta, role="post"))
    hub.repositories[repo].add({"README.md": b"\xff\xfe"})
    fails("source", "UTF-8", lambda: client("link", repo=repo, delta=delta, role="post"))


def test_addresses_as_people_paste_them_can_be_linked(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages
) -> None:
    delta = published(hub, f"{repo}-delta", packages.v1).name
    model = hub.add(repo)
    for address in (f"https://huggingface.co/{repo}", f"{hub.endpoint}/{repo}/tree/main", f"hf://{repo}"):
        model.add({"README.md": CARD.encode()})
        for option in ([], ["--remove"]):
            code, _, said = client("command", arguments=["link", f"{hub.endpoint}/{delta}", address, *option])
            assert code == 0, said
            assert (delta in model.head.files["README.md"].content.decode()) == (not option)
    code, _, said = client("command", arguments=["link", delta, f"{hub.endpoint}/{repo}/tree/draft"])
    assert (code, f"write {repo}" in said) == (2, True)


@pytest.mark.parametrize("role", ["base", None])
def test_what_is_no_delta_can_not_be_linked(
    hub: LoopbackHub, client: Client, repo: str, delta: str, role: str | None
) -> None:
    made = hub.add(repo)
    made.add({"README.md": CARD.encode(), "config.json": b"{}"})
    hub.add(f"{repo}-model").add({"README.md": CARD.encode(), "config.json": b"{}"})
    hub.add(f"{repo}-app").add({"manifest.json": b'{"name": "a web app"}'})
    for other in ("model", "app"):
        fails(
            "registry", "not a delta", lambda other=other: client("link", repo=repo, delta=f"{repo}-{other}", role=role)
        )  # type: ignore[misc]
    fails("registry", "pd-link DELTA MODEL", lambda: client("link", repo=delta, delta=repo, role=role))
    hub.repositories[delta].add({"README.md": b"# A delta\n"})
    fails("registry", "a delta itself", lambda: client("link", repo=delta, delta=second(hub, delta), role=role))
    assert made.head.files["README.md"].content == CARD.encode()
    assert not asked(hub, "POST", "")


def second(hub: LoopbackHub, delta: str) -> str:
    """Put the same delta on the Hub under another name."""
    hub.add(f"{delta}-2").commit("main", hub.repositories[delta].head.files, "copy")
    return f"{delta}-2"


def test_a_model_without_a_card_is_told(hub: LoopbackHub, client: Client, repo: str, delta: str) -> None:
    made = hub.add(repo)
    fails("registry", f"→ create a README.md first, on {hub.endpoint}/{repo}",
          lambda: client("link", repo=repo, delta=delta))  # fmt: skip
    assert "README.md" not in made.head.files


STRANGE = (
    "\ufeff\r\n---\r\n# by hand\r\nlicense: llama3.1   # kept\r\nextra_gated_prompt: |-\r\n  Read this.\r\n"
    "base_model: [ org/a,org/b ]\r\nmodel-index:\r\n- name: m\r\n  results: []\r\n---  \r\n\r\n# Model\r\nmixed\nends"
)


def test_the_command_shows_the_difference_before_it_commits(
    hub: LoopbackHub, repo: str, delta: str, tmp_path: Path
) -> None:
    made = hub.add(repo)
    made.add({"README.md": STRANGE.encode()})

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        done = paramdelta(["link", delta, repo, *arguments], env=hub.environment(tmp_path / "home", ALICE))
        assert done.returncode == 0, done.stderr
        return done

    shown = run("--dry-run").stdout.partition("\n\nnothing was changed")[0]
    assert f"+{LINK_KEY}:" in shown
    assert not asked(hub, "POST", "")
    done = run()
    assert done.stderr.splitlines() == shown.splitlines()
    assert done.stdout == f"{repo} links to {delta}: {made.head.id}\n"
    changed = made.head.files["README.md"].content.decode()
    kept = [line for line in changed.splitlines(keepends=True) if line in STRANGE.splitlines(keepends=True)]
    assert "".join(kept).startswith(STRANGE.removesuffix("ends"))
    assert run("--remove").stdout == f"{repo} no longer links to {delta}: {made.head.id}\n"
    assert made.head.files["README.md"].content == STRANGE.encode()
    assert run("--remove").stdout == f"{repo} does not link to {delta}; nothing was changed\n"
