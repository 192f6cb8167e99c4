"""Finding deltas for a model, and judging every one that is found; headers are read, weights are not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from paramdelta_hub.checkpoints.architecture import fingerprint
from paramdelta_hub.checkpoints.checkpoint import INDEX, WEIGHTS, open_checkpoint, parse_index
from paramdelta_hub.checkpoints.prediction import Prediction
from paramdelta_hub.errors import CheckpointError, RegistryError
from paramdelta_hub.format.names import check_file_name
from paramdelta_hub.limits import HEADER_BYTES, TENSORS
from paramdelta_hub.registry.client import asking, connect
from paramdelta_hub.registry.fetch import Commit, fetch_small, look
from paramdelta_hub.registry.names import is_repo
from paramdelta_hub.registry.protocol import Hit, Registry

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["Found", "Judgement", "Verdict", "Wanted", "describe_base", "find", "judge"]

Judgement = Literal["same base", "kin", "fits", "does not fit", "unknown"]

MOST_SHARDS = 1_000
"""Weight files whose headers are asked for, one request each. The largest models in use have about 200."""


class Wanted(NamedTuple):
    """The model that a delta is looked for."""

    name: str | None
    """On the Hub; None for a local folder."""
    fingerprint: str | None
    relatives: frozenset[str]
    """What its card names as its base models."""


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
    """What to expect of it on the model; None where it does not fit, or the model's weights are not on this machine."""

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
        CheckpointError: not a model whose headers can be read.
        RegistryError: no such repository, not allowed, not reachable.
    """
    repo, _, revision = str(model).partition("@")
    if Path(model).expanduser().exists() or not is_repo(repo):
        checkpoint = open_checkpoint(model)
        spans = ((name, span.shape) for name, (_, span) in checkpoint.tensors.items())
        on_the_hub = checkpoint.source.name if checkpoint.source.commit else None
        return Wanted(on_the_hub, fingerprint(spans), frozenset())
    api = connect()
    commit = look(api, repo, revision or None)
    return Wanted(repo, fingerprint(_remote_tensors(api, repo, commit).items()), commit.bases)


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


def find(registry: Registry, query: str | None, base: str | Path | None) -> Iterator[Found]:
    """Yield deltas of a registry, each judged: those of ``base``'s architecture first, then those made of it by name.

    With a query, those that it finds and that do not fit come last.

    Args:
        registry: where to look.
        query: words to look for; None for all.
        base: the model to apply to; None judges nothing.

    Raises:
        CheckpointError, RegistryError: see :func:`describe_base`.
    """
    if base is None:
        for hit in registry.search(query, None, None):
            yield Found(hit, "unknown", "no model was named to judge it for")
        return
    wanted = describe_base(base)
    shown: set[tuple[str, str]] = set()
    searches: list[tuple[str | None, str | None]] = [(None, wanted.fingerprint)]
    searches += [(wanted.name, None)] if wanted.name else []
    searches += [(None, None)] if query else []
    for name, architecture in searches:
        for hit in registry.search(query, name, architecture):
            if (hit.repo, hit.revision) not in shown:
                shown.add((hit.repo, hit.revision))
                yield Found(hit, *judge(hit, wanted))


def _remote_tensors(api: HfApi, repo: str, commit: Commit) -> dict[str, tuple[int, ...]]:
    """Read names and shapes from the headers of a model on the Hub, by its index if it has one."""
    where = f"{repo}@{commit.id[:12]}"
    tensors: dict[str, tuple[int, ...]] = {}
    for name in _weight_files(api, repo, commit, where):
        if name not in commit.files:
            raise CheckpointError(f"the index names {name}, which is missing", where=where)
        with asking(where):
            header = api.parse_safetensors_file_metadata(repo, name, revision=commit.id)
            found = {tensor: tuple(info.shape) for tensor, info in header.tensors.items()}
        tensors |= found
        if len(tensors) > TENSORS:
            raise CheckpointError(f"more than {TENSORS} tensors", where=where)
    return tensors


def _weight_files(api: HfApi, repo: str, commit: Commit, where: str) -> list[str]:
    if INDEX in commit.files:
        _, files = parse_index(fetch_small(api, repo, INDEX, commit, HEADER_BYTES), where)
    else:
        files = [name for name in commit.files if re.fullmatch(r"[^/]+\.safetensors", name)]
        files = [WEIGHTS] if WEIGHTS in files else files
    if len(files) > MOST_SHARDS:
        raise CheckpointError(f"{len(files)} weight files are too many to look into", where=where)
    if not files or (len(files) > 1 and INDEX not in commit.files):
        raise RegistryError(
            "no safetensors weights whose headers could be read",
            where=where,
            remedy="name a model that has model.safetensors, or a local folder",
        )
    return [check_file_name(name, CheckpointError) for name in files]
