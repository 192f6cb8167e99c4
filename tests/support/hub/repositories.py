"""What a Hub keeps: repositories of commits, branches, tags and pull requests, in memory."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import yaml

EPOCH = datetime(2025, 1, 1, tzinfo=timezone.utc)
LARGE_FILES = (".safetensors", ".bin", ".model")
REGULAR_BYTES = 10 << 20
"""From this size on, a file of any name is kept as a large one, as on the Hub."""


@dataclass(frozen=True)
class Account:
    """Who a token belongs to: may write to its own namespace and its organisations'."""

    name: str
    organisations: tuple[str, ...] = ()

    def owns(self, repository: str) -> bool:
        return repository.split("/")[0] in (self.name, *self.organisations)


@dataclass(frozen=True)
class Blob:
    """A file's content; large ones are known by their sha256."""

    content: bytes
    large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git_digest(self) -> str:
        """The blob's name in git: of the content, or of the pointer that git holds for a large file."""
        held = self.pointer if self.large else self.content
        return hashlib.sha1(b"blob %d\0" % len(held) + held).hexdigest()

    @property
    def pointer(self) -> bytes:
        return f"version lfs/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.git_digest

    def lfs(self) -> dict[str, Any]:
        return {"sha256": self.sha256, "size": len(self.content), "pointerSize": len(self.pointer)}


@dataclass(frozen=True)
class Commit:
    """A tree of files, and where it comes from."""

    id: str
    parent: str | None
    title: str
    description: str
    author: str
    date: str
    files: Mapping[str, Blob]


@dataclass
class Proposal:
    """A pull request."""

    number: int
    title: str
    author: str
    date: str
    status: str = "open"


@dataclass
class Repository:
    """A model repository. ``gated`` hides the files, ``private`` all of it, from accounts not in ``readers``."""

    name: str
    private: bool = False
    gated: bool = False
    readers: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    proposals: list[Proposal] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.branches:
            self.commit("main", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", large=False)}, "initial commit")

    @property
    def head(self) -> Commit:
        return self.commits[self.branches["main"]]

    def resolve(self, revision: str) -> Commit | None:
        """Find a commit by its id, a branch, a tag or a pull request's reference."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        return self.commits.get(self.branches.get(name) or self.tags.get(name) or name)

    def commit(
        self,
        branch: str,
        files: Mapping[str, Blob],
        title: str,
        description: str = "",
        author: str = "hub",
        parent: str | None = None,
    ) -> Commit:
        """Put a tree on top of a branch, which begins at ``parent`` if it is new."""
        before = self.branches.get(branch, parent)
        date = (EPOCH + timedelta(seconds=len(self.commits))).isoformat().replace("+00:00", ".000Z")
        tree = "".join(f"{name} {blob.etag}\n" for name, blob in sorted(files.items()))
        digest = hashlib.sha1(f"{before} {title} {author} {date}\n{tree}".encode()).hexdigest()
        made = Commit(digest, before, title, description, author, date, dict(files))
        self.commits[digest] = made
        self.branches[branch] = digest
        return made

    def add(self, files: Mapping[str, bytes | Path], title: str = "upload") -> Commit:
        """Add or replace files on main, as somebody at work elsewhere does."""
        read = {name: c.read_bytes() if isinstance(c, Path) else c for name, c in files.items()}
        blobs = {name: Blob(content, name.endswith(LARGE_FILES)) for name, content in read.items()}
        return self.commit("main", {**self.head.files, **blobs}, title)

    def propose(self, files: Mapping[str, Blob], title: str, description: str, author: str) -> tuple[Commit, Proposal]:
        """Open a pull request with one commit on main's head."""
        number = len(self.proposals) + 1
        made = self.commit(f"refs/pr/{number}", files, title, description, author, self.branches["main"])
        self.proposals.append(Proposal(number, title, author, made.date))
        return made, self.proposals[-1]

    def merge(self, number: int) -> None:
        """Merge a pull request into main: what it changed, on top of what is there now."""
        change = self.commits[self.branches[f"refs/pr/{number}"]]
        before = self.commits[change.parent].files if change.parent else {}
        files = {name: blob for name, blob in self.head.files.items() if name not in before or name in change.files}
        files |= {name: blob for name, blob in change.files.items() if before.get(name) != blob}
        self.commit("main", files, f"{change.title} (#{number})", author=change.author)
        self.proposals[number - 1].status = "merged"

    @property
    def card(self) -> dict[str, Any]:
        """The metadata of main's README.md, as far as it can be read: git takes any bytes."""
        blob = self.head.files.get("README.md")
        try:
            return metadata(blob.content.decode()) if blob else {}
        except ValueError:
            return {}

    @property
    def search_tags(self) -> list[str]:
        """The tags the Hub derives from a card, by which repositories are found."""
        card = self.card
        bases = card.get("base_model") or []
        bases = [bases] if isinstance(bases, str) else bases
        relation = card.get("base_model_relation")
        return [
            *(card.get("tags") or []),
            *([card["library_name"]] if "library_name" in card else []),
            *(f"base_model:{base}" for base in bases),
            *(f"base_model:{relation}:{base}" for base in bases if relation),
            *([f"license:{card['license']}"] if "license" in card else []),
        ]


_BLOCK = re.compile(r"^([\s\ufeff]*---(?:\r\n|\r|\n))([\S\s]*?)((?:\r\n|\r|\n)---[ \t]*(\r\n|\n|$))")
"""The Hub's own expression, as huggingface_hub quotes it; blanks of JavaScript include the byte order mark."""


def metadata(card: str) -> dict[str, Any]:
    """Return a card's YAML block, found as the Hub finds it; an empty one where there is none.

    Raises:
        ValueError: broken YAML.
    """
    found = _BLOCK.search(card)
    if found is None:
        return {}
    try:
        value = yaml.safe_load(found[2])
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    if value is not None and not isinstance(value, dict):
        raise ValueError("the metadata is not a map")
    return value or {}
