"""What makes strict JSON fast makes it no less strict: depth told by brackets alone, integers that need no look."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from paramdelta_hub.errors import PackageError
from paramdelta_hub.fileio import strict_json
from paramdelta_hub.fileio.strict_json import parse
from paramdelta_hub.limits import JSON_DEPTH

TRICKY = st.text(st.sampled_from('[]{}"\\,: a'), max_size=8)
VALUES = st.recursive(
    st.none() | TRICKY | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TRICKY, inner, max_size=4),
    max_leaves=30,
)


def depth(value: Any) -> int:
    """Count levels by looking at every value."""
    if not isinstance(value, (dict, list)):
        return 0
    return 1 + max(map(depth, value.values() if isinstance(value, dict) else value), default=0)


@given(VALUES, st.sampled_from([None, 1]))
@example(['"]', '["'], None)
@example({"a[": 1, "]b": [[]]}, None)
def test_brackets_alone_tell_the_depth_or_nothing_is_told(value: Any, indent: int | None) -> None:
    text = json.dumps(value, indent=indent).encode()
    assert strict_json._depth(text) in (None, depth(value))
    assert parse(text) == value


BEFORE: dict[str, list[Any]] = {
    "nothing": [],
    "brackets": ["]" * 50, {"]": "[" * 50}],
    "an escaped quote and brackets": ['"' + "]" * 50],
    "so many escaped quotes that they pair up": ['"' + "]" * 50, '"'],
}


@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
@pytest.mark.parametrize("kind", ["list", "dict", "both"])
def test_strings_full_of_brackets_hide_no_level(before: list[Any], kind: str) -> None:
    """Brackets in strings close nothing; if they counted, deeper values would pass."""
    for levels in (JSON_DEPTH - 1, JSON_DEPTH, JSON_DEPTH + 8):
        inner: Any = 1
        for level in range(levels):
            inner = [inner] if kind == "list" or (kind == "both" and level % 2) else {"x": inner}
        text = json.dumps([*before, inner]).encode()
        if levels < JSON_DEPTH:
            assert parse(text) == json.loads(text)
        else:
            with pytest.raises(PackageError, match="nested deeper"):
                parse(text)


@given(st.lists(st.integers(-(10**25), 10**25), max_size=6), st.text(st.sampled_from("0123456789-"), max_size=30))
@example([10**19, 5], "")
@example([-(2**63) - 1], "")
@example([2**64], "-0")
def test_integers_have_64_bits_whatever_stands_beside_them(numbers: list[int], beside: str) -> None:
    text = json.dumps({"numbers": numbers, "beside": beside}).encode()
    if all(-(2**63) <= number < 2**64 for number in numbers):
        assert parse(text)["numbers"] == numbers
    else:
        with pytest.raises(PackageError, match="64 bits"):
            parse(text)


@pytest.mark.parametrize("text", [b"-0", b"[-0]", b'{"x":-0}', b"[1,-0 ,2]", b"[-0\n]"])
def test_minus_zero_is_no_integer(text: bytes) -> None:
    [zero] = [value for value in _leaves(parse(text)) if value == 0]
    assert isinstance(zero, float)


def test_minus_zero_point_something_is_itself() -> None:
    assert parse(b"[-0.5, -0e3, -0.0, -1]") == [-0.5, -0.0, -0.0, -1]


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, (dict, list)):
        return [leaf for inner in (value.values() if isinstance(value, dict) else value) for leaf in _leaves(inner)]
    return [value]
