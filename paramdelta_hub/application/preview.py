"""Preview an apply (dry run): nothing is written, and no weights of a delta are downloaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from paramdelta_hub.application.inputs import open_inputs
from paramdelta_hub.application.kinship import AppliedDelta, foreign_notes
from paramdelta_hub.application.request import ApplyRequest
from paramdelta_hub.checkpoints.matching.by_name import OmittedTensor
from paramdelta_hub.checkpoints.rules.tensor_rules import RuleUse
from paramdelta_hub.errors import StorageError
from paramdelta_hub.fileio.names import human_bytes
from paramdelta_hub.fileio.report import Report, derived
from paramdelta_hub.outputs.replacing import check_new
from paramdelta_hub.package.provenance import Model
from paramdelta_hub.tasks.executors.threads import default_threads
from paramdelta_hub.tasks.progress import Progress
from paramdelta_hub.tasks.workspace import Workspace

__all__ = ["Preview", "preview"]


class Preview(Report):
    """What an apply would do."""

    dry_run: Literal[True] = True
    path: Path
    target: Model
    deltas: tuple[AppliedDelta, ...]
    """Each knows its kinship to the target, and what to expect of it."""
    paired_tensors: int
    """Those that a delta has, too, whether it changes them or not."""
    kept_tensors: int
    nbytes: int
    """Of the weight files."""
    needed_nbytes: int
    """Bytes that the disk must have for it."""
    free_nbytes: int
    """Bytes that are free where the result would lie, with those that an interrupted run has taken there."""
    omissions: tuple[OmittedTensor, ...]
    notes: tuple[str, ...]
    rules: tuple[RuleUse, ...]
    """What each rule hits, and which tensors it leaves out although a delta changes them."""

    @property
    def error(self) -> StorageError | None:
        """What would end the real run, although everything fits: too little space. None where it would begin."""
        if self.needed_nbytes <= self.free_nbytes:
            return None
        return StorageError(
            f"needs {human_bytes(self.needed_nbytes)}; {human_bytes(self.free_nbytes)} are free",
            where=str(self.path),
            remedy="free some space, or write to another disk",
        )

    @derived
    def problem(self) -> str | None:
        """What would end the real run."""
        return self.error.what if self.error else None


def preview(
    request: ApplyRequest,
    out: str | Path,
    *,
    registry: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Preview:
    """Find out whether an apply would begin, and what to expect of it, from headers and a few values of each tensor.

    Whether values are finite is not known before all are read.

    Args:
        request: what to apply, and to what.
        out: the result's folder.
        registry: where a bare ``org/name`` is; only manifest, samples and companions of a delta there are downloaded.
        overwrite: whether the result may replace an older one.
        progress: is told how far the downloads are.

    Raises:
        DestinationError: ``out`` exists.
        ParamdeltaError: whatever the beginning of an apply raises: not found, no fit, not kin.
    """
    check_new(out, overwrite=overwrite, registry=registry)
    workspace = Workspace(Path(out))
    workspace.check_reach()
    inputs = open_inputs(request, workspace.pieces, registry=registry, part="evidence", progress=progress)
    if overwrite and os.path.lexists(workspace.out):
        inputs.may_replace(workspace.out)
    compatibility = inputs.compatibility
    deltas = tuple(inputs.check_lineages())
    source = inputs.model.source
    return Preview(
        path=workspace.given,
        target=Model(name=source.name, commit=source.commit),
        deltas=deltas,
        paired_tensors=len(compatibility.paired),
        kept_tensors=len(compatibility.results.keys() - compatibility.paired),
        nbytes=inputs.nbytes,
        needed_nbytes=inputs.needed_bytes(default_threads()),
        free_nbytes=workspace.space(),
        omissions=compatibility.omissions,
        notes=(*inputs.warnings, *inputs.check_earlier(), *foreign_notes(deltas), *compatibility.notes),
        rules=compatibility.uses,
    )
