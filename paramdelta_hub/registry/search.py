"""Finding deltas for a model, and judging every one that is found; headers are read, weights are not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from paramdelta_hub.checkpoints.architecture import fingerprint
from paramdelta_hub.checkpoints.checkpoint import Checkpoint, open_checkpoint
from paramdelta_hub.checkpoints.logical import LogicalModel, logical_model
from paramdelta_hub.checkpoints.prediction import Prediction
from paramdelta_hub.checkpoints.remote import RemoteValues, open_remote
from paramdelta_hub.checkpoints.resolve import path_exists
from paramdelta_hub.checkpoints.tensor_sources import Files
from paramdelta_hub.fileio.durable import expand
from paramdelta_hub.registry.names import is_repo
from paramdelta_hub.registry.protocol import Hit, Registry

__all__ = ["Found", "Judgement", "Verdict", "Wanted", "describe_base", "find", "judge"]

Judgement = Literal["same base", "kin", "fits", "does not fit", "unknown"]


class Wanted(NamedTuple):
    """The model that a delta is looked for."""

    name: str | None
    """On the Hub; None for a local folder."""
    fingerprint: str | None
    relatives: frozenset[str]
    """What its card names as its base models."""
    model: LogicalModel | None = None
    values: Files | None = None
    """Reads the model's files, where they are not on this machine."""


class Verdict(NamedTuple):
    """Whether a delta can be applied, as far as cards and headers tell, and why."""

    judgement: Judgement
    reason: str


@dataclass(frozen=True)
class Found:
    """A hit with its verdict."""

    hit: Hit
    judgement: Judgement
    reason: str
    prediction: Prediction | None = None
    """What to expect of it on the model; None where it does not fit, or was not asked for."""

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable record."""
        prediction = self.prediction and self.prediction.to_json()
        return {
            **self.hit.to_json(), "judgement": self.judgement, "reason": self.reason, "prediction": prediction,
        }  # fmt: skip


def describe_base(model: str | Path) -> Wanted:
    """Return what a search for deltas of a model needs: of a local one, or one on the Hub (``org/name[@revision]``).

    On the Hub, the headers are read by Range requests: some 100 kB of every weight file.

    Raises:
        CheckpointError: no such model, or none whose headers can be read.
    """
    if path_exists(expand(model)) or not is_repo(str(model).partition("@")[0]):
        checkpoint = open_checkpoint(model)
        on_the_hub = checkpoint.source.name if checkpoint.source.commit else None
        return Wanted(on_the_hub, _fingerprint(checkpoint), frozenset(), logical_model(checkpoint))
    remote = open_remote(str(model), Path(str(model)), tokenizers=False)
    name, identity = remote.checkpoint.source.name, _fingerprint(remote.checkpoint)
    return Wanted(name, identity, remote.bases, logical_model(remote.checkpoint), RemoteValues(remote))


def _fingerprint(checkpoint: Checkpoint) -> str:
    return fingerprint((name, span.shape) for name, (_, span) in checkpoint.tensors.items())


def judge(hit: Hit, wanted: Wanted) -> Verdict:
    """Return whether a delta can be applied to the wanted model, as far as its card tells.

    Only apply itself knows: it compares digests and values. What is judged here is the names and the architecture.
    """
    if hit.fingerprint is None or wanted.fingerprint is None:
        if hit.base is not None and hit.base == wanted.name:
            return Verdict("unknown", f"made of {hit.base}, but its architecture is not known")
        return Verdict("unknown", "its architecture is not known")
    if not hit.fingerprint or not wanted.fingerprint.startswith(hit.fingerprint):
        return Verdict("does not fit", "its base has other tensors or shapes")
    if hit.base is not None and hit.base == wanted.name:
        return Verdict("same base", f"made of {hit.base}")
    if hit.base is not None and hit.base in wanted.relatives:
        return Verdict("kin", f"made of {hit.base}, which the model's card names as its base")
    origin = f"made of {hit.base}" if hit.base else "its base is not known"
    return Verdict("fits", f"equal architecture; {origin}: apply compares the values before it adds")


def find(registry: Registry, query: str | None, wanted: Wanted | None) -> Iterator[Found]:
    """Yield deltas of a registry, each judged: those of the model's architecture first, then those made of it by name.

    With a query, those that it finds and that do not fit come last.

    Args:
        registry: where to look.
        query: words to look for; None for all.
        wanted: the model to apply to; None judges nothing.

    Raises:
        RegistryError: not allowed, not reachable.
    """
    if wanted is None:
        for hit in registry.search(query, None, None):
            yield Found(hit, "unknown", "no model was named to judge it for")
        return
    shown: set[tuple[str, str]] = set()
    searches: list[tuple[str | None, str | None]] = [(None, wanted.fingerprint)]
    searches += [(wanted.name, None)] if wanted.name else []
    searches += [(None, None)] if query else []
    for name, architecture in searches:
        for hit in registry.search(query, name, architecture):
            if (hit.repo, hit.revision) not in shown:
                shown.add((hit.repo, hit.revision))
                yield Found(hit, *judge(hit, wanted))
