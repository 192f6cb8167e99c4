"""The metadata of a card: read, and changed without touching anything else.

The block is found as the Hub and its client find it: after a byte order mark and blank lines, with any line ends. What
is written is text, at the places that ruamel.yaml names. Everything else keeps its bytes: order, comments, quotes,
indentation, line ends, anchors. Then the card is read again. Every other key must have the value that it had, and the
changed ones what they should; otherwise nothing is written.

Loading the block and dumping it again is no way, with ruamel.yaml either: it changes indentation, blanks within flow
lists, blanks before comments, long lines and line ends.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from paramdelta_hub.errors import SourceError
from paramdelta_hub.limits import JSON_DEPTH

__all__ = ["Change", "Entry", "Items", "Lines", "change_metadata", "entries", "line_end", "metadata", "split"]

_BREAK = re.compile(r"\r\n|\r|\n")
_BLOCK = re.compile(r"\A([\s\ufeff]*---(?:\r\n|\r|\n))([\S\s]*?)((?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|\Z))")
"""The expression of the Hub and of huggingface_hub (repocard.py), and a byte order mark, which both accept."""
_OPENING = re.compile(r"\A[\s\ufeff]*---[ \t]*(?:\r\n|\r|\n|\Z)(?!---[ \t]*(?:\r|\n|\Z))")
"""What looks like the beginning of a block. Two lines of dashes are no block for the Hub, but two rules."""
_DASH = re.compile(r"[ \t]*-[ \t]+")
_NULLS = {"", "~", "null", "Null", "NULL"}
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9._/-]*")
_WORDS_OF_YAML = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
_ESCAPED = {'"': '\\"', "\\": "\\\\"}


class Items(NamedTuple):
    """A change of a list: members to add and to drop. The others stay as they are, and a single text becomes a list."""

    add: Sequence[str] = ()
    drop: Sequence[str] = ()
    in_order: bool = False
    """Whether new members come at their alphabetical place, not in front."""


class Lines(NamedTuple):
    """A change that adds an entry as it is written in another card."""

    entry: Entry


Change: TypeAlias = "str | list[str] | Mapping[str, str | int] | Items | Lines | None"
"""What becomes of a key: a new value, a changed list, another card's lines; with None or no members it is removed."""


@dataclass
class _Node:
    """A value in the text of a block."""

    kind: Literal["scalar", "list", "map", "alias"]
    start: int
    end: int
    content: tuple[object, ...]
    """What YAML knows of it, without its members."""
    flow: bool = False
    """Whether a list or a map is written with brackets."""
    text: str | None = None
    """The value of a scalar; None for null."""
    members: list[_Node] = field(default_factory=list)
    """The members of a list; the keys and values of a map, in turn."""

    def plain(self) -> Any:
        """Return the value: text, None, lists and dictionaries. Numbers are text too."""
        if self.kind == "list":
            return [member.plain() for member in self.members]
        if self.kind == "map":
            pairs = zip(self.members[::2], self.members[1::2], strict=True)
            return {key.text: value.plain() for key, value in pairs}
        return self.text

    def everything(self) -> Iterator[object]:
        """Yield all that YAML knows of it, so that two values can be compared."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield (node.content, len(node.members))
            stack += node.members


@dataclass(frozen=True)
class Entry:
    """A key of the block, with its value."""

    key: str | None
    """None if it is not a text."""
    value: Any
    """Text, None, lists and dictionaries. Numbers are text too."""
    lines: str | None
    """The lines that hold the entry and nothing else; None if there are none."""
    start: int
    end: int
    """Where the lines are in the block."""
    node: _Node = field(compare=False, repr=False)
    key_node: _Node = field(compare=False, repr=False)

    def same(self, other: Entry) -> bool:
        """Whether two entries say the same."""
        pairs = ((self.key_node, other.key_node), (self.node, other.node))
        return all(list(one.everything()) == list(two.everything()) for one, two in pairs)


@dataclass(frozen=True)
class _Block:
    """The entries of a block's text, which ends in a line end."""

    text: str
    entries: list[Entry]
    flow: _Node | None
    """The map, if it is written with brackets."""
    indent: str


def split(card: str) -> tuple[str, str]:
    """Return (metadata block with its fences, the rest) of a card. The first is empty if there is no block."""
    found = _BLOCK.match(card)
    return (found[0], card[found.end() :]) if found else ("", card)


def line_end(card: str) -> str:
    """Return what ends the lines of a card: what ends the first one."""
    found = _BREAK.search(card.lstrip("\ufeff"))
    return found[0] if found else "\n"


def metadata(card: str, where: str) -> dict[str, Any]:
    """Return the metadata of a card. All values are text, None, lists or dictionaries.

    Raises:
        SourceError: the block can't be read.
    """
    return {entry.key: entry.value for entry in entries(card, where) if entry.key is not None}


def entries(card: str, where: str) -> list[Entry]:
    """Return the keys and values of a card's metadata, in order.

    Raises:
        SourceError: the block can't be read.
    """
    found = _find(card, where)
    return [] if found is None else _parse(found[2], where).entries


def change_metadata(card: str, changes: Mapping[str, Change], where: str) -> str:
    """Return the card with the changes of its metadata. Nothing else is touched; without a change, neither is the card.

    A card without metadata gets a block, and a block that would be empty is removed with its fences.

    Raises:
        SourceError: the block can't be read, or can't be changed without changing more than was asked for.
    """
    found = _find(card, where)
    if found is None:
        return _with_block(card, changes, where)
    head, content, tail = found.groups()
    end = line_end(head[head.index("---") :])
    block = _parse(content, where, end)
    wanted = {key: change for key, change in changes.items() if _is_change(block, key, change, where)}
    if not wanted:
        return card
    after, rest = _expected(block, wanted), card[found.end() :]
    mark = "\ufeff" * head.startswith("\ufeff")
    for changed in _attempts(block, wanted, end):
        if changed is None and head == f"{mark}---{end}":
            return mark + rest.removeprefix(end)
        text = f"{head}{changed or ''}{tail}{rest}"
        if _reads(text, changed or "", after):
            return text
    raise _unchangeable(where, wanted)


def _unchangeable(where: str, changes: Iterable[str]) -> SourceError:
    return SourceError(
        f"the card's metadata can't be changed without changing more than {' and '.join(changes)}",
        where=where,
        remedy="write the metadata as plain `key: value` lines",
    )


def _find(card: str, where: str) -> re.Match[str] | None:
    found = _BLOCK.match(card)
    if found is None and _OPENING.match(card):
        raise SourceError(
            "the card's metadata block has no end that the Hub sees",
            where=where,
            remedy="begin and end it with a line of --- and nothing else",
        )
    return found


def _with_block(card: str, changes: Mapping[str, Change], where: str) -> str:
    mark = "\ufeff" * card.startswith("\ufeff")
    rest, end = card.removeprefix("\ufeff"), line_end(card)
    made = "".join(_added(key, change, "", end) for key, change in changes.items())
    if not made:
        return card
    changed = f"{mark}---{end}{made}---{end}" + (end + rest if rest else "")
    if not _reads(changed, made.removesuffix(end), _expected(_Block("", [], None, ""), changes)):
        raise _unchangeable(where, changes)
    return changed


def _parse(content: str, where: str, end: str = "\n") -> _Block:
    from ruamel.yaml import YAML  # most commands need no YAML
    from ruamel.yaml.error import YAMLError

    depth = itertools.accumulate((character in "[{") - (character in "]}") for character in content)
    if max(depth, default=0) > JSON_DEPTH:  # the parser takes a time that grows with the square of the open brackets
        raise _unreadable(where, f"more than {JSON_DEPTH} brackets are open at once")
    try:
        root = _tree(YAML(typ="safe", pure=True).parse(content))
    except (YAMLError, ValueError, OverflowError, RecursionError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
        raise _unreadable(where, f"line {mark.line + 1}: {problem}" if mark and problem else reason) from None
    text = content + end
    if root is None:
        return _Block(text, [], None, "")
    if root.kind != "map" or root.content[1]:
        raise _unreadable(where, "it is not a list of keys and values")
    at = root.members[0].start if root.members else root.start
    margin = text[_line_start(text, at) : at]
    indent = margin if not root.flow and not margin.strip() else ""
    found = []
    for key, value in zip(root.members[::2], root.members[1::2], strict=True):
        start, stop = _line_start(text, key.start), _line_stop(text, _last(text, key, value))
        alone = not root.flow and not text[start : key.start].strip()
        lines = text[start:stop] if alone else None
        found.append(Entry(key.text, value.plain(), lines, start, stop, value, key))
    return _Block(text, found, root if root.flow else None, indent)


def _unreadable(where: str, reason: str) -> SourceError:
    shown = "".join(character if character.isprintable() else "?" for character in reason)[:200]
    return SourceError(
        f"the card's metadata can't be read: {shown}", where=where, remedy="correct the block between the --- lines"
    )


def _tree(events: Iterable[Any]) -> _Node | None:
    """Return the value of the only document. Aliases stay what they are, so a small text can't become a large value."""
    root: _Node | None = None
    open_nodes: list[_Node] = []
    anchors: set[object] = set()
    for event in events:
        name, anchor = type(event).__name__, getattr(event, "anchor", None)
        if name in ("SequenceEndEvent", "MappingEndEvent"):
            done = open_nodes.pop()
            if done.flow:
                done.end = event.end_mark.index
            elif done.members:
                done.end = done.members[-1].end
            continue
        if name == "DocumentStartEvent" and root is not None:
            raise ValueError("it is more than one document")
        if name not in _KINDS:
            continue
        if name == "AliasEvent" and anchor not in anchors:
            raise ValueError(f"*{anchor} refers to nothing")
        anchors.add(anchor)
        tag, value = getattr(event, "tag", None), getattr(event, "value", None)
        implicit = getattr(event, "implicit", None)
        is_plain = name == "ScalarEvent" and bool(implicit and implicit[0])
        node = _Node(
            _KINDS[name],
            event.start_mark.index,
            event.end_mark.index,
            (name, tag and str(tag), anchor, value, str(implicit)),
            bool(getattr(event, "flow_style", False)),
            None if is_plain and value in _NULLS else value,
        )
        if open_nodes:
            open_nodes[-1].members.append(node)
        else:
            root = node
        if node.kind in ("list", "map"):
            open_nodes.append(node)
        if len(open_nodes) > JSON_DEPTH:
            raise ValueError(f"it has more than {JSON_DEPTH} levels")
    return root


_KINDS: dict[str, Literal["scalar", "list", "map", "alias"]] = {
    "ScalarEvent": "scalar",
    "SequenceStartEvent": "list",
    "MappingStartEvent": "map",
    "AliasEvent": "alias",
}


def _last(text: str, key: _Node, value: _Node) -> int:
    """Return where an entry's last character is: YAML counts the blank lines below a block scalar as its own."""
    return max(key.end, len(text[: value.end].rstrip()))


def _line_start(text: str, at: int) -> int:
    return max(text.rfind("\n", 0, at), text.rfind("\r", 0, at)) + 1


def _line_stop(text: str, at: int) -> int:
    found = _BREAK.search(text, at)
    return found.end() if found else len(text)


def _is_change(block: _Block, key: str, change: Change, where: str) -> bool:
    found = [entry for entry in block.entries if entry.key == key]
    if len(found) > 1:
        raise SourceError(f"the card's metadata has {key} twice", where=where, remedy="delete one of them")
    if not found:
        return _target(None, change) is not None
    value = found[0].value
    if isinstance(change, Items):
        if isinstance(value, dict) or found[0].node.kind == "alias":
            raise SourceError(
                f"the card's {key} is not a list", where=where, remedy="write one member a line, each after a dash"
            )
        return bool(_members(value) != _changed_members(value, change))
    return isinstance(change, Lines) or _as_text(change) != value or change is None


def _expected(block: _Block, changes: Mapping[str, Change]) -> list[tuple[str | None, Any]]:
    """Return what the block is to say after the changes: values for changed keys, and the old entries for others."""
    before = {entry.key for entry in block.entries}
    new = [(key, _target(None, change)) for key, change in changes.items() if key not in before]
    kept = [
        (entry.key, _target(entry.value, changes[entry.key]) if entry.key and entry.key in changes else entry)
        for entry in block.entries
    ]
    return [(key, value) for key, value in [*kept, *new] if value is not None]


def _target(before: Any, change: Change) -> Any:
    if isinstance(change, Items):
        return _changed_members(before, change) or None
    return change.entry if isinstance(change, Lines) else None if change == [] else change


def _reads(card: str, block: str, expected: Sequence[tuple[str | None, Any]]) -> bool:
    """Whether a changed card, read again, has this block, and what was expected of every key, and nothing else."""
    try:
        found = _find(card, "")
        new = _parse(block, "").entries
    except SourceError:
        return False
    if found is None or found[2] != block or len(new) != len(expected):
        return False
    untouched = [value for _, value in expected if isinstance(value, Entry)]
    changed = {key: value for key, value in expected if not isinstance(value, Entry)}
    others = [entry for entry in new if entry.key not in changed]
    return (
        len(others) == len(untouched)
        and all(any(entry.same(old) for old in untouched if old.key == entry.key) for entry in others)
        and all(entry.value == _as_text(changed[entry.key]) for entry in new if entry.key in changed)
    )


def _attempts(block: _Block, changes: Mapping[str, Change], end: str) -> Iterator[str | None]:
    """Yield the changed text of a block, or None if nothing is left of it.

    Later ones serve where the value of a block scalar depends on what is below it.
    """
    there = {entry.key: entry for entry in block.entries}
    edits = [edit for key, change in changes.items() if key in there for edit in _edits(block, there[key], change, end)]
    new = {key: change for key, change in changes.items() if key not in there}
    if block.flow is not None:
        made = "".join(f"{_quoted(key)}: {_in_flow(_target(None, change))}, " for key, change in new.items())
        members = block.flow.members
        gone = [key for key, change in changes.items() if key in there and _target(there[key].value, change) is None]
        edits += _cuts(block.flow, [index for index, entry in enumerate(block.entries) if entry.key in gone], 2)
        at = members[0].start if members else block.text.index("{", block.flow.start) + 1
        yield _apply(block.text, [*edits, (at, at, made if members else made[:-2])]).removesuffix(end)
        return
    made = "".join(_added(key, change, block.indent, end) for key, change in new.items())
    before_last = block.entries[-1].start if block.entries else len(block.text)
    for below, at in itertools.product(("", end), (len(block.text), before_last)):
        text = _apply(block.text, [*edits, (at, at, made)])
        if not text:
            yield None
        yield text.removesuffix(end) + below


def _apply(text: str, edits: Iterable[tuple[int, int, str]]) -> str:
    for start, stop, _, new in sorted(((*edit[:2], rank, edit[2]) for rank, edit in enumerate(edits)), reverse=True):
        text = text[:start] + new + text[stop:]
    return text


def _edits(block: _Block, entry: Entry, change: Change, end: str) -> Iterator[tuple[int, int, str]]:
    """Yield (start, stop, new text) for an entry that is there."""
    node = entry.node
    if isinstance(change, Items) and _target(entry.value, change) is not None and node.kind == "list" and node.members:
        edits = list(_list_edits(block.text, node, change, end))
        if edits:
            yield from edits
            return
    target = _target(entry.value, change)
    if (
        isinstance(change, Items)
        and node.kind == "scalar"
        and isinstance(target, list)
        and _on_a_line(block.text, node)
    ):
        yield _listed(block, entry, target, end)
    elif isinstance(change, Lines):
        yield entry.start, entry.end, _added(str(entry.key), change, block.indent, end)
    elif target is None and block.flow is not None:
        return  # all of them are removed together
    elif target is None:
        yield entry.start, entry.end, ""
    elif block.flow is not None:
        yield node.start, node.end, _in_flow(target)
    elif isinstance(target, str) and node.kind == "scalar" and node.text and block.text[node.start] not in "|>&!":
        yield node.start, node.end, _scalar(target)
    else:
        yield entry.start, entry.end, _emit(str(entry.key), target, block.indent, end)


def _on_a_line(text: str, node: _Node) -> bool:
    return bool(node.text) and not _BREAK.search(text, node.start, node.end)


def _listed(block: _Block, entry: Entry, members: Sequence[Any], end: str) -> tuple[int, int, str]:
    """Return the edit that makes a list of a single text, which is kept as it is written, with its comment."""
    node, text = entry.node, block.text
    raw = text[node.start : node.end]
    if block.flow is not None:
        listed = ", ".join(raw if member == node.text else _in_flow(member) for member in members)
        return node.start, node.end, f"[{listed}]"
    rest = text[node.end : entry.end].rstrip("\r\n")
    lines = [raw + rest if member == node.text else _scalar(str(member)) for member in members]
    return (
        entry.start,
        entry.end,
        f"{block.indent}{entry.key}:{end}" + "".join(f"{block.indent}- {line}{end}" for line in lines),
    )


def _list_edits(text: str, node: _Node, change: Items, end: str) -> Iterator[tuple[int, int, str]]:
    """Yield the edits of a list, member by member; none if it is written in a way that has no place for them."""
    values = [member.plain() for member in node.members]
    dropped = [index for index, value in enumerate(values) if value in change.drop]
    added = [value for value in change.add if value not in values]
    places = [(_place(values, value) if change.in_order else 0, value) for value in added]
    if node.flow:
        for place, value in places:
            if place < len(values):
                at = node.members[place].start
                yield at, at, f"{_in_flow(value)}, "
            else:
                at = node.members[-1].end
                yield at, at, f", {_in_flow(value)}"
        yield from _cuts(node, dropped, 1)
        return
    starts = [_line_start(text, member.start) for member in node.members]
    margins = [text[start : member.start] for start, member in zip(starts, node.members, strict=True)]
    if not all(_DASH.fullmatch(margin) for margin in margins):
        return
    stops = [_line_stop(text, len(text[: member.end].rstrip())) for member in node.members]
    for place, value in places:
        at = starts[place] if place < len(starts) else stops[-1]
        yield at, at, f"{margins[0]}{_scalar(value)}{end}"
    for index in dropped:
        yield starts[index], stops[index], ""


def _cuts(node: _Node, dropped: Sequence[int], width: int) -> Iterator[tuple[int, int, str]]:
    """Yield the edits that take members out of a list or map with brackets, each with one comma.

    A member has ``width`` parts: one in a list, two in a map.
    """
    starts = node.members[::width]
    last_kept = max((index for index in range(len(starts)) if index not in dropped), default=-1)
    for index in dropped:
        if index < last_kept:
            yield starts[index].start, starts[index + 1].start, ""
    if dropped and last_kept < len(starts) - 1:
        ends = node.members[width - 1 :: width]
        yield ends[last_kept].end if last_kept >= 0 else starts[0].start, ends[-1].end, ""


def _place(values: Sequence[Any], value: str) -> int:
    return next((index for index, other in enumerate(values) if isinstance(other, str) and other > value), len(values))


def _members(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _changed_members(value: Any, change: Items) -> list[Any]:
    members = list(_members(value))
    places = [(_place(members, new) if change.in_order else 0, new) for new in change.add if new not in members]
    result: list[Any] = []
    for index, member in enumerate([*members, None]):
        result += [new for place, new in places if place == index]
        if index < len(members) and member not in change.drop:
            result.append(member)
    return result


def _added(key: str, change: Change, indent: str, end: str) -> str:
    """Return the lines of an entry that is not there yet."""
    if isinstance(change, Lines):
        lines = change.entry.lines
        if lines and not indent and not lines[0].isspace():
            return lines.rstrip("\r\n") + end
        change = change.entry.value
    target = _target(None, change)
    return "" if target is None else _emit(key, target, indent, end)


def _as_text(value: Any) -> Any:
    """Return a value as it is read back."""
    if isinstance(value, Mapping):
        return {key: _as_text(member) for key, member in value.items()}
    return str(value) if isinstance(value, int) else value


def _emit(key: str, value: Any, indent: str, end: str) -> str:
    if isinstance(value, Mapping):
        inner = "".join(_emit(name, member, f"{indent}  ", end) for name, member in value.items())
        return f"{indent}{_scalar(key)}:{end}{inner}" if inner else f"{indent}{_scalar(key)}: {{}}{end}"
    if isinstance(value, list):
        inner = "".join(f"{indent}- {_scalar(str(member))}{end}" for member in value)
        return f"{indent}{_scalar(key)}:{end}{inner}" if inner else f"{indent}{_scalar(key)}: []{end}"
    return f"{indent}{_scalar(key)}: {_scalar(value)}{end}"


def _in_flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_quoted(key)}: {_in_flow(member)}" for key, member in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_in_flow, value)) + "]"
    return str(value) if isinstance(value, int) else _quoted(str(value))


def _scalar(text: str | int) -> str:
    """Return a text or number as YAML 1.1, of Python's client, and YAML 1.2, of the Hub, both read it."""
    if isinstance(text, int):
        return str(text)
    return text if _PLAIN.fullmatch(text) and text.lower() not in _WORDS_OF_YAML else _quoted(text)


def _quoted(text: str) -> str:
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    if character in _ESCAPED or character.isprintable():
        return _ESCAPED.get(character, character)
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
