"""What tests of interrupted and of shared work have in common."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.tasks.forking import Forks


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    started = Forks()
    yield started
    started.close()


@pytest.fixture(params=["extract", "apply"])
def operation(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name
