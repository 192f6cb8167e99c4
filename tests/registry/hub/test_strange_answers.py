"""Answers that no Hub gives: of other types, from other servers, without end, or with times that make no sense."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Family
from tests.registry.conftest import Packages
from tests.registry.hub.test_registry import fails, holds, published
from tests.registry.test_unreachable import words
from tests.support.hub import Fault, LoopbackHub
from tests.support.hub.client import Client
from tests.support.paramdelta import paramdelta

COMMIT = "0" * 40
INFO, REFS, LIST = "GET /api/models/[^/]+/[^/]+(/revision/.*)?\\?", "GET .*/refs", "GET /api/models\\?"
ODD = {
    INFO: [
        [],
        None,
        "x",
        {"id": "org/x"},
        {"id": None, "sha": COMMIT, "siblings": None},
        {"id": "org/x", "sha": 5},
        {"id": "org/x", "sha": COMMIT, "siblings": [{"rfilename": 3}]},
        {"id": "org/x", "sha": COMMIT, "siblings": [{"rfilename": "manifest.json", "size": "9", "blobId": 7}]},
    ],
    REFS: [
        [],
        {},
        {"branches": [], "converts": [], "tags": [{"name": "1.0.0"}]},
        {"branches": [], "converts": [], "tags": [{"name": "1.0.0", "ref": "r", "targetCommit": None}]},
        {"branches": [], "converts": [], "tags": [{"name": "1.0.0", "ref": "r", "targetCommit": "../x"}]},
    ],
    LIST: [
        {},
        [[]],
        [{"id": None}],
        [{"id": "org/x", "createdAt": 5}],
        [{"id": "../x", "tags": ["paramdelta"]}],
        [{"id": "org/x", "siblings": [{"rfilename": 3}], "tags": [1], "cardData": [2], "sha": 3}],
    ],
}
"""Answers in JSON that are not those of a Hub, by the request."""
COMMANDS = {
    INFO: ["pull DELTA", "publish PACKAGE DELTA --dry-run", "link DELTA MODEL --dry-run", "search --base MODEL"],
    REFS: ["pull DELTA", "versions DELTA", "publish PACKAGE DELTA", "yank DELTA 1.0.0 --reason wrong"],
    LIST: ["search", "search --base TARGET", "catalog -o OUT"],
}


@pytest.fixture(autouse=True)
def no_faults(hub: LoopbackHub) -> Iterator[None]:
    yield
    hub.faults = []


@pytest.mark.parametrize(("request_", "line"), [(at, line) for at, lines in COMMANDS.items() for line in lines])
def test_answers_of_other_types_end_in_one_of_our_errors(
    hub: LoopbackHub,
    client: Client,
    shared_family: Family,
    packages: Packages,
    repo: str,
    tmp_path: Path,
    request_: str,
    line: str,
) -> None:
    published(hub, repo, packages.v1)
    hub.add(f"{repo}-model", shared_family.base).add({"README.md": b"# Hi"})
    names = {"DELTA": repo, "MODEL": f"{repo}-model", "PACKAGE": packages.v2, "TARGET": shared_family.target}
    for number, odd in enumerate(ODD[request_]):
        hub.faults = [Fault("say", request_, text=json.dumps(odd), times=99)]
        out = tmp_path / f"out{number}"
        code, _, said = client("command", arguments=words(line, OUT=out, **names))  # which checks that it is no bug
        may_succeed = request_ == LIST or line.startswith("publish PACKAGE DELTA --dry")
        assert code in ((0, 3, 8) if may_succeed else (3, 8)), (odd, said)
        assert code == 0 or "→" in said
    assert hub.repositories[repo].tags.keys() == {"1.0.0"}


def test_an_answer_that_can_not_be_read_is_no_failing_connection(hub: LoopbackHub, client: Client, repo: str) -> None:
    hub.faults = [Fault("say", REFS, text="{}")]
    host = hub.endpoint.removeprefix("http://")
    fails("registry", f"the answer of {host} is not a Hub's", lambda: client("versions", repo=repo))


@pytest.mark.parametrize("request_", [REFS, INFO, "GET .*/resolve/"])
def test_another_server_to_which_one_is_sent_on_gets_no_token(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages, request_: str
) -> None:
    other = LoopbackHub()  # which knows no token, and refuses all
    for place in (hub, other):
        published(place, repo, packages.v1)
    with other.running():
        hub.faults = [Fault("send on", request_, text=other.endpoint.replace("127.0.0.1", "localhost"), times=99)]
        holds(Path(client("pull", repo=repo)["path"]), packages.v1)
    assert other.requests


def test_a_server_that_sends_one_on_without_end(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages, tmp_path: Path
) -> None:
    published(hub, repo, packages.v1)
    for request_ in (REFS, INFO, "(GET|HEAD) .*/resolve/"):
        hub.faults, hub.requests = [Fault("send on", request_, times=999)], []
        fails("registry", hub.endpoint.removeprefix("http://"), lambda: client("pull", repo=repo))
        assert len(hub.requests) < 30


NOW, LATER, LONG_AGO = (f"Sat, 28 Nov 2099 {at} GMT" for at in ("07:00:00", "08:00:00", "06:00:00"))


@pytest.mark.parametrize("date", [NOW, "Thu, 01 Jan 1970 00:00:00 GMT", "yesterday"])
@pytest.mark.parametrize(
    ("after", "tries", "told"),
    [
        (LATER, 1, {NOW: "a wait of 3600 s"}),
        (LONG_AGO, 5, {NOW: ""}),
        ("99999999999999999999999", 1, {NOW: "a wait of 31536000 s"}),
        ("9" * 5000, 1, {NOW: "a wait of 31536000 s"}),
        ("-5", 5, {}),
        ("0", 5, {}),
        ("1.5", 5, {}),
        ("\u00b2", 5, {}),
        ("soon", 5, {}),
        ("", 5, {}),
    ],
)
def test_the_time_that_a_server_asks_for_is_read_by_its_own_clock(
    hub: LoopbackHub, client: Client, repo: str, date: str, after: str, tries: int, told: dict[str, str]
) -> None:
    hub.date = date
    hub.faults = [Fault("status", REFS, 429, after=after, times=99)]
    fails("registry", told.get(date, "too many requests"), lambda: client("versions", repo=repo))
    if date == NOW or not after.endswith("GMT"):
        assert len(hub.requests) == tries


@pytest.mark.parametrize(
    "address", ["huggingface.co", "", "http://", "http://127.0.0.1:99999", "http://[::1", "ftp://x"]
)
def test_an_address_of_the_hub_that_is_none_is_named_with_its_variable(
    hub: LoopbackHub, packages: Packages, repo: str, tmp_path: Path, address: str
) -> None:
    environment = hub.environment(tmp_path / "hf", HF_ENDPOINT=address)
    for line in (
        ["versions", repo],
        ["pull", repo],
        ["pull", "https://huggingface.co/org/x"],
        ["search"],
        ["publish", packages.v1, repo],
        ["link", repo, "org/model"],
        ["apply", "org/model", packages.v1, "-o", tmp_path / "out", "--stream"],
    ):
        done = paramdelta(line, env=environment)
        assert (done.returncode, "HF_ENDPOINT is " in done.stderr) == (2, True), done.stderr
