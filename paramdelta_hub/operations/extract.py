"""Extract: Δ = post − base, once, into a package that is proved exact while it is made."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from paramdelta_hub import __about__
from paramdelta_hub.arithmetic import FLOATS
from paramdelta_hub.checkpoints.architecture import (
    describe_architecture,
    describe_source,
)
from paramdelta_hub.checkpoints.checkpoint import Checkpoint, open_checkpoint
from paramdelta_hub.checkpoints.lineage import pack_samples, sample
from paramdelta_hub.checkpoints.pairing import Rules
from paramdelta_hub.errors import CheckpointError, Mismatch, NotFiniteError, OptionError
from paramdelta_hub.format.descriptors import Descriptors
from paramdelta_hub.format.durable import file_digest, io_errors, sync_file, write_file
from paramdelta_hub.format.manifest import (
    LINEAGE_NAME,
    MANIFEST_NAME,
    CodecRecord,
    Exactness,
    FileRecord,
    Labels,
    Manifest,
    Omission,
    Rename,
    Rows,
    TensorRecord,
    parse_manifest,
    shard_name,
)
from paramdelta_hub.limits import DEFAULT_MEMORY, EXPECTED_RATIO
from paramdelta_hub.operations.differences import Differences, pair_up, tokenizer_folder
from paramdelta_hub.operations.encoding import run_extract_task
from paramdelta_hub.operations.execution import execute, workers
from paramdelta_hub.operations.readiness import check_packable, config_changes, pack
from paramdelta_hub.work.destination import Destination
from paramdelta_hub.work.plan import Plan, Receipt, cut
from paramdelta_hub.work.progress import Progress

__all__ = ["ExtractReport", "extract"]


@dataclass(frozen=True)
class ExtractReport:
    """What an extraction made."""

    package: Path
    id: str
    """sha256 of the manifest."""
    manifest: Manifest
    nbytes: int
    """Size of the package without its manifest."""
    model_nbytes: int
    """Size of post's tensors."""
    resumed_tasks: int
    notes: tuple[str, ...] = ()
    """What became of ties, of rows that have no like in base, and of tensors that are carried whole."""

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable report."""
        return {
            "package": str(self.package),
            "id": self.id,
            "name": self.manifest.name,
            "version": self.manifest.version,
            "bytes": self.nbytes,
            "model_bytes": self.model_nbytes,
            "ratio": self.nbytes / self.model_nbytes if self.model_nbytes else None,
            "tensors": len(self.manifest.tensors),
            "exactness": self.manifest.exactness.model_dump(mode="json"),
            "omissions": [omission.model_dump(mode="json") for omission in self.manifest.omissions],
            "notes": list(self.notes),
            "companions": [file.path for file in self.manifest.companions],
            "resumed_tasks": self.resumed_tasks,
        }


def extract(
    base: str | Path,
    post: str | Path,
    out: str | Path,
    *,
    name: str | None = None,
    version: str = "1.0.0",
    license: str | None = None,  # noqa: A002 - the field's own name
    rules: Rules | None = None,
    base_tokenizer: str | Path | None = None,
    post_tokenizer: str | Path | None = None,
    hash_files: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    progress: Progress | None = None,
) -> ExtractReport:
    """Write the delta package ``out`` such that base ⊕ Δ == post, bit for bit, for every element.

    Both models are read once, chunk by chunk; every chunk's sum is checked against post as it is made. A killed run
    leaves no ``out``; running it again goes on where it stopped.

    Args:
        base: the model post was trained from: a folder, a ``.safetensors`` file, or ``org/name[@revision]``.
        post: the post-trained model, likewise.
        out: the package's folder.
        name: what to call the delta; by default after post.
        version: its semantic version.
        license: an SPDX identifier or the Hub's licence name.
        rules: renames (of post's tensors), skips, and which tensors that only post has are carried whole.
        base_tokenizer: the folder of base's tokenizer, if it does not lie beside the weights: rows of embeddings are
            matched by token.
        post_tokenizer: the same for post.
        hash_files: record the sha256 of local weight files too, at the price of reading both models twice; files
            from the Hub have theirs, and every tensor always has.
        overwrite: replace a finished ``out``.
        threads: tasks at a time; by default as many as there are processors.
        memory: bytes that all buffers together may take.
        progress: told how far the work is.

    Raises:
        OptionError: a name, version, licence or rule that can't be used.
        CheckpointError: a model can't be read.
        MismatchError: the two don't fit; every misfit is listed.
        NotFiniteError: a weight is NaN or infinite.
        DestinationError: ``out`` exists, or is being written to.
        StorageError: the disk is full or fails.
    """
    rules, progress, threads = rules or Rules(), progress or Progress(), workers(threads, memory)
    base_model, post_model = open_checkpoint(base), open_checkpoint(post)
    tokenizers = tokenizer_folder(base_tokenizer, base_model), tokenizer_folder(post_tokenizer, post_model)
    check_packable(base_model, post_model, tokenizers[1])
    labels = _labels(name or f"{post_model.source.name.rpartition('/')[2]}-delta", version, license)
    differences = pair_up(base_model, post_model, rules, *tokenizers)
    plan = _plan(base_model, post_model, differences, rules, labels, hash_files)
    with Destination(Path(out), overwrite=overwrite) as destination:
        done = destination.resume(plan)
        done = {number: receipt for number, receipt in done.items() if _still_there(receipt, destination.pieces)}
        expected = sum(
            int(tensor["nbytes"] * EXPECTED_RATIO[tensor["itemsize"]])
            for task in plan.tasks
            if task["kind"] == "encode"
            for tensor in task["tensors"]
        )
        destination.check_space(expected)

        def after(outcome: dict[str, Any]) -> None:
            if outcome.get("piece"):
                sync_file(destination.pieces / outcome["piece"])

        outcomes = execute(
            plan,
            lambda task, advance: run_extract_task(task, destination.pieces, advance),
            done,
            destination,
            threads,
            progress,
            "extracting",
            after,
        )
        _refuse_not_finite(outcomes)
        with io_errors("writing the package"):
            manifest = _assemble(
                base_model, post_model, tokenizers[1], differences, rules, outcomes, destination, labels
            )
            text = manifest.to_json()
            manifest, digest = parse_manifest(text)  # what we write, we can read
            write_file(destination.result / MANIFEST_NAME, text)
        destination.commit()
    return ExtractReport(
        package=Path(out),
        id=digest,
        manifest=manifest,
        nbytes=manifest.nbytes,
        model_nbytes=post_model.nbytes,
        resumed_tasks=len(done),
        notes=differences.notes,
    )


def _labels(name: str, version: str, license_name: str | None) -> Labels:
    try:
        return Labels(name=name, version=version, license=license_name)
    except ValidationError as error:
        problem = error.errors()[0]
        what = f"the {problem['loc'][0]} {problem['input']!r} can't be used: {problem['msg']}"
        raise OptionError(what, remedy="versions are like 1.2.0 (semver.org)") from None


def _plan(
    base: Checkpoint, post: Checkpoint, differences: Differences, rules: Rules, labels: Labels, hash_files: bool
) -> Plan:
    tensors = [
        {
            "name": pair.name,
            "dtype": pair.base.dtype,
            "shape": list(pair.base.shape),
            "itemsize": pair.base.itemsize,
            "nbytes": pair.base.nbytes,
            "base": pair.base.view,
            "post": pair.post.view,
            "record": {
                "base_name": pair.base_name,
                "post_name": pair.post_name,
                "rows": None
                if pair.runs is None
                else {"base": pair.base_rows, "runs": [list(run) for run in pair.runs]},
            },
        }
        for pair in differences.pairs
    ]
    tasks: list[dict[str, Any]] = [
        {
            "kind": "encode",
            "bytes": 2 * sum(tensor["nbytes"] for tensor in group),
            "piece": f"{number:06d}.safetensors",
            "tensors": group,
        }
        for number, group in enumerate(cut(tensors, lambda tensor: int(tensor["nbytes"]), base.nbytes), start=1)
    ]
    files = {file.path: file for model in (base, post) for file in model.files}
    if hash_files:
        tasks += [{"kind": "digest", "bytes": file.header.size, "file": str(path)} for path, file in files.items()]
    return Plan(
        kind="extract",
        inputs=tuple(file.identity() for file in files.values()),
        options={
            "labels": labels.model_dump(),
            "renames": rules.renames,
            "skips": rules.skips,
            "carries": rules.carries,
        },
        tasks=tuple(tasks),
    )


def _still_there(receipt: Receipt, pieces: Path) -> bool:
    """Whether what a receipt of an interrupted run speaks of is still there, to the byte."""
    piece = receipt.outcome.get("piece")
    if piece is None:
        return True
    path = pieces / str(piece)
    return path.is_file() and file_digest(path)[0] == receipt.outcome["sha256"]


def _refuse_not_finite(outcomes: Iterable[dict[str, Any]]) -> None:
    problems = [
        Mismatch(name, "not-finite", f"base has {base}, post has {post} values that are NaN or infinite")
        for outcome in outcomes
        for name, base, post in outcome.get("not_finite", [])
    ]
    if problems:
        raise NotFiniteError(
            f"{len(problems)} tensor(s) are not finite",
            problems,
            remedy="a delta of them means nothing: mend the model, or leave them out with --skip REGEX",
        )


def _assemble(
    base: Checkpoint,
    post: Checkpoint,
    tokenizer: Path | None,
    differences: Differences,
    rules: Rules,
    outcomes: list[dict[str, Any]],
    destination: Destination,
    labels: Labels,
) -> Manifest:
    """Give the pieces their final names, write the lineage file, and return the manifest of it all."""
    digests = {Path(outcome["file"]): outcome["sha256"] for outcome in outcomes if "file" in outcome}
    encoded = [outcome for outcome in outcomes if "tensors" in outcome]
    pieces = [outcome for outcome in encoded if outcome["piece"]]
    shards, records = [], []
    shard_of = {}
    for number, outcome in enumerate(pieces, start=1):
        shard_of[outcome["piece"]] = path = shard_name(number, len(pieces))
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
        omissions=tuple(
            Omission.model_validate({"name": name, "side": side, "reason": reason})
            for name, side, reason in differences.omissions
        ),
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
