"""What workers in other processes answer: outcomes and errors, as what they were."""

from __future__ import annotations

from typing import Any

import pytest

from paramdelta_hub.errors import DestinationError, MismatchError, ParamdeltaError, StorageError
from paramdelta_hub.work.answers import Perform, answer, outcome_of


def raising(error: Exception) -> Perform:
    def perform(books: str, digest: str, number: int) -> dict[str, Any]:
        raise error

    return perform


def test_every_error_survives_the_way() -> None:
    for kind in (ParamdeltaError, DestinationError, StorageError, MismatchError):
        with pytest.raises(kind) as caught:
            outcome_of(answer(raising(kind("what", where="where", remedy="remedy")), "", "", 0))
        assert type(caught.value) is kind
        assert str(caught.value) == "where: what\n  → remedy"


def test_a_programmers_mistake_is_told_with_its_place() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)test_answers\.py.*a mistake of the programmer's"):
        outcome_of(answer(raising(ZeroDivisionError("a mistake of the programmer's")), "", "", 0))
