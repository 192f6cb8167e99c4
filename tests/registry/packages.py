"""Packages to publish: copies of one, under other versions, names or contents."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from tests.attacks.outcomes import change_manifest, reseal_files, shard_of


def labelled(package: Path, to: Path, version: str = "1.0.0", **labels: object) -> Path:
    """Copy a package and change its labels; the result is another package, and as whole as the first."""
    shutil.copytree(package, to)
    change_manifest(to, lambda manifest: manifest.update(version=version, **labels))
    return to


def altered(package: Path, to: Path, version: str = "1.0.0") -> Path:
    """Copy a package and change the last byte of its shard: files of the same names and sizes, and a fitting manifest.

    Its weights can't be decoded, which no registry looks at.
    """
    labelled(package, to, version)
    shard = shard_of(to)
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    reseal_files(to)
    return to


def id_of(package: Path) -> str:
    """Return the package's id."""
    return hashlib.sha256((package / "manifest.json").read_bytes()).hexdigest()


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below, hidden ones too."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }
