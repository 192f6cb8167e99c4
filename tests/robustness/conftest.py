"""A process that forks commands, and the worlds they work in: small ones, and one with enough to do."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.robustness.cases import VERBS, Verb, World, make_world
from tests.robustness.commands import Commands


@pytest.fixture(scope="session")
def small(memory: Path) -> World:
    """Two tensors in two shards."""
    return make_world(memory / "small", layers=1)


@pytest.fixture(scope="session")
def large(memory: Path) -> World:
    """So many tensors that each command makes more than 100 calls that change a file system."""
    return make_world(memory / "large", layers=14)


@pytest.fixture
def place(memory: Path) -> Iterator[Path]:
    """A folder of this test's own; it need not be there."""
    made = Path(tempfile.mkdtemp(dir=memory))
    yield made / "place"
    shutil.rmtree(made)


@pytest.fixture(params=VERBS)
def verb(request: pytest.FixtureRequest) -> Verb:
    name: Verb = request.param
    return name


@pytest.fixture(scope="module")
def commands(small: World, memory: Path) -> Iterator[Commands]:
    started = Commands()
    for name in VERBS:
        case = small.case(name, memory / "warming")
        started.warm_up(case.command)
        shutil.rmtree(case.place)
    yield started
    started.close()
