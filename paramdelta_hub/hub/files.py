"""The files of a commit as a Hub describes them. Some mirrors and other hubs list them without digests."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paramdelta_hub.errors import RegistryError
from paramdelta_hub.hub.client import connect
from paramdelta_hub.hub.errors import translate_hub_errors

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

__all__ = ["RemoteFile", "ask_for_digests", "ask_for_file", "git_digest", "listed_files"]

_FILES_AT_ONCE = 100
_SHA256_LENGTH, _SHA1_LENGTH = 64, 40


@dataclass(frozen=True)
class RemoteFile:
    """A file of a commit, as the Hub describes it."""

    size: int | None
    sha256: str | None
    """Known for large files."""
    git_digest: str | None
    """Known for all other files: the sha1 of git's blob."""

    @property
    def is_known(self) -> bool:
        """Whether the Hub states a digest. Some mirrors and other hubs do not."""
        return self.sha256 is not None or self.git_digest is not None

    def matches(self, content: bytes) -> bool:
        """Whether the file has exactly this content, as far as the Hub tells."""
        if not self.is_known:
            return self.size in (None, len(content))
        if len(content) != self.size:
            return False
        if self.sha256 is not None:
            return hashlib.sha256(content).hexdigest() == self.sha256
        return git_digest(content) == self.git_digest


def git_digest(content: bytes) -> str:
    """Return the sha1 by which git knows a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def listed_files(info: ModelInfo) -> dict[str, RemoteFile]:
    """Return the files of a listing, by name."""
    return {file.rfilename: _described(file) for file in info.siblings or () if isinstance(file.rfilename, str)}


def ask_for_digests(repo: str, commit: str, names: Sequence[str]) -> dict[str, RemoteFile]:
    """Return what the Hub says about files of which its listing has no digests; empty if it can't say more."""
    api, found = connect(), list[Any]()
    try:
        for start in range(0, len(names), _FILES_AT_ONCE):
            with translate_hub_errors(repo):
                found += api.get_paths_info(repo, list(names[start : start + _FILES_AT_ONCE]), revision=commit)
    except RegistryError:
        try:
            with translate_hub_errors(repo):
                found = list(api.list_repo_tree(repo, recursive=True, revision=commit))
        except RegistryError:
            return {}
    return {file.path: _described(file) for file in found if getattr(file, "size", None) is not None}


def ask_for_file(repo: str, commit: str, name: str) -> RemoteFile:
    """Return what the head of an answer says about a file: every server that files can be had from sends one.

    Raises:
        RegistryError: not reachable.
    """
    connect()
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    with translate_hub_errors(f"{repo}@{commit[:12]}"):
        head = get_hf_file_metadata(hf_hub_url(repo, name, revision=commit))
    digest = head.etag or ""
    return RemoteFile(
        head.size,
        digest if len(digest) == _SHA256_LENGTH else None,
        digest if len(digest) == _SHA1_LENGTH else None,
    )


def _described(file: Any) -> RemoteFile:
    size, sha256 = (file.lfs.size, file.lfs.sha256) if file.lfs else (file.size, None)
    digest = file.blob_id
    return RemoteFile(
        size if type(size) is int else None,
        sha256 if isinstance(sha256, str) else None,
        digest if digest and isinstance(digest, str) else None,
    )
