"""The end of an extraction: pieces get their final names, and the manifest says what they are."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paramdelta_hub import __about__
from paramdelta_hub.application.companions import config_changes, pack
from paramdelta_hub.checkpoints.architecture import describe_architecture, describe_source
from paramdelta_hub.checkpoints.checkpoint import Checkpoint
from paramdelta_hub.checkpoints.lineage import pack_samples, sample
from paramdelta_hub.checkpoints.rules import Rules
from paramdelta_hub.errors import CheckpointError
from paramdelta_hub.extraction.pairs import Differences
from paramdelta_hub.fileio.durable import file_digest, write_file
from paramdelta_hub.fileio.open_files import Descriptors
from paramdelta_hub.numerics.floats import FLOATS
from paramdelta_hub.package.manifest import (
    LINEAGE_NAME,
    CodecRecord,
    Exactness,
    FileRecord,
    Labels,
    Manifest,
    Omission,
    Rename,
    Rows,
    TensorRecord,
    shard_name,
)
from paramdelta_hub.tasks.workspace import Destination

__all__ = ["assemble", "final_names"]


def final_names(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return what every piece is called in the package, given all outcomes of the plan."""
    pieces = [outcome["piece"] for outcome in outcomes if outcome.get("piece")]
    return {piece: shard_name(number, len(pieces)) for number, piece in enumerate(pieces, start=1)}


def assemble(
    base: Checkpoint,
    post: Checkpoint,
    tokenizer: Path | None,
    differences: Differences,
    rules: Rules,
    outcomes: Sequence[Mapping[str, Any]],
    destination: Destination,
    labels: Labels,
) -> Manifest:
    """Give the pieces their final names, write the lineage file, and return the manifest of it all."""
    digests = {Path(outcome["file"]): outcome["sha256"] for outcome in outcomes if "file" in outcome}
    encoded = [outcome for outcome in outcomes if "tensors" in outcome]
    shards, records = [], []
    shard_of = final_names(outcomes)
    for outcome in encoded:
        if outcome["piece"]:
            path = shard_of[outcome["piece"]]
            os.rename(destination.pieces / outcome["piece"], destination.result / path)
            shards.append(FileRecord(path=path, size=outcome["size"], sha256=outcome["sha256"]))
    for outcome in encoded:
        for record in outcome["tensors"]:
            shard = shard_of[outcome["piece"]] if record["nbytes"] else None
            changes = {
                "shape": tuple(record["shape"]),
                "rows": record["rows"] and _rows(record["rows"]),
                "codec": CodecRecord(name=record["codec"], parameters={}),
                "shard": shard,
            }
            records.append(TensorRecord(**{**record, **changes}))
    lineage = _write_lineage(differences, destination.result)
    return Manifest(
        format="paramdelta",
        format_version=1,
        name=labels.name,
        version=labels.version,
        license=labels.license,
        created_by=__about__.CREATED_BY,
        base=describe_source(base, digests),
        post=describe_source(post, digests),
        architecture=describe_architecture(base),
        exactness=Exactness(
            exact=True,
            elements=sum(record.elements for record in records),
            changed=sum(record.changed for record in records),
            remainders=sum(record.remainders for record in records),
            exceptions=sum(record.exceptions for record in records),
        ),
        configs=config_changes(base, post),
        given_up=dict(sorted(differences.given_up.items(), key=lambda token: token[1])),
        renames=tuple(Rename(pattern=pattern, replacement=new) for pattern, new in rules.renames),
        omissions=tuple(Omission.model_validate(omission._asdict()) for omission in differences.omissions),
        shards=tuple(shards),
        lineage=lineage,
        companions=pack(post, tokenizer, destination.result),
        tensors=tuple(records),
    )


def _rows(value: dict[str, Any]) -> Rows:
    return Rows(base=value["base"], runs=tuple(tuple(run) for run in value["runs"]))


def _write_lineage(differences: Differences, folder: Path) -> FileRecord:
    with Descriptors(CheckpointError) as files:
        samples = {
            pair.name: (pair.base.dtype, sample(pair.name, pair.base, files))
            for pair in differences.pairs
            if pair.base.dtype in FLOATS and pair.base.elements
        }
    write_file(folder / LINEAGE_NAME, pack_samples(samples))
    digest, size = file_digest(folder / LINEAGE_NAME)
    return FileRecord(path=LINEAGE_NAME, size=size, sha256=digest)
