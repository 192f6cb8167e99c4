"""Layout rules: how the tensors of one model are those of another in other pieces, as texts that people write.

A rule is a verb, what it takes, and what comes of it::

    stack experts.*.down_proj.weight -> experts.down_proj
    unstack experts.gate_up_proj -> experts.*.gate_up_proj
    concat q_proj.weight, k_proj.weight, v_proj.weight -> qkv_proj.weight
    split@1 experts.gate_up_proj -> experts.gate_proj, experts.up_proj
    split/32 attention.query_key_value.weight -> q_proj.weight, k_proj.weight, v_proj.weight
    transpose c_attn.weight

A pattern is the end of a name, from a dot or a slash on; what comes before it stays. ``^`` at its beginning makes it
the whole name. ``*`` stands for a number. ``@`` gives the axis, which else is the first. ``/`` gives the
number of equal groups along it, of which each has a piece of every tensor, as a head has rows of q, k and v.
``transpose`` swaps the last two axes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from paramdelta_hub.errors import OptionError
from paramdelta_hub.limits import TENSOR_NAME_BYTES, TENSOR_RANK

__all__ = ["LAYOUT_VERBS", "LayoutRule", "LayoutVerb", "NamePattern"]

LayoutVerb = Literal["stack", "unstack", "concat", "split", "transpose"]
LAYOUT_VERBS: tuple[LayoutVerb, ...] = get_args(LayoutVerb)

_RULE = re.compile(r"\s*([a-z]+)(?:@(-?[0-9]{1,2}))?(?:/([1-9][0-9]{0,7}))?(?:\s*:\s*|\s+)(.*?)\s*", re.DOTALL)
_PATTERN = re.compile(r"\^?[^\s,^]+")
_STARS = 4
"""Numbers in a pattern. Names have the layer's and the expert's."""
_EXAMPLE = "write, for example, `concat q_proj.weight, k_proj.weight, v_proj.weight -> qkv_proj.weight`"


@dataclass(frozen=True)
class NamePattern:
    """The end of a tensor's name, with ``*`` for numbers; with ``^`` before it, the whole name."""

    text: str

    @property
    def stars(self) -> int:
        """How many numbers it has."""
        return self.text.count("*")

    @cached_property
    def _expression(self) -> re.Pattern[str]:
        body = r"([0-9]+)".join(map(re.escape, self.text.removeprefix("^").split("*")))
        before = "()" if self.text.startswith("^") else r"(|.*[./])"
        return re.compile(f"{before}{body}", re.DOTALL)

    def match(self, name: str) -> tuple[str, tuple[str, ...]] | None:
        """Return what stands before the pattern in a name, and its numbers; None if it is not there."""
        found = self._expression.fullmatch(name)
        return (found[1], found.groups()[1:]) if found else None

    def fill(self, prefix: str, numbers: tuple[str, ...]) -> str:
        """Return the name that has these numbers."""
        texts = self.text.removeprefix("^").split("*")
        return prefix + texts[0] + "".join(number + text for number, text in zip(numbers, texts[1:], strict=True))


@dataclass(frozen=True)
class LayoutRule:
    """One rule: a verb, an axis, and name patterns of what it takes and of what it makes."""

    verb: LayoutVerb
    sources: tuple[NamePattern, ...]
    targets: tuple[NamePattern, ...]
    axis: int = 0
    groups: int = 1
    """Of concat and split: how many groups lie one after another, each with a piece of every tensor."""

    @classmethod
    def parse(cls, text: str) -> LayoutRule:
        """Return the rule that a text spells.

        Raises:
            OptionError: none.
        """
        found = _RULE.fullmatch(text)
        if not found or found[1] not in LAYOUT_VERBS or len(text.encode()) > TENSOR_NAME_BYTES:
            raise OptionError(
                f"{text[:200]!r} is not a layout rule: it begins with {', '.join(LAYOUT_VERBS)} or partial",
                remedy=_EXAMPLE,
            )
        verb = next(verb for verb in LAYOUT_VERBS if verb == found[1])
        left, arrow, right = found[4].partition("->")
        if verb == "transpose" and not arrow:
            right = left
        if verb == "transpose" and found[2]:
            raise OptionError("transpose swaps the last two axes", where=text, remedy="remove the axis")
        if found[3] and verb not in ("concat", "split"):
            raise OptionError(
                f"{verb} has no groups; concat and split may have", where=text, remedy="remove the number"
            )
        axis = int(found[2] or 0)
        if not -TENSOR_RANK <= axis < TENSOR_RANK:
            raise OptionError(f"there is no axis {axis}", where=text)
        rule = cls(verb, _patterns(left, text), _patterns(right, text), axis, int(found[3] or 1))
        rule._check(text)
        return rule

    def _check(self, text: str) -> None:
        """Refuse numbers of patterns, or of numbers in them, that make no sense."""
        one_to_one = self.verb == "transpose"
        if len(self.sources) > 1 and (one_to_one or self.verb in ("unstack", "split")):
            raise OptionError(f"{self.verb} takes one pattern", where=text, remedy=_EXAMPLE)
        if len(self.targets) > 1 and (one_to_one or self.verb in ("stack", "concat")):
            raise OptionError(f"{self.verb} makes one tensor", where=text, remedy=_EXAMPLE)
        if max(len(self.sources), len(self.targets)) < 2 and self.verb in ("concat", "split"):
            raise OptionError(f"{self.verb} needs two tensors or more on one side", where=text, remedy=_EXAMPLE)
        if len({pattern.stars for pattern in self.sources}) > 1 or len({pattern.stars for pattern in self.targets}) > 1:
            raise OptionError("patterns of one side must have equally many *", where=text)
        if len(set(self.sources)) < len(self.sources) or len(set(self.targets)) < len(self.targets):
            raise OptionError("a pattern is given twice", where=text)
        more = self.sources[0].stars - self.targets[0].stars
        wanted = 0
        if self.is_numbered:
            wanted = 1 if self.verb == "stack" else -1
        if more != wanted:
            where = {0: "as many * as", 1: "one * less than", -1: "one * more than"}[wanted]
            raise OptionError(f"what {self.verb} makes must have {where} what it takes", where=text, remedy=_EXAMPLE)

    @property
    def is_numbered(self) -> bool:
        """Whether the last ``*`` of one side numbers the tensors of the new axis, or of the old."""
        single = len(self.sources) == len(self.targets) == 1
        return single and self.verb in ("stack", "unstack")

    def __str__(self) -> str:
        left = ", ".join(pattern.text for pattern in self.sources)
        right = ", ".join(pattern.text for pattern in self.targets)
        verb = self.verb + (f"@{self.axis}" if self.axis else "") + (f"/{self.groups}" if self.groups > 1 else "")
        return f"{verb} {left}" if self.verb == "transpose" and left == right else f"{verb} {left} -> {right}"


def _patterns(text: str, where: str) -> tuple[NamePattern, ...]:
    patterns = tuple(NamePattern(part.strip()) for part in text.split(","))
    for pattern in patterns:
        if not _PATTERN.fullmatch(pattern.text) or "**" in pattern.text or pattern.stars > _STARS:
            raise OptionError(f"{pattern.text!r} is not the end of a tensor's name", where=where, remedy=_EXAMPLE)
    return patterns
