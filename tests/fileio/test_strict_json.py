"""JSON that means one thing."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta_hub.errors import CheckpointError, PackageError
from paramdelta_hub.fileio import strict_json
from paramdelta_hub.limits import JSON_DEPTH

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def same(left: object, right: object) -> bool:
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)


@given(JSON)
def test_what_is_written_is_read(value: object) -> None:
    for write in (strict_json.canonical, strict_json.pretty, strict_json.compact):
        assert same(strict_json.parse(write(value)), value)


@given(st.dictionaries(st.text(), JSON, max_size=6), st.randoms())
def test_canonical_text_does_not_depend_on_order(value: dict[str, object], source: object) -> None:
    names = list(value)
    source.shuffle(names)  # type: ignore[attr-defined]
    assert strict_json.canonical({name: value[name] for name in names}) == strict_json.canonical(value)


def test_the_exact_forms() -> None:
    value = {"b": [1, 2.5], "a": "Δ", "c": {}}
    assert strict_json.canonical(value) == b'{"a":"\\u0394","b":[1,2.5],"c":{}}'
    assert strict_json.compact(value) == '{"b":[1,2.5],"a":"Δ","c":{}}'.encode()
    assert strict_json.pretty(value).startswith(b'{\n  "b": [\n    1,')
    assert strict_json.pretty(value).endswith(b"}\n")


@pytest.mark.parametrize("write", [strict_json.canonical, strict_json.pretty, strict_json.compact])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_json_is_not_written(write: object, value: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write({"a": [value]})  # type: ignore[operator]


REFUSED = {
    b'{"a":1,"a":1}': "'a' occurs twice",
    b'{"a":1,"\\u0061":2}': "'a' occurs twice",
    b'[{"x":{"b":1,"c":2,"b":3}}]': "'b' occurs twice",
    b"NaN": "NaN is not JSON",
    b"[Infinity]": "Infinity is not JSON",
    b'{"a":-Infinity}': "-Infinity is not JSON",
    b"1e999": "1e999 overflows",
    b"[-1e400]": "-1e400 overflows",
    b"123456789012345678901": "more than 64 bits",
    b"18446744073709551616": "more than 64 bits",
    b"-9223372036854775809": "more than 64 bits",
    b"[" + b"1" * 1_000_000 + b"]": "more than 64 bits",
    b"\xff": "not UTF-8",
    b'"\xed\xa0\x80"': "not UTF-8",
    b"\xfe\xff\0{\0}": "not UTF-8",
    b"": "not JSON",
    b" ": "not JSON",
    b"\xef\xbb\xbf{}": "not JSON",
    b"{} x": "not JSON",
    b"{'a':1}": "not JSON",
    b"[1,]": "not JSON",
    b'{"a":1,}': "not JSON",
    b"[01]": "not JSON",
    b"[+1]": "not JSON",
    b"[.5]": "not JSON",
    b"[0x10]": "not JSON",
    b'"\n"': "not JSON",
    b'"\\x41"': "not JSON",
    b"/* */ {}": "not JSON",
    b"True": "not JSON",
    b'{"a"}': "not JSON",
    b'"\\ud800"': "surrogate",
    b'{"\\udfff":1}': "surrogate",
    b'["\\ud800\\u0041"]': "surrogate",
    b'["\\udc00\\ud800"]': "surrogate",
}


@pytest.mark.parametrize("text", list(REFUSED), ids=lambda text: repr(text[:20]))
def test_refused(text: bytes) -> None:
    with pytest.raises(CheckpointError, match=REFUSED[text]) as caught:
        strict_json.parse(text, CheckpointError, "some.json")
    assert caught.value.where == "some.json"


def nested(levels: int, kind: str) -> bytes:
    if kind == "lists":
        return b"[" * levels + b"]" * levels
    if kind == "objects":
        return b'{"a":' * (levels - 1) + b"{}" + b"}" * (levels - 1)
    return (b'[{"a":' * levels)[: 6 * (levels // 2)] + (b"[]" if levels % 2 else b"0") + b"}]" * (levels // 2)


@pytest.mark.parametrize("kind", ["lists", "objects", "both"])
def test_depth(kind: str) -> None:
    assert strict_json.parse(nested(JSON_DEPTH, kind)) is not None
    for levels in (JSON_DEPTH + 1, JSON_DEPTH + 2, 100, 5000, 100_000):
        with pytest.raises(PackageError, match="nested deeper"):
            strict_json.parse(nested(levels, kind))


def test_depth_is_found_wherever_it_hides() -> None:
    deep = nested(JSON_DEPTH + 1, "lists")
    for text in (b"[0,%s]" % deep, b'{"a":0,"b":%s}' % deep, b"[[],[],%s,{}]" % deep, b'[1,"x",{"k":[2,%s]}]' % deep):
        with pytest.raises(PackageError, match="nested deeper"):
            strict_json.parse(text)


def test_allowed() -> None:
    for text in (
        b" [1] \r\n\t",
        b'"\\ud83d\\ude00"',
        b'"\\\\ud800"',
        b"18446744073709551615",
        b"-9223372036854775808",
        b"1e308",
        b"0.1",
    ):
        assert same(strict_json.parse(text), json.loads(text))


def test_minus_zero_is_no_integer() -> None:
    """serde reads it as a float, and so must we: a shape of [-0] is refused by safetensors."""
    assert type(strict_json.parse(b"-0")) is float
    assert type(strict_json.parse(b"0")) is int


@given(st.binary(max_size=60))
def test_any_bytes_are_parsed_or_refused(text: bytes) -> None:
    try:
        value = strict_json.parse(text)
    except PackageError:
        return
    strict_json.compact(value)


def test_long_integers_where_people_write_them() -> None:
    """transformers' "no limit": not in manifests, but in the settings of nearly every tokenizer."""
    text = b'{"model_max_length": 1000000000000000019884624838656}'
    assert strict_json.parse(text, long_integers=True) == {"model_max_length": 1000000000000000019884624838656}
    with pytest.raises(PackageError, match="more than 64 bits"):
        strict_json.parse(text)
    with pytest.raises(PackageError, match="more than 40 digits"):
        strict_json.parse(b"1" * 41, long_integers=True)
