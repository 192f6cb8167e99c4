"""From what the user calls a delta to a registry, or to a folder on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from paramdelta_hub.errors import OptionError
from paramdelta_hub.format.durable import expand
from paramdelta_hub.registry.names import is_repo
from paramdelta_hub.registry.protocol import Part, Registry
from paramdelta_hub.registry.reference import Reference, open_registry, parse_reference
from paramdelta_hub.registry.signing import Trust
from paramdelta_hub.registry.signing import trust as trusted
from paramdelta_hub.work.progress import Progress

__all__ = ["REGISTRY_VARIABLE", "chosen", "find", "locate_delta"]

REGISTRY_VARIABLE = "PARAMDELTA_REGISTRY"
"""Names the registry of a bare ``org/name`` where no option does: a folder or an fsspec URL."""


def find(text: str, registry: str | Path | None = None) -> tuple[Registry, Reference]:
    """Return the registry of a delta, and what it is called there; nothing is asked of the registry yet.

    Args:
        text: ``org/name[@revision]``, or a folder or URL that ends so.
        registry: where a bare ``org/name`` lies; by default what PARAMDELTA_REGISTRY names, else the Hub.

    Raises:
        OptionError: no such thing, or a registry that can't be one.
    """
    root = chosen(registry)
    name, _, revision = text.partition("@")
    if root is not None and is_repo(name):
        # By way of its root: a revision is checked as that registry's, and no folder of that name is in the way.
        reference = parse_reference(f"{root}/{text}") or Reference(root, name, revision or None)
    else:
        reference = parse_reference(text) or Reference(None, "", None)
    if not reference.repo or text.endswith("@"):
        raise OptionError("not a delta in a registry", where=text, remedy="give org/name, or FOLDER/org/name")
    return open_registry(reference.root), reference


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
        RegistryError: it is not there, not allowed, or not reachable.
        IntegrityError: what came is not what its manifest promises.
    """
    reference = parse_reference(str(delta))
    if reference is None or _is_path(delta, reference):
        return expand(delta)
    found, reference = find(str(delta), registry)
    pulled = found.pull(reference.repo, reference.revision, part=part, trust=trust or trusted(), progress=progress)
    return pulled.path


def chosen(registry: str | Path | None) -> str | None:
    """Return the registry asked for by option or by PARAMDELTA_REGISTRY; None is the Hub."""
    return str(registry or os.environ.get(REGISTRY_VARIABLE) or "").rstrip("/") or None


def _is_path(delta: str | Path, reference: Reference) -> bool:
    """Whether what could be a reference is better told about as a folder that is not there: no URL, and no version."""
    if reference.root is None:
        return isinstance(delta, Path)  # for models, too, a Path is never the Hub's
    return "://" not in str(delta) and not reference.revision and not os.path.lexists(delta)
