"""Checkpoints as people have them: the rows of the table in docs/checkpoints.md, each made by a test.

A row says that something works, or that it is refused and with which remedy. A test of a refusal must do what the
message says, within :func:`remedied`, and find that it works: the decorator fails it otherwise.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from paramdelta_hub.checkpoints.rules.tensor_rules import Rules
from paramdelta_hub.cli.common import parse_rules
from paramdelta_hub.errors import ParamdeltaError
from tests.support.table_rows import F, makes_row

__all__ = [
    "ADAPTERS",
    "BUFFERS",
    "CHANNELS",
    "FILES",
    "FLOAT_DTYPES",
    "HEADS",
    "KINDS",
    "KINSHIP",
    "NOBODY",
    "NOT_FINITE",
    "OTHER_LAYOUTS",
    "QUANTIZATION",
    "REFUSED",
    "ROWS",
    "SAVES",
    "SKIPS",
    "TIES",
    "kind",
    "remedied",
    "rules_of",
]

KINDS = (
    "heads that one side lacks",
    "tied copies",
    "repositories and files",
    "float dtypes",
    "models that are not related",
    "layouts",
    "input channels",
    "NaN and infinity",
    "adapters",
    "quantized weights",
    "rows of a vocabulary",
    "deltas that nobody can take",
    "saves from a training, git-lfs",
    "computed buffers",
    "skip rules that hit trained tensors",
)
"""The parts of the table, in order."""
(
    HEADS, TIES, FILES, FLOAT_DTYPES, KINSHIP, OTHER_LAYOUTS, CHANNELS, NOT_FINITE, ADAPTERS, QUANTIZATION, ROWS,
    NOBODY, SAVES, BUFFERS, SKIPS,
) = KINDS  # fmt: skip

REFUSED = "**refused**"
_tried: list[str] = []
"""The remedies that worked in the test that runs now."""


def kind(kind: str, what: str, *, works: str = "", refused: str = "", remedy: str = "") -> Callable[[F], F]:
    """Mark a test as the one that shows what becomes of something that people have.

    Args:
        kind: one of :data:`KINDS`.
        what: what people have.
        works: what comes out, if it works.
        refused: why it is refused, if it is; the test must try the remedy, every time it is run.
        remedy: what to do then, as the message has it.
    """
    assert kind in KINDS, kind
    assert bool(works) != bool(refused), what
    assert bool(refused) == bool(remedy), what
    happens = f"{REFUSED}: {refused}" if refused else works

    def mark(test: F) -> F:
        return makes_row("checkpoints", kind, what, happens, remedy)(_must_try(test) if refused else test)

    return mark


def _must_try(test: F) -> F:
    """Return the test, failing if no remedy has worked in it."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        _tried.clear()
        test(*args, **kwargs)
        assert _tried, "a test of a refusal must try the remedy: with remedied(error, …)"

    return cast(F, run)


@contextmanager
def remedied(error: ParamdeltaError | str, *words: str) -> Iterator[None]:
    """Do what an error says is to be done, in this context; it must say so in these words."""
    remedy = _remedy(error)
    for word in words:
        assert word in remedy, remedy
    yield
    _tried.append(remedy)


def rules_of(error: ParamdeltaError | str) -> Rules:
    """Return the rules that a remedy names, read as a shell and the command line read them."""
    given: dict[str, list[str]] = {option: [] for option in ("rename", "skip", "carry", "layout", "partial")}
    for option, value in re.findall(r"--(\w+)\s+('(?:[^']|'\"'\"')*')", _remedy(error)):
        given[option] += shlex.split(value)
    assert any(given.values()), error
    return parse_rules(
        given["rename"], given["skip"], carries=given["carry"], layouts=given["layout"], partials=given["partial"]
    )


def _remedy(error: ParamdeltaError | str) -> str:
    """Return the remedy of an error, or what stands behind the arrow of a message."""
    if isinstance(error, ParamdeltaError):
        assert error.remedy, error
        return error.remedy
    return error.partition("→ ")[2] or error
