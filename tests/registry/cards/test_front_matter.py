"""Metadata of cards that belong to others: found as the Hub finds it, changed by the line, and nothing else touched."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from hypothesis import given
from hypothesis import strategies as st

from paramdelta_hub.errors import SourceError
from paramdelta_hub.registry.cards.front_matter import Items, Lines, change_metadata, entries, metadata, split

KEY = "paramdelta_deltas"
ENTRIES = [
    "license: mit   # by hand",
    "license: 'apache-2.0'",
    'pretty_name: "Tab\\tand \\"quotes\\""',
    "# a comment on its own\nlanguage:\n  - en  # English\n  -   de",
    "language: [ en,de ,fr ]   # odd blanks",
    "base_model: &base org/base\nnew_version: *base",
    "base_model:\n- org/a\n- org/b\nbase_model_relation: merge",
    "extra_gated_prompt: >-\n  Long text that folds\n  over lines\n\n  and paragraphs",
    "extra_gated_prompt: |\n  Long text\n   that keeps lines",
    "extra_gated_fields:\n  Company: text\n  I agree to all of it: checkbox",
    "extra_gated_description: |+\n  with lines below\n\n",
    "inference: false\nempty:\n'on': yes\n12: 3.0\nwhen: 2024-01-01",
    "model-index:\n- name: m\n  results:\n  - task: {type: text-generation}\n    metrics: [{type: acc, value: .nan}]",
    'widget:\n- text: "Ünïcödé 😀"\n- text: |\n    two\n    lines',
    "? complex key\n: value",
    "",
]
"""Pieces of metadata as people write it. No key but the odd one is there twice in a card."""


def block_of(pieces: list[str]) -> str:
    seen: set[str] = set()
    kept = []
    for piece in pieces:
        keys = {line.split(":")[0] for line in piece.splitlines() if line[:1].isalpha()}
        if not keys & seen:
            seen |= keys
            kept.append(piece)
    return "\n".join(kept)


@st.composite
def cards(draw: st.DrawFn) -> str:
    """Cards with and without metadata, with any line ends, byte order marks, blank lines, odd fences."""
    body = draw(st.sampled_from(["", "\n", "# A model", "\n# A model\n\nText.\n", "\n\n\n", "Text\n---\nmore\n---\n"]))
    card = body
    if draw(st.booleans()):
        block = block_of(draw(st.lists(st.sampled_from(ENTRIES), max_size=5)))
        fence = "---" + draw(st.sampled_from(["", " ", "\t "]))
        card = f"---\n{block}\n{fence}" + (f"\n{body}" if draw(st.booleans()) or body else "")
        card = draw(st.sampled_from(["", "\n", "\n \n", "\t\n"])) + card
    end = draw(st.sampled_from(["\n", "\r\n"]))
    return draw(st.sampled_from(["", "\ufeff"])) + card.replace("\n", end)


def as_the_client_reads(card: str) -> tuple[Any, str]:
    """Return what huggingface_hub takes from a card: the metadata, and the text."""
    text = card.removeprefix("\ufeff")
    found = REGEX_YAML_BLOCK.search(text)
    return (yaml.safe_load(found[2]) or {}, text[found.end() :]) if found else ({}, text)


def equal(one: Any, two: Any) -> bool:
    return repr(one) == repr(two)  # NaN is equal to itself


@given(cards())
def test_a_key_comes_and_goes_and_nothing_else_changes(card: str) -> None:
    try:
        before, text = as_the_client_reads(card)
    except yaml.YAMLError:
        return
    if not isinstance(before, dict):
        with pytest.raises(SourceError, match="metadata"):
            change_metadata(card, {KEY: Items(["org/delta"])}, "org/model")
        return
    changed = change_metadata(card, {KEY: Items(["org/delta"])}, "org/model")
    after, text_after = as_the_client_reads(changed)
    assert after.pop(KEY) == ["org/delta"]
    assert equal(after, before)
    assert text_after.removeprefix("\r\n" if "\r\n" in changed else "\n") == text or text_after == text
    shared = next((at for at, (old, new) in enumerate(zip(card, changed, strict=False)) if old != new), len(card))
    assert changed.endswith(card[shared:]), "lines are only put in between"
    assert changed.startswith("\ufeff") == card.startswith("\ufeff")
    assert change_metadata(changed, {KEY: Items(["org/delta"])}, "org/model") == changed
    assert change_metadata(changed, {KEY: None}, "org/model") == card
    assert change_metadata(changed, {KEY: Items(drop=["org/delta"])}, "org/model") == card


@given(
    cards(),
    st.text(max_size=12).filter(str.isprintable),
    st.lists(st.sampled_from(["a", "b c", "no", "é"]), unique=True),
)
def test_values_are_read_back_as_they_were_written(card: str, text: str, members: list[str]) -> None:
    try:
        before, _ = as_the_client_reads(card)
    except yaml.YAMLError:
        return
    if not isinstance(before, dict):
        return
    facts = {"id": text, "bytes": 42, "version": "1.10"}
    changes = {"license": text, "facts": facts, "tags": Items(members), "empty": None}
    after, _ = as_the_client_reads(change_metadata(card, changes, "org/model"))
    assert after.pop("license") == text
    assert after.pop("facts") == facts
    assert after.pop("tags", []) == members
    assert equal(after, {key: value for key, value in before.items() if key not in ("license", "empty")})


@pytest.mark.parametrize(
    "block",
    [
        '{"license": "mit", "tags": ["a"]}',
        '{\n  "license": "mit",  # why\n  "tags": ["a"],\n}',
        "{}",
        "{ }",
        "# none",
        "",
    ],
)
def test_metadata_with_brackets_is_restored_too(block: str) -> None:
    card = f"---\n{block}\n---\n# M\n"
    before, text = as_the_client_reads(card)
    changed = change_metadata(card, {KEY: Items(["org/delta"]), "a": "b"}, "")
    assert as_the_client_reads(changed) == ({**before, KEY: ["org/delta"], "a": "b"}, text)
    assert change_metadata(change_metadata(changed, {KEY: Items(drop=["org/delta"])}, ""), {"a": None}, "") == card
    assert change_metadata(changed, {"a": None, KEY: None}, "") == card


@given(st.text(max_size=20))
def test_any_text_can_be_a_value(text: str) -> None:
    if not all(character.isprintable() or character in "\t\n\x85\u2028\ufeff\x07" for character in text):
        return
    after, _ = as_the_client_reads(change_metadata("", {"name": text}, ""))
    assert after == {"name": text}
    assert metadata(change_metadata("", {"name": text}, ""), "") == {"name": text}


@pytest.mark.parametrize(
    "word", ["no", "ON", "y", "null", "~", "1.10", "0x1f", "1e3", "12:30", "a: b", "- a", "#", "&a", "!x"]
)
def test_words_that_yaml_takes_for_something_else_are_quoted(word: str) -> None:
    changed = change_metadata("---\na: 1\n---\n", {"tags": Items([word])}, "")
    assert as_the_client_reads(changed)[0]["tags"] == [word]
    assert metadata(changed, "")["tags"] == [word]


@pytest.mark.parametrize(
    ("block", "change", "after"),
    [
        ("tags:\n- b  # mine\n- c\n", Items(["a"]), "tags:\n- a\n- b  # mine\n- c\n"),
        ("tags:\n    -   b\n    -   d\n", Items(["c"], in_order=True), "tags:\n    -   b\n    -   c\n    -   d\n"),
        ("tags:\n- b\n# below\nx: 1\n", Items(["c"], in_order=True), "tags:\n- b\n- c\n# below\nx: 1\n"),
        ("tags: [b , c]  # mine\n", Items(["a"]), 'tags: ["a", b , c]  # mine\n'),
        ("tags: [b,c]\n", Items(["d"], in_order=True), 'tags: [b,c, "d"]\n'),
        ("tags: []\n", Items(["a"]), "tags:\n- a\n"),
        ("tags: b\n", Items(["a"]), "tags:\n- a\n- b\n"),
        ("tags: b  # alone\n", Items(["b"]), "tags: b  # alone\n"),
        ("tags: &x 'b'  # anchored\ny: *x\n", Items(["a"]), "tags:\n- a\n- &x 'b'  # anchored\ny: *x\n"),
        ("{tags: 'b', x: 1}\n", Items(["a"]), "{tags: [\"a\", 'b'], x: 1}\n"),
        ("tags:\nx: 1\n", Items(["a"]), "tags:\n- a\nx: 1\n"),
        ("tags:\n- a\n- b\n- c\nx: 1\n", Items(drop=["b"]), "tags:\n- a\n- c\nx: 1\n"),
        ("tags: [a, b, c]\n", Items(drop=["b"]), "tags: [a, c]\n"),
        ("tags: [a, b, c]\n", Items(drop=["a"]), "tags: [b, c]\n"),
        ("tags: [a, b, c]\n", Items(drop=["b", "c"]), "tags: [a]\n"),
        ("tags: [a, b, c]\n", Items(["z"], drop=["a", "c"], in_order=True), 'tags: [b, "z"]\n'),
        ("x: 1\ntags: [a]\ny: 2\n", Items(drop=["a"]), "x: 1\ny: 2\n"),
        ("tags: mit   # why\n", "other", "tags: other   # why\n"),
        ("tags: 'mit'\n", "a b", 'tags: "a b"\n'),
        ("tags: |\n  mit\nx: 1\n", "other", "tags: other\nx: 1\n"),
        ("  tags: mit\n  x: 1\n", None, "  x: 1\n"),
        ("  tags: mit\n  x: 1\n", {"a": 1, "b": "2"}, '  tags:\n    a: 1\n    b: "2"\n  x: 1\n'),
        ("{tags: [a], x: 1}\n", Items(["b"]), '{tags: ["b", a], x: 1}\n'),
        ("{tags: [a], x: 1}\n", None, "{x: 1}\n"),
        ("{x: 1}\n", Items(["a"]), '{"tags": ["a"], x: 1}\n'),
        ("{}\n", {"a": 1}, '{"tags": {"a": 1}}\n'),
        ("# only this\n", "a", "# only this\ntags: a\n"),
    ],
)
def test_a_change_keeps_the_way_of_writing(block: str, change: Any, after: str) -> None:
    assert change_metadata(f"---\n{block}---\n# M\n", {"tags": change}, "") == f"---\n{after}---\n# M\n"
    crlf = [text.replace("\n", "\r\n") for text in (f"---\n{block}---\n# M\n", f"---\n{after}---\n# M\n")]
    assert change_metadata(crlf[0], {"tags": change}, "") == crlf[1]


def test_lines_of_another_card_are_taken_as_they_are() -> None:
    theirs = "---\nextra_gated_fields:\n  Company: text   # required\n  'on': {type: date}\nx: 1\n---\n"
    lines = {entry.key: entry for entry in entries(theirs, "")}
    changed = change_metadata(
        "---\nlicense: mit\n---\n", {"extra_gated_fields": Lines(lines["extra_gated_fields"])}, ""
    )
    assert changed == f"---\nlicense: mit\n{lines['extra_gated_fields'].lines}---\n"
    assert "   # required\n" in changed


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ("---\nlicense: mit\n", "no end"),
        ("--- \nlicense: mit\n---\n", "no end that the Hub sees"),
        ("---\na: [\n---\n", "can't be read"),
        ("---\n- a\n- b\n---\n", "can't be read"),
        ("---\ntext\n---\n", "can't be read"),
        ("---\n!!python/object:os.system {}\n---\n", "can't be read"),
        ("---\na: b: c\n---\n", "can't be read"),
        ("---\n\tx: 1\n---\n", "can't be read"),
        ("---\na: 1\n...\nb: 2\n---\n", "can't be read"),
        ("---\nkey: 1\nkey: 2\n---\n", "twice"),
        ("---\nkey: {a: b}\n---\n", "not a list"),
        ("---\na: *b\n---\n", "refers to nothing"),
        ("---\na: " + "[" * 100_000 + "\n---\n", "can't be read"),
        ("---\n" + "".join(" " * level + "a:\n" for level in range(1500)) + "---\n", "can't be read"),
        ("---\na: \x07\n---\n", "can't be read"),
    ],
)
def test_metadata_that_cant_be_changed_is_left_alone(card: str, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        change_metadata(card, {"key": Items(["x"])}, "org/model")


def test_what_others_refer_to_is_not_removed() -> None:
    with pytest.raises(SourceError, match="can't be changed without changing more than a"):
        change_metadata("---\na: &x b\nc: *x\n---\n", {"a": None}, "org/model")


def test_two_rules_are_no_metadata() -> None:
    changed = change_metadata("---\n---\nEmpty.\n", {"a": "b"}, "")
    assert changed == "---\na: b\n---\n\n---\n---\nEmpty.\n"
    assert split("---\n---\nEmpty.\n") == ("", "---\n---\nEmpty.\n")


def test_a_small_text_is_no_large_value() -> None:
    bomb = "a: &a [x, x]\n" + "".join(
        f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghijklm", "bcdefghijklmn", strict=True)
    )
    changed = change_metadata(f"---\n{bomb}---\n", {KEY: Items(["org/d"])}, "")
    assert changed == f"---\n{bomb}{KEY}:\n- org/d\n---\n"
