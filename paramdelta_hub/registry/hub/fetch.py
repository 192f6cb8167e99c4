"""Reading from the Hub: what a commit holds, and its files, each checked against what vouches for it.

The client compares sizes only. Here a package's files must have the manifest's sha256; the manifest itself, and what no
manifest lists, must have the digest that git or the large-file storage knows it by.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paramdelta_hub.errors import IntegrityError, PackageError, RegistryError, SourceError
from paramdelta_hub.fileio.durable import read_small, sync_file
from paramdelta_hub.fileio.symlinks import settle
from paramdelta_hub.hub.client import is_offline
from paramdelta_hub.hub.errors import translate_hub_errors
from paramdelta_hub.package.manifest import FileRecord
from paramdelta_hub.registry.materialize import is_right
from paramdelta_hub.registry.names import is_commit, is_id
from paramdelta_hub.tasks.progress import Progress

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = [
    "Commit",
    "RemoteFile",
    "check_announced",
    "fetch",
    "fetch_small",
    "look",
    "saved",
]


@dataclass(frozen=True)
class RemoteFile:
    """A file of a commit, as the Hub describes it."""

    size: int
    sha256: str | None
    """Of large files."""
    git_digest: str | None
    """Of the others: the sha1 by which git knows them."""

    def holds(self, content: bytes) -> bool:
        """Whether the file is just this content."""
        if len(content) != self.size:
            return False
        if self.sha256 is not None:
            return hashlib.sha256(content).hexdigest() == self.sha256
        return _git_digest(content) == self.git_digest


@dataclass(frozen=True)
class Commit:
    """What a repository holds at a commit."""

    id: str
    private: bool
    bases: frozenset[str]
    """The base models that the card names, as it is on the main branch."""
    files: Mapping[str, RemoteFile]


def look(api: HfApi, repo: str, revision: str | None = None) -> Commit:
    """Return the commit that a revision is now, with every file's size and digest; nothing is downloaded.

    Raises:
        MissingError: no such repository.
        RegistryError: no such revision, not allowed, not reachable.
    """
    where = f"{repo}@{revision}" if revision else repo
    with translate_hub_errors(where):
        info = api.model_info(repo, revision=revision, files_metadata=True)
        files = {
            sibling.rfilename: RemoteFile(
                sibling.lfs.size if sibling.lfs else sibling.size or 0,
                sibling.lfs.sha256 if sibling.lfs else None,
                sibling.blob_id,
            )
            for sibling in info.siblings or ()
        }
        commit = info.sha or ""
        named = getattr(info.card_data, "base_model", None)
        bases = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    if not is_commit(commit):
        raise RegistryError("the Hub names no commit", where=where, remedy="run the command again")
    return Commit(commit, bool(info.private), frozenset(base for base in bases if isinstance(base, str)), files)


def fetch_small(api: HfApi, repo: str, name: str, commit: Commit, most: int, revision: str | None = None) -> bytes:
    """Return the content of a file that no manifest vouches for, through the cache; damage is fetched again once.

    Args:
        api: the client.
        repo: ``org/name``.
        name: of the file, which the commit has.
        commit: where to read it.
        most: bytes it may have.
        revision: what the commit was found by; the cache will know it by this name too.

    Raises:
        PackageError: larger.
        IntegrityError: not what the commit says.
        RegistryError: not allowed, not reachable.
    """
    remote, where = commit.files[name], f"{repo}@{commit.id[:12]}"
    if remote.size > most:
        raise PackageError(f"{name}: {remote.size} bytes, where at most {most} make sense", where=where)
    kept = _cached(repo, name, commit.id)
    damaged = kept is not None and not remote.holds(_content(kept, most) or b"")
    for force in (damaged, True):
        path = _download(api, repo, name, revision or commit.id, None, force)
        if path.parent.name != commit.id:  # the revision has moved since we looked
            path = _download(api, repo, name, commit.id, None, force)
        content = read_small(settle(path.parent, name), most)
        if remote.holds(content):
            return content
    raise IntegrityError(f"{name} came damaged, twice", where=where, remedy="run the command again")


def saved(repo: str, name: str, revision: str, most: int) -> tuple[bytes, str] | None:
    """Return (content, commit) of a small file from the cache, without asking the Hub; None if it is not there whole.

    The cache names what it holds by digest, so damage is found.
    """
    path = _cached(repo, name, revision)
    content = _content(path, most) if path else None
    if path is None or content is None:
        return None
    known = os.path.basename(os.path.realpath(path))
    if is_id(known):
        damaged = hashlib.sha256(content).hexdigest() != known
    else:  # without symbolic links the cache has it under its own name
        damaged = is_commit(known) and _git_digest(content) != known
    return None if damaged else (content, path.parent.name)


def _cached(repo: str, name: str, revision: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    with translate_hub_errors(repo):
        found = try_to_load_from_cache(repo, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _content(path: Path, most: int) -> bytes | None:
    try:
        return read_small(settle(path.parent, path.name), most)
    except SourceError:
        return None


def check_announced(files: Iterable[FileRecord], commit: Commit, where: str) -> None:
    """Check that the commit has each listed file as promised, as far as the Hub tells, before anything is downloaded.

    Raises:
        IntegrityError: one is missing, or another than the manifest lists.
    """
    for file in files:
        remote = commit.files.get(file.path)
        if remote is None or remote.size != file.size or remote.sha256 not in (None, file.sha256):
            what = "missing" if remote is None else "another file than the manifest lists"
            raise IntegrityError(
                f"{file.path} is {what}",
                where=where,
                remedy="the publication is broken; tell its publisher, or take another version",
            )


def fetch(
    api: HfApi, repo: str, commit: str, file: FileRecord, folder: Path, into: Path | None, progress: Progress
) -> None:
    """Download a listed file and check it; damage is fetched again once.

    Args:
        api: the client.
        repo: ``org/name``.
        commit: whose file it is.
        file: as the manifest lists it.
        folder: where it is to be found then: the cache's snapshot, or ``into``.
        into: a folder; None is the cache.
        progress: told of bytes as they come.

    Raises:
        IntegrityError: what came, twice, is not what the manifest promises.
        RegistryError: not allowed, not reachable.
    """
    where = f"{repo}@{commit[:12]}"
    if is_offline():
        raise RegistryError(
            f"HF_HUB_OFFLINE is set, and {file.path} is not there yet", where=where, remedy="unset HF_HUB_OFFLINE"
        )
    # What lies there already is not right, and the client would take it as it is.
    for force in (os.path.lexists(folder / file.path), True):
        _download(api, repo, file.path, commit, into, force, progress)
        if is_right(folder, file):
            sync_file(settle(folder, file.path))
            return
    raise IntegrityError(
        f"{file.path} came damaged, twice: it has not the sha256 of the manifest",
        where=where,
        remedy="run the command again; if it stays so, tell the publisher",
    )


def _download(
    api: HfApi,
    repo: str,
    name: str,
    revision: str,
    into: Path | None,
    force: bool,
    progress: Progress | None = None,
) -> Path:
    from huggingface_hub import hf_hub_download
    from tqdm import tqdm

    class Forward(tqdm):  # type: ignore[type-arg]
        """Tells our progress what the client tells its bar."""

        def __init__(self, *args: Any, **settings: Any) -> None:
            settings.pop("name", None)
            super().__init__(*args, **{**settings, "disable": True})

        def update(self, n: float | None = 1) -> None:
            if progress is not None:
                progress.advance(int(n or 0))

    # Clients before 1.0 have no place for a bar of ours.
    bar: Any = {"tqdm_class": Forward} if "tqdm_class" in inspect.signature(hf_hub_download).parameters else {}
    with translate_hub_errors(f"{repo}@{revision[:12] if is_commit(revision) else revision}"):
        return Path(
            hf_hub_download(
                repo,
                name,
                revision=revision,
                local_dir=into,
                force_download=force,
                endpoint=api.endpoint,
                library_name=api.library_name,
                library_version=api.library_version,
                **bar,
            )
        )


def _git_digest(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
