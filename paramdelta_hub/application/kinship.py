"""What a target is to the deltas: kin to their bases, a stranger, or a model that has them already.

Adding a delta a second time is almost always a mistake.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from pydantic import ConfigDict, Field

from paramdelta_hub.application.compatibility import Compatibility
from paramdelta_hub.checkpoints.checkpoint import Checkpoint
from paramdelta_hub.checkpoints.kinship.lineage import LineageMatch, compare_samples, unpack_samples
from paramdelta_hub.checkpoints.kinship.prediction import Prediction, predict
from paramdelta_hub.checkpoints.logical import LogicalTensor
from paramdelta_hub.checkpoints.stored import Files, source_digest
from paramdelta_hub.errors import CheckpointError, LineageError, SourceError
from paramdelta_hub.fileio.durable import read_small
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.fileio.report import derived
from paramdelta_hub.limits import KIB, KIN_CORRELATION, MIB, PROVENANCE_BYTES
from paramdelta_hub.package.package import Package
from paramdelta_hub.package.provenance import PROVENANCE_NAME, Delta, Model, parse_provenance

__all__ = ["AppliedDelta", "check_lineage", "earlier_deltas", "evidence_of_earlier", "foreign_notes"]

_COMPARED = 8
"""Tensors whose digests are compared with post's, the smallest that changed: norms and biases, mostly."""
_MAX_BYTES, _MAX_REMOTE_BYTES = 64 * MIB, 64 * KIB
"""Bytes of a compared tensor; where each is a request, fewer."""


class AppliedDelta(Delta):
    """A delta that is added, as the provenance has it, and what is known of it here."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    package: Package = Field(exclude=True)
    kinship: LineageMatch = Field(exclude=True)

    @classmethod
    def of(cls, package: Package, weight: float, kinship: LineageMatch) -> AppliedDelta:
        """Return the record of a package; it is forced where the target is not kin."""
        manifest = package.manifest
        return cls(
            name=manifest.name,
            version=manifest.version,
            id=package.digest,
            content=manifest.content_id,
            weight=weight,
            base=Model(name=manifest.base.name, commit=manifest.base.commit),
            post=Model(name=manifest.post.name, commit=manifest.post.commit),
            lineage=kinship.record(forced=not kinship.is_related),
            package=package,
            kinship=kinship,
        )

    @derived
    def prediction(self) -> Prediction:
        """What to expect of it, were it applied alone and with weight 1."""
        return predict(self.kinship, self.package.manifest.tensors)


def check_lineage(
    compatibility: Compatibility, number: int, package: Package, weight: float, force: bool, remote: Files | None = None
) -> AppliedDelta:
    """Compare base's samples with the target's values, which ``remote`` reads if given; refuse one that is not kin."""
    samples = unpack_samples(package.read_lineage(), str(package.path / package.manifest.lineage.path))
    tensors = {}
    for name, delta_name in compatibility.matches[number].pairs.items():
        placed = compatibility.placed.get(name)
        if name in compatibility.carried or (placed and number not in placed.inverse):
            continue  # nothing of the delta is added to the target's values
        tensor = compatibility.tensor(name).reorder_rows(placed.inverse[number] if placed else None)
        if tensor.shape == package.records[delta_name].shape and (name == delta_name or delta_name not in tensors):
            tensors[delta_name] = tensor
    tensors |= compatibility.in_delta_order(number, package)
    lineage = compare_samples(samples, tensors, remote)
    if lineage.correlation is not None and not compatibility.arranged[number].is_whole:
        lineage = replace(lineage, same_values=False)  # the target has more than base, or less
    if not lineage.is_related and not force:
        skip = lineage.or_skip("keep the unrelated tensors as they are")
        raise LineageError(
            _refusal(lineage, package.manifest.base.name),
            float("nan") if lineage.correlation is None else lineage.correlation,
            lineage.mismatches,
            where=str(compatibility.target.checkpoint.source.path),
            remedy=f"choose a target that was made from the delta's base{skip}; with --force the result may be useless",
        )
    return AppliedDelta.of(package, weight, lineage)


def _refusal(lineage: LineageMatch, base: str) -> str:
    if not lineage.is_foreign:
        return f"not kin to the delta's base {base!r}: {lineage}; the minimum is {KIN_CORRELATION:.2f}"
    kin = "kin only in part" if lineage.has_kin else "not kin"
    return f"{kin} to the delta's base {base!r}: {lineage.foreign_words()}"


def foreign_notes(deltas: Sequence[AppliedDelta]) -> tuple[str, ...]:
    """Name the tensors of the target that have nothing in common with a delta's base."""
    notes = (delta.kinship.foreign_note(f"{delta.base.name}, the base of {delta.name}") for delta in deltas)
    return tuple(note for note in notes if note)


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
