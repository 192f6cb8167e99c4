"""Servers that are slow, silent or busy: every request ends, is repeated if that does no harm, and tells no secrets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Family
from tests.registry.conftest import Packages
from tests.registry.hub.test_registry import fails, holds, published
from tests.registry.packages import labelled
from tests.support.hub import Fault, LoopbackHub
from tests.support.hub.client import CallError, Client

REQUESTS = {
    "refs": "GET .*/refs",
    "info": "GET /api/models/[^/]+/[^/]+(/revision/.*)?\\?",
    "HEAD": "HEAD ",
    "GET": "GET .*/resolve/",
    "create": "POST /api/repos/create",
    "yaml": "POST /api/validate-yaml",
    "preupload": "POST .*/preupload/",
    "batch": "POST .*/objects/batch",
    "upload": "PUT /lfs/",
    "verify": "POST .*/lfs/verify",
    "commit": "POST .*/commit/",
    "tag": "POST .*/tag/",
    "list": "GET /api/models\\?",
}
"""Every kind of request of a publication, a pull and a search."""


@pytest.fixture(scope="module")
def hurried(new_client: Callable[..., Client]) -> Client:
    """A client that gives up early."""
    client = new_client()
    client(
        "limit", SILENT_SECONDS=0.3, SILENT_NOTE_SECONDS=0.1, COMMIT_SECONDS=0.5, SLOW_SECONDS=0.3, SLOW_BYTES=10_000
    )
    return client


@pytest.fixture(autouse=True)
def no_faults(hub: LoopbackHub) -> Iterator[None]:
    yield
    hub.faults = []


def publish_and_pull(client: Client, repo: str, package: Path) -> dict[str, Any]:
    client("publish", package=package, repo=repo, version="1.0.0")
    client("search")
    done: dict[str, Any] = client("pull", repo=repo)
    return done


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("request_", REQUESTS)
def test_one_refusal_of_any_request_is_survived(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages, tmp_path: Path, request_: str, status: int
) -> None:
    hub._stored = {}
    package = labelled(packages.v1, tmp_path / "package")
    (package / "README.md").write_text("---\ntags: [paramdelta]\n---\n")
    hub.faults = [Fault("status", REQUESTS[request_], status, after=7)]
    holds(Path(publish_and_pull(client, repo, package)["path"]), package)
    assert not hub.faults[0].times, "it was never asked"
    assert len(hub.repositories[repo].commits) == 2


@pytest.mark.parametrize("request_", ["refs", "info", "HEAD", "GET", "batch", "list"])
def test_a_connection_that_breaks_is_made_again_where_nothing_can_happen_twice(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages, request_: str
) -> None:
    hub._stored = {}
    hub.faults = [Fault("drop", REQUESTS[request_], times=2)]
    holds(Path(publish_and_pull(client, repo, packages.v1)["path"]), packages.v1)


@pytest.mark.parametrize("request_", ["refs", "info", "list"])
@pytest.mark.parametrize("fault", ["cut", "stall"])
def test_an_answer_that_breaks_off_is_asked_for_again(
    hub: LoopbackHub, hurried: Client, repo: str, packages: Packages, request_: str, fault: Any
) -> None:
    hub.faults = [Fault(fault, REQUESTS[request_], 10)]
    holds(Path(publish_and_pull(hurried, repo, packages.v1)["path"]), packages.v1)
    assert not hub.faults[0].times, "it was never asked"


def test_a_wait_that_is_too_long_is_told_and_not_made(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages
) -> None:
    published(hub, repo, packages.v1)
    hub.faults = [Fault("status", "GET", 429, times=99, after=3600, text="You have hit the rate limit")]
    fails("registry", "a wait of 3600 s", lambda: client("versions", repo=repo))
    assert len(hub.requests) == 1
    fails("registry", "You have hit the rate limit", lambda: client("versions", repo=repo))


@pytest.mark.parametrize("request_", ["refs", "info", "HEAD", "GET"])
def test_a_server_that_never_answers_is_named(
    hub: LoopbackHub, hurried: Client, repo: str, packages: Packages, request_: str
) -> None:
    published(hub, repo, packages.v1)
    hub.faults = [Fault("mute", REQUESTS[request_], times=99)]
    host = hub.endpoint.removeprefix("http://")
    fails("registry", f"{host} does not answer", lambda: hurried("pull", repo=repo))
    assert 99 - hub.faults[0].times == 2  # and the client does not begin anew
    hub.faults = [Fault("mute", REQUESTS[request_])]
    holds(Path(hurried("pull", repo=repo)["path"]), packages.v1)


@pytest.mark.parametrize("request_", ["commit", "tag", "upload", "create"])
def test_a_publication_does_not_wait_without_end(
    hub: LoopbackHub, hurried: Client, repo: str, packages: Packages, request_: str
) -> None:
    hub._stored = {}
    hub.faults = [Fault("mute", REQUESTS[request_], times=99)]
    fails("registry", "does not answer", lambda: hurried("publish", package=packages.v1, repo=repo, version="1.0.0"))
    assert 99 - hub.faults[0].times <= 2  # two files are uploaded at a time
    hub.faults = []
    holds(Path(publish_and_pull(hurried, repo, packages.v1)["path"]), packages.v1)


def test_a_server_that_falls_silent_in_the_middle_of_a_file(
    hub: LoopbackHub, hurried: Client, repo: str, packages: Packages
) -> None:
    published(hub, repo, packages.v1)
    hub.faults = [Fault("stall", "GET .*/resolve/.*/delta-", 1000, times=99)]
    fails("registry", "stopped sending", lambda: hurried("pull", repo=repo))
    hub.faults = [Fault("stall", "GET .*/resolve/.*/delta-", 1000)]
    holds(Path(hurried("pull", repo=repo)["path"]), packages.v1)


def test_a_server_that_sends_a_byte_now_and_then(
    hub: LoopbackHub, hurried: Client, repo: str, packages: Packages
) -> None:
    published(hub, repo, packages.v1)
    hub.faults = [Fault("slow", "GET .*/resolve/.*/delta-", times=99)]
    fails("registry", "bytes in the last", lambda: hurried("pull", repo=repo))


def test_a_model_of_a_server_that_never_answers_comes_from_the_cache_or_the_server_is_named(
    hub: LoopbackHub, hurried: Client, repo: str
) -> None:
    hub.add(repo).add({"config.json": b"{}", "model.safetensors": b"weights"})
    hub.faults = [Fault("mute", "GET", times=99)]
    host = hub.endpoint.removeprefix("http://")
    fails("registry", f"{host} does not answer", lambda: hurried("resolve", model=repo))
    hub.faults = []
    path = hurried("resolve", model=repo)
    hub.faults = [Fault("mute", "GET", times=99)]
    assert hurried("resolve", model=repo) == path


@pytest.mark.parametrize("fault", ["mute", "stall", "slow", "status"])
def test_a_signed_address_is_not_told(
    hub: LoopbackHub, hurried: Client, repo: str, packages: Packages, fault: Any
) -> None:
    published(hub, repo, packages.v1)
    hub.cdn = True
    hub.faults = [Fault(fault, "GET /cdn/", 500, times=99)]
    fails("registry", "", lambda: hurried("pull", repo=repo))  # which checks it
    hub.faults = []
    holds(Path(hurried("pull", repo=repo)["path"]), packages.v1)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_signed_address_that_has_expired_is_no_matter_of_rights(
    hub: LoopbackHub, hurried: Client, repo: str, packages: Packages, status: int
) -> None:
    published(hub, repo, packages.v1)
    hub.cdn = True
    hub.faults = [Fault("status", "GET /cdn/", status, times=99)]
    for call in ("pull", "resolve"):
        hub.add(f"{repo}-model").add({"config.json": b"{}", "model.safetensors": b"weights"})
        name = {"repo": repo} if call == "pull" else {"model": f"{repo}-model"}
        fails("registry", "may have expired", lambda call=call, name=name: hurried(call, **name))
    hub.faults = []
    holds(Path(hurried("pull", repo=repo)["path"]), packages.v1)


def test_a_repository_that_was_renamed_is_followed(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages
) -> None:
    published(hub, repo, packages.v1)
    hub.renamed = {"org/former": repo}
    assert [version["version"] for version in client("versions", repo="org/former")] == ["1.0.0"]
    holds(Path(client("pull", repo="org/former")["path"]), packages.v1)


def test_a_repository_that_was_renamed_is_written_to_by_its_present_name(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages
) -> None:
    client("publish_anew", delta=packages.v1, repo=repo)
    model = f"{repo}-model"
    hub.add(model).add({"README.md": b"# Hi"})
    hub.renamed = {"org/former": repo, "Org/Model": model}
    before = [hub.repositories[name].head for name in (repo, model)]
    for name, line in {
        repo: ["publish", packages.v2, "org/former"],
        f"{repo} ": ["publish", packages.v2, "org/former", "--dry-run"],
        f"{repo}  ": ["yank", "org/former", "1.0.0", "--reason", "wrong"],
        f"{repo}   ": ["link", "org/former", model],
        model: ["link", repo, "Org/Model"],
        f"{model} ": ["link", repo, "Org/Model", "--remove"],
    }.items():
        code, _, said = client("command", arguments=list(map(str, line)))
        assert code == 8, said
        assert f"use that name: {name.strip()}\n" in said
    assert [hub.repositories[name].head for name in (repo, model)] == before


@pytest.mark.parametrize(
    ("status", "text", "remedy"),
    [
        (403, "Private repository storage limit reached, please upgrade your plan", "do what the Hub asks for"),
        (403, "Cannot push to the protected branch main", "do what the Hub asks for"),
        (403, "You don't have the required permissions", "use a token with write access"),
        (400, "The file name contains a character that is not allowed", "change what it names"),
        (402, "Payment required: your organization has no plan", "billing"),
        (413, "The file is above the limit of 50 GB", "a folder or a bucket"),
        (422, "Something new", "run the command again"),
    ],
)
def test_the_hubs_own_words_are_passed_on(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages, status: int, text: str, remedy: str
) -> None:
    hub.faults = [Fault("status", "POST .*/commit/", status, text=text)]
    with pytest.raises(CallError) as caught:
        client("publish", package=packages.v1, repo=repo, version="1.0.0")
    assert caught.value.kind == "registry"
    assert text in caught.value.text
    assert remedy in caught.value.text


def test_what_the_hub_says_of_metadata_is_passed_on(
    hub: LoopbackHub, client: Client, repo: str, packages: Packages
) -> None:
    hub.rejects = '"license" must be one of [apache-2.0, mit]'
    fails("registry", '"license" must be one of', lambda: client("publish_anew", delta=packages.v1, repo=repo))
    hub.rejects = ""
    assert not hub.repositories[repo].tags


@pytest.mark.parametrize("fault", ["mute", "cut", "drop", "status"])
def test_a_range_that_breaks_off_is_asked_for_again(
    hub: LoopbackHub, hurried: Client, shared_family: Family, repo: str, fault: Any
) -> None:
    hub.add(repo, shared_family.base)
    whole = hurried("describe_base", model=repo)
    hub.faults = [Fault(fault, "GET .*model.*safetensors$", 503 if fault == "status" else 10)]
    assert hurried("describe_base", model=repo) == whole
    assert not hub.faults[0].times
