"""Reading from the Hub: the files of a commit, each checked by digest.

``huggingface_hub`` compares sizes only. Here the listed files must have the sha256 that the manifest promises. The
manifest itself, the card and the signature must have the digest that git or the large-file storage knows them by.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paramdelta_hub.errors import IntegrityError, PackageError, RegistryError, SourceError, StorageError
from paramdelta_hub.fileio.durable import file_digest, io_errors, read_small, sync_file, write_file
from paramdelta_hub.fileio.paths import resolve_inside
from paramdelta_hub.hub.client import connect, is_offline
from paramdelta_hub.hub.errors import translate_hub_errors
from paramdelta_hub.hub.files import RemoteFile, ask_for_digests, git_digest, listed_files
from paramdelta_hub.limits import CARD_BYTES
from paramdelta_hub.package.manifest import FileRecord
from paramdelta_hub.registry.materialize import CARD_NAME, is_intact
from paramdelta_hub.registry.names import is_commit, is_id, is_repo, is_version
from paramdelta_hub.tasks.progress import Progress

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = [
    "Commit",
    "cache_folder",
    "card_of",
    "check_name",
    "check_remote_files",
    "fetch",
    "fetch_listed",
    "fetch_small",
    "get_commit",
    "read_cached",
]


@dataclass(frozen=True)
class Commit:
    """The files of a repository at one commit."""

    repo: str
    name: str
    """What the repository is called now: the Hub finds one that was renamed by both names."""
    id: str
    private: bool
    bases: frozenset[str]
    """The base models that the card on the main branch names."""
    files: Mapping[str, RemoteFile]


def get_commit(api: HfApi, repo: str, revision: str | None = None) -> Commit:
    """Return the commit that a revision names now, with every file's size and digest. Nothing is downloaded.

    Raises:
        MissingError: no such repository.
        RegistryError: no such revision, not allowed, not reachable.
    """
    where = f"{repo}@{revision}" if revision else repo
    with translate_hub_errors(where):
        info = api.model_info(repo, revision=revision, files_metadata=True)
        files = listed_files(info)
        commit = str(info.sha)
        name = info.id if is_repo(str(info.id)) else repo
        named = getattr(info.card_data, "base_model", None)
        bases = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    if not is_commit(commit):
        raise RegistryError("the Hub's answer names no commit", where=where, remedy="run the command again")
    if unknown := [name for name, file in files.items() if not file.is_known]:
        files |= ask_for_digests(repo, commit, unknown)
    return Commit(
        repo, name, commit, bool(info.private), frozenset(base for base in bases if isinstance(base, str)), files
    )


def fetch_listed(commit: Commit, file: FileRecord) -> Path | None:
    """Return a file of a commit in the cache, fetched if need be; None if it has not this content.

    Raises:
        RegistryError: not reachable.
    """
    path = _download(connect(), commit.repo, file.path, commit.id, None, False, Progress()).resolve()
    return path if file_digest(path)[0] == file.sha256 else None


def fetch_small(api: HfApi, repo: str, name: str, commit: Commit, limit: int, revision: str | None = None) -> bytes:
    """Return the content of a file of a commit that no manifest lists, if it has at most ``limit`` bytes.

    The cache is used if it can be written; a damaged file is fetched once more. With ``revision``, by which the commit
    was found, the cache then knows the file by this name too.

    Raises:
        PackageError: the file is too large.
        IntegrityError: the content is not what the commit says.
        RegistryError: not allowed, or not reachable.
    """
    remote, where = commit.files[name], f"{repo}@{commit.id[:12]}"
    if remote.size is not None and remote.size > limit:
        raise PackageError(f"{name} has {remote.size} bytes; the limit is {limit}", where=where)
    try:
        cached = _cached_path(repo, name, commit.id)
        damaged = cached is not None and not remote.matches(_content(cached, limit) or b"")
        for force in (damaged, True):
            if force and cached is not None:
                _drop(cached.parent, name)
            path = _download(api, repo, name, revision or commit.id, None, force, Progress())
            if path.parent.name != commit.id:  # the revision has moved since then, or a branch has the name of a tag
                path = _download(api, repo, name, commit.id, None, force, Progress())
                if revision is not None and is_version(revision):
                    with io_errors("noting a version in the Hub's cache"):
                        write_file(cache_folder(repo) / "refs" / revision, commit.id.encode())
            content = read_small(resolve_inside(path.parent, name), limit)
            if remote.matches(content):
                return content
            cached = path
    except StorageError:  # the cache can't be written
        with tempfile.TemporaryDirectory() as scratch:
            path = _download(api, repo, name, commit.id, Path(scratch), False, Progress())
            if remote.matches(content := read_small(path, limit)):
                return content
    raise IntegrityError(f"{name} arrived damaged twice", where=where, remedy="run the command again")


def check_name(commit: Commit) -> None:
    """Check that a repository that is written to is called by its present name, so that cards and tags say that.

    Raises:
        RegistryError: it has another name by now.
    """
    if commit.name != commit.repo:
        raise RegistryError(
            f"the repository is called {commit.name}", where=commit.repo, remedy=f"use that name: {commit.name}"
        )


def card_of(api: HfApi, commit: Commit) -> str | None:
    """Return the model card of a commit, or None if it has none.

    Raises:
        SourceError: it is not UTF-8.
        RegistryError: not reachable.
    """
    if CARD_NAME not in commit.files:
        return None
    try:
        return fetch_small(api, commit.repo, CARD_NAME, commit, CARD_BYTES).decode()
    except UnicodeDecodeError:
        raise SourceError(f"{CARD_NAME} is not UTF-8", where=commit.repo, remedy="save it as UTF-8 first") from None


def cache_folder(repo: str) -> Path:
    """Return where the Hub's cache keeps a repository."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE, f"models--{repo.replace('/', '--')}")


def read_cached(repo: str, name: str, revision: str, limit: int, *, unchecked: bool) -> tuple[bytes, str] | None:
    """Return (content, commit) of a small file from the cache, without asking the Hub; None if it is not intact there.

    The cache names its files by digest, so damage is detected. Without symbolic links, it keeps them under their own
    names: then nobody can tell, and the content is returned only if it may be ``unchecked``.
    """
    path = _cached_path(repo, name, revision)
    content = _content(path, limit) if path else None
    if path is None or content is None:
        return None
    digest = os.path.basename(os.path.realpath(path))
    if is_id(digest):
        damaged = hashlib.sha256(content).hexdigest() != digest
    elif is_commit(digest):
        damaged = git_digest(content) != digest
    else:
        damaged = not unchecked
    return None if damaged else (content, path.parent.name)


def _cached_path(repo: str, name: str, revision: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    with translate_hub_errors(repo):
        found = try_to_load_from_cache(repo, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _content(path: Path, limit: int) -> bytes | None:
    try:
        return read_small(resolve_inside(path.parent, path.name), limit)
    except SourceError:
        return None


def check_remote_files(files: Iterable[FileRecord], commit: Commit, where: str) -> None:
    """Check before any download that the commit has each listed file with the promised size and digest.

    Raises:
        IntegrityError: a file is missing, or differs from what the manifest lists.
    """
    for file in files:
        remote = commit.files.get(file.path)
        if remote is None or remote.size not in (None, file.size) or remote.sha256 not in (None, file.sha256):
            problem = "is missing" if remote is None else "is not the file that the manifest lists"
            raise IntegrityError(
                f"{file.path} {problem}",
                where=where,
                remedy="the published version is broken; tell its publisher, or use another version",
            )


def fetch(
    api: HfApi, repo: str, commit: str, file: FileRecord, folder: Path, into: Path | None, progress: Progress
) -> None:
    """Download a listed file into the folder ``into`` or, if that is None, into the cache, and check it.

    A damaged file is downloaded once more. ``folder`` is where the file will be: the cache's snapshot, or ``into``.

    Raises:
        IntegrityError: the file arrived damaged twice.
        RegistryError: not allowed, or not reachable.
    """
    where = f"{repo}@{commit[:12]}"
    if is_offline():
        raise RegistryError(
            f"{file.path} is not in the cache, and HF_HUB_OFFLINE is set", where=where, remedy="unset HF_HUB_OFFLINE"
        )
    # An existing file is damaged, as the caller found out. The client would keep it.
    for force in (os.path.lexists(folder / file.path), True):
        if force and into is None:
            _drop(folder, file.path)
        _download(api, repo, file.path, commit, into, force, progress)
        if is_intact(folder, file):
            sync_file(resolve_inside(folder, file.path))
            return
    raise IntegrityError(
        f"{file.path} arrived damaged twice: its sha256 is not the one in the manifest",
        where=where,
        remedy="run the command again; if the error stays, tell the publisher",
    )


def _drop(folder: Path, name: str) -> None:
    """Delete a damaged file of the cache. If it is no link, the client would keep it, even if told to replace it."""
    path = resolve_inside(folder, name)
    if path == Path(os.path.realpath(folder), name):
        with io_errors("replacing a damaged download"):
            path.unlink(missing_ok=True)


def _download(
    api: HfApi, repo: str, name: str, revision: str, into: Path | None, force: bool, progress: Progress
) -> Path:
    from huggingface_hub import hf_hub_download
    from tqdm import tqdm

    class Forward(tqdm):  # type: ignore[type-arg]
        """Forwards the client's progress to ours."""

        def __init__(self, *args: Any, **settings: Any) -> None:
            settings.pop("name", None)
            super().__init__(*args, **{**settings, "disable": True})

        def update(self, n: float | None = 1) -> None:
            progress.advance(int(n or 0))

    # huggingface_hub 1.0, the oldest release allowed, has no such parameter.
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
