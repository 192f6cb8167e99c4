"""The fingerprint of a model's architecture, and the manifest's records of a model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from paramdelta_hub.checkpoints.checkpoint import Checkpoint
from paramdelta_hub.checkpoints.files.weight_files import WeightFile
from paramdelta_hub.checkpoints.logical import logical_model
from paramdelta_hub.errors import CheckpointError
from paramdelta_hub.fileio.durable import file_digest
from paramdelta_hub.package.manifest import Architecture, Source, SourceFile

__all__ = ["architecture_record", "fingerprint", "source_record"]

_UNCOUNTED = re.compile(r"(^|\.)(position_ids|inv_freq)$")
_SCALE_NAME = re.compile(r"(.+)_scale(_inv)?", re.DOTALL)
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json")


def fingerprint(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> str:
    """Return the identity of an architecture: sha256 over its tensors' names and shapes, sorted by name.

    One line per tensor: ``name TAB 4096x1024 LF``. Headers are enough, so a model on the Hub need not be downloaded.
    Of quantized weights, names and shapes are those of the values that they stand for.
    Dtypes, positions and frequencies that models compute themselves, and scales (the name of another tensor plus
    ``_scale`` or ``_scale_inv``) are left out, so copies of a model in bf16, fp32 and fp8 have the same fingerprint.
    """
    digest, shapes = hashlib.sha256(), dict(tensors)
    for name, shape in sorted(shapes.items()):
        scaled = _SCALE_NAME.fullmatch(name)
        if _UNCOUNTED.search(name) or (scaled and scaled[1] in shapes):
            continue
        digest.update(f"{name}\t{'x'.join(map(str, shape))}\n".encode())
    return digest.hexdigest()


def architecture_record(checkpoint: Checkpoint) -> Architecture:
    """Return what a target must look like to take a delta of this base."""
    config = checkpoint.config or {}
    model_type, classes = config.get("model_type"), config.get("architectures")
    return Architecture(
        model_type=model_type if _fits_manifest(model_type) else None,
        classes=tuple(filter(_fits_manifest, classes))[:64] if isinstance(classes, list) else (),
        fingerprint=fingerprint((name, tensor.shape) for name, tensor in logical_model(checkpoint).tensors.items()),
    )


def _fits_manifest(value: object) -> bool:
    """Whether a manifest can hold a config's value. No model class has another kind of name."""
    return isinstance(value, str) and 0 < len(value) <= 1024


def _blob_digest(file: WeightFile) -> str | None:
    """Return the file's sha256 if it is in the Hub cache, where the names of large blobs are their sha256."""
    name = file.path.name
    is_blob = file.path.parent.name == "blobs" and len(name) == 64 and all(c in "0123456789abcdef" for c in name)
    return name if is_blob else None


def source_record(checkpoint: Checkpoint, digests: Mapping[Path, str], tied_embeddings: bool | None) -> Source:
    """Return the manifest's record of base or post, given whether its output head is its embedding."""
    return Source(
        name=checkpoint.source.name,
        commit=checkpoint.source.commit,
        files=tuple(
            SourceFile(path=file.name, size=file.header.size, sha256=digests.get(file.path) or _blob_digest(file))
            for file in checkpoint.files
        ),
        dtypes=checkpoint.dtypes,
        tied_embeddings=tied_embeddings,
        tokenizer_sha256=_tokenizer_digest(checkpoint),
    )


def _tokenizer_digest(checkpoint: Checkpoint) -> str | None:
    if checkpoint.is_lone_file:
        return None
    for name in _TOKENIZERS:
        if (path := checkpoint.folder / name).exists():
            return file_digest(path, CheckpointError, follow=True)[0]
    return None
