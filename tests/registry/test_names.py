"""Semantic versions: their grammar, their order, and which one is the newest."""

from __future__ import annotations

import random

import pytest
from hypothesis import given

from paramdelta_hub.registry.names import is_version, newest, newest_first, precedence
from tests.registry.test_locate import VERSIONS


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
