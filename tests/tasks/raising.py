"""Every error that a task can end with, and a task that does: for workers in other processes, who import it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from paramdelta_hub import errors
from paramdelta_hub.errors import LineageError, Mismatch, MismatchError, ParamdeltaError
from paramdelta_hub.hub import errors as of_the_hub  # classes of its own
from paramdelta_hub.tasks.models import Outcome

__all__ = ["every", "of_the_hub", "raise_one"]


def classes(above: type[ParamdeltaError] = ParamdeltaError) -> Iterator[type[ParamdeltaError]]:
    """Our classes, and none that a test made."""
    if above.__module__.startswith("paramdelta_hub."):
        yield above
    for cls in above.__subclasses__():
        yield from classes(cls)


def every() -> list[ParamdeltaError]:
    """One of each class, every field of it filled; and some with fewer."""
    made: list[ParamdeltaError] = [ParamdeltaError("no more than that"), LineageError("no samples", math.nan)]
    for cls in sorted(classes(), key=lambda cls: cls.__name__):
        places = {"where": f"model of {cls.__name__}", "remedy": "try another"}
        if issubclass(cls, LineageError):
            made.append(cls("what", 0.125, **places))
        elif issubclass(cls, MismatchError):
            made.append(cls("what", [Mismatch(f"w{n}", "shape", f"Δ {n}") for n in range(30)], **places))
        else:
            made.append(cls("what", **places))
    assert {cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, ParamdeltaError)} <= {
        type(error) for error in made
    }
    return made


def known(error: ParamdeltaError) -> str:
    """All that an error is and says, as text: NaN equals NaN there."""
    return repr(
        (type(error).__name__, error.kind, error.exit_code, error.args, sorted(vars(error).items()), str(error))
    )


def raise_one(work_dir: str, digest: str, number: int) -> Outcome:
    """Fail with error ``number``; after the last, by a programmer's mistake."""
    raise [*every(), ZeroDivisionError("a mistake of the programmer's")][number]
