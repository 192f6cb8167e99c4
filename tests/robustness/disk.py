"""A disk that may lose whatever was not forced to it: what could lie there after a power cut, at any moment of a run.

It is told what changed, call by call, and believes nothing but fsync:

- a file's bytes are there once the file was forced after its last write; till then it may be empty or torn;
- a name that was made, moved or removed is so on disk once the folder that holds it now was forced; till then each such
  change may have come to the disk, or not, whatever became of the others, before or after it. A rename is one change.

Journalling file systems keep more than this in order, each in its own way; what holds here holds on all of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WRITES = {"ftruncate", "posix_fallocate", "pwrite", "write"}


@dataclass
class Node:
    """A file or a folder."""

    is_folder: bool
    written: int = 0
    """How often it was written to."""
    forced: int = 0
    """How many of these writes were forced to disk."""

    @property
    def is_torn(self) -> bool:
        return self.forced < self.written


@dataclass
class Change:
    """Names of a folder that get another meaning: (folder, name) → node, or None where it is removed."""

    names: dict[tuple[int, str], Node | None]
    folder: int
    """Whose fsync makes it last."""
    lasts: bool = False


def lying(root: Path) -> list[tuple[str, bool, int]]:
    """Return what lies below a folder: path, whether it is a folder, inode."""
    return [(str(path), path.is_dir(), path.stat().st_ino) for path in sorted(root.rglob("*"))]


@dataclass
class Disk:
    """What is on disk, beginning with what lay below ``root``, all of which lasts."""

    root: Path
    lay: list[tuple[str, bool, int]]
    """See :func:`lying`."""
    nodes: dict[int, Node] = field(default_factory=dict)
    """By the inode that a file has now."""
    changes: list[Change] = field(default_factory=list)
    _now: dict[tuple[int, str], Node] = field(default_factory=dict)
    _top: Node = field(default_factory=lambda: Node(is_folder=True))

    def __post_init__(self) -> None:
        for path, is_folder, inode in self.lay:
            self._now[self._key(path)] = self.nodes[inode] = Node(is_folder)
        self._before = dict(self._now)

    def _find(self, path: str) -> Node | None:
        node: Node | None = self._top
        for part in Path(path).relative_to(self.root).parts:
            node = node and self._now.get((id(node), part))
        return node

    def _key(self, path: str) -> tuple[int, str]:
        folder = self._find(str(Path(path).parent))
        assert folder is not None, path
        return id(folder), Path(path).name

    def _change(self, names: dict[tuple[int, str], Node | None], folder: int) -> None:
        self.changes.append(Change(names, folder))
        for key, node in names.items():
            self._now.pop(key, None)
            if node is not None:
                self._now[key] = node

    def happens(self, event: dict[str, Any]) -> None:
        """Take note of a call that succeeded; what lies elsewhere does not matter."""
        call, path = event["call"], event["path"]
        if not Path(path).is_relative_to(self.root):
            return
        if call == "mkdir" or (call == "open" and event["made"]):
            node = Node(is_folder=call == "mkdir", written=int(call == "open"))
            key = self._key(path)
            self._change({key: node}, key[0])
            if call == "open":
                self.nodes[event["inode"]] = node
        elif call in ("rename", "replace"):
            here, there = self._key(path), self._key(event["to"])
            self._change({here: None, there: self._now[here]}, there[0])
        elif call in ("unlink", "remove", "rmdir"):
            key = self._key(path)
            self._change({key: None}, key[0])
        elif call in WRITES or call == "open":
            self.nodes[event["inode"]].written += 1
        elif (found := self._find(path)) is not None and found.is_folder:
            for change in self.changes:
                change.lasts |= change.folder == id(found)
        else:
            node = self.nodes[event["inode"]]
            node.forced = node.written

    def after_a_cut(self, chance: random.Random) -> Iterator[dict[str, Node]]:
        """Yield what may lie there: with none, all, one, all but one, or a chance half of what may be lost."""
        loose = [change for change in self.changes if not change.lasts]
        yield self._files(())
        yield self._files(loose)
        for change in loose if len(loose) < 8 else chance.sample(loose, 8):
            yield self._files([change])
            yield self._files([other for other in loose if other is not change])
        for _ in range(3):
            yield self._files([change for change in loose if chance.random() < 0.5])

    def _files(self, came: Iterable[Change]) -> dict[str, Node]:
        """Return the files by their paths below the root, if of the changes that may be lost just these have come."""
        kept = {id(change) for change in came}
        names = dict(self._before)
        for change in self.changes:
            if change.lasts or id(change) in kept:
                for key, node in change.names.items():
                    names.pop(key, None)
                    if node is not None:
                        names[key] = node
        inside: dict[int, list[tuple[str, Node]]] = {}
        for (within, name), node in names.items():
            inside.setdefault(within, []).append((name, node))
        files = {}
        todo = [("", self._top)]
        while todo:
            at, folder = todo.pop()
            for name, node in inside.get(id(folder), ()):
                path = f"{at}{name}"
                if node.is_folder:
                    todo.append((f"{path}/", node))
                else:
                    files[path] = node
        return files
