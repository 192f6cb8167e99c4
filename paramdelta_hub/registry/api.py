"""The functions of the Python API that use registries: pull, versions, search, link."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from paramdelta_hub.checkpoints.kinship.lineage import compare_samples, unpack_samples
from paramdelta_hub.checkpoints.kinship.prediction import predict
from paramdelta_hub.checkpoints.logical import LogicalModel
from paramdelta_hub.checkpoints.stored import Files
from paramdelta_hub.errors import DestinationError, OptionError, RegistryError, SourceError, StorageError
from paramdelta_hub.fileio.durable import expand
from paramdelta_hub.fileio.paths import relation
from paramdelta_hub.hub.addresses import parse_address
from paramdelta_hub.numerics.floats import FLOATS
from paramdelta_hub.package.package import open_package
from paramdelta_hub.registry.hub.links import Linked, Role
from paramdelta_hub.registry.hub.links import link as link_on_hub
from paramdelta_hub.registry.locate import find_delta, hint_at_folder, local_registries, open_registry, registry_root
from paramdelta_hub.registry.protocol import Part, Pulled, Registry, Version
from paramdelta_hub.registry.search import Found, describe_base, search_registry
from paramdelta_hub.registry.signing import trust
from paramdelta_hub.tasks.progress import Progress

__all__ = ["link", "pull", "search", "versions"]


def pull(
    delta: str | Path,
    folder: str | Path | None = None,
    *,
    registry: str | Path | None = None,
    part: Part = "package",
    allow_downgrade: bool = False,
    require_signature: bool | None = None,
    trusted_keys: Sequence[str | Path] = (),
    progress: Progress | None = None,
) -> Pulled:
    """Fetch a version of a delta, and check the size and sha256 of every file. A killed pull can be run again.

    Args:
        delta: ``org/name[@version|@commit]``, or a folder or URL that ends in it. Without a revision: the newest.
        folder: where to; by default the registry's cache.
        registry: the registry of a bare ``org/name``; by default the one in PARAMDELTA_REGISTRY, or the Hub.
        part: the whole package; or the manifest, alone or with the companions, the samples, or both (``evidence``).
        allow_downgrade: whether a version that you name may replace a higher one in ``folder``.
        require_signature: whether the delta must be signed for its repository by one of your configured keys; by
            default PARAMDELTA_REQUIRE_SIGNATURE decides.
        trusted_keys: files of public keys. The delta must be signed by one of them; configured keys do not count.
        progress: receives the progress of the work.

    Raises:
        OptionError: the reference is not valid; or a signature is required, and no key is trusted.
        SignatureError: the delta is not signed as required.
        RegistryError: it does not exist, is not allowed, or is not reachable.
        IntegrityError: a file is not what the manifest promises.
        DestinationError: the folder holds something else, or files that you have changed; or it is your home folder,
            or a registry, or inside one.
    """
    source, reference = find_delta(delta, registry)
    target = None if folder is None else expand(folder)
    if target is not None:
        _check_target(target, local_registries(reference.root, registry_root(registry)))
    with hint_at_folder(str(delta), reference):
        return source.pull(
            reference.repo,
            reference.revision,
            target,
            part=part,
            allow_downgrade=allow_downgrade,
            trust=trust(trusted_keys, require=require_signature),
            progress=progress,
        )


def _check_target(target: Path, registries: Sequence[str]) -> None:
    """Check that a copy will not be mixed with a registry, or with everything in the home folder.

    This is not the rule for other outputs, which may not be the working folder either: people do pull into that.
    """
    if relation(target, "~") == "is":
        raise DestinationError("this is your home folder", where=str(target), remedy="name a separate folder")
    for registry in registries:
        if how := relation(target, registry):
            raise DestinationError(
                f"the folder {how} the registry {os.path.realpath(registry)}",
                where=str(target),
                remedy="choose a folder outside the registry",
            )


def versions(delta: str | Path, *, registry: str | Path | None = None) -> list[Version]:
    """Return all versions of a delta, the newest first by semantic version.

    Raises:
        OptionError: the name is not valid.
        RegistryError: the delta does not exist, is not allowed, or is not reachable.
    """
    source, reference = find_delta(delta, registry)
    with hint_at_folder(str(delta), reference):
        found = source.versions(reference.repo)
    if not found:
        raise RegistryError("no version is published", where=str(delta), remedy="check the spelling, and --registry")
    return found


def search(query: str | None = None, *, base: str | None = None, registry: str | Path | None = None) -> Iterator[Found]:
    """Yield deltas page by page, each with a judgement of whether it fits ``base``.

    Args:
        query: words to find in names, titles, tags, and the names of base and post. All of them must be there.
        base: the model that the delta is for: a folder, or ``org/name[@revision]``. Its headers are read. For a
            prediction, the samples of every delta that fits are fetched, and compared with a few values of the model.
        registry: a folder or an fsspec URL; by default the one in PARAMDELTA_REGISTRY, or the Hub.

    Raises:
        CheckpointError: base can't be read.
        RegistryError: not allowed, or not reachable.
    """
    source = open_registry(registry_root(registry))
    wanted = None if base is None else describe_base(base)
    for found in search_registry(source, query, wanted):
        if wanted and wanted.model and found.judgement in ("same base", "kin", "fits"):
            yield _predict(source, found, wanted.model, wanted.values)
        else:
            yield found


def _predict(registry: Registry, hit: Found, model: LogicalModel, remote: Files | None) -> Found:
    """Return a hit with the prediction from its samples and the model's values, or with why there is none."""
    try:
        pulled = registry.pull(hit.repo, hit.pullable, part="lineage", trust=trust())
        package = open_package(pulled.path)
        samples = unpack_samples(package.read_lineage(), f"{hit.repo}@{pulled.version}")
        records = package.records
        tensors = {
            name: tensor
            for name, tensor in model.tensors.items()
            if name in records and tensor.shape == records[name].shape and tensor.dtype in FLOATS
        }
        return replace(hit, prediction=predict(compare_samples(samples, tensors, remote), package.manifest.tensors))
    except (SourceError, RegistryError, StorageError) as error:
        return replace(hit, reason=f"{hit.reason}; no prediction: {error.what}")


def link(
    delta: str,
    repo: str,
    *,
    role: Role | None = None,
    remove: bool = False,
    create_pr: bool | None = None,
    dry_run: bool = False,
    message: str | None = None,
    progress: Progress | None = None,
) -> Linked:
    """Name a delta on the card of a model on the Hub: its base, its post, or a model that it was applied to.

    Running it again changes nothing. Everything else on the card keeps its bytes.

    Args:
        delta: the delta's repository on the Hub, ``org/name``.
        repo: the model whose card is to name it: ``org/name``, or its address on the Hub.
        role: what the model is to the delta; by default as the delta's manifest says, and ``result`` for other models.
        remove: remove the link. The delta need not exist anymore.
        create_pr: whether to open a pull request; by default only if the repository belongs to somebody else.
        dry_run: change nothing, and return the diff.
        message: the title of the commit or pull request.
        progress: receives the diff before it is committed.

    Raises:
        OptionError: the delta is not on the Hub.
        RegistryError: it does not exist or is no delta, the model has no card, it is not allowed, or not reachable.
        SourceError: the card's metadata can't be read.
    """
    _, reference = find_delta(delta)
    if reference.root is not None:
        raise OptionError("only deltas on the Hub can be linked", where=delta, remedy="publish it on the Hub first")
    if address := parse_address(repo):
        repo, revision = address
        if revision not in (None, "main"):
            raise OptionError(
                f"{revision} is no main branch, whose card would be changed", where=repo, remedy=f"write {repo}"
            )
    return link_on_hub(
        repo,
        reference.repo,
        role,
        remove=remove,
        create_pr=create_pr,
        dry_run=dry_run,
        message=message,
        progress=progress,
    )
