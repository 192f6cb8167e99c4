"""From what the user typed to a registry and a repository in it.

    org/name[@REVISION]                  on the Hub
    hf://org/name[@REVISION]             the same, whatever folders lie here
    FOLDER/org/name[@VERSION]            in a registry that is a folder
    file:///FOLDER/org/name[@VERSION]    the same
    s3://BUCKET/…/org/name[@VERSION]     in a registry in a bucket, or wherever else fsspec reaches

A version in a registry that is a folder is itself a folder, and so ``FOLDER/org/name/VERSION`` is a plain path.
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
from paramdelta_hub.registry.names import check_address, folder_of, is_id, is_repo, is_version
from paramdelta_hub.registry.protocol import Registry

__all__ = ["HUB_SCHEME", "Reference", "check_root", "open_registry", "parse_reference", "reference_in"]

HUB_SCHEME = "hf"
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_ON_THE_HUB = re.compile(r"([^/@]+/[^/@]+)(?:@(.*))?", re.DOTALL)
_HUB_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*(/[A-Za-z0-9][A-Za-z0-9._+-]*)*", re.ASCII)


@dataclass(frozen=True)
class Reference:
    """A delta in a registry, and which version of it."""

    root: str | None
    """The registry: a folder or an fsspec URL; None is the Hub."""
    repo: str
    """``org/name``."""
    revision: str | None
    """A version, or what pins one: on the Hub a commit, elsewhere the package's id; None is the newest."""

    def __str__(self) -> str:
        root = "" if self.root is None else "/" if self.root == "/" else f"{self.root}/"
        return f"{root}{self.repo}" + (f"@{self.revision}" if self.revision else "")


def parse_reference(text: str) -> Reference | None:
    """Return the reference that ``text`` is, or None where it can only be a local path.

    What exists wins over the Hub's repository of the same spelling, as it does for models. A folder that exists is a
    reference only if it looks like a repository of a registry: nothing in it but folders named by versions.

    Raises:
        OptionError: a URL or a revision that can't be one.
        PackageError: nobody can tell what exists, as a folder above it can't be read.
    """
    if not is_clear(text):
        return None
    if found := _URL.fullmatch(text):
        return _at_url(found[1].lower(), found[2], text)
    path = os.path.expanduser(text)
    if os.path.lexists(path) or path_exists(Path(path), PackageError):
        return _below_folder(path, text) if _looks_like_repository(Path(path)) else None
    if (found := _ON_THE_HUB.fullmatch(text)) and is_repo(found[1]):
        return Reference(None, found[1], _checked(found[2], text, on_the_hub=True))
    return _below_folder(path, text)


def reference_in(root: str, text: str) -> Reference:
    """Return the reference of a bare ``org/name[@VERSION]`` in a registry, whatever lies here under that name.

    Raises:
        OptionError: a revision that can't be one.
    """
    name, at, revision = text.partition("@")
    return Reference(root, name, _checked(revision if at else None, text))


def check_root(text: str) -> str:
    """Return the registry that an option or a variable names: a folder, a ``file://`` URL being one, or another URL.

    Raises:
        OptionError: it names no place, or the Hub, which is meant where no registry is named.
    """
    if not text.strip():
        raise OptionError(
            "the registry is an empty name", remedy="name a folder or a bucket; for the Hub leave the option out"
        )
    if not (found := _URL.fullmatch(text)):
        return text.rstrip("/") or "/"
    scheme, place = found[1].lower(), found[2].rstrip("/")
    if scheme == HUB_SCHEME:
        raise OptionError(
            "the Hub is no registry to be named",
            where=text,
            remedy=f"leave the option out, and write the delta as {HUB_SCHEME}://org/name",
        )
    if scheme in ("file", "local"):
        if (folder := folder_of(text)) is None:
            raise OptionError("names no folder of this machine", where=text, remedy="write file:///FOLDER")
        return folder.rstrip("/") or "/"
    if not place.partition("/")[0]:
        raise OptionError("names no place", where=text, remedy=f"write {scheme}://BUCKET/PREFIX")
    return f"{scheme}://{place}"


def open_registry(root: str | None) -> Registry:
    """Return the registry at ``root``: a folder (it need not exist yet) or an fsspec URL; None is the Hub.

    Raises:
        OptionError: a URL that can't be one.
        RegistryError: a URL of a kind that needs a package which is not installed.
    """
    # Imported here: the Hub's client takes a quarter of a second, and most registries do without it.
    if root is None:
        from paramdelta_hub.registry.hub.registry import HubRegistry

        return HubRegistry()
    from paramdelta_hub.registry.stores.registry import StoreRegistry

    return StoreRegistry(root)


def _at_url(scheme: str, rest: str, text: str) -> Reference:
    if scheme == HUB_SCHEME:
        if not (found := _ON_THE_HUB.fullmatch(rest.rstrip("/"))) or not is_repo(found[1]):
            raise OptionError(
                "not a repository on the Hub", where=text, remedy="write hf://org/name or hf://org/name@1.2.0"
            )
        return Reference(None, found[1], _checked(found[2], text, on_the_hub=True))
    parts = check_address(f"{scheme}://{rest}").partition("://")[2].rstrip("/").split("/")
    if scheme in ("file", "local"):
        if parts[0] not in ("", "localhost"):
            raise OptionError("a file URL of another host", where=text, remedy="write file:///FOLDER/org/name")
        reference = _below_folder(unquote("/" + "/".join(parts[1:])), text)
    else:
        name, at, revision = parts[-1].partition("@")
        repo = "/".join([*parts[-2:-1], name])
        reference = None
        if len(parts) > 2 and parts[0] and is_repo(repo):
            root = f"{scheme}://{'/'.join(parts[:-2])}".rstrip("/")
            reference = Reference(root, repo, _checked(revision if at else None, text))
    if reference is None:
        raise OptionError("not a delta in a registry", where=text, remedy="end the URL in org/name or org/name@VERSION")
    return reference


def _below_folder(path: str, text: str) -> Reference | None:
    """``ROOT/org/name[@VERSION]``; None where the path has no such end, as that of a version's own folder."""
    head, _, last = path.rstrip("/").rpartition("/")
    root, slash, org = head.rpartition("/")
    name, at, revision = last.partition("@")
    if not is_repo(f"{org}/{name}") or is_version(name):
        return None
    return Reference(root or slash or ".", f"{org}/{name}", _checked(revision if at else None, text))


def _checked(revision: str | None, text: str, *, on_the_hub: bool = False) -> str | None:
    if revision is None:
        return None
    if on_the_hub:
        good = _HUB_REVISION.fullmatch(revision) is not None and ".." not in revision
    else:
        good = is_version(revision) or is_id(revision)
    if not good:
        hint = "write the version without the v" if is_version(revision.lstrip("vV")) else "write @1.2.0, for example"
        raise OptionError(f"{revision[:200]!r} can't be a version", where=text, remedy=hint)
    return revision


def _looks_like_repository(path: Path) -> bool:
    """Whether a folder holds versions only; what is hidden, or a publication's own (``.partial``), does not count."""
    try:
        names = [name for name in os.listdir(path) if not name.startswith(".")]
    except OSError:
        return False
    return MANIFEST_NAME not in names and all(is_version(name.removesuffix(".partial")) for name in names)
