"""Finding the registry and the folder of a delta from the text that the user gave."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from paramdelta_hub.environment import REGISTRY_VARIABLE
from paramdelta_hub.errors import OptionError, RegistryError
from paramdelta_hub.fileio.durable import expand
from paramdelta_hub.registry.names import folder_of, is_repo
from paramdelta_hub.registry.protocol import Part, Registry
from paramdelta_hub.registry.reference import (
    HUB_SCHEME,
    Reference,
    check_root,
    open_registry,
    parse_reference,
    reference_in,
)
from paramdelta_hub.registry.signing import Trust
from paramdelta_hub.registry.signing import trust as default_trust
from paramdelta_hub.tasks.progress import Progress

__all__ = ["find_delta", "find_to_publish", "hint_at_folder", "local_registries", "locate_delta", "registry_root"]


def find_delta(text: str, registry: str | Path | None = None) -> tuple[Registry, Reference]:
    """Return the registry of a delta, and its reference there. The registry is not contacted yet.

    Args:
        text: ``org/name[@revision]``, or a folder or URL that ends in it.
        registry: the registry of a bare ``org/name``; by default the one in PARAMDELTA_REGISTRY, or the Hub.

    Raises:
        OptionError: the text is not a reference, or the registry is not valid.
    """
    root = registry_root(registry)
    if root is not None and is_repo(text.partition("@")[0]):
        reference = reference_in(root, text)
    else:
        reference = parse_reference(text) or Reference(None, "", None)
    if not reference.repo:
        raise OptionError("not a delta in a registry", where=text, remedy="write org/name, or FOLDER/org/name")
    return open_registry(reference.root), reference


def find_to_publish(text: str, registry: str | Path | None = None) -> tuple[Registry, Reference]:
    """Return what :func:`find_delta` returns, unless a local folder may be meant instead of the Hub.

    Raises:
        OptionError: ``org`` of a repository on the Hub is also a local folder; or see :func:`find_delta`.
    """
    found, reference = find_delta(text, registry)
    if local := _local_spelling(text, reference):
        raise OptionError(
            f"{reference.repo.partition('/')[0]!r} is a folder here, but this would be published on the Hub",
            where=text,
            remedy=f"did you mean {local}? If you mean the Hub, write {HUB_SCHEME}://{reference}",
        )
    return found, reference


@contextlib.contextmanager
def hint_at_folder(text: str, reference: Reference) -> Iterator[None]:
    """Add a hint to errors of the Hub if a local folder may have been meant."""
    try:
        yield
    except RegistryError as error:
        if local := _local_spelling(text, reference):
            error.remedy = "; or ".join(filter(None, (error.remedy, f"did you mean {local}?")))
        raise


def locate_delta(
    delta: str | Path,
    registry: str | Path | None = None,
    *,
    part: Part = "package",
    trust: Trust | None = None,
    progress: Progress | None = None,
) -> Path:
    """Return the folder of a delta: the named folder, or a checked local copy of a delta in a registry.

    An existing folder wins over a repository of the same name. A delta from a registry must be signed as ``trust``
    demands. Without ``trust``, PARAMDELTA_REQUIRE_SIGNATURE decides.

    Raises:
        SignatureError: the delta is not signed as demanded.
        OptionError: the reference is not valid.
        PackageError: a folder above it can't be read, so nobody can tell whether the folder exists.
        RegistryError: it does not exist, is not allowed, or is not reachable.
        IntegrityError: a file is not what the manifest promises.
    """
    reference = parse_reference(str(delta))
    if reference is None or _is_path(delta, reference):
        return expand(delta)
    source, reference = find_delta(str(delta), registry)
    trust = trust or default_trust()
    with hint_at_folder(str(delta), reference):
        return source.pull(reference.repo, reference.revision, part=part, trust=trust, progress=progress).path


def registry_root(registry: str | Path | None) -> str | None:
    """Return the registry that the option names, or else PARAMDELTA_REGISTRY; None is the Hub.

    Raises:
        OptionError: it is not a folder or URL.
    """
    named = (os.environ.get(REGISTRY_VARIABLE) or None) if registry is None else str(registry)
    return None if named is None else check_root(named)


def local_registries(*roots: str | None) -> list[str]:
    """Return the folders of those registries that are on this machine, without ``/``, in which everything lies."""
    folders = [folder for root in roots if root is not None and (folder := folder_of(root)) is not None]
    return [folder for folder in folders if os.path.realpath(folder) != os.sep]


def _local_spelling(text: str, reference: Reference) -> str | None:
    """Return what the user may have meant by a bare ``reg/name``, if ``reg`` is a local folder."""
    folder, _, name = reference.repo.partition("/")
    if reference.root is not None or text.lower().startswith(f"{HUB_SCHEME}://") or not os.path.isdir(folder):
        return None
    return f"./{folder}/ORG/{name}"


def _is_path(delta: str | Path, reference: Reference) -> bool:
    """Whether to treat a reference as the path of a missing folder: it is no URL, and names no version."""
    if reference.root is None:
        return isinstance(delta, Path)  # a Path never names a repository on the Hub; models follow the same rule
    return "://" not in str(delta) and not reference.revision and not os.path.lexists(delta)
