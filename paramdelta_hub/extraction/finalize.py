"""The last step of an extraction: name the shards and build the manifest."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from paramdelta_hub import __about__
from paramdelta_hub.checkpoints.architecture import architecture_record, source_record
from paramdelta_hub.checkpoints.checkpoint import Checkpoint
from paramdelta_hub.checkpoints.kinship.lineage import pack_samples, sample
from paramdelta_hub.checkpoints.rules.tensor_rules import Rules
from paramdelta_hub.errors import CheckpointError
from paramdelta_hub.extraction.companions import config_changes, copy_companions
from paramdelta_hub.extraction.pairs import Differences
from paramdelta_hub.fileio.durable import file_digest, write_file
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.numerics.casts import StoredFloat
from paramdelta_hub.numerics.floats import FLOATS
from paramdelta_hub.package.manifest import (
    LINEAGE_NAME,
    Exactness,
    FileRecord,
    Labels,
    Manifest,
    Omission,
    Rename,
    TensorRecord,
    shard_name,
)
from paramdelta_hub.tasks.models import Digested, Encoded, Outcome
from paramdelta_hub.tasks.workspace import Workspace

__all__ = ["build_manifest", "final_names"]


def final_names(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Return what every piece is called in the package, given all outcomes of the plan."""
    pieces = [outcome.piece.path for outcome in outcomes if isinstance(outcome, Encoded) and outcome.piece]
    return {piece: shard_name(number, len(pieces)) for number, piece in enumerate(pieces, start=1)}


def build_manifest(
    base: Checkpoint,
    post: Checkpoint,
    tokenizer: Path | None,
    differences: Differences,
    rules: Rules,
    cast: StoredFloat | None,
    records: Sequence[TensorRecord],
    outcomes: Sequence[Outcome],
    workspace: Workspace,
    labels: Labels,
) -> Manifest:
    """Give the pieces their final names, write the lineage file, and return the manifest of it all.

    ``records`` have the final names already.
    """
    digests = {Path(outcome.file): outcome.sha256 for outcome in outcomes if isinstance(outcome, Digested)}
    encoded = [outcome for outcome in outcomes if isinstance(outcome, Encoded)]
    shard_of = final_names(outcomes)
    shards = []
    for outcome in encoded:
        if outcome.piece:
            path = shard_of[outcome.piece.path]
            os.rename(workspace.pieces / outcome.piece.path, workspace.result / path)
            shards.append(outcome.piece.model_copy(update={"path": path}))
    lineage = _write_lineage(differences, workspace.result)
    return Manifest(
        format="paramdelta",
        format_version=1,
        name=labels.name,
        version=labels.version,
        license=labels.license,
        created_by=__about__.CREATED_BY,
        relabeled_from=(),
        base=source_record(base, digests, differences.ties.base.tied_embeddings),
        post=source_record(post, digests, differences.ties.post.tied_embeddings),
        architecture=architecture_record(base),
        exactness=Exactness(
            exact=True,
            elements=sum(record.elements for record in records),
            changed=sum(record.changed for record in records),
            exceptions=sum(record.exceptions for record in records),
        ),
        configs=config_changes(base, post),
        given_up=dict(sorted(differences.given_up.items(), key=lambda token: token[1])),
        cast=cast,
        taken_up=dict(sorted(differences.taken_up.items(), key=lambda token: token[1])),
        renames=tuple(Rename(pattern=pattern, replacement=new) for pattern, new in rules.renames),
        layouts=rules.layout_texts,
        ties=dict(differences.ties.copies),
        omissions=tuple(Omission(**vars(omission)) for omission in differences.omissions),
        shards=tuple(shards),
        lineage=lineage,
        companions=copy_companions(post, tokenizer, workspace.result),
        tensors=tuple(records),
    )


def _write_lineage(differences: Differences, folder: Path) -> FileRecord:
    with OpenFiles(CheckpointError) as files:
        samples = {
            pair.name: (pair.base.dtype, sample(pair.name, pair.base, files))
            for pair in differences.pairs
            if pair.base.dtype in FLOATS and pair.base.elements
        }
    write_file(folder / LINEAGE_NAME, pack_samples(samples))
    digest, size = file_digest(folder / LINEAGE_NAME)
    return FileRecord(path=LINEAGE_NAME, size=size, sha256=digest)
