"""Verify an applied model: compare every tensor and every companion with its provenance."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from paramdelta_hub.checkpoints.checkpoint import Checkpoint, open_checkpoint
from paramdelta_hub.checkpoints.stored import Stored
from paramdelta_hub.errors import CheckpointError, Mismatch, MismatchError
from paramdelta_hub.fileio.durable import expand, file_digest, read_small
from paramdelta_hub.fileio.names import shown
from paramdelta_hub.fileio.paths import files_below
from paramdelta_hub.fileio.report import Report
from paramdelta_hub.limits import DEFAULT_MEMORY, PROVENANCE_BYTES
from paramdelta_hub.package.manifest import FileRecord
from paramdelta_hub.package.provenance import PROVENANCE_NAME, Companions, Delta, Model, Provenance, parse_provenance
from paramdelta_hub.tasks.digests import tensor_digests
from paramdelta_hub.tasks.progress import Progress
from paramdelta_hub.tasks.runner import workers

__all__ = ["ResultReport", "digest_mismatches", "is_allowed_extra", "is_result", "verify_result"]

_ALLOWED_EXTRA = re.compile(
    r"(readme|license|notice|use_policy)(\.(md|txt))?|.+\.(sig|intoto\.jsonl?|cdx\.json)", re.IGNORECASE
)


class ResultReport(Report):
    """What was proved of an applied model; a verification that fails raises instead."""

    path: Path
    whole: Literal[True] = True
    provenance: Provenance = Field(exclude=True)
    created_by: str
    target: Model
    deltas: tuple[Delta, ...]
    is_post: bool
    """Whether it is post, bit for bit."""
    tensors: int
    nbytes: int
    """Of the tensors, without the headers of their files."""
    companions: Companions
    files: tuple[FileRecord, ...] = Field(exclude=True)
    """The weight files, and what lies beside them; empty unless their digests were asked for."""


def is_result(path: Path) -> bool:
    """Whether there is an applied model at ``path``, by the provenance that lies in it."""
    try:
        return (path / PROVENANCE_NAME).is_file()
    except (OSError, ValueError):  # too long, a zero byte
        return False


def is_allowed_extra(name: str) -> bool:
    """Whether a file may lie in an applied model although no provenance lists it.

    Cards, licenses, signatures, statements and bills of materials may: people add them, and no library loads them.
    """
    return _ALLOWED_EXTRA.fullmatch(name) is not None


def verify_result(
    result: str | Path,
    *,
    digest_files: bool = False,
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    progress: Progress | None = None,
) -> ResultReport:
    """Prove that an applied model is just what ``paramdelta_provenance.json`` says: tensors, companions, nothing else.

    The provenance itself is not signed: whoever can change a tensor can change it too.

    Args:
        result: the model's folder.
        digest_files: also take the digests of the weight files, for a statement or a bill of materials.
        threads: tasks at a time.
        memory: bytes of all buffers together.
        progress: receives the progress of the work.

    Raises:
        CheckpointError: no provenance there, or one that breaks its format; the model can't be read.
        MismatchError: a tensor or file is missing, other than promised, or not promised; all of them are listed.
    """
    folder, threads, progress = expand(result), workers(threads, memory), progress or Progress()
    if not is_result(folder):
        raise CheckpointError(
            f"not an applied model: there is no {PROVENANCE_NAME}", where=str(result), remedy="pd-apply writes one"
        )
    path = folder / PROVENANCE_NAME
    text = read_small(path, PROVENANCE_BYTES, CheckpointError, follow=True)
    provenance = parse_provenance(text, str(path))
    model = open_checkpoint(folder)
    before = [file.identity() for file in model.files]
    if problems := _mismatches(model, provenance, threads, progress):
        raise MismatchError(
            f"the model differs from its provenance in {len(problems)} way(s)",
            problems,
            where=str(folder),
            remedy="get it again, or apply again",
        )
    files: tuple[FileRecord, ...] = ()
    if digest_files:
        files = tuple(_files(model, provenance, text, progress))
        if [file.identity() for file in model.files] != before:
            raise CheckpointError("changed while it was read", where=str(folder), remedy="run the command again")
    return ResultReport(
        path=folder,
        provenance=provenance,
        created_by=provenance.created_by,
        target=provenance.target,
        deltas=provenance.deltas,
        is_post=provenance.is_post,
        tensors=len(provenance.tensors),
        nbytes=model.nbytes,
        companions=provenance.companions,
        files=files,
    )


def _mismatches(model: Checkpoint, provenance: Provenance, threads: int, progress: Progress) -> list[Mismatch]:
    """Return everything in which the model differs from its provenance."""
    found = [
        *_tensor_mismatches(model, provenance),
        *_unlisted_files(model, provenance),
        *_changed_companions(model.folder, provenance),
    ]
    promised = {name: tensor.blake3 for name, tensor in provenance.tensors.items()}
    return found + digest_mismatches(model, promised, {problem.location for problem in found}, threads, progress)


def _tensor_mismatches(model: Checkpoint, provenance: Provenance) -> Iterator[Mismatch]:
    """Yield the tensors that the headers show to be missing, more than promised, or of another dtype or shape."""
    for name, promised in provenance.tensors.items():
        if name not in model.tensors:
            yield Mismatch(name, "missing", "in the provenance, but not in the model")
            continue
        span = model.tensors[name][1]
        if (span.dtype, span.shape) != (promised.dtype, promised.shape):
            actual, promised_text = f"{span.dtype} {list(span.shape)}", f"{promised.dtype} {list(promised.shape)}"
            yield Mismatch(name, "shape", f"is {actual}, the provenance says {promised_text}")
    for name in model.tensors:
        if name not in provenance.tensors:
            yield Mismatch(name, "unlisted", "in the model, but not in the provenance")


def digest_mismatches(
    model: Checkpoint, promised: Mapping[str, str], known: set[str], threads: int, progress: Progress
) -> list[Mismatch]:
    """Return the tensors whose values have another digest than promised; those that are ``known`` are not read."""
    sources = {
        # As bytes: what is compared is what is stored, whatever its dtype.
        name: (Stored(str(file.path), span.start, "U8"), span.nbytes)
        for name, (file, span) in model.tensors.items()
        if name not in known
    }
    digests = tensor_digests(sources, threads, progress, "comparing tensors")
    return [
        Mismatch(name, "digest", "its values differ from the digest in the provenance")
        for name in promised
        if name in digests and digests[name] != promised[name]
    ]


def _changed_companions(folder: Path, provenance: Provenance) -> Iterator[Mismatch]:
    for file in provenance.companions.files:
        path = folder / file.path
        if not path.is_file():
            yield Mismatch(file.path, "missing", "in the provenance, but not in the folder")
        elif path.stat().st_size != file.size or file_digest(path, CheckpointError, follow=True)[0] != file.sha256:
            yield Mismatch(file.path, "digest", "the file differs from the digest in the provenance")


def _unlisted_files(model: Checkpoint, provenance: Provenance) -> Iterator[Mismatch]:
    """Yield the files that nobody promised: a library could take one of them for the model, or for code to run."""
    listed = {PROVENANCE_NAME, *(file.name for file in model.files), *(f.path for f in provenance.companions.files)}
    listed |= {index.name for index in model.indexes}
    for name in files_below(model.folder):
        if name not in listed and not is_allowed_extra(name):
            yield Mismatch(shown(name), "unlisted", "not in the provenance; move it elsewhere")


def _files(model: Checkpoint, provenance: Provenance, text: bytes, progress: Progress) -> Iterator[FileRecord]:
    progress.start("taking digests of files", sum(file.header.size for file in model.files))
    try:
        for file in model.files:
            digest, size = file_digest(file.path, CheckpointError, advance=progress.advance)
            yield FileRecord(path=file.name, size=size, sha256=digest)
    finally:
        progress.finish()
    for index in model.indexes:
        digest, size = file_digest(model.folder / index.name, CheckpointError, follow=True)
        yield FileRecord(path=index.name, size=size, sha256=digest)
    yield FileRecord(path=PROVENANCE_NAME, size=len(text), sha256=hashlib.sha256(text).hexdigest())
    for companion in provenance.companions.files:
        yield FileRecord(path=companion.path, size=companion.size, sha256=companion.sha256)
