"""What workers in other processes answer: errors arrive as what they were; by a real worker in ``on_ray.py``."""

from __future__ import annotations

import json
import pickle

import pytest

from paramdelta_hub.errors import MismatchError, ParamdeltaError
from paramdelta_hub.tasks.executors.ray import answer, outcome_of
from paramdelta_hub.tasks.models import Outcome
from tests.tasks.raising import every, known, raise_one

NUMBERED = list(enumerate(every()))


@pytest.mark.parametrize(("number", "error"), NUMBERED, ids=lambda value: type(value).__name__)
def test_every_error_arrives_whole(number: int, error: ParamdeltaError) -> None:
    text = json.dumps(answer(raise_one, "", "", number))
    with pytest.raises(ParamdeltaError) as caught:
        outcome_of(json.loads(text))
    assert known(caught.value) == known(error)


@pytest.mark.parametrize(("number", "error"), NUMBERED, ids=lambda value: type(value).__name__)
def test_every_error_can_be_pickled(number: int, error: ParamdeltaError) -> None:
    """By whoever calls us in a pool of processes."""
    assert known(pickle.loads(pickle.dumps(error))) == known(error)


def test_a_class_that_is_not_known_here_becomes_the_one_above() -> None:
    class OtherVersionsError(MismatchError):
        kind = "other"

    def perform(work_dir: str, digest: str, number: int) -> Outcome:
        raise OtherVersionsError("what", where="where")

    told = answer(perform, "", "", 0)
    assert told["error"][0] == "OtherVersionsError"
    told["error"][0] = "NoSuchError"
    with pytest.raises(MismatchError, match="what") as caught:
        outcome_of(told)
    assert type(caught.value) is MismatchError


def test_a_programmers_mistake_is_told_with_its_place() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)raising\.py.*a mistake of the programmer's"):
        outcome_of(answer(raise_one, "", "", len(NUMBERED)))
