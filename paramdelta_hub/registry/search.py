"""Finding deltas for a model, and judging each of them. Headers are read, weights are not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from paramdelta_hub.checkpoints.architecture import fingerprint
from paramdelta_hub.checkpoints.checkpoint import open_checkpoint
from paramdelta_hub.checkpoints.files.resolve import path_exists
from paramdelta_hub.checkpoints.kinship.prediction import Prediction
from paramdelta_hub.checkpoints.logical import LogicalModel, logical_model
from paramdelta_hub.checkpoints.remote import RemoteValues, open_remote
from paramdelta_hub.checkpoints.stored import Files
from paramdelta_hub.fileio.durable import expand
from paramdelta_hub.fileio.report import Report
from paramdelta_hub.registry.names import is_repo
from paramdelta_hub.registry.protocol import Hit, Registry

__all__ = ["Found", "Judgement", "SearchReport", "Verdict", "Wanted", "describe_base", "judge", "search_registry"]

Judgement = Literal["same base", "kin", "fits", "does not fit", "unknown"]


class Wanted(NamedTuple):
    """The model for which deltas are searched."""

    name: str | None
    """Its name on the Hub; None for a local folder."""
    fingerprint: str | None
    relatives: frozenset[str]
    """The base models that its card names."""
    model: LogicalModel | None = None
    values: Files | None = None
    """Reads the model's files if they are not on this machine."""


class Verdict(NamedTuple):
    """Whether a delta can be applied, judged by cards and headers, and why."""

    judgement: Judgement
    reason: str


@dataclass(frozen=True)
class Found(Hit):
    """A search result with its verdict."""

    judgement: Judgement
    reason: str
    prediction: Prediction | None = None
    """The expected effect on the model; None if the delta does not fit, or no model was named."""


class SearchReport(Report):
    """A page of search results."""

    hits: tuple[Found, ...]
    next_skip: int | None
    """How many hits to skip for the next page; None if there is none."""


def describe_base(model: str | Path) -> Wanted:
    """Return what a search needs to know about a model: a local one, or one on the Hub (``org/name[@revision]``).

    On the Hub, the headers are read by Range requests, about 100 kB of every weight file.

    Raises:
        CheckpointError: there is no such model, or its headers can't be read.
    """
    if path_exists(expand(model)) or not is_repo(str(model).partition("@")[0]):
        checkpoint = open_checkpoint(model)
        hub_name = checkpoint.source.name if checkpoint.source.commit else None
        tensors = logical_model(checkpoint)
        return Wanted(hub_name, _fingerprint(tensors), frozenset(), tensors)
    remote = open_remote(str(model), Path(str(model)), headers_only=True)
    name, tensors = remote.checkpoint.source.name, logical_model(remote.checkpoint)
    return Wanted(name, _fingerprint(tensors), remote.bases, tensors, RemoteValues(remote))


def _fingerprint(model: LogicalModel) -> str:
    return fingerprint((name, tensor.shape) for name, tensor in model.tensors.items())


def judge(hit: Hit, wanted: Wanted) -> Verdict:
    """Return whether a delta can be applied to the wanted model, judged by its card.

    Only names and architectures are compared here. The final decision is made by apply, which compares digests and
    values.
    """
    if hit.fingerprint is None or wanted.fingerprint is None:
        if hit.base is not None and hit.base == wanted.name:
            return Verdict("unknown", f"made from {hit.base}, but its architecture is unknown")
        return Verdict("unknown", "its architecture is unknown")
    if not hit.fingerprint or not wanted.fingerprint.startswith(hit.fingerprint):
        return Verdict("does not fit", "its base has different tensors or shapes")
    if hit.base is not None and hit.base == wanted.name:
        return Verdict("same base", f"made from {hit.base}")
    if hit.base is not None and hit.base in wanted.relatives:
        return Verdict("kin", f"made from {hit.base}, which the model's card names as its base")
    origin = f"made from {hit.base}" if hit.base else "its base is unknown"
    return Verdict("fits", f"same architecture, {origin}; apply compares the values first")


def search_registry(registry: Registry, query: str | None, wanted: Wanted | None) -> Iterator[Found]:
    """Yield deltas of a registry, each with a verdict.

    First come those of the model's architecture, then those whose base has the model's name. With a query, those that
    match it but do not fit come last. Without a model to compare with, every verdict is "unknown".

    Raises:
        RegistryError: not allowed, or not reachable.
    """
    if wanted is None:
        for hit in registry.search(query, None, None):
            yield Found(**vars(hit), judgement="unknown", reason="no model was named to compare with")
        return
    shown: set[tuple[str, str]] = set()
    searches: list[tuple[str | None, str | None]] = [(None, wanted.fingerprint)]
    searches += [(wanted.name, None)] if wanted.name else []
    searches += [(None, None)] if query else []
    for name, architecture in searches:
        for hit in registry.search(query, name, architecture):
            if (hit.repo, hit.revision) not in shown:
                shown.add((hit.repo, hit.revision))
                yield Found(**vars(hit), **judge(hit, wanted)._asdict())
