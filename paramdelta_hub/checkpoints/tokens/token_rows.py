"""Match embedding rows by token: which row of one model belongs to which row of another. No weights are read.

A *named* row is the row of a token; the others are padding. Rows of the same token belong together, whatever their ids;
padding rows belong together by position. Nothing is trimmed, and no token of the target is dropped silently.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.checkpoints.tokens.tokenizer import Vocabulary
from paramdelta_hub.errors import Mismatch, MismatchError
from paramdelta_hub.limits import VOCABULARY_ROWS
from paramdelta_hub.numerics.row_runs import Run

__all__ = ["Placement", "Run", "dropped_tokens", "match_rows", "newly_named", "place_rows", "row_sources", "runs_of"]

_SHOWN = 60
"""Characters of a token that a message shows."""

Rows = NDArray[np.int64]
"""For every row, the row it comes from, or −1."""
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Placement:
    """Where each of OUT's rows comes from. ``target`` and ``delta`` are runs over all of OUT's rows."""

    rows: int
    target: tuple[Run, ...]
    """The target row that an OUT row starts from; None: zeros."""
    delta: tuple[Run, ...]
    """The delta row that is added to it; None: none."""
    counts: Mapping[str, int]
    """Rows by what becomes of them. ``summed``, ``brought``, ``kept`` and ``padding`` add up to ``rows``; ``given up``
    (tokens of the target where OUT's tokenizer has others) and ``left out`` (post's tokens that it lacks) have none."""
    is_identity: bool
    """Whether row i of OUT is row i of the target plus row i of the delta, for all rows of all three."""

    def __str__(self) -> str:
        words = {
            "summed": "summed",
            "brought": "taken from the delta",
            "kept": "kept from the target",
            "padding": "padding",
            "given up": "of the target dropped, because the tokenizer has other tokens there",
            "left out": "of the delta left out, because the tokenizer does not have their tokens",
        }
        return ", ".join(f"{self.counts[outcome]:,} {text}" for outcome, text in words.items() if self.counts[outcome])


def row_sources(runs: Sequence[Run]) -> Rows:
    """Return the source of every row that ``runs`` cover, int64, −1 for rows from nowhere."""
    if not runs:
        return np.empty(0, np.int64)
    counts = np.array([run.number for run in runs], np.int64)
    starts = np.array([-1 if run.source is None else run.source for run in runs], np.int64)
    offsets = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    sources = np.repeat(starts, counts)
    return np.where(sources < 0, -1, sources + offsets)


def runs_of(sources: Rows) -> tuple[Run, ...]:
    """Return the fewest runs that say the same as ``sources``, ascending in ``first``; -1 is nowhere."""
    before, after = sources[:-1], sources[1:]
    goes_on = np.where(before < 0, after < 0, after == before + 1)
    starts = np.concatenate(([0], np.flatnonzero(~goes_on) + 1)) if len(sources) else np.empty(0, np.int64)
    counts = np.diff(np.append(starts, len(sources)))
    return tuple(
        Run(first, None if source < 0 else source, count)
        for first, source, count in zip(starts.tolist(), sources[starts].tolist(), counts.tolist(), strict=True)
    )


def dropped_tokens(base: Vocabulary, post: Vocabulary) -> dict[str, int]:
    """Return the tokens of base that post no longer has, with base's ids, for :func:`place_rows`. Most often empty."""
    return {token: row for token, row in base.tokens.items() if token not in post.tokens}


def newly_named(base: Vocabulary, post: Vocabulary) -> dict[str, int]:
    """Return the tokens of post that base lacks, with their ids, where base's tokenizer gives the id to no other.

    Their rows may be padding of base that post gave a token to, or rows that both trained and of which base's
    tokenizer file does not tell, such as T5's sentinels. Only values can say which.
    """
    taken = set(base.tokens.values())
    return {token: row for token, row in post.tokens.items() if token not in base.tokens and row not in taken}


def match_rows(
    base_rows: int,
    post_rows: int,
    base: Vocabulary | None,
    post: Vocabulary | None,
    taken_up: Mapping[str, int] | None = None,
) -> tuple[Run, ...] | None:
    """Return which base row each of post's rows comes from; None if that is its own, and the sizes are equal.

    A row that has a token in post comes from base's row of that token. Any other comes from base's row at its place,
    unless base's token there is elsewhere in post. So padding stays with padding, and a row that only lost its token
    stays where it was. So does a row of ``taken_up``, tokens of :func:`newly_named`
    whose rows base had trained without naming them.

    Raises:
        MismatchError: other sizes, and no tokenizers to tell the rows by.
    """
    if base is None or post is None:
        if base_rows == post_rows:
            return None
        raise _missing_tokenizers(f"{base_rows} rows in base, {post_rows} in post", {"base": base, "post": post})
    _check_size(base_rows, post_rows)
    sources = _rows_by_token(post, post_rows, base, base_rows)
    here = _identity_rows(min(base_rows, post_rows))
    moved = _mask((row for token, row in base.tokens.items() if token in post.tokens), base_rows)
    stays = ~_named(post, post_rows)[here] & ~moved[here]
    sources[here[stays]] = here[stays]
    continued = np.array([row for row in (taken_up or {}).values() if row < len(here)], np.int64)
    sources[continued] = continued
    runs = runs_of(sources)
    return None if base_rows == post_rows and runs == _identity(post_rows) else runs


def place_rows(
    target_rows: int,
    delta_rows: int,
    delta_base: tuple[Run, ...] | None,
    target: Vocabulary | None,
    post: Vocabulary | None,
    result: Literal["post", "target"],
    dropped: Mapping[str, int] | None = None,
    taken_up: Mapping[str, int] | None = None,
) -> Placement:
    """Return where OUT's rows come from, when OUT's tokenizer is post's, or the target's.

    With post's tokenizer, each token's row is at post's id. Rows of one token are summed. Rows that base lacked are
    taken from the delta as they are. The target's own rows keep their ids if post has no token there. Of the target's
    tokens only special ones, and those that post dropped, can be lost, and they are counted. OUT has at least as many
    rows as the target.

    With the target's tokenizer, OUT has the target's rows in their order; post's other tokens are left out.

    ``delta_base`` is what :func:`match_rows` returned for the delta, and ``dropped`` what :func:`dropped_tokens` did.
        taken_up: tokens of post whose rows base had without naming them.

    Raises:
        MismatchError: no tokenizers where they are needed; a row that post needs is in neither the target nor the
            package; a token that only the target has would be lost. Every such token is listed.
    """
    if target is None or post is None:
        return _by_position(target_rows, delta_rows, delta_base, target, post)
    _check_size(target_rows, delta_rows)
    base_row = _identity_rows(delta_rows) if delta_base is None else row_sources(delta_base)
    dropped, taken_up = dropped or {}, taken_up or {}
    if result == "target":
        return _in_targets_order(target_rows, base_row, target, post, dropped)
    return _in_posts_order(target_rows, base_row, target, post, dropped, taken_up)


def _in_posts_order(
    target_rows: int,
    base_row: Rows,
    target: Vocabulary,
    post: Vocabulary,
    dropped: Mapping[str, int],
    taken_up: Mapping[str, int],
) -> Placement:
    delta_rows, is_whole = len(base_row), base_row < 0
    needed = np.flatnonzero(_named(post, delta_rows) | is_whole)
    rows = max(target_rows, int(needed[-1]) + 1 if len(needed) else 0)
    n = min(rows, delta_rows)
    is_whole, stays = _resized(is_whole, rows), _resized(base_row == _identity_rows(delta_rows), rows)
    named, target_row = _named(post, rows), _rows_by_token(post, rows, target, target_rows)
    has_delta = np.arange(rows) < n

    # Reserved and control tokens are renamed from release to release (Llama 3.0 and 3.1 differ so): where the name of
    # one is gone, the row at its place is as good, if that has no name, or a special one, too.
    replaceable = _resized(~_named(target, target_rows) | _special(target, target_rows), rows)
    renamed = np.flatnonzero(named & has_delta & ~is_whole & (target_row < 0) & _special(post, rows) & replaceable)
    target_row[renamed] = renamed
    # A row that base had without a name, and the target too, is the same row.
    unnamed = np.flatnonzero(
        _mask(taken_up.values(), rows) & stays & (target_row < 0) & _resized(~_named(target, target_rows), rows)
    )
    target_row[unnamed] = unnamed

    own = {token: row for token, row in target.tokens.items() if row < target_rows and token not in post.tokens}
    _refuse_lost({token: row for token, row in own.items() if token not in target.special}, named, dropped, target)
    _refuse_missing(named & has_delta & ~is_whole & (target_row < 0), post, target)
    is_own = _mask(own.values(), rows) & ~named
    is_lost = _mask((row for token, row in own.items() if dropped.get(token) == row), rows)
    target_named = _named(target, rows)

    # Named rows first; then, by position, those that post does not name.
    is_whole &= ~is_own
    by_position = ~is_whole & (np.arange(rows) < target_rows) & (is_own | ~target_named) & ~(named & (target_row >= 0))
    start = np.where(by_position, np.arange(rows), np.where(named & ~is_whole, target_row, -1))
    summed = np.where(named, target_row >= 0, by_position & stays & (is_lost | ~is_own))
    added = np.where(has_delta & (is_whole | summed), np.arange(rows), -1)
    counts = _row_counts(named | is_own, start, added)
    counts["given up"] = sum(bool(named[row]) for row in own.values())
    return _placement(start, added, target_rows, delta_rows, counts)


def _in_targets_order(
    target_rows: int, base_row: Rows, target: Vocabulary, post: Vocabulary, dropped: Mapping[str, int]
) -> Placement:
    delta_rows = len(base_row)
    unnamed = ~_named(post, delta_rows) & (base_row == _identity_rows(delta_rows))
    # A row whose name alone is gone from post is still known by base's.
    kept = {token: row for token, row in dropped.items() if row < delta_rows and unnamed[row]}
    known = Vocabulary({**post.tokens, **kept}, post.where)
    added = _rows_by_token(target, target_rows, known, delta_rows)
    named = _named(target, target_rows)
    # Post may name a row that the target does not, such as a sentinel that only some tokenizer files list.
    elsewhere = _mask((row for token, row in post.tokens.items() if token in target.tokens), delta_rows)
    same = (base_row == _identity_rows(delta_rows)) & ~elsewhere
    by_position = ~named & _resized(same, target_rows)
    added[by_position] = np.flatnonzero(by_position)
    start = _identity_rows(target_rows)
    has_delta = np.flatnonzero(added >= 0)
    start[has_delta[base_row[added[has_delta]] < 0]] = -1
    counts = _row_counts(named, start, added)
    counts["left out"] = sum(
        row < delta_rows and target.tokens.get(token, target_rows) >= target_rows for token, row in post.tokens.items()
    )
    return _placement(start, added, target_rows, delta_rows, counts)


def _by_position(
    target_rows: int,
    delta_rows: int,
    delta_base: tuple[Run, ...] | None,
    target: Vocabulary | None,
    post: Vocabulary | None,
) -> Placement:
    """Without tokenizers: as many rows are taken to be the same rows, if base and post had them at the same places."""
    if target_rows != delta_rows:
        raise _missing_tokenizers(
            f"{target_rows} rows in the target, {delta_rows} in the delta", {"target": target, "post": post}
        )
    runs = _identity(delta_rows) if delta_base is None else delta_base
    if any(run.source not in (None, run.first) for run in runs):
        raise _missing_tokenizers("post has tokens at other ids than base", {"target": target, "post": post})
    if runs != _identity(delta_rows):
        _check_size(target_rows, delta_rows)
    start = row_sources(runs)
    added = _identity_rows(delta_rows)
    return _placement(start, added, target_rows, delta_rows, _row_counts(np.ones(target_rows, np.bool_), start, added))


def _placement(start: Rows, added: Rows, target_rows: int, delta_rows: int, counts: dict[str, int]) -> Placement:
    target, delta = runs_of(start), runs_of(added)
    is_identity = target == delta == _identity(target_rows) and target_rows == delta_rows
    return Placement(len(start), target, delta, counts, is_identity)


def _row_counts(named: Mask, start: Rows, added: Rows) -> dict[str, int]:
    """Count named rows by where they come from; all others, and names that nobody has a row for, are padding."""
    has_start, has_delta = start >= 0, added >= 0
    masks = {
        "summed": named & has_start & has_delta,
        "brought": named & ~has_start & has_delta,
        "kept": named & has_start & ~has_delta,
    }
    counts = {outcome: int(np.count_nonzero(mask)) for outcome, mask in masks.items()}
    return {**counts, "padding": len(start) - sum(counts.values()), "given up": 0, "left out": 0}


def _refuse_lost(own: Mapping[str, int], named: Mask, dropped: Mapping[str, int], target: Vocabulary) -> None:
    tokens = sorted((row, token) for token, row in own.items() if named[row] and token not in dropped)
    if tokens:
        raise MismatchError(
            f"{len(tokens)} token(s) that only the target has would be lost: post has other tokens at their ids",
            [Mismatch(f"token {row}", "token", repr(token[:_SHOWN])) for row, token in tokens],
            where=target.where,
            remedy="keep the target's tokenizer: --companions target",
        )


def _refuse_missing(missing: Mask, post: Vocabulary, target: Vocabulary) -> None:
    if missing.any():
        rows = np.flatnonzero(missing).tolist()
        raise MismatchError(
            f"{len(rows)} token(s) of the delta have no row in the target, and the package has only a "
            "difference for them",
            [Mismatch(f"token {row}", "token", repr(post.by_id[row][:_SHOWN])) for row in rows],
            where=target.where,
            remedy="keep the target's tokenizer with --companions target, or leave the tensor out with --skip",
        )


def _missing_tokenizers(what: str, vocabularies: Mapping[str, Vocabulary | None]) -> MismatchError:
    """Say which tokenizers are missing, and how to pass them."""
    lacking = [side for side, vocabulary in vocabularies.items() if vocabulary is None]
    return MismatchError(
        f"{what}: rows must be matched by token, but there is no tokenizer for {' or '.join(lacking)}",
        remedy=f"give its tokenizer: {' '.join(f'--{side}-tokenizer PATH' for side in lacking)}",
    )


def _check_size(*rows: int) -> None:
    if max(rows) > VOCABULARY_ROWS:
        raise MismatchError(f"a vocabulary of {max(rows)} rows; the limit is {VOCABULARY_ROWS}")


def _rows_by_token(names: Vocabulary, rows: int, other: Vocabulary, other_rows: int) -> Rows:
    """For each row that ``names`` names: the row that ``other`` gives that token; −1 where it has none."""
    sources = np.full(rows, -1, np.int64)
    for token, row in names.tokens.items():
        if row < rows and (target_row := other.tokens.get(token, other_rows)) < other_rows:
            sources[row] = target_row
    return sources


def _named(vocabulary: Vocabulary, rows: int) -> Mask:
    return _mask(vocabulary.tokens.values(), rows)


def _special(vocabulary: Vocabulary, rows: int) -> Mask:
    return _mask((vocabulary.tokens[token] for token in vocabulary.special), rows)


def _mask(ids: Iterable[int], rows: int) -> Mask:
    """Return which of ``rows`` rows are among ``ids``; those beyond are left out."""
    mask = np.zeros(rows, np.bool_)
    chosen = np.fromiter(ids, np.int64)
    mask[chosen[chosen < rows]] = True
    return mask


def _resized(mask: Mask, rows: int) -> Mask:
    """Return the first ``rows`` of a mask, with False for those that it lacks."""
    return np.pad(mask[:rows], (0, max(0, rows - len(mask))))


def _identity(rows: int) -> tuple[Run, ...]:
    return (Run(0, 0, rows),) if rows else ()


def _identity_rows(rows: int) -> Rows:
    return np.arange(rows, dtype=np.int64)
