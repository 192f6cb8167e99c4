"""Rules of the user that change how tensors are matched: layouts, renames, skips, carries, partials; what each hit.

A rule that hits nothing is probably a mistake, such as a misspelled name or a missing prefix. It is refused, and the
message lists the most similar names.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import SequenceMatcher
from functools import cached_property
from typing import Any, Literal

from paramdelta_hub.checkpoints.rules.layout_rules import LayoutRule
from paramdelta_hub.errors import OptionError
from paramdelta_hub.fileio.names import counted, shown, shown_names
from paramdelta_hub.fileio.strict_json import JsonObject
from paramdelta_hub.limits import RENAMES, TENSOR_NAME_BYTES

__all__ = [
    "RuleKind",
    "RuleUse",
    "Rules",
    "as_options",
    "check_rules",
    "compile_pattern",
    "exactly",
    "in_all_layers",
    "refuse_unused",
    "rule_uses",
    "weight_map_uses",
]

RuleKind = Literal["layout", "rename", "skip", "carry", "partial", "weight-map"]

_NEAREST = 3
"""Names that an error proposes."""
_COMPARED = 2000
"""Names, of different layers counted once, among which the nearest are sought."""


@dataclass(frozen=True)
class Rules:
    """What the user chose: ``renames`` as (pattern, replacement) in order, ``skips`` and ``carries`` as patterns.

    Raises:
        OptionError: a text where a list of patterns belongs, a pattern that is no regular expression, …
    """

    renames: tuple[tuple[str, str], ...] = ()
    skips: tuple[str, ...] = ()
    carries: tuple[str, ...] = ()
    """Of tensors that only post has, those to carry whole; an apply has no use for them."""
    layouts: tuple[str, ...] = ()
    """How tensors of post or of a delta are put together otherwise, in order, before the renames: see
    :mod:`.layout_rules`."""
    partials: tuple[str, ...] = ()
    """Of tensors that have another size here and there, those of which the overlapping leading part is used."""

    def __post_init__(self) -> None:
        for kind, rules in self.fields.items():
            check = _pair if kind == "renames" else _layout if kind == "layouts" else _text
            object.__setattr__(self, kind, tuple(map(check, _as_sequence(rules, kind))))
        for pattern in (*self.skips, *self.carries, *self.partials, *(pattern for pattern, _ in self.renames)):
            compile_pattern(pattern)
        if any(len(pattern) > TENSOR_NAME_BYTES - 8 for pattern in self.partials):  # the manifest has them with a verb
            raise OptionError("a partial rule is too long")
        for what, number in (("rename", len(self.renames)), ("layout", len(self.layouts) + len(self.partials))):
            if number > RENAMES:
                raise OptionError(f"{number} {what} rules; the limit is {RENAMES}")
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

    @property
    def fields(self) -> JsonObject:
        """The rules of every kind, by its name here and in requests."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def layout_rules(self) -> tuple[LayoutRule, ...]:
        """The layout rules, parsed."""
        return tuple(map(LayoutRule.parse, self.layouts))

    @property
    def layout_texts(self) -> tuple[str, ...]:
        """The rules by which tensors are rearranged, as a rules file has them."""
        return (*self.layouts, *(f"partial {pattern}" for pattern in self.partials))

    def skips_name(self, name: str) -> bool:
        """Whether a skip rule matches somewhere in ``name``."""
        return any(re.search(pattern, name) for pattern in self.skips)

    def carries_name(self, name: str) -> bool:
        """Whether a carry rule matches somewhere in ``name``, or in what the rename rules make of it."""
        return any(re.search(pattern, text) for pattern in self.carries for text in (name, self.rename(name)))

    def takes_part_of(self, name: str) -> bool:
        """Whether a partial rule matches somewhere in ``name``, or in what the rename rules make of it."""
        return any(re.search(pattern, text) for pattern in self.partials for text in (name, self.rename(name)))


def check_rules(rules: Any) -> Rules:
    """Return the rules that a caller gave: none, for None.

    Raises:
        OptionError: no :class:`Rules`.
    """
    if rules is None:
        return Rules()
    if not isinstance(rules, Rules):
        raise OptionError(f"rules can't be given as {rules!r}", remedy="write rules=Rules(skips=[...])")
    return rules


def _as_sequence(value: Any, what: str) -> Iterable[Any]:
    """Refuse a text, of which every letter would be a pattern."""
    if isinstance(value, Mapping):
        return value.items()
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise OptionError(f"{what} must be a list, not {value!r}", remedy=f"write {what}=[...]")
    return value


def _pair(value: Any) -> tuple[str, str]:
    if isinstance(value, (tuple, list)) and len(value) == 2:
        return _text(value[0]), _text(value[1])
    raise OptionError(f"a rename is a pair of a pattern and a replacement, not {value!r}")


def _layout(value: Any) -> str:
    return str(LayoutRule.parse(_text(value)))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise OptionError(f"a pattern is a string, not {value!r}")
    return value


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a user's regular expression.

    Raises:
        OptionError: it is none.
    """
    try:
        return re.compile(pattern)
    except re.error as error:
        raise OptionError(f"{pattern!r} is not a regular expression: {error}") from None


def exactly(name: str) -> str:
    """Return the pattern of one name."""
    return f"^{re.escape(name)}$"


def in_all_layers(name: str) -> str:
    """Return the pattern of a text that holds the names of layers, with any number for theirs."""
    return re.sub(r"(?<=\\\.)[0-9]+(?=\\\.)", r"\\d+", re.escape(name))


def as_options(kind: RuleKind, patterns: Iterable[str]) -> str:
    """Return the options of the command line that give these rules, each once."""
    return " ".join(f"--{kind} {shlex.quote(pattern)}" for pattern in dict.fromkeys(patterns))


@dataclass(frozen=True)
class RuleUse:
    """What one rule did: how many tensors it hit and, of those that it left out, which training had changed.

    Of a weight map's rules, one hits the tensors for which it decides: a later one may match the same.
    """

    rule: RuleKind
    pattern: str
    tensors: int
    trained: tuple[str, ...] = ()

    def with_trained(self, skipped: Mapping[str, Collection[str]]) -> RuleUse:
        """Return the same, with the names that a skip rule hit among tensors that training had changed.

        Args:
            skipped: those tensors, each with all names that rules know it by.
        """
        if self.rule != "skip":
            return self
        hit = [name for name, names in skipped.items() if any(re.search(self.pattern, known) for known in names)]
        return replace(self, trained=tuple(hit))

    def __str__(self) -> str:
        text = f"--{self.rule} {self.pattern!r} matched {counted(self.tensors, 'tensor')}"
        if self.trained:
            text += f", {len(self.trained):,} of them changed by training: {shown_names(self.trained)}"
        return text


def rule_uses(
    rules: Rules, left: Collection[str], rights: Sequence[Collection[str]], only_right: Collection[str] = ()
) -> list[RuleUse]:
    """Return what every rule hits, in the order of the rules.

    Args:
        rules: the user's.
        left: the names of the side whose names are kept.
        rights: the names of each other side, to which the rename rules apply.
        only_right: names, as renamed, of tensors that are carried whole; only these can be hit by a carry rule.
    """
    uses = []
    original = {name: {name} for name in left}
    names = {name: name for right in rights for name in right}
    for pattern, replacement in rules.renames:
        renamed = {name: re.sub(pattern, replacement, new) for name, new in names.items()}
        uses.append(RuleUse("rename", pattern, sum(renamed[name] != names[name] for name in names)))
        names = renamed
    for name, new in names.items():
        original.setdefault(new, {new}).add(name)
    for pattern in rules.skips:
        hit = [new for new, olds in original.items() if any(re.search(pattern, old) for old in olds)]
        uses.append(RuleUse("skip", pattern, len(hit)))
    for pattern in rules.carries:
        hit = [new for new in only_right if any(re.search(pattern, old) for old in original.get(new, {new}))]
        uses.append(RuleUse("carry", pattern, len(hit)))
    return uses


def weight_map_uses(patterns: Iterable[str], names: Collection[str]) -> list[RuleUse]:
    """Return for how many of the deltas' tensors every pattern of a weight map decides: the last that matches."""
    listed = list(patterns)
    decided = [0] * len(listed)
    for name in names:
        matching = [number for number, pattern in enumerate(listed) if compile_pattern(pattern).search(name)]
        if matching:
            decided[matching[-1]] += 1
    return [RuleUse("weight-map", pattern, count) for pattern, count in zip(listed, decided, strict=True)]


_UNUSED: Mapping[RuleKind, str] = {
    "layout": "matches no tensor",
    "partial": "matches no tensor that has another size on the two sides",
    "rename": "renames no tensor",
    "skip": "matches no tensor",
    "carry": "matches no tensor that only post has",
    "weight-map": "has no effect: it matches no tensor of a delta, or later patterns match the same tensors",
}


def refuse_unused(uses: Iterable[RuleUse], names: Mapping[RuleKind, Collection[str]]) -> None:
    """Refuse rules that hit nothing.

    Args:
        uses: what every rule hit.
        names: what rules of each kind can hit: among these the nearest are sought.

    Raises:
        OptionError: one hit nothing; all such rules are named, each with the names that come nearest.
    """
    unused = [use for use in uses if not use.tensors]
    if not unused:
        return
    lines = []
    for use in unused:
        near = ", ".join(shown(name) for name in _nearest(_spelled(use), names.get(use.rule, ())))
        lines.append(
            f"--{use.rule} {use.pattern!r} {_UNUSED[use.rule]}" + (f"; the nearest are {near}" if near else "")
        )
    raise OptionError("\n  - ".join(lines), remedy="correct the pattern, or remove the rule")


def _spelled(use: RuleUse) -> str:
    """Return the pattern that a rule looks for first."""
    return LayoutRule.parse(use.pattern).sources[0].text if use.rule == "layout" else use.pattern


def _nearest(pattern: str, names: Collection[str]) -> list[str]:
    """Return the names most like what a pattern spells, as a whole or at their ends; of layers alike, the first."""
    spelled = re.sub(r"\\[bBAZdDwWsS]|\(\?[:=!<]*|[\\^$*+?(){}|\[\]]", "", pattern).strip(".")
    alike: dict[str, str] = {}
    for name in names:
        alike.setdefault(re.sub(r"[0-9]+", "N", name), name)
    spelled = re.sub(r"[0-9]+", "N", spelled)
    scored = sorted(
        (
            (max(SequenceMatcher(None, spelled, text, autojunk=False).ratio() for text in _endings(form)), name)
            for form, name in list(alike.items())[:_COMPARED]
        ),
        key=lambda scored: (-scored[0], scored[1]),
    )
    return [name for score, name in scored[:_NEAREST] if score > 0]


def _endings(name: str) -> Iterator[str]:
    """Give a name, and what it ends in: patterns often spell the last components alone."""
    parts = name.split(".")
    yield name
    for length in (1, 2, 3):
        if length < len(parts):
            yield ".".join(parts[-length:])
            yield ".".join(parts[:length])
