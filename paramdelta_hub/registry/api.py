"""What else is asked of registries: pull, versions, search, link."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from paramdelta_hub.checkpoints.lineage import compare, unpack_samples
from paramdelta_hub.checkpoints.logical import LogicalModel
from paramdelta_hub.checkpoints.prediction import Prediction, predict
from paramdelta_hub.checkpoints.tensor_sources import Files
from paramdelta_hub.errors import DestinationError, OptionError, RegistryError, SourceError
from paramdelta_hub.fileio.durable import expand
from paramdelta_hub.numerics.floats import FLOATS
from paramdelta_hub.package.package import open_package
from paramdelta_hub.registry.hub.links import Linked, Role
from paramdelta_hub.registry.hub.links import link as _link
from paramdelta_hub.registry.locate import chosen, find, hint_at_folder
from paramdelta_hub.registry.names import folder_of
from paramdelta_hub.registry.protocol import Hit, Part, Pulled, Registry, Version
from paramdelta_hub.registry.reference import open_registry
from paramdelta_hub.registry.search import Found, describe_base
from paramdelta_hub.registry.search import find as _search
from paramdelta_hub.registry.signing import trust
from paramdelta_hub.tasks.progress import Progress

__all__ = ["link", "pull", "search", "versions"]


def pull(
    delta: str,
    folder: str | Path | None = None,
    *,
    registry: str | Path | None = None,
    part: Part = "package",
    allow_downgrade: bool = False,
    require_signature: bool | None = None,
    trusted_keys: Sequence[str | Path] = (),
    progress: Progress | None = None,
) -> Pulled:
    """Fetch a version of a delta; the size and sha256 of every file are checked. A killed pull goes on when repeated.

    Args:
        delta: ``org/name[@version|@commit]``, or a folder or URL that ends so; without a revision, the newest version.
        folder: where to; by default the registry's cache.
        registry: where a bare ``org/name`` lies; by default what PARAMDELTA_REGISTRY names, else the Hub.
        part: the whole package; or the manifest, alone or with the companions, the samples, or both (``evidence``).
        allow_downgrade: let a version that is named take the place of a higher one in ``folder``.
        require_signature: refuse what is not signed, for that repository, by a key of the user's configuration; by
            default as PARAMDELTA_REQUIRE_SIGNATURE says.
        trusted_keys: files of public keys by one of which it must be signed, instead.
        progress: told how far the work is.

    Raises:
        OptionError: a reference that can't be one; a signature is required, and no key is trusted.
        SignatureError: not signed so.
        RegistryError: it is not there, not allowed, or not reachable.
        IntegrityError: what came is not what its manifest promises.
        DestinationError: the folder holds something else, or files that you have changed; or it is your home folder,
            or a registry, or within one.
    """
    there, reference = find(delta, registry)
    target = None if folder is None else expand(folder)
    if target is not None:
        _check_target(target, [root for root in (reference.root, chosen(registry)) if root is not None])
    with hint_at_folder(delta, reference):
        return there.pull(
            reference.repo,
            reference.revision,
            target,
            part=part,
            allow_downgrade=allow_downgrade,
            trust=trust(trusted_keys, require=require_signature),
            progress=progress,
        )


def _check_target(target: Path, roots: Sequence[str]) -> None:
    """Check that a copy does not come where it would be mixed up with a registry, or with all that a user has.

    Raises:
        DestinationError: it would.
    """
    real = os.path.realpath(target)
    if real == os.path.realpath(os.path.expanduser("~")):
        raise DestinationError("your home folder", where=str(target), remedy="name a folder of its own for the copy")
    for root in filter(None, map(folder_of, roots)):
        registry = os.path.realpath(root)
        if registry == os.sep:  # everything is within it
            continue
        if os.path.commonpath([real, registry]) in (real, registry):
            how = "is" if real == registry else "lies in" if len(real) > len(registry) else "contains"
            raise DestinationError(
                f"{how} the registry {registry}", where=str(target), remedy="choose a folder outside of it"
            )


def versions(delta: str, *, registry: str | Path | None = None) -> list[Version]:
    """Return all versions of a delta, the newest first by semantic version.

    Raises:
        OptionError: a name that can't be one.
        RegistryError: it is not there, not allowed, or not reachable.
    """
    there, reference = find(delta, registry)
    with hint_at_folder(delta, reference):
        found = there.versions(reference.repo)
    if not found:
        raise RegistryError("no version is published", where=delta, remedy="check the spelling, and --registry")
    return found


def search(query: str | None = None, *, base: str | None = None, registry: str | Path | None = None) -> Iterator[Found]:
    """Yield deltas, each judged by whether it fits ``base``; lazily, page by page.

    Args:
        query: looked for in names and titles.
        base: the model that the delta is for, a folder or ``org/name[@revision]``; its headers are read, and a few
            values: of every delta that fits, the lineage samples are fetched for a prediction.
        registry: a folder or an fsspec URL; by default what PARAMDELTA_REGISTRY names, else the Hub.

    Raises:
        CheckpointError: base can't be read.
        RegistryError: not allowed, or not reachable.
    """
    there = open_registry(chosen(registry))
    wanted = None if base is None else describe_base(base)
    for one in _search(there, query, wanted):
        if wanted and wanted.model and one.judgement in ("same base", "kin", "fits"):
            yield replace(one, prediction=_predict(there, one.hit, wanted.model, wanted.values))
        else:
            yield one


def _predict(there: Registry, hit: Hit, model: LogicalModel, remote: Files | None) -> Prediction | None:
    """Compare a hit's samples with the model's values; a hit that can't be compared is shown without."""
    try:
        pulled = there.pull(hit.repo, hit.pullable, part="lineage", trust=trust())
        package = open_package(pulled.path)
        samples = unpack_samples(package.read_lineage(), f"{hit.repo}@{pulled.version}")
        records = package.records
        tensors = {
            name: tensor
            for name, tensor in model.tensors.items()
            if name in records and tensor.shape == records[name].shape and tensor.dtype in FLOATS
        }
        return predict(compare(samples, tensors, remote), package.manifest.tensors)
    except (SourceError, RegistryError):
        return None


def link(
    delta: str,
    repo: str,
    *,
    role: Role | None = None,
    create_pr: bool | None = None,
    dry_run: bool = False,
    message: str | None = None,
) -> Linked:
    """Name a delta on the card of a model on the Hub: its base, its post, or a model that it was applied to.

    Doing it again changes nothing.

    Args:
        delta: the delta's repository on the Hub, ``org/name``.
        repo: the model whose card is to name it.
        role: what the model is to the delta; by default as the delta's manifest says, ``result`` for any other.
        create_pr: propose it by a pull request; by default only where the repository is somebody else's.
        dry_run: change nothing, return the difference.
        message: of the commit or pull request.

    Raises:
        OptionError: the delta is not on the Hub.
        RegistryError: not there, not allowed, or not reachable.
    """
    there, reference = find(delta)
    if reference.root is not None:
        raise OptionError("only deltas on the Hub can be linked", where=delta, remedy="publish it there first")
    if role is None:
        manifest = open_package(there.pull(reference.repo, reference.revision, part="manifest").path).manifest
        roles: dict[str, Role] = {manifest.post.name: "post", manifest.base.name: "base"}
        role = roles.get(repo, "result")
    return _link(repo, reference.repo, role, create_pr=create_pr, dry_run=dry_run, message=message)
