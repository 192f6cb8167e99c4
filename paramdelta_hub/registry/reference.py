"""Parsing a reference to a delta: its registry, its repository and its version.

    org/name[@REVISION]                  on the Hub
    hf://org/name[@REVISION]             the same, even if a local folder has this name
    FOLDER/org/name[@VERSION]            in a registry in a folder
    file:///FOLDER/org/name[@VERSION]    the same
    s3://BUCKET/…/org/name[@VERSION]     in a registry in a bucket or another fsspec store

In a local registry a version is a folder, so ``FOLDER/org/name/VERSION`` is a plain path.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from paramdelta_hub.checkpoints.resolve import path_exists
from paramdelta_hub.errors import OptionError, PackageError
from paramdelta_hub.fileio.names import is_clear
from paramdelta_hub.package.manifest import MANIFEST_NAME
from paramdelta_hub.registry.names import check_address, folder_of, is_id, is_repo
from paramdelta_hub.registry.protocol import Registry
from paramdelta_hub.registry.versions import is_version

__all__ = ["HUB_SCHEME", "Reference", "check_root", "open_registry", "parse_reference", "reference_in"]

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
    if found := _URL.fullmatch(text):
        return _parse_url(found[1].lower(), found[2], text)
    path = os.path.expanduser(text)
    if os.path.lexists(path) or path_exists(Path(path), PackageError):
        return _parse_path(path, text) if _looks_like_repository(Path(path)) else None
    if (found := _HUB_REFERENCE.fullmatch(text)) and is_repo(found[1]):
        return Reference(None, found[1], _check_revision(found[2], text, on_hub=True))
    return _parse_path(path, text)


def reference_in(root: str, text: str) -> Reference:
    """Return the reference of a bare ``org/name[@VERSION]`` in a registry. Local folders of this name do not matter.

    Raises:
        OptionError: the revision is not valid.
    """
    name, at, revision = text.partition("@")
    return Reference(root, name, _check_revision(revision if at else None, text))


def check_root(text: str) -> str:
    """Return the registry that an option or a variable names, as a path or a URL. ``file://`` URLs become paths.

    Raises:
        OptionError: it is not valid; or it is the Hub, which is used if no registry is named.
    """
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


def _parse_url(scheme: str, rest: str, text: str) -> Reference:
    if scheme == HUB_SCHEME:
        if not (found := _HUB_REFERENCE.fullmatch(rest.rstrip("/"))) or not is_repo(found[1]):
            raise OptionError(
                "not a repository on the Hub", where=text, remedy="write hf://org/name or hf://org/name@1.2.0"
            )
        return Reference(None, found[1], _check_revision(found[2], text, on_hub=True))
    parts = check_address(f"{scheme}://{rest}").partition("://")[2].rstrip("/").split("/")
    if scheme in ("file", "local"):
        if parts[0] not in ("", "localhost"):
            raise OptionError("the file URL names another host", where=text, remedy="write file:///FOLDER/org/name")
        reference = _parse_path(unquote("/" + "/".join(parts[1:])), text)
    else:
        name, at, revision = parts[-1].partition("@")
        repo = "/".join([*parts[-2:-1], name])
        reference = None
        if len(parts) > 2 and parts[0] and is_repo(repo):
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
