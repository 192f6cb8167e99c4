"""Detect that a target already has a delta. Adding it a second time is almost always a mistake."""

from __future__ import annotations

from collections.abc import Iterator

from paramdelta_hub.application.compatibility import Compatibility
from paramdelta_hub.checkpoints.checkpoint import Checkpoint
from paramdelta_hub.checkpoints.logical import LogicalTensor
from paramdelta_hub.checkpoints.stored import Files, source_digest
from paramdelta_hub.errors import CheckpointError, SourceError
from paramdelta_hub.fileio.durable import read_small
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.limits import KIB, MIB, PROVENANCE_BYTES
from paramdelta_hub.package.package import Package
from paramdelta_hub.package.provenance import PROVENANCE_NAME, Delta, parse_provenance

__all__ = ["earlier_deltas", "evidence_of_earlier"]

_COMPARED = 8
"""Tensors whose digests are compared with post's, the smallest that changed: norms and biases, mostly."""
_MAX_BYTES, _MAX_REMOTE_BYTES = 64 * MIB, 64 * KIB
"""Bytes of a compared tensor; where each is a request, fewer."""


def evidence_of_earlier(
    compatibility: Compatibility, number: int, package: Package, weight: float, remote: Files | None = None
) -> str | None:
    """Return in words why the target seems to have a delta already, or None.

    It has if its own provenance says so, or if all of the smallest tensors that training had changed are post's.

    Args:
        compatibility: how the deltas fit the target.
        number: which delta.
        package: its package.
        weight: what it is to be added with; one of the other sign takes back what was added.
        remote: reads the target's values where its files are not on this machine.

    Raises:
        CheckpointError: the target's values can't be read.
    """
    content = package.manifest.content_id
    before = sum(delta.weight for delta in earlier_deltas(compatibility.target.checkpoint) if delta.content == content)
    if before * weight > 0:
        return f"the target's {PROVENANCE_NAME} says that it was applied before, with a total weight of {before:g}"
    if weight < 0:
        return None
    max_bytes = _MAX_REMOTE_BYTES if remote else _MAX_BYTES
    tensors = sorted(_changed(compatibility, number, package, max_bytes), key=lambda found: found[1].nbytes)[:_COMPARED]
    with OpenFiles(CheckpointError) as files:
        for promised, tensor in tensors:
            if source_digest(tensor.source, tensor.elements, remote or files) != promised:
                return None
    if not tensors:
        return None
    return f"all {len(tensors)} compared tensors of the target have the values of post, {package.manifest.post.name}"


def _changed(
    compatibility: Compatibility, number: int, package: Package, max_bytes: int
) -> Iterator[tuple[str, LogicalTensor]]:
    """Yield (digest of post's values, the target's tensor) where training changed one and both can be compared."""
    for name, delta_name in compatibility.matches[number].pairs.items():
        record = package.records[delta_name]
        if record.changed and name not in compatibility.carried and name not in compatibility.placed:
            tensor = compatibility.tensor(name)
            if (tensor.dtype, tensor.shape) == (record.dtype, record.shape) and tensor.nbytes <= max_bytes:
                yield record.post_blake3, tensor
    for name, tensor in compatibility.in_delta_order(number, package).items():
        record = package.records[name]
        if record.changed and tensor.dtype == record.dtype and tensor.nbytes <= max_bytes:
            yield record.post_blake3, tensor


def earlier_deltas(target: Checkpoint) -> tuple[Delta, ...]:
    """Return the deltas that a target has already, as far as a provenance beside its weights tells, the first first."""
    path = target.folder / PROVENANCE_NAME
    try:
        if not path.exists():
            return ()
        provenance = parse_provenance(read_small(path, PROVENANCE_BYTES, CheckpointError, follow=True), str(path))
    except (SourceError, OSError):
        return ()
    if target.is_lone_file and not target.tensors.keys() <= provenance.tensors.keys():
        return ()  # a file that happens to lie there
    return (*provenance.earlier, *provenance.deltas)
