"""From what the user calls a delta to a registry, or to a folder on this machine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from paramdelta_hub.environment import REGISTRY_VARIABLE
from paramdelta_hub.errors import OptionError, RegistryError
from paramdelta_hub.fileio.durable import expand
from paramdelta_hub.registry.names import is_repo
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
from paramdelta_hub.registry.signing import trust as trusted
from paramdelta_hub.tasks.progress import Progress

__all__ = ["chosen", "find", "find_to_publish", "hint_at_folder", "locate_delta"]


def find(text: str, registry: str | Path | None = None) -> tuple[Registry, Reference]:
    """Return the registry of a delta, and what it is called there; nothing is asked of the registry yet.

    Args:
        text: ``org/name[@revision]``, or a folder or URL that ends so.
        registry: where a bare ``org/name`` lies; by default what PARAMDELTA_REGISTRY names, else the Hub.

    Raises:
        OptionError: no such thing, or a registry that can't be one.
    """
    root = chosen(registry)
    if root is not None and is_repo(text.partition("@")[0]):
        reference = reference_in(root, text)
    else:
        reference = parse_reference(text) or Reference(None, "", None)
    if not reference.repo:
        raise OptionError("not a delta in a registry", where=text, remedy="give org/name, or FOLDER/org/name")
    return open_registry(reference.root), reference


def find_to_publish(text: str, registry: str | Path | None = None) -> tuple[Registry, Reference]:
    """Return what :func:`find` does, unless the Hub's repository could be meant for a folder that is here.

    Raises:
        OptionError: what would become public begins like a folder here; or see :func:`find`.
    """
    found, reference = find(text, registry)
    if meant := _in_folder(text, reference):
        raise OptionError(
            f"{reference.repo.partition('/')[0]!r} is a folder here, and this would be published on the Hub",
            where=text,
            remedy=f"did you mean {meant}? If you mean the Hub: {HUB_SCHEME}://{reference}",
        )
    return found, reference


@contextlib.contextmanager
def hint_at_folder(text: str, reference: Reference) -> Iterator[None]:
    """Where the Hub does not give what is asked for, let the error name the folder here that could be meant."""
    try:
        yield
    except RegistryError as error:
        if meant := _in_folder(text, reference):
            error.remedy = "; or ".join(filter(None, (error.remedy, f"did you mean {meant}?")))
        raise


def locate_delta(
    delta: str | Path,
    registry: str | Path | None = None,
    *,
    part: Part = "package",
    trust: Trust | None = None,
    progress: Progress | None = None,
) -> Path:
    """Return the folder of a delta: the one named or, if it lies in a registry, a checked copy on this machine.

    A folder that exists wins over a repository of the same spelling. From a registry it must be signed as ``trust``
    says or, without it, as PARAMDELTA_REQUIRE_SIGNATURE.

    Raises:
        SignatureError: it is not.
        OptionError: a reference that can't be one.
        PackageError: nobody can tell whether it is a folder, as one above it can't be read.
        RegistryError: it is not there, not allowed, or not reachable.
        IntegrityError: what came is not what its manifest promises.
    """
    reference = parse_reference(str(delta))
    if reference is None or _is_path(delta, reference):
        return expand(delta)
    found, reference = find(str(delta), registry)
    with hint_at_folder(str(delta), reference):
        pulled = found.pull(reference.repo, reference.revision, part=part, trust=trust or trusted(), progress=progress)
    return pulled.path


def chosen(registry: str | Path | None) -> str | None:
    """Return the registry asked for by option or by PARAMDELTA_REGISTRY, which may be empty; None is the Hub.

    Raises:
        OptionError: it names no place.
    """
    named = (os.environ.get(REGISTRY_VARIABLE) or None) if registry is None else str(registry)
    return None if named is None else check_root(named)


def _in_folder(text: str, reference: Reference) -> str | None:
    """Return what a bare ``reg/name`` may have been meant to be, if ``reg`` is a folder here."""
    folder, _, name = reference.repo.partition("/")
    if reference.root is not None or text.lower().startswith(f"{HUB_SCHEME}://") or not os.path.isdir(folder):
        return None
    return f"./{folder}/ORG/{name}"


def _is_path(delta: str | Path, reference: Reference) -> bool:
    """Whether what could be a reference is better told about as a folder that is not there: no URL, and no version."""
    if reference.root is None:
        return isinstance(delta, Path)  # for models, too, a Path is never the Hub's
    return "://" not in str(delta) and not reference.revision and not os.path.lexists(delta)
