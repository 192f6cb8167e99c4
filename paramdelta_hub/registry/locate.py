"""Finding the registry and the folder of a delta from the text that the user gave.

    org/name[@REVISION]                  on the Hub
    hf://org/name[@REVISION]             the same, even if a local folder has this name
    https://huggingface.co/org/name      the same, as from a browser; also with /tree/REVISION
    FOLDER/org/name[@VERSION]            in a registry in a folder
    file:///FOLDER/org/name[@VERSION]    the same
    s3://BUCKET/…/org/name[@VERSION]     in a registry in a bucket or another fsspec store

In a local registry a version is a folder, so ``FOLDER/org/name/VERSION`` is a plain path.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from paramdelta_hub.checkpoints.files.resolve import path_exists
from paramdelta_hub.environment import REGISTRY_VARIABLE
from paramdelta_hub.errors import OptionError, PackageError, RegistryError
from paramdelta_hub.fileio.durable import expand
from paramdelta_hub.fileio.names import is_clear
from paramdelta_hub.hub.addresses import parse_address
from paramdelta_hub.package.manifest import MANIFEST_NAME
from paramdelta_hub.registry.names import check_address, check_repo, folder_of, is_id, is_repo, is_version
from paramdelta_hub.registry.protocol import Part, Registry
from paramdelta_hub.registry.signing import Trust
from paramdelta_hub.registry.signing import trust as default_trust
from paramdelta_hub.tasks.progress import Progress

__all__ = [
    "Reference",
    "find_delta",
    "find_to_publish",
    "hint_at_folder",
    "local_registries",
    "locate_delta",
    "open_registry",
    "parse_reference",
    "registry_root",
]

HUB_SCHEME = "hf"
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_HUB_REFERENCE = re.compile(r"([^/@]+/[^/@]+)(?:@(.*))?", re.DOTALL)
_HUB_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*(/[A-Za-z0-9][A-Za-z0-9._+-]*)*", re.ASCII)


@dataclass(frozen=True)
class Reference:
    """A delta in a registry, and perhaps one of its versions."""

    root: str | None
    """The registry: a folder or an fsspec URL; None is the Hub."""
    repo: str
    """``org/name``."""
    revision: str | None
    """A version, a commit (on the Hub) or a package's id (elsewhere); None is the newest version."""

    def __str__(self) -> str:
        root = "" if self.root is None else "/" if self.root == "/" else f"{self.root}/"
        return f"{root}{self.repo}" + (f"@{self.revision}" if self.revision else "")


def parse_reference(text: str) -> Reference | None:
    """Return the reference that ``text`` is, or None if it can only be a local path.

    An existing path wins over a repository on the Hub of the same name, as for models. An existing folder is a
    reference only if it looks like a repository of a registry: it holds only folders named by versions.

    Raises:
        OptionError: the URL or the revision is not valid.
        PackageError: a folder above it can't be read, so nobody can tell whether it exists.
    """
    if not is_clear(text):
        return None
    if address := parse_address(text):
        return Reference(None, check_repo(address[0]), _check_revision(address[1], text, on_hub=True))
    if found := _URL.fullmatch(text):
        return _parse_url(found[1].lower(), found[2], text)
    path = os.path.expanduser(text)
    if os.path.lexists(path) or path_exists(Path(path), PackageError):
        return _parse_path(path, text) if _looks_like_repository(Path(path)) else None
    if (found := _HUB_REFERENCE.fullmatch(text)) and is_repo(found[1]):
        return Reference(None, found[1], _check_revision(found[2], text, on_hub=True))
    return _parse_path(path, text)


def open_registry(root: str | None) -> Registry:
    """Return the registry at ``root``: a folder, which may not exist yet, or an fsspec URL; None is the Hub.

    Raises:
        OptionError: the URL is not valid.
        RegistryError: the kind of URL needs a package that is not installed.
    """
    # Imported here because the Hub's client takes a quarter of a second, and only one kind of registry needs it.
    if root is None:
        from paramdelta_hub.registry.hub.registry import HubRegistry

        return HubRegistry()
    from paramdelta_hub.registry.stores.registry import StoreRegistry

    return StoreRegistry(root)


def find_delta(text: str | Path, registry: str | Path | None = None) -> tuple[Registry, Reference]:
    """Return the registry of a delta, and its reference there. The registry is not contacted yet.

    A bare ``org/name[@revision]`` is looked up in ``registry``; see :func:`registry_root`. A ``Path`` is a folder.

    Raises:
        OptionError: the text is not a reference, or the registry is not valid.
    """
    text = os.path.abspath(expand(text)) if isinstance(text, Path) else text
    root = registry_root(registry)
    name, at, revision = text.partition("@")
    reference: Reference | None
    if root is not None and is_repo(name):  # local folders of this name do not matter
        reference = Reference(root, name, _check_revision(revision if at else None, text))
    else:
        reference = parse_reference(text)
    if reference is None:
        last = name.rstrip("/").split("/")[-2:]
        if len(last) == 2 and not os.path.lexists(name):
            check_repo("/".join(last))
        raise OptionError("not a delta in a registry", where=text, remedy="write org/name, or FOLDER/org/name")
    return open_registry(reference.root), reference


def find_to_publish(text: str | Path, registry: str | Path | None = None) -> tuple[Registry, Reference]:
    """Return what :func:`find_delta` returns, unless a local folder may be meant instead of the Hub.

    Raises:
        OptionError: ``org`` of a repository on the Hub is also a local folder; or see :func:`find_delta`.
    """
    found, reference = find_delta(text, registry)
    if local := _local_spelling(str(text), reference):
        raise OptionError(
            f"{reference.repo.partition('/')[0]!r} is a folder here, but this would be published on the Hub",
            where=str(text),
            remedy=f"did you mean {local}? If you mean the Hub, write {HUB_SCHEME}://{reference}",
        )
    return found, reference


@contextlib.contextmanager
def hint_at_folder(text: str, reference: Reference) -> Iterator[None]:
    """Add a hint to errors of the Hub if a local folder may have been meant."""
    try:
        yield
    except RegistryError as error:
        if local := _local_spelling(str(text), reference):
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
    return None if named is None else _check_root(named)


def local_registries(*roots: str | None) -> list[str]:
    """Return the folders of those registries that are on this machine, without ``/``, in which everything lies."""
    folders = [folder for root in roots if root is not None and (folder := folder_of(root)) is not None]
    return [folder for folder in folders if os.path.realpath(folder) != os.sep]


def _check_root(text: str) -> str:
    """Return the registry that an option or a variable names, as a path or a URL. ``file://`` URLs become paths."""
    if not text.strip():
        raise OptionError(
            "the name of the registry is empty", remedy="name a folder or a bucket; for the Hub, omit the option"
        )
    if not (found := _URL.fullmatch(text)):
        return text.rstrip("/") or "/"
    scheme, place = found[1].lower(), found[2].rstrip("/")
    if scheme == HUB_SCHEME:
        raise OptionError(
            "the Hub can't be named as a registry",
            where=text,
            remedy=f"omit the option, and write the delta as {HUB_SCHEME}://org/name",
        )
    if scheme in ("file", "local"):
        if (folder := folder_of(text)) is None:
            raise OptionError("not a folder on this machine", where=text, remedy="write file:///FOLDER")
        return folder.rstrip("/") or "/"
    if not place.partition("/")[0]:
        raise OptionError("names no bucket", where=text, remedy=f"write {scheme}://BUCKET/PREFIX")
    return f"{scheme}://{place}"


def _parse_url(scheme: str, rest: str, text: str) -> Reference:
    parts = check_address(f"{scheme}://{rest}").partition("://")[2].rstrip("/").split("/")
    if scheme in ("file", "local"):
        if parts[0] not in ("", "localhost"):
            raise OptionError("the file URL names another host", where=text, remedy="write file:///FOLDER/org/name")
        reference = _parse_path(unquote("/" + "/".join(parts[1:])), text)
    else:
        name, at, revision = parts[-1].partition("@")
        repo = "/".join([*parts[-2:-1], name])
        reference = None
        if len(parts) > 2 and parts[0] and check_repo(repo):
            root = f"{scheme}://{'/'.join(parts[:-2])}".rstrip("/")
            reference = Reference(root, repo, _check_revision(revision if at else None, text))
    if reference is None:
        raise OptionError(
            "not a delta in a registry", where=text, remedy="the URL must end in org/name or org/name@VERSION"
        )
    return reference


def _parse_path(path: str, text: str) -> Reference | None:
    """Parse ``ROOT/org/name[@VERSION]``; None if the path has another form, such as that of a version's own folder."""
    head, _, last = path.rstrip("/").rpartition("/")
    root, slash, org = head.rpartition("/")
    name, at, revision = last.partition("@")
    if not is_repo(f"{org}/{name}") or is_version(name):
        return None
    return Reference(root or slash or ".", f"{org}/{name}", _check_revision(revision if at else None, text))


def _check_revision(revision: str | None, text: str, *, on_hub: bool = False) -> str | None:
    if revision is None:
        return None
    if on_hub:
        is_valid = _HUB_REVISION.fullmatch(revision) is not None and ".." not in revision
    else:
        is_valid = is_version(revision) or is_id(revision)
    if not is_valid:
        hint = "write the version without the v" if is_version(revision.lstrip("vV")) else "write it like @1.2.0"
        raise OptionError(f"{revision[:200]!r} is not a valid version", where=text, remedy=hint)
    return revision


def _looks_like_repository(path: Path) -> bool:
    """Whether a folder holds only versions, complete or ``.partial``. Hidden files do not count."""
    try:
        names = [name for name in os.listdir(path) if not name.startswith(".")]
    except OSError:
        return False
    return MANIFEST_NAME not in names and all(is_version(name.removesuffix(".partial")) for name in names)


def _local_spelling(text: str, reference: Reference) -> str | None:
    """Return what the user may have meant by a bare ``reg/name``, if ``reg`` is a local folder."""
    folder, _, name = reference.repo.partition("/")
    if reference.root is not None or "://" in text or not os.path.isdir(folder):
        return None
    return f"./{folder}/ORG/{name}"


def _is_path(delta: str | Path, reference: Reference) -> bool:
    """Whether to treat a reference as the path of a missing folder: it is no URL, and names no version."""
    if reference.root is None:
        return isinstance(delta, Path)  # a Path never names a repository on the Hub; models follow the same rule
    return "://" not in str(delta) and not reference.revision and not os.path.lexists(delta)
