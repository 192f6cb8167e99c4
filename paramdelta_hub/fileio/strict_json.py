"""Strict JSON: no duplicate keys, no NaN, no numbers that overflow, bounded depth (RFC 8259 §4, §6, §9).

Every text has one meaning. Python's ``json`` checks none of these rules, and pydantic's strict mode only a few.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import numpy as np

from paramdelta_hub.errors import PackageError, SourceError
from paramdelta_hub.fileio.lfs import refuse_pointer
from paramdelta_hub.limits import JSON_DEPTH, JSON_VALUES

__all__ = ["JsonObject", "canonical", "compact", "parse", "parse_object", "pretty"]

JsonObject: TypeAlias = dict[str, Any]
"""A JSON object whose keys we don't define, such as a model's config."""

_NINETEEN_ZEROS = b"0" * 19
_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"0" * 9)
_MINUS_ZERO = re.compile(rb"-0(?![0-9.eE])")
_NOT_STRUCTURAL = bytes(byte for byte in range(256) if byte not in b'"[]{}')
_STEPS = bytes.maketrans(b"[{]}", bytes([1, 1, 255, 255]))
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class _Rules:
    """What :func:`json.loads` calls for objects and numbers, and how problems are raised."""

    error: type[SourceError]
    where: str | None
    long_integers: bool

    def refuse(self, what: str) -> NoReturn:
        raise self.error(what, where=self.where)

    def constant(self, name: str) -> NoReturn:
        self.refuse(f"{name} is not JSON")

    def unique(self, pairs: list[tuple[str, Any]]) -> JsonObject:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            self.refuse(f"the JSON key {twice[:200]!r} occurs twice")
        return found

    def finite(self, digits: str) -> float:
        number = float(digits)
        if not math.isfinite(number):
            self.refuse(f"the JSON number {digits[:40]} overflows")
        return number

    def short(self, digits: str) -> int | float:
        # Long integers are refused before conversion, which takes quadratic time.
        if self.long_integers and len(digits) > 40:
            self.refuse("a JSON integer has more than 40 digits")
        if not self.long_integers and (len(digits) > 20 or not -(2**63) <= int(digits) < 2**64):
            self.refuse("a JSON integer has more than 64 bits")
        number = int(digits)
        return -0.0 if digits == "-0" else number  # other parsers read a float, which is no size or shape


def parse(
    text: bytes,
    error: type[SourceError] = PackageError,
    where: str | None = None,
    limit: int = JSON_VALUES,
    *,
    long_integers: bool = False,
) -> Any:
    """Parse UTF-8 JSON of at most about ``limit`` values strictly.

    With ``long_integers``, integers may have up to 40 digits instead of 64 bits. transformers writes 10**30 as the
    ``model_max_length`` of tokenizers that have no limit.

    Raises:
        SourceError: (as ``error``) not UTF-8, not JSON, too deep, a duplicate key, or a number that is not finite.
    """
    rules = _Rules(error, where, long_integers)
    refuse_pointer(text, error, where)
    # Every value follows one of these bytes. Those inside strings are counted too, which is on the safe side.
    if sum(text.count(byte) for byte in (b",", b"[", b"{")) > limit:
        rules.refuse(f"JSON of more than {limit} values")
    try:
        value = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=rules.unique,
            parse_float=rules.finite,
            parse_int=None if _has_only_short_integers(text) else rules.short,
            parse_constant=rules.constant,
        )
    except UnicodeDecodeError:
        rules.refuse("not UTF-8")
    except RecursionError:  # the parser's own limit, far above ours
        rules.refuse(f"JSON nested deeper than {JSON_DEPTH} levels")
    except ValueError as problem:
        rules.refuse(f"not JSON: {problem}")
    depth = _depth(text)
    if (depth > JSON_DEPTH) if depth is not None else _is_deeper_than(value, JSON_DEPTH):
        rules.refuse(f"JSON nested deeper than {JSON_DEPTH} levels")
    if _SURROGATE.search(text):
        try:
            compact(value)
        except UnicodeEncodeError:  # it can't be written again, and other parsers refuse it
            rules.refuse("a JSON string holds a lone surrogate")
    return value


def parse_object(
    text: bytes,
    error: type[SourceError] = PackageError,
    where: str | None = None,
    limit: int = JSON_VALUES,
    *,
    long_integers: bool = False,
) -> JsonObject:
    """Parse a JSON object; see :func:`parse`.

    Raises:
        SourceError: (as ``error``) not strict JSON, or not an object.
    """
    value = parse(text, error, where, limit, long_integers=long_integers)
    if not isinstance(value, dict):
        raise error("not a JSON object", where=where)
    return value


def _has_only_short_integers(text: bytes) -> bool:
    """Whether surely no integer has more than 18 digits or is −0, so that none has to be checked. May err to False."""
    return _NINETEEN_ZEROS not in text.translate(_DIGITS_TO_ZERO) and not _MINUS_ZERO.search(text)


def _depth(text: bytes) -> int | None:
    """Return the nesting depth of valid JSON, at the speed of memory; None if a string may hold a bracket.

    Only quotes and brackets are kept, and adjacent pairs of quotes are removed. If no quote is escaped, a remaining
    quote means that a string holds a bracket.
    """
    if b'\\"' in text:
        return None
    marks = text.translate(None, _NOT_STRUCTURAL).replace(b'""', b"")
    if b'"' in marks:
        return None
    opened = np.frombuffer(marks.translate(_STEPS), np.int8)
    return int(np.cumsum(opened, dtype=np.int32).max(initial=0))


def _is_deeper_than(value: Any, levels: int) -> bool:
    """Whether a value is nested deeper than ``levels``. It walks level by level, so the stack can't overflow."""
    level = [value]
    for _ in range(levels):
        nodes = [node.values() if isinstance(node, dict) else node for node in level if isinstance(node, (dict, list))]
        level = [child for node in nodes for child in node]
    return any(isinstance(child, (dict, list)) for child in level)


def canonical(value: Any) -> bytes:
    """Return the canonical JSON of ``value``, as used for digests: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def pretty(value: Any) -> bytes:
    """Return JSON for people: an indent of two spaces, keys in the given order, a line feed at the end."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def compact(value: Any) -> bytes:
    """Return JSON without spaces, with keys in the given order."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
