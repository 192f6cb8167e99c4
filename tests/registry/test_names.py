"""Semantic versions: their grammar, their order, and which one is the newest."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from huggingface_hub.utils import validate_repo_id
from hypothesis import given
from hypothesis import strategies as st

from paramdelta_hub.errors import OptionError
from paramdelta_hub.registry.names import check_repo, is_repo, is_version, newest, newest_first, precedence
from tests.registry.conftest import Packages
from tests.registry.test_locate import VERSIONS
from tests.support.hub import LoopbackHub
from tests.support.hub.client import Client


def test_precedence_is_that_of_semver_org() -> None:
    ordered = "1.0.0-alpha 1.0.0-alpha.1 1.0.0-alpha.beta 1.0.0-beta 1.0.0-beta.2 1.0.0-beta.11 1.0.0-rc.1 1.0.0"
    versions = [*ordered.split(), "1.0.1", "1.2.0", "1.10.0", "2.0.0-0", "2.0.0", "10.0.0"]
    assert sorted(random.Random(0).sample(versions, len(versions)), key=precedence) == versions
    assert newest_first(versions) == versions[::-1]
    assert precedence("1.0.0+a") == precedence("1.0.0+b")
    assert newest(versions) == "10.0.0"
    assert newest(["1.9.0", "2.0.0-rc.1"]) == "1.9.0", "a pre-release must be asked for"
    assert newest(["1.0.0-a", "1.0.0-b"]) == "1.0.0-b"
    assert newest([]) is None


@given(VERSIONS, VERSIONS)
def test_precedence_orders_all_versions(one: str, other: str) -> None:
    assert is_version(one)
    assert (precedence(one) < precedence(other)) + (precedence(one) > precedence(other)) + (
        precedence(one) == precedence(other)
    ) == 1


@pytest.mark.parametrize(
    "text", ["", "1", "1.2", "v1.2.3", "1.2.3\n", "01.2.3", "1.2.3-", "１.2.3", "1.2.3/..", "x" * 200]
)
def test_what_is_no_version(text: str) -> None:
    assert not is_version(text)


REFUSED = {
    "org/my--delta": "org/my-delta",
    "org/my..delta": "org/my.delta",
    "org/delta.": "org/delta",
    "org/delta-": "org/delta",
    "org/-delta": "org/delta",
    "org/.delta": "org/delta",
    "my--org/delta": "my-org/delta",
    "org/delta.git": "org/delta",
    "org/delta.git.git-": "org/delta",
    "org/my delta": "org/my-delta",
    "org/my delta (new)": "org/my-delta-new",
    "org/d\u00e9lta": "org/delta",
    f"org/{'x' * 97}": f"org/{'x' * 96}",
    "org/a:b*c?": "org/a-b-c",
    "org/\u6a21\u578b": None,
    "org/con": None,
    "name": None,
}
"""Names that the Hub refuses, or that are no folder's name on every system, and what is proposed."""


@pytest.mark.parametrize("name", REFUSED)
def test_a_name_that_the_hub_refuses_gets_a_proposal(name: str) -> None:
    with pytest.raises(OptionError) as caught:
        check_repo(name)
    remedy = str(caught.value.remedy)
    assert remedy.startswith(f"did you mean {REFUSED[name]}? " if REFUSED[name] else "write org/name; ")


@given(st.text("ab._-/ é", max_size=12) | st.from_regex(r"[a-z.-]{1,4}/[a-z._-]{1,4}(\.git)?", fullmatch=True))
def test_every_name_that_is_taken_or_proposed_is_taken_by_the_client(text: str) -> None:
    try:
        name = check_repo(text)
    except OptionError as error:
        found = re.match(r"did you mean (\S+)\?", str(error.remedy))
        if found is None:
            return
        name = found[1]
    assert is_repo(name)
    validate_repo_id(name)


@pytest.mark.parametrize("root", ["", "hf://", "ROOT/", "s3://deltas/names/", "--registry"])
def test_such_a_name_is_refused_before_anything_is_sent(
    hub: LoopbackHub, client: Client, packages: Packages, tmp_path: Path, root: str
) -> None:
    option = ["--registry", str(tmp_path / "registry")] if root == "--registry" else []
    for name, proposal in REFUSED.items():
        if proposal is None:
            continue
        reference = name if option else f"{root.replace('ROOT', str(tmp_path / 'registry'))}{name}"
        line = ["publish", str(packages.v1), reference, *option]
        code, _, said = client("command", arguments=line, AWS_ENDPOINT_URL="http://127.0.0.1:1")
        assert (code, f"did you mean {proposal}?" in said) == (2, True), said
    assert not hub.requests
    assert not (tmp_path / "registry").exists()
