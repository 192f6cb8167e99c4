"""Rows by token, against a model that thinks in tokens and numbers, and the cases that users of other tools met."""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from paramdelta_hub.checkpoints.tokens.token_rows import (
    Placement,
    Run,
    dropped_tokens,
    match_rows,
    place_rows,
    row_sources,
    runs_of,
)
from paramdelta_hub.checkpoints.tokens.tokenizer import Vocabulary
from paramdelta_hub.errors import MismatchError
from paramdelta_hub.numerics.row_runs import check_runs

Model = tuple[dict[str, int], int]
"""A tokenizer's table, and the rows of the embedding."""
TOKENS = "abcdefghij"


def vocabulary(tokens: dict[str, int] | Iterable[str]) -> Vocabulary:
    table = tokens if isinstance(tokens, dict) else {token: row for row, token in enumerate(tokens)}
    return Vocabulary(table, "a tokenizer")


@st.composite
def edited(draw: st.DrawFn, start: Model) -> Model:
    """Draw what a few changes make of a model: tokens added, removed, renamed, swapped; rows added and taken away."""
    tokens, rows = dict(start[0]), start[1]
    for _ in range(draw(st.integers(0, 3))):
        token, row = draw(st.sampled_from(TOKENS)), draw(st.integers(0, 13))
        owner = next((name for name, its in tokens.items() if its == row), None)
        old = tokens.pop(token, None)
        if draw(st.booleans()):
            if owner is not None and owner != token:
                del tokens[owner]
                if old is not None:
                    tokens[owner] = old
            tokens[token] = row
    return tokens, max(1, rows + draw(st.integers(-2, 3)))


@st.composite
def families(draw: st.DrawFn) -> tuple[Model, Model, Model]:
    order = draw(st.permutations(range(8)))
    base = draw(edited((dict(zip(TOKENS[: draw(st.integers(0, 8))], order, strict=False)), 9)))
    return base, draw(edited(base)), draw(edited(base))


def values(rows: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(1, 1 << 40, rows).tolist()


def whole_rows(placement: Placement) -> list[int]:
    """Return the rows that the delta brings whole: they start from zeros."""
    return np.flatnonzero((row_sources(placement.target) < 0) & (row_sources(placement.delta) >= 0)).tolist()


def applied(placement: Placement, target: list[int], delta: list[int]) -> list[int]:
    """Compute OUT's rows, one number each."""
    pairs = zip(row_sources(placement.target).tolist(), row_sources(placement.delta).tolist(), strict=True)
    return [(target[t] if t >= 0 else 0) + (delta[d] if d >= 0 else 0) for t, d in pairs]


def extracted(base: list[int], post: list[int], runs: tuple[Run, ...] | None) -> list[int]:
    logical = base if runs is None else [base[row] if row >= 0 else 0 for row in row_sources(runs).tolist()]
    return [p - b for p, b in zip(post, logical, strict=True)]


class Family:
    """The oracle: every question is answered by token, from the three tables themselves."""

    def __init__(self, base: Model, post: Model, target: Model) -> None:
        (self.base, self.base_rows), (self.post, self.post_rows) = base, post
        self.target, self.target_rows = target
        self.b, self.p = values(self.base_rows, 1), values(self.post_rows, 2)
        self.t = values(self.target_rows, 3)
        self.runs = match_rows(self.base_rows, self.post_rows, vocabulary(self.base), vocabulary(self.post))
        self.delta = extracted(self.b, self.p, self.runs)

    def base_row(self, row: int) -> int | None:
        """The base row that post's row belongs to."""
        name = next((token for token, its in self.post.items() if its == row), None)
        if name is None:
            old = next((token for token, its in self.base.items() if its == row), None)
            return row if row < self.base_rows and old not in self.post else None
        its = self.base.get(name)
        return its if its is not None and its < self.base_rows else None

    def change(self, row: int) -> int:
        """Post's row less base's."""
        base_row = self.base_row(row)
        return self.p[row] - (0 if base_row is None else self.b[base_row])

    def place_rows(self, result: str) -> Placement:
        return place_rows(
            self.target_rows,
            self.post_rows,
            self.runs,
            vocabulary(self.target),
            vocabulary(self.post),
            result,  # type: ignore[arg-type]
            dropped_tokens(vocabulary(self.base), vocabulary(self.post)),
        )

    def has(self, token: str) -> bool:
        return self.target.get(token, self.target_rows) < self.target_rows

    def in_posts_order(self) -> dict[int, int] | str:
        """OUT by row, or why there is none."""
        out: dict[int, int] = {}
        taken = set(self.post.values())
        for token, row in self.target.items():
            if row < self.target_rows and token not in self.post:
                if row in taken and token not in self.base:
                    return "lost"
                if row not in taken:
                    same = self.base.get(token) == row and row < min(self.base_rows, self.post_rows)
                    out[row] = self.t[row] + (self.change(row) if same else 0)
        for token, row in self.post.items():
            mine = self.t[self.target[token]] if self.has(token) else None
            if row < self.post_rows and self.base_row(row) is None:
                out[row] = self.p[row]
            elif row < self.post_rows:
                if mine is None:
                    return "missing"
                out[row] = mine + self.change(row)
            elif mine is not None and row < self.target_rows:
                out[row] = mine
        for row in range(max(self.target_rows, self.post_rows)):
            if row in out or (row in taken and row < self.post_rows):
                continue
            free = row < self.target_rows and row not in self.target.values()
            if row < self.post_rows and self.base_row(row) is None:
                out[row] = self.p[row]
            elif free:
                out[row] = self.t[row] + (self.change(row) if row < self.post_rows else 0)
        return out

    def in_targets_order(self) -> dict[int, int]:
        out = dict(enumerate(self.t))
        names = {row: token for token, row in self.target.items()}
        for row in out:
            token = names.get(row)
            source = self.post.get(token, self.post_rows) if token else row
            if token and token not in self.post:
                source = self.base.get(token, self.post_rows)
            here = next((token for token, at in self.post.items() if at == source), None)
            if source >= self.post_rows or (token and token not in self.post and here):
                continue
            if not token and here and (here in self.target or self.base_row(source) != source):
                continue
            if self.base_row(source) is not None:
                out[row] += self.change(source)
            elif token in self.post:
                out[row] = self.p[source]
        return out


@given(families())
def test_rows_by_post_are_what_tokens_say(models: tuple[Model, Model, Model]) -> None:
    family = Family(*models)
    expected = family.in_posts_order()
    event(expected if isinstance(expected, str) else "placed")
    if isinstance(expected, str):
        with pytest.raises(MismatchError, match=r"would be lost|have no row in the target") as caught:
            family.place_rows("post")
        assert caught.value.mismatches
        assert caught.value.remedy
        return
    placement = family.place_rows("post")
    out = applied(placement, family.t, family.delta)
    assert out == [expected.get(row, 0) for row in range(placement.rows)]
    assert not set(expected) - set(range(placement.rows))
    assert placement.rows >= family.target_rows
    assert placement.rows == family.target_rows or placement.rows - 1 in expected


@given(families())
def test_rows_by_target_are_what_tokens_say(models: tuple[Model, Model, Model]) -> None:
    family = Family(*models)
    placement = family.place_rows("target")
    assert placement.rows == family.target_rows
    out = applied(placement, family.t, family.delta)
    assert out == [family.in_targets_order()[row] for row in range(placement.rows)]
    here = {token for token, row in family.post.items() if row < family.post_rows}
    assert placement.counts["left out"] == sum(not family.has(token) for token in here)


@given(families())
def test_on_its_own_base_a_delta_gives_post(models: tuple[Model, Model, Model]) -> None:
    """Whatever post-training did to the tokenizer; and where base has more rows than post, none is trimmed."""
    base, post, _ = models
    family = Family(base, post, base)
    placement = family.place_rows("post")
    out = applied(placement, family.t, family.delta)
    assert len(out) == max(family.base_rows, family.post_rows)
    family.t = family.b
    assert applied(placement, family.b, family.delta)[: family.post_rows] == family.p


@given(families(), st.sampled_from(["post", "target"]))
def test_every_row_has_one_fate_and_runs_are_canonical(models: tuple[Model, Model, Model], result: str) -> None:
    family = Family(*models)
    try:
        placement = family.place_rows(result)
    except MismatchError:
        return
    check_runs(placement.target, placement.rows, family.target_rows)
    check_runs(placement.delta, placement.rows, family.post_rows)
    if family.runs is not None:
        check_runs(family.runs, family.post_rows, family.base_rows)
    counts = placement.counts
    assert sum(counts[outcome] for outcome in ("summed", "brought", "kept", "padding")) == placement.rows
    assert json.loads(json.dumps(counts)) == counts
    out_delta = row_sources(placement.delta).tolist()
    whole = set(whole_rows(placement))
    assert whole == {row for row, source in enumerate(out_delta) if source >= 0 and family.base_row(source) is None}, (
        "a row is brought whole if and only if base had none"
    )
    no_change = Run(0, 0, family.target_rows)
    assert placement.is_identity == (
        placement.target == placement.delta == (no_change,) and family.target_rows == family.post_rows
    )


@given(st.lists(st.integers(-1, 6), max_size=12))
def test_runs_say_what_the_rows_say_in_the_fewest_words(sources: list[int]) -> None:
    runs = runs_of(np.array(sources, np.int64))
    assert row_sources(runs).tolist() == sources
    check_runs(runs, len(sources), 7)


def test_no_tokenizers_and_equal_sizes_leave_rows_where_they_are() -> None:
    assert match_rows(10, 10, None, vocabulary("abc")) is None
    assert place_rows(10, 10, None, None, None, "post").is_identity
    assert place_rows(10, 10, None, vocabulary("abc"), None, "target").is_identity


def test_no_tokenizers_and_other_sizes_are_refused_with_what_to_pass() -> None:
    with pytest.raises(MismatchError, match="32000 rows in base, 32001 in post") as caught:
        match_rows(32000, 32001, None, vocabulary("abc"))
    assert caught.value.remedy == "give its tokenizer: --base-tokenizer PATH"
    with pytest.raises(MismatchError, match="32000 rows in the target, 32001 in the delta") as caught:
        place_rows(32000, 32001, None, None, None, "post")
    assert "--target-tokenizer PATH --post-tokenizer PATH" in str(caught.value)


def test_no_tokenizers_but_tokens_that_moved_are_refused() -> None:
    with pytest.raises(MismatchError, match="at other ids than base"):
        place_rows(2, 2, (Run(0, 1, 1), Run(1, 0, 1)), None, vocabulary("ab"), "post")


def test_no_tokenizers_and_equal_sizes_still_bring_what_base_lacked() -> None:
    placement = place_rows(4, 4, (Run(0, 0, 3), Run(3, None, 1)), None, vocabulary("abcd"), "post")
    assert whole_rows(placement) == [*range(3, 4)]
    assert not placement.is_identity
    assert placement.counts["brought"] == 1


def test_absurdly_many_rows_are_refused_before_they_cost_anything() -> None:
    with pytest.raises(MismatchError, match="the limit is"):
        match_rows(1 << 40, 1 << 40, vocabulary("ab"), vocabulary("ba"))
    with pytest.raises(MismatchError, match="the limit is"):
        place_rows(1 << 40, 3, None, vocabulary("ab"), vocabulary("ba"), "post")


LLAMA = [f"t{row}" for row in range(32000)]


def test_a_pad_token_added_by_post_is_brought_whole() -> None:
    """FastChat#486, #551: 32,000 rows and 32,001; other tools crashed or trimmed."""
    base, post = vocabulary(LLAMA), vocabulary([*LLAMA, "[PAD]"])
    runs = match_rows(32000, 32001, base, post)
    assert runs == (Run(0, 0, 32000), Run(32000, None, 1))
    placement = place_rows(32000, 32001, runs, base, post, "post")
    assert placement.target == (Run(0, 0, 32000), Run(32000, None, 1))
    assert placement.delta == (Run(0, 0, 32001),)
    assert whole_rows(placement) == [*range(32000, 32001)]
    assert str(placement) == "32,000 summed, 1 taken from the delta"
    kept = place_rows(32000, 32001, runs, base, post, "target")
    assert kept.target == kept.delta == (Run(0, 0, 32000),)
    assert not kept.is_identity  # the delta has a row more
    assert str(kept) == "32,000 summed, 1 of the delta left out, because the tokenizer does not have their tokens"


def test_two_tokens_at_one_new_id_are_not_summed() -> None:
    """Post's [PAD] and the target's <sep> are both 32000: neither may become the other, nor vanish."""
    post, target = vocabulary([*LLAMA, "[PAD]"]), vocabulary([*LLAMA, "<sep>"])
    runs = match_rows(32000, 32001, vocabulary(LLAMA), post)
    with pytest.raises(MismatchError, match=r"1 token.* that only the target has would be lost") as caught:
        place_rows(32001, 32001, runs, target, post, "post")
    assert [str(mismatch) for mismatch in caught.value.mismatches] == ["token 32000: '<sep>'"]
    assert "--companions target" in str(caught.value)
    placement = place_rows(32001, 32001, runs, target, post, "target")
    assert placement.delta == (Run(0, 0, 32000), Run(32000, None, 1))
    assert (placement.counts["kept"], placement.counts["left out"]) == (1, 1)


def test_a_token_that_post_and_target_both_added_becomes_posts() -> None:
    """Half of each would be neither's: the delta's row is whole, as base had none."""
    new = vocabulary([*LLAMA, "[PAD]"])
    runs = match_rows(32000, 32001, vocabulary(LLAMA), new)
    for result in ("post", "target"):
        placement = place_rows(32001, 32001, runs, new, new, result)  # type: ignore[arg-type]
        assert whole_rows(placement) == [*range(32000, 32001)]


def test_padding_is_never_trimmed() -> None:
    """mergekit#425: Qwen's tokenizer has 151,646 tokens and its embedding 151,936 rows."""
    base = vocabulary(f"t{row}" for row in range(151646))
    post = vocabulary([*base.tokens, "<tool>"])
    assert match_rows(151936, 151936, base, base) is None
    runs = match_rows(151936, 151936, base, post)
    assert runs == (Run(0, 0, 151646), Run(151646, None, 1), Run(151647, 151647, 289))
    placement = place_rows(151936, 151936, runs, base, post, "post")
    assert placement.rows == 151936
    assert placement.counts == {
        "summed": 151646,
        "brought": 1,
        "kept": 0,
        "padding": 289,
        "given up": 0,
        "left out": 0,
    }
    # A post that was trimmed to its tokens leaves the target's padding where it is.
    trimmed = match_rows(151936, 151647, base, post)
    assert place_rows(151936, 151647, trimmed, base, post, "post").rows == 151936
    # A target that was trimmed takes the tokens, not padding that nobody needs.
    assert place_rows(151646, 151936, runs, base, post, "post").rows == 151647


def test_rows_padded_to_a_multiple_of_64_by_post_come_along() -> None:
    base, post = vocabulary(LLAMA), vocabulary([*LLAMA, "[PAD]"])
    runs = match_rows(32000, 32064, base, post)
    placement = place_rows(32000, 32064, runs, base, post, "post")
    assert (placement.rows, whole_rows(placement)) == (32064, [*range(32000, 32064)])
    assert (placement.counts["brought"], placement.counts["padding"]) == (1, 63)


RESERVED = [*(f"t{row}" for row in range(100)), *(f"<|reserved_{row}|>" for row in range(8))]


def test_a_reserved_token_that_post_renamed_takes_its_row() -> None:
    """Llama 3's reserved tokens are there to be renamed: that is no loss of a token of the target."""
    base, post = vocabulary(RESERVED), vocabulary([*RESERVED[:100], "<|im_start|>", *RESERVED[101:]])
    runs = match_rows(108, 108, base, post)
    assert runs == (Run(0, 0, 100), Run(100, None, 1), Run(101, 101, 7))
    placement = place_rows(108, 108, runs, base, post, "post", dropped_tokens(base, post))
    assert whole_rows(placement) == [*range(100, 101)]
    assert placement.counts["given up"] == 1
    # A target's own token at that id is another matter.
    target = vocabulary([*RESERVED[:100], "<|mine|>", *RESERVED[101:]])
    with pytest.raises(MismatchError, match="would be lost"):
        place_rows(108, 108, runs, target, post, "post", dropped_tokens(base, post))


def test_a_name_that_post_dropped_does_not_lose_what_it_learned() -> None:
    """The row has no name in post, but is still trained: it belongs to base's, and to the target's of that name."""
    base, post = vocabulary(RESERVED), vocabulary(RESERVED[:100])
    assert match_rows(108, 108, base, post) is None
    for result in ("post", "target"):
        placement = place_rows(108, 108, None, base, post, result, dropped_tokens(base, post))  # type: ignore[arg-type]
        assert placement.is_identity
    own = vocabulary([*RESERVED[:100], "<|mine|>"])
    placement = place_rows(108, 108, None, own, post, "post", dropped_tokens(base, post))
    assert row_sources(placement.delta)[100] == -1
    assert placement.counts["kept"] == 1


def test_a_dropped_name_counts_only_where_base_had_its_row() -> None:
    base, post = vocabulary([*LLAMA, "<gone>"]), vocabulary(LLAMA)
    target = vocabulary({**post.tokens, "<gone>": 32001})
    runs = match_rows(32002, 32002, base, post)
    assert runs is None
    placement = place_rows(32002, 32002, runs, target, post, "post", dropped_tokens(base, post))
    assert row_sources(placement.delta)[[32000, 32001]].tolist() == [32000, -1]  # padding; another place than base's
    # Base's tokenizer has the name, but base's tensor ends before its row: there is nothing to be the difference of.
    runs = match_rows(32000, 32001, base, post)
    assert runs == (Run(0, 0, 32000), Run(32000, None, 1))
    placement = place_rows(32001, 32001, runs, base, post, "post", dropped_tokens(base, post))
    assert placement.target == (Run(0, 0, 32001),)
    assert row_sources(placement.delta)[32000] == -1


def test_equal_sizes_and_other_ids_are_matched_by_token() -> None:
    rng = np.random.default_rng(0)
    tables = [vocabulary(np.array(LLAMA)[rng.permutation(32000)].tolist()) for _ in range(3)]
    base, post, target = tables
    runs = match_rows(32000, 32000, base, post)
    assert runs is not None
    assert all(base.by_id[source] == post.by_id[row] for row, source in enumerate(row_sources(runs).tolist()))
    placement = place_rows(32000, 32000, runs, target, post, "post")
    moved = row_sources(placement.target).tolist()
    assert all(target.by_id[source] == post.by_id[row] for row, source in enumerate(moved))
    assert placement.delta == (Run(0, 0, 32000),)
    placement = place_rows(32000, 32000, runs, target, post, "target")
    assert placement.target == (Run(0, 0, 32000),)
    added = row_sources(placement.delta).tolist()
    assert all(post.by_id[source] == target.by_id[row] for row, source in enumerate(added))


def test_a_token_that_the_target_lacks_is_named() -> None:
    base, target = vocabulary(LLAMA), vocabulary([*LLAMA[:31990], *"abcdefghij"])
    with pytest.raises(MismatchError, match=r"10 token.*would be lost"):
        place_rows(32000, 32000, None, target, base, "post")
    short = vocabulary(LLAMA[:31990])
    with pytest.raises(MismatchError, match=r"10 token.*no row in the target") as caught:
        place_rows(31990, 32000, None, short, base, "post")
    assert str(caught.value.mismatches[0]) == "token 31990: 't31990'"
    assert place_rows(31990, 32000, None, short, base, "target").counts["left out"] == 10


def llama(names: dict[int, str]) -> Vocabulary:
    """Return a vocabulary of 20 words and 16 control tokens, reserved but for those given, as Llama 3's are."""
    tokens = {f"word {row}": row for row in range(20)}
    reserved = iter(range(16))
    for row in range(20, 36):
        tokens[names.get(row) or f"<|reserved_{next(reserved)}|>"] = row
    return Vocabulary(tokens, "a tokenizer", frozenset(list(tokens)[20:]))


def test_reserved_tokens_that_a_release_renames() -> None:
    """Llama 3.0's delta on Llama 3.1, the paper's own case: 3.1 named three tokens that 3.0 had in reserve."""
    old = llama({20: "<|begin|>", 29: "<|eot|>"})
    new = llama({20: "<|begin|>", 24: "<|pad|>", 28: "<|eom|>", 29: "<|eot|>", 30: "<|tool|>"})
    found = place_rows(36, 36, None, new, old, "post")
    start = row_sources(found.target)
    assert found.rows == 36
    assert start[:22].tolist() == list(range(22))
    assert start[29] == 29
    assert (start >= 0).all()
    assert {start[old.tokens[f"<|reserved_{n}|>"]] for n in range(11)} == {
        new.tokens[f"<|reserved_{n}|>"] for n in range(11)
    }
    assert start[33:].tolist() == [33, 34, 35], "names that 3.1 no longer has: the rows at their places"
    assert found.counts["given up"] == 3
    assert found.counts["summed"] == 36
    assert "3 of the target dropped" in str(found)


def test_words_are_never_given_up_for_control_tokens() -> None:
    old = llama({20: "<|begin|>"})
    tokens = {**{token: row for token, row in old.tokens.items() if row != 28}, "a new word": 28}
    new = Vocabulary(tokens, "a tokenizer", old.special & tokens.keys())
    with pytest.raises(MismatchError, match=r"1 token.*would be lost"):
        place_rows(36, 36, None, new, old, "post")
