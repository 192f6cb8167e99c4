"""Place the rows of vocabulary tensors: which rows of the target and of each delta make up the result's.

The order of the result's rows must be that of the result's tokenizer: post's, of the delta whose companions are used,
or the target's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from paramdelta_hub.checkpoints.tokens.token_rows import Placement, place_rows, row_sources, runs_of
from paramdelta_hub.checkpoints.tokens.tokenizer import Vocabulary, read_vocabulary, same_tokenizer
from paramdelta_hub.errors import MismatchError, PackageError
from paramdelta_hub.fileio.digests import check_digest
from paramdelta_hub.fileio.durable import file_digest
from paramdelta_hub.fileio.paths import resolve_inside
from paramdelta_hub.numerics.row_runs import Run
from paramdelta_hub.package.manifest import TensorRecord
from paramdelta_hub.package.package import Package
from paramdelta_hub.transforms.sum import PlacedRun

__all__ = ["PlacedRows", "RowPlanner"]

Rows = NDArray[np.int64]
TokenizerSide: TypeAlias = Literal["post", "target"]


@dataclass(frozen=True)
class PlacedRows:
    """The rows of one tensor of the result."""

    rows: int
    start: tuple[Run, ...]
    """The target's rows that the result starts from."""
    deltas: Mapping[int, tuple[PlacedRun, ...]]
    """For every delta: (first, its row, number, whether they are post's whole rows)."""
    inverse: Mapping[int, tuple[Run, ...]]
    """For every delta: the target's rows in its order."""
    row_counts: str
    """How many rows became what, in words."""


class RowPlanner:
    """Places rows by token. Vocabularies are read once, and only if tokenizers or sizes differ."""

    def __init__(self, target: Path | None, packages: Sequence[Package], tokenizer_from: int | None) -> None:
        """Take the target's tokenizer folder, and which delta's tokenizer the result gets: None for the target's."""
        self._target, self._packages, self._tokenizer_from = target, packages, tokenizer_from
        self._folders = [package.path / "companions" for package in packages]
        self._same = [target is not None and same_tokenizer(target, folder) for folder in self._folders]
        self._read: dict[int | None, Vocabulary | None] = {}
        self._placed: dict[tuple[object, ...], PlacedRows | None] = {}

    def place_rows(
        self, target_rows: int, records: Mapping[int, TensorRecord], weights: Mapping[int, float]
    ) -> PlacedRows | None:
        """Return where a tensor's rows go; None where row i is row i, for the target and for all deltas.

        A delta of weight 0 leaves the tensor as it is, and one below 0 brings no rows; but the one whose tokenizer the
        result gets has the rows placed, and brings what the target lacks, whatever its weight.

        Raises:
            MismatchError: rows that can't be placed.
        """
        first = self._tokenizer_from if self._tokenizer_from in records else None
        if first is None and self._tokenizer_from is not None:
            self._check_order(target_rows)
        records = {number: record for number, record in records.items() if weights[number] or number == first}
        if all(self._is_identity(target_rows, number, record) for number, record in records.items()):
            return None
        carriers = frozenset(number for number in records if weights[number] > 0 or number == first)
        key = (target_rows, carriers, *((number, record.shape[0], record.runs) for number, record in records.items()))
        if key not in self._placed:
            self._placed[key] = self._place_all(target_rows, records, first, carriers)
        return self._placed[key]

    def _check_order(self, target_rows: int) -> None:
        """Refuse a tensor that keeps the target's rows and order, where the result's tokenizer says otherwise."""
        assert self._tokenizer_from is not None
        if self._same[self._tokenizer_from]:
            return
        target, post = self._vocabulary(None), self._vocabulary(self._tokenizer_from)
        if target is None or post is None:
            return
        if any(row != target.tokens.get(token, -1) or row >= target_rows for token, row in post.tokens.items()):
            raise MismatchError(
                "its rows stay in the target's order, but the result's tokenizer has tokens at other ids",
                remedy="keep the target's tokenizer: --companions target",
            )

    def _is_identity(self, target_rows: int, number: int, record: TensorRecord) -> bool:
        return record.shape[0] == target_rows and record.runs is None and self._same[number]

    def _place_all(
        self, target_rows: int, records: Mapping[int, TensorRecord], first: int | None, carriers: Collection[int]
    ) -> PlacedRows | None:
        placements: dict[int, Placement] = {}
        rows = target_rows
        # Without a tokenizer of post's there is nothing to match by, and the target's need not be readable.
        target = self._vocabulary(None) if any(self._vocabulary(number) for number in records) else None
        start = np.arange(rows)
        if first is not None:
            placements[first] = self._place_delta(rows, first, records[first], target, "post")
            rows, start = placements[first].rows, row_sources(placements[first].target)
            target = _row_names(target, self._vocabulary(first))
        for number, record in records.items():
            if number != first:
                placements[number] = self._place_delta(rows, number, record, target, "target")
        if all(placement.is_identity for placement in placements.values()):
            return None
        added = {number: row_sources(placement.delta) for number, placement in placements.items()}
        whole = {
            number: (row_sources(placement.target) < 0) & (added[number] >= 0)
            for number, placement in placements.items()
        }
        summed = {number: np.where(whole[number], -1, rows_of) for number, rows_of in added.items()}
        # A row may be brought whole by several deltas, or by one where another has but a difference. The first that
        # brings it has it to itself: half of each, or a sum of the two, would be neither's.
        owner = np.full(rows, -1)
        for number in records:
            if number in carriers:
                owner[whole[number] & (owner < 0)] = number
        deltas = {}
        for number in records:
            owned = owner == number
            deltas[number] = _placed_runs(np.where(owned | ((owner < 0) & ~whole[number]), added[number], -1), owned)
        return PlacedRows(
            rows=rows,
            start=runs_of(np.where(owner < 0, start, -1)),
            deltas=deltas,
            inverse={n: _inverse(start, summed[n], record.shape[0]) for n, record in records.items()},
            row_counts=_row_counts(placements, deltas),
        )

    def _place_delta(
        self, rows: int, number: int, record: TensorRecord, target: Vocabulary | None, result_tokenizer: TokenizerSide
    ) -> Placement:
        post = self._vocabulary(number)
        manifest = self._packages[number].manifest
        try:
            return place_rows(
                rows,
                record.shape[0],
                record.runs,
                target,
                post,
                result_tokenizer,
                manifest.given_up,
                manifest.taken_up,
            )
        except MismatchError as error:
            if post is None:  # and no option could bring it
                error.remedy = (
                    "extract again with post's tokenizer next to its weights, or leave the tensor out with --skip"
                )
            raise

    def _vocabulary(self, number: int | None) -> Vocabulary | None:
        """Return the target's vocabulary (None), or a delta's; checked against its digest first."""
        if number not in self._read:
            if number is None:
                self._read[None] = read_vocabulary(self._target) if self._target else None
            else:
                _check_companions(self._packages[number])
                self._read[number] = read_vocabulary(self._folders[number], PackageError)
        return self._read[number]


def _check_companions(package: Package) -> None:
    for file in package.manifest.companions:
        path = resolve_inside(package.path, file.path)
        check_digest(file_digest(path)[0], file.sha256, f"the file {file.path!r}", str(package.path))


def _row_names(target: Vocabulary | None, post: Vocabulary | None) -> Vocabulary | None:
    """Return the tokens of the result's rows: post's, and the target's own where post has none."""
    if target is None or post is None:
        return None
    taken = set(post.tokens.values())
    owned = {token: row for token, row in target.tokens.items() if token not in post.tokens and row not in taken}
    return Vocabulary({**owned, **post.tokens}, post.where)


def _row_counts(placements: Mapping[int, Placement], deltas: Mapping[int, tuple[PlacedRun, ...]]) -> str:
    """Return how many rows became what: of one delta by fate, of several what each of them gives."""
    if len(placements) == 1:
        return str(*placements.values())
    words = []
    for number, runs in sorted(deltas.items()):
        counts = [
            sum(n for _, source, n, whole in runs if source is not None and whole is is_whole)
            for is_whole in (False, True)
        ]
        words.append(f"of delta {number + 1}: {counts[0]:,} summed, {counts[1]:,} taken whole")
    return "; ".join(words)


def _placed_runs(added: Rows, whole: NDArray[np.bool_]) -> tuple[PlacedRun, ...]:
    """Return runs that are whole, or not, throughout."""
    parts = [(run, False) for run in runs_of(np.where(whole, -1, added)) if run.source is not None]
    parts += [(run, True) for run in runs_of(np.where(whole, added, -1)) if run.source is not None]
    runs_so_far: list[PlacedRun] = []
    end = 0
    for run, is_whole in sorted(parts):
        if run.first > end:
            runs_so_far.append(PlacedRun(end, None, run.first - end, whole=False))
        runs_so_far.append(PlacedRun(run.first, run.source, run.number, is_whole))
        end = run.first + run.number
    if end < len(added):
        runs_so_far.append(PlacedRun(end, None, len(added) - end, whole=False))
    return tuple(runs_so_far)


def _inverse(start: Rows, summed: Rows, delta_rows: int) -> tuple[Run, ...]:
    """Return, for every row of a delta, the target's row that it is a difference to; none for whole rows."""
    sources = np.full(delta_rows, -1, np.int64)
    pairs = (summed >= 0) & (start >= 0)
    sources[summed[pairs]] = start[pairs]
    return runs_of(sources)
