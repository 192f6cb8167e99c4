"""Check that post descends from base, by samples of both, before any heavy work."""

from __future__ import annotations

from dataclasses import replace

from paramdelta_hub.checkpoints.checkpoint import Checkpoint
from paramdelta_hub.checkpoints.kinship.lineage import LineageMatch, choose_evenly, compare_samples, is_evidence, sample
from paramdelta_hub.errors import CheckpointError, LineageError
from paramdelta_hub.extraction.pairs import Differences
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.limits import PAIR_LINEAGE_TENSORS

__all__ = ["check_descent", "descent_notes"]


def check_descent(base: Checkpoint, post: Checkpoint, differences: Differences, *, force: bool) -> LineageMatch:
    """Compare samples of base's and post's matrices; refuse a post that has nothing in common with base.

    It is refused on evidence alone: a far descendant passes, as does a pair of models without matrices.

    Raises:
        CheckpointError: values can't be read.
        LineageError: post does not descend from base, and that is not forced.
    """
    pairs = {pair.name: pair for pair in differences.pairs if is_evidence(pair.base) and is_evidence(pair.post)}
    names = choose_evenly(list(pairs), PAIR_LINEAGE_TENSORS)
    with OpenFiles(CheckpointError) as files:
        samples = {name: (pairs[name].base.dtype, sample(name, pairs[name].base, files)) for name in names}
    match = compare_samples(samples, {name: pairs[name].post for name in names}, limit=PAIR_LINEAGE_TENSORS)
    if any(pairs[tensor.name].post_name for tensor in match.foreign):
        match = replace(match, transposed=())  # layout rules see post's own names
    if match.is_foreign and not force:
        skip = match.or_skip("leave the unrelated tensors out")
        raise LineageError(
            f"post {_descends(match)} base {base.source.name!r}: {match.foreign_words()}",
            float("nan") if match.correlation is None else match.correlation,
            match.mismatches,
            where=str(post.source.path),
            remedy=f"give the model that post was trained from as BASE{skip}; --force extracts the difference anyway",
        )
    return match


def _descends(match: LineageMatch) -> str:
    return "descends only in part from" if match.has_kin else "does not descend from"


def descent_notes(match: LineageMatch) -> tuple[str, ...]:
    """Say which tensors of post are unrelated to base's, and whether the whole of it is."""
    forced = f"forced, although post {_descends(match)} base"
    note = match.foreign_note("base")
    return (*([forced] if match.is_foreign else []), *([note] if note else []))
