"""Apply layout rules to the tensors of a model or of a delta, by names and shapes alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from paramdelta_hub.checkpoints.logical import LogicalModel, LogicalTensor
from paramdelta_hub.checkpoints.matching.roles import Entry
from paramdelta_hub.checkpoints.rules.layout_rules import LayoutRule
from paramdelta_hub.checkpoints.rules.tensor_rules import Rules, RuleUse
from paramdelta_hub.checkpoints.tensor_sources import Arranged, Reordered
from paramdelta_hub.errors import Mismatch
from paramdelta_hub.numerics.arrangements import Arrangement

__all__ = ["MIXED", "Layout", "arrange", "arranged_model", "partial_note"]

MIXED = "mixed-dtypes"
"""The kind of mismatch of pieces that a rule joins, and that have different dtypes."""

ShapeOf: TypeAlias = "Callable[[str], tuple[int, ...] | None]"
"""The shape that the other side has for a name; None if it has no such tensor."""


@dataclass
class Layout:
    """The tensors of one side after layout rules, and what did not fit."""

    arrangements: dict[str, Arrangement]
    """The tensors that a rule made, by their new names."""
    dtypes: dict[str, str]
    """Of the tensors that a rule made."""
    kept: list[str]
    """Names of the tensors that no rule took."""
    uses: list[RuleUse]
    problems: list[Mismatch] = field(default_factory=list)
    partials: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    """Tensors of which the leading part is used: their own shape, and that of the other side."""

    @property
    def names(self) -> list[str]:
        """Every tensor."""
        return [*self.kept, *self.arrangements]


class _Tensors:
    """The tensors of a side while rules rearrange them."""

    def __init__(self, entries: Mapping[str, tuple[str, tuple[int, ...]]], shape_of: ShapeOf) -> None:
        self.entries, self.shape_of = entries, shape_of
        self.kept = dict.fromkeys(entries)
        self.made: dict[str, Arrangement] = {}
        self.dtypes: dict[str, str] = {}
        self.problems: list[Mismatch] = []
        self._later: Sequence[LayoutRule] = ()

    def apply(self, rule: LayoutRule, later: Sequence[LayoutRule]) -> int:
        """Apply a rule wherever it matches; return how many tensors it took.

        Args:
            rule: the rule.
            later: the rules after it. A part that is going to be transposed has the other side's sizes in that order.
        """
        taken = 0
        self._later = later
        for prefix, numbers, names in self._groups(rule):
            parts = [self.arrangement(name) for name in names]
            dtypes = {self.dtype(name) for name in names}
            taken += len(names)
            try:
                if len(dtypes) > 1:
                    there = ", ".join(sorted(dtypes))
                    raise _MisfitError(f"different dtypes: {there}; pd-extract gives them one with --cast float32")
                made = self._make(rule, prefix, numbers, parts)
            except _MisfitError as error:
                self.problems.append(Mismatch(names[0], MIXED if len(dtypes) > 1 else "layout", f"{rule}: {error}"))
                continue
            for name in names:
                self.kept.pop(name, None)
                self.made.pop(name, None)
            for name, arrangement in made.items():
                if name in self.kept or name in self.made:
                    what = f"{rule}: the tensor {name!r} is there already"
                    self.problems.append(Mismatch(name, "layout", what))
                self.made[name] = arrangement
                self.dtypes[name] = next(iter(dtypes))
        return taken

    def _groups(self, rule: LayoutRule) -> list[tuple[str, tuple[str, ...], list[str]]]:
        """Return the tensors that a rule takes together: what stands before the pattern, the numbers, and the names."""
        found: dict[tuple[str, tuple[str, ...]], dict[tuple[int, int], str]] = {}
        for name in [*self.kept, *self.made]:
            for place, pattern in enumerate(rule.sources):
                if matched := pattern.match(name):
                    prefix, numbers = matched
                    index = 0
                    if rule.is_numbered and rule.verb == "stack":
                        index = int(numbers[-1])
                        if str(index) != numbers[-1]:
                            continue  # 07 is not the number of a tensor
                        numbers = numbers[:-1]
                    found.setdefault((prefix, numbers), {})[place, index] = name
                    break
        groups = []
        for (prefix, numbers), members in found.items():
            wanted = [(place, index) for place in range(len(rule.sources)) for index in range(_count(rule, members))]
            missing = [key for key in wanted if key not in members]
            if missing:
                place, index = missing[0]
                stars = (*numbers, str(index)) if rule.is_numbered and rule.verb == "stack" else numbers
                absent = rule.sources[place].fill(prefix, stars)
                self.problems.append(
                    Mismatch(next(iter(members.values())), "layout", f"{rule}: there is no {absent!r}")
                )
                continue
            groups.append((prefix, numbers, [members[key] for key in wanted]))
        return groups

    def arrangement(self, name: str) -> Arrangement:
        """Return the tensor as it is now."""
        return self.made[name] if name in self.made else Arrangement.whole(name, self.entries[name][1])

    def dtype(self, name: str) -> str:
        """Return its dtype."""
        return self.dtypes[name] if name in self.made else self.entries[name][0]

    def _make(
        self, rule: LayoutRule, prefix: str, numbers: tuple[str, ...], parts: Sequence[Arrangement]
    ) -> dict[str, Arrangement]:
        first = parts[0]
        rank = len(first.shape) + (rule.verb == "stack")
        axis = rule.axis + rank if rule.axis < 0 else rule.axis
        if not 0 <= axis < rank:
            raise _MisfitError(f"{list(first.shape)} has no axis {rule.axis}")
        names = [target.fill(prefix, numbers) for target in rule.targets] if not rule.is_numbered else []
        if rule.verb == "transpose":
            if rank < 2:
                raise _MisfitError(f"{list(first.shape)} has no two axes")
            return {names[0]: first.transposed()}
        if rule.verb == "stack":
            _check_equal([part.shape for part in parts])
            name = rule.targets[0].fill(prefix, numbers)
            return {name: Arrangement.stacked(parts, axis)}
        if rule.verb == "concat":
            _check_equal([(*part.shape[:axis], *part.shape[axis + 1 :]) for part in parts])
            if any(part.shape[axis] % rule.groups for part in parts):
                raise _MisfitError(f"{parts[0].shape[axis]} along axis {axis} can't be cut into {rule.groups} groups")
            if rule.groups > 1:
                return {names[0]: Arrangement.interleaved(parts, axis, rule.groups)}
            return {names[0]: Arrangement.concatenated(parts, axis)}
        if rule.verb == "unstack":
            made = first.unstacked(axis)
            if rule.is_numbered:
                names = [rule.targets[0].fill(prefix, (*numbers, str(index))) for index in range(len(made))]
            if len(names) != len(made):
                raise _MisfitError(f"axis {axis} of {list(first.shape)} makes {len(made)} tensors, not {len(names)}")
            return dict(zip(names, made, strict=True))
        sizes = self._sizes(names, first.shape, axis)
        if any(size % rule.groups for size in sizes):
            raise _MisfitError(
                f"{' + '.join(map(str, sizes))} along axis {axis} can't be cut into {rule.groups} groups"
            )
        return dict(zip(names, first.dealt(axis, rule.groups, sizes), strict=True))

    def _sizes(self, names: Sequence[str], shape: tuple[int, ...], axis: int) -> list[int]:
        """Return the sizes of the parts: those of the other side if it has them all, else equal ones."""
        shapes = [self._other_shape(name) for name in names]
        sizes = [other[axis] for other in shapes if other is not None and axis < len(other)]
        if len(sizes) < len(names):
            if shape[axis] % len(names):
                raise _MisfitError(f"{shape[axis]} can't be divided into {len(names)} equal parts")
            return [shape[axis] // len(names)] * len(names)
        if sum(sizes) != shape[axis]:
            there = " + ".join(map(str, sizes))
            raise _MisfitError(f"the other side has {there} along axis {axis}, which is not {shape[axis]}")
        return sizes

    def _other_shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape that a tensor must have now to have the other side's in the end."""
        is_turned = False
        for rule in self._later:
            if rule.verb == "transpose" and (found := rule.sources[0].match(name)):
                name, is_turned = rule.targets[0].fill(*found), not is_turned
        shape = self.shape_of(name)
        return (*shape[:-2], shape[-1], shape[-2]) if shape and is_turned and len(shape) > 1 else shape


class _MisfitError(Exception):
    """What a rule asks for can't be made of these shapes."""


def _count(rule: LayoutRule, members: Collection[tuple[int, int]]) -> int:
    """Return how many tensors there must be of each pattern; where one is missing, not more than that shows it."""
    return min(1 + max(index for _, index in members), 1 + len(members)) if rule.verb == "stack" else 1


def _check_equal(shapes: Sequence[tuple[int, ...]]) -> None:
    if other := [shape for shape in shapes if shape != shapes[0]]:
        raise _MisfitError(f"the shapes {list(shapes[0])} and {list(other[0])} don't go together")


def arrange(
    entries: Mapping[str, Entry], rules: Rules, other: Mapping[str, Entry], partial: Collection[str] = ()
) -> Layout:
    """Apply layout rules, and then partial rules, to the tensors of one side.

    Args:
        entries: the side's tensors.
        rules: the user's.
        other: the other side's tensors, whose names the rename rules make of this side's.
        partial: names of which the leading part is used, besides those that a partial rule matches.
    """

    def other_shape(name: str) -> tuple[int, ...] | None:
        found = other.get(rules.rename(name))
        return found.shape if found else None

    tensors = _Tensors({name: (entry.dtype, entry.shape) for name, entry in entries.items()}, other_shape)
    uses = [
        RuleUse("layout", str(rule), tensors.apply(rule, rules.layout_rules[number:]))
        for number, rule in enumerate(rules.layout_rules, start=1)
    ]
    layout = Layout(tensors.made, tensors.dtypes, list(tensors.kept), uses, tensors.problems)
    if rules.partials or partial:
        _take_parts(layout, tensors, rules, other, partial)
    return layout


def _take_parts(
    layout: Layout, tensors: _Tensors, rules: Rules, other: Mapping[str, Entry], partial: Collection[str]
) -> None:
    hit: dict[str, int] = dict.fromkeys(rules.partials, 0)
    for name in layout.names:
        found = other.get(rules.rename(name))
        arrangement = tensors.arrangement(name)
        if (
            found is None
            or found.vocabulary  # whose rows are matched by token
            or len(found.shape) != len(arrangement.shape)
            or found.shape == arrangement.shape
            or not (rules.takes_part_of(name) or name in partial)
        ):
            continue
        for pattern in rules.partials:
            hit[pattern] += replace(rules, partials=(pattern,)).takes_part_of(name)
        layout.partials[name] = (arrangement.shape, found.shape)
        layout.dtypes[name] = tensors.dtype(name)
        layout.arrangements[name] = arrangement.resized(found.shape)
    layout.kept = [name for name in layout.kept if name not in layout.partials]
    layout.uses += [RuleUse("partial", pattern, number) for pattern, number in hit.items()]


def partial_note(side: str, shape: tuple[int, ...], other_side: str, other: tuple[int, ...]) -> str:
    """Return in words which part of a tensor two sides have both."""
    common = [min(sizes) for sizes in zip(shape, other, strict=True)]
    return f"{side} has {list(shape)}, {other_side} {list(other)}; the leading {common} is used"


def arranged_model(model: LogicalModel, layout: Layout) -> LogicalModel:
    """Return a model whose tensors are those after the layout rules."""
    if not layout.arrangements:
        return model
    tensors = {name: model.tensors[name] for name in layout.kept}
    for name, arrangement in layout.arrangements.items():
        names, dtype, parts = arrangement.sources, layout.dtypes[name], []
        for source in (model.tensors[part].source for part in names):
            assert not isinstance(source, (Arranged, Reordered))
            parts.append(source)
        arranged = Arranged(tuple(parts), arrangement.boxes(names), math.prod(arrangement.shape), dtype)
        tensors[name] = LogicalTensor(dtype, arrangement.shape, arranged)
    return replace(model, tensors=tensors)
