"""A package folder, opened and checked without reading any weights."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from paramdelta_hub.errors import IntegrityError, PackageError
from paramdelta_hub.fileio.digests import check_digest
from paramdelta_hub.fileio.durable import file_digest, is_folder, read_small
from paramdelta_hub.fileio.lfs import POINTER_BYTES, refuse_pointer
from paramdelta_hub.fileio.paths import files_below, resolve_inside
from paramdelta_hub.limits import HEADER_BYTES, LINEAGE_RUN_LENGTH, LINEAGE_RUNS, MANIFEST_BYTES
from paramdelta_hub.package.manifest import MANIFEST_NAME, FileRecord, Manifest, TensorRecord, parse_manifest
from paramdelta_hub.package.shard import check_shard_header

__all__ = ["LOCK_NAME", "PICTURE_NAME", "YANK_FILE", "Package", "open_package"]

LOCK_NAME = "paramdelta.lock"
"""What a pulled copy is, and where it came from; it lies in the copy, and in no registry."""

PICTURE_NAME = "change.svg"
"""The picture of a model card on the Hub: nothing reads it, and no pull brings it."""

YANK_FILE = re.compile(r"\.yanked-.+\.json")
"""Files that withdraw versions of a repository: on the Hub they lie beside the newest one."""

# What belongs to a package although its manifest does not list it: the model card and its picture, the signature, and
# the lock of a pulled copy.
_UNLISTED_FILES = {MANIFEST_NAME, "manifest.json.sig", "README.md", PICTURE_NAME, LOCK_NAME}


@dataclass(frozen=True)
class Package:
    """A delta package whose manifest has been read and checked; its shards have not."""

    path: Path
    manifest: Manifest
    digest: str
    """sha256 of ``manifest.json``: the package's id."""

    @property
    def label(self) -> str:
        """Name and version, for messages."""
        return f"{self.manifest.name} {self.manifest.version}"

    @cached_property
    def records(self) -> dict[str, TensorRecord]:
        """Every tensor by name."""
        return {record.name: record for record in self.manifest.tensors}

    def payload_locations(self) -> dict[tuple[str, str], tuple[str, int]]:
        """Return each payload's file and its start there, having checked every shard's header and size.

        They are found by the names of the tensor and the shard.

        Raises:
            PackageError: a shard is missing, truncated, or disagrees with the manifest.
        """
        sizes: defaultdict[str | None, dict[str, int]] = defaultdict(dict)
        for record in self.manifest.tensors:
            for part in record.parts:
                sizes[part.shard][record.name] = part.nbytes
        locations = {}
        for shard in self.manifest.shards:
            self._check_size(shard.path, shard.size)
            path = resolve_inside(self.path, shard.path)
            for name, start in check_shard_header(path, sizes[shard.path]).items():
                locations[name, shard.path] = (str(path), start)
        return locations

    def check_file(self, file: FileRecord, advance: Callable[[int], None] = lambda _: None) -> None:
        """Check that a listed file has its promised bytes.

        Raises:
            IntegrityError: it differs.
            PackageError: it is missing or not a regular file.
        """
        self._check_size(file.path, file.size)
        digest, _ = file_digest(resolve_inside(self.path, file.path), PackageError, advance=advance)
        check_digest(digest, file.sha256, f"the file {file.path!r}", str(self.path))

    def files_beside(self) -> tuple[str, ...]:
        """Return the names of the files that lie beside the package, such as a license text or images.

        Bytes of a name that are no text are escaped. Nothing vouches for them, and nothing of ours reads them.
        """
        listed = {file.path for file in self.manifest.files} | _UNLISTED_FILES
        beside = (name for name in files_below(self.path) if name not in listed)
        beside = (name for name in beside if not YANK_FILE.fullmatch(name))
        return tuple(name.encode("utf-8", "backslashreplace").decode() for name in beside)

    def read_lineage(self) -> bytes:
        """Return the content of the lineage file, checked against its digest.

        Raises:
            PackageError: missing, larger than the samples of these tensors can be, or not the promised bytes.
        """
        runs = LINEAGE_RUNS * LINEAGE_RUN_LENGTH
        max_bytes = HEADER_BYTES + sum(min(tensor.elements, runs) * tensor.itemsize for tensor in self.manifest.tensors)
        return self.read_file(self.manifest.lineage, max_bytes)

    def read_file(self, file: FileRecord, max_bytes: int) -> bytes:
        """Return the content of a listed file of at most ``max_bytes`` bytes, checked against its digest.

        Raises:
            PackageError: missing, too large, or not the promised bytes.
        """
        if file.size > max_bytes:
            raise PackageError(f"{file.path}: {file.size} bytes; the limit is {max_bytes}", where=str(self.path))
        content = read_small(resolve_inside(self.path, file.path), file.size)
        check_digest(hashlib.sha256(content).hexdigest(), file.sha256, f"the file {file.path!r}", str(self.path))
        return content

    def _check_size(self, name: str, promised: int) -> None:
        try:
            size = os.lstat(resolve_inside(self.path, name)).st_size
        except OSError as error:
            raise PackageError(
                f"the file {name!r} of the manifest is missing ({error.strerror})",
                where=str(self.path),
                remedy="the package is not complete; get it again",
            ) from None
        if size != promised:
            if size <= POINTER_BYTES:
                refuse_pointer(read_small(resolve_inside(self.path, name), size), PackageError, str(self.path / name))
            raise IntegrityError(
                f"the file {name!r} has {size} bytes, the manifest promises {promised}",
                where=str(self.path),
                remedy="the package is not complete; get it again",
            )


def open_package(path: Path) -> Package:
    """Open the package in the folder ``path``: its manifest is read and checked, its weights are not.

    Raises:
        PackageError: no folder, no manifest, or one that breaks the format.
        UnsupportedFormatError: written by a later major format.
    """
    if not is_folder(path):
        raise PackageError(
            "no such delta package",
            where=str(path),
            remedy="give a folder that has a manifest.json; pd-extract makes one from two models",
        )
    if not os.path.lexists(path / MANIFEST_NAME):
        hint = "it looks like a model" if (path / "config.json").exists() else "it has no manifest.json"
        raise PackageError(f"not a delta package: {hint}", where=str(path), remedy="pd-extract makes packages")
    file = resolve_inside(path, MANIFEST_NAME)
    manifest, digest = parse_manifest(read_small(file, MANIFEST_BYTES), str(file))
    return Package(path, manifest, digest)
