"""Which tensor goes with which: rename and skip rules, and the preflight that reports every misfit at once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from paramdelta_hub.arithmetic import FLOATS
from paramdelta_hub.errors import Mismatch, OptionError
from paramdelta_hub.format.headers import DISCRETE
from paramdelta_hub.limits import TENSOR_NAME_BYTES

__all__ = ["Entry", "Rules", "match"]

_DERIVED = re.compile(r"(^|\.)(position_ids|inv_freq)$")
"""Buffers that models compute anew when they are built. transformers kept them in checkpoints for a while (until
4.31), so old and new checkpoints of one model differ by them."""


@dataclass(frozen=True)
class Entry:
    """A tensor as one side sees it."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Rules:
    """What the user chose: ``renames`` as (pattern, replacement) in order, ``skips`` as patterns."""

    renames: tuple[tuple[str, str], ...] = ()
    skips: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for pattern in (*self.skips, *(pattern for pattern, _ in self.renames)):
            compiled(pattern)
        for pattern, replacement in self.renames:
            if max(len(pattern), len(replacement)) > TENSOR_NAME_BYTES:
                raise OptionError(f"a rename rule of more than {TENSOR_NAME_BYTES} characters")
            try:
                re.sub(pattern, replacement, "")
                re.compile(pattern).sub(replacement, pattern)
            except (re.error, IndexError) as error:
                raise OptionError(f"the replacement {replacement!r} is not usable: {error}") from None

    def rename(self, name: str) -> str:
        """Apply every rename rule in order."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name

    def skips_name(self, name: str) -> bool:
        """Whether a skip rule matches somewhere in ``name``."""
        return any(re.search(pattern, name) for pattern in self.skips)


def compiled(pattern: str) -> re.Pattern[str]:
    """Compile a user's regular expression.

    Raises:
        OptionError: it is none.
    """
    try:
        return re.compile(pattern)
    except re.error as error:
        raise OptionError(f"{pattern!r} is not a regular expression: {error}") from None


@dataclass
class Match:
    """The outcome: pairs by the name on the left, what was left out and why, and all that does not fit."""

    pairs: dict[str, str] = field(default_factory=dict)
    """Left name → right name."""
    omissions: list[tuple[str, str, str]] = field(default_factory=list)
    """(name, side, reason)."""
    mismatches: list[Mismatch] = field(default_factory=list)


def match(
    left: Mapping[str, Entry],
    right: Mapping[str, Entry],
    rules: Rules,
    sides: tuple[str, str],
    known: Sequence[str] = (),
) -> Match:
    """Pair the tensors of two sides by name, after renaming the right side's.

    Args:
        left: the side whose names are kept.
        right: the side whose names the rename rules apply to.
        rules: the user's rules.
        sides: what to call the two, in messages.
        known: left names that may lack a partner, because that has been recorded before.

    Returns:
        Pairs, omissions, and every mismatch: missing, extra, other shape, other dtype.
    """
    result = Match()
    renamed: dict[str, str] = {}
    for name in right:
        new = rules.rename(name)
        if new in renamed:
            result.mismatches.append(
                Mismatch(name, "rename", f"the rename rules give it the name {new!r}, which {renamed[new]!r} has too")
            )
        renamed[new] = name
    for name in [*left, *(name for name in renamed if name not in left)]:
        in_left, in_right = name in left, name in renamed
        side = "both" if in_left and in_right else sides[0] if in_left else sides[1]
        if rules.skips_name(name) or (in_right and rules.skips_name(renamed[name])):
            result.omissions.append((name, side, "skipped by rule"))
        elif in_left and in_right:
            result.pairs[name] = renamed[name]
            result.mismatches += _compare(name, left[name], right[renamed[name]], sides)
        elif _DERIVED.search(name):
            result.omissions.append((name, side, "a buffer that models compute themselves"))
        elif name in known:
            result.omissions.append((name, side, "left out when the delta was made"))
        else:
            other = sides[1] if in_left else sides[0]
            result.mismatches.append(Mismatch(name, "missing", f"{side} has it, {other} does not"))
    return result


def _compare(name: str, left: Entry, right: Entry, sides: tuple[str, str]) -> list[Mismatch]:
    found = []
    if left.shape != right.shape:
        found.append(Mismatch(name, "shape", f"{sides[0]} has {list(left.shape)}, {sides[1]} has {list(right.shape)}"))
    if left.dtype != right.dtype:
        found.append(Mismatch(name, "dtype", f"{sides[0]} has {left.dtype}, {sides[1]} has {right.dtype}"))
    elif left.dtype not in FLOATS and left.dtype not in DISCRETE:
        found.append(Mismatch(name, "dtype", f"no delta is taken of {left.dtype}; cast it, or --skip it"))
    return found
