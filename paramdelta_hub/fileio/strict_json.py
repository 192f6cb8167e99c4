"""JSON that means one thing: no duplicate keys, no NaN, no number that overflows, bounded depth (RFC 8259 §4, §6, §9).

Python's ``json`` accepts all of these, and pydantic's strict mode most of them.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any, NoReturn

import numpy as np

from paramdelta_hub.errors import PackageError, SourceError
from paramdelta_hub.limits import JSON_DEPTH, JSON_VALUES

__all__ = ["canonical", "compact", "parse", "pretty"]

_MANY_DIGITS = b"0" * 19
_DIGITS_ALIKE = bytes.maketrans(b"123456789", b"0" * 9)
_MINUS_ZERO = re.compile(rb"-0(?![0-9.eE])")
_ALL_BUT_MARKS = bytes(byte for byte in range(256) if byte not in b'"[]{}')
_STEPS = bytes.maketrans(b"[{]}", bytes([1, 1, 255, 255]))
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse(
    text: bytes,
    error: type[SourceError] = PackageError,
    where: str | None = None,
    most: int = JSON_VALUES,
    *,
    long_integers: bool = False,
) -> Any:
    """Parse UTF-8 JSON of at most about ``most`` values strictly.

    With ``long_integers`` they may have up to 40 digits instead of 64 bits: transformers writes 10**30 + … as the
    ``model_max_length`` of tokenizers that have none.

    Raises:
        SourceError: (as ``error``) not UTF-8, not JSON, too deep, a key twice, or a number that is not finite.
    """

    def refuse(what: str) -> NoReturn:
        raise error(what, where=where)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            refuse(f"the JSON key {twice[:200]!r} stands twice")
        return found

    def finite(digits: str) -> float:
        number = float(digits)
        if not math.isfinite(number):
            refuse(f"the JSON number {digits[:40]} overflows")
        return number

    def short(digits: str) -> int | float:
        # Long ones are refused unread: they cost quadratic time.
        if long_integers and len(digits) > 40:
            refuse("a JSON integer has more than 40 digits")
        if not long_integers and (len(digits) > 20 or not -(2**63) <= int(digits) < 2**64):
            refuse("a JSON integer has more than 64 bits")
        number = int(digits)
        return -0.0 if digits == "-0" else number  # to other parsers a float, and so no size or shape

    # Every value follows one of these bytes; those inside strings are counted too, which only errs on the safe side.
    if sum(text.count(byte) for byte in (b",", b"[", b"{")) > most:
        refuse(f"JSON of more than {most} values")
    try:
        value = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=unique,
            parse_float=finite,
            parse_int=None if _has_only_short_integers(text) else short,
            parse_constant=lambda name: refuse(f"{name} is not JSON"),
        )
    except UnicodeDecodeError:
        refuse("not UTF-8")
    except RecursionError:  # the parser's own bound, far above ours
        refuse(f"JSON nested deeper than {JSON_DEPTH} levels")
    except ValueError as problem:
        refuse(f"not JSON: {problem}")
    depth = _depth(text)
    if (depth > JSON_DEPTH) if depth is not None else _deeper_than(value, JSON_DEPTH):
        refuse(f"JSON nested deeper than {JSON_DEPTH} levels")
    if _SURROGATE.search(text):
        try:
            compact(value)
        except UnicodeEncodeError:  # half a character: it could not be written again, and other parsers refuse it
            refuse("a JSON string holds a lone surrogate")
    return value


def _has_only_short_integers(text: bytes) -> bool:
    """Whether no integer can have more than 18 digits, or be −0: then each need not be looked at. May err to False."""
    return _MANY_DIGITS not in text.translate(_DIGITS_ALIKE) and not _MINUS_ZERO.search(text)


def _depth(text: bytes) -> int | None:
    """Return how many levels valid JSON is nested, at the speed of memory; None where a string may hold a bracket.

    Of the text only quotes and brackets are kept. Where no quote is escaped, a bracket in a string has an odd number of
    quotes before it, and striking out pairs of neighbours leaves one of them.
    """
    if b'\\"' in text:
        return None
    marks = text.translate(None, _ALL_BUT_MARKS).replace(b'""', b"")
    if b'"' in marks:
        return None
    opened = np.frombuffer(marks.translate(_STEPS), np.int8)
    return int(np.cumsum(opened, dtype=np.int32).max(initial=0))


def _deeper_than(value: Any, levels: int) -> bool:
    """Walk level by level, not by recursion: a later ``json.dumps`` recurses, and must be safe to call."""
    level = [value]
    for _ in range(levels):
        level = (
            [
                child
                for node in level
                for child in (node.values() if isinstance(node, dict) else node)
                if isinstance(child, (dict, list))
            ]
            if level and isinstance(level[0], (dict, list))
            else []
        )
        if not level:
            return False
    return True


def canonical(value: Any) -> bytes:
    """Return the one JSON text of ``value`` that digests are taken of: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def pretty(value: Any) -> bytes:
    """Return JSON for people: two spaces, keys in the order given, a line feed at the end."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def compact(value: Any) -> bytes:
    """Return JSON without spaces, keys in the order given."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
