"""A registry in a folder: ``ROOT/org/name/VERSION/`` is the package itself.

Why a version is never incomplete, and never replaced:

1. The version is built under another name, ``VERSION.partial/``, by one process at a time. The lock ends with the
   process.
2. All files are forced to disk.
3. One rename makes the version visible. The system refuses to rename a folder onto a folder that is not empty, so even
   a process that ignores the lock can't overwrite a version.

A process that is killed before the rename leaves ``VERSION.partial/``, which no reader uses. Publishing the same
package again keeps the intact files in it. Publishing another package removes it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path

from paramdelta_hub.errors import DestinationError, PublishError, RegistryError
from paramdelta_hub.fileio.durable import io_errors, read_small, sync_folder, write_file
from paramdelta_hub.fileio.paths import resolve_inside
from paramdelta_hub.package.manifest import MANIFEST_NAME
from paramdelta_hub.package.package import Package
from paramdelta_hub.registry.artifacts import artifact_in
from paramdelta_hub.registry.materialize import EXTRAS, exclusive_dir, file_chunks, receive, write_if_changed
from paramdelta_hub.tasks.progress import Progress
from paramdelta_hub.tasks.workspace import Workspace

__all__ = ["FolderStore"]


class FolderStore:
    """Reads and writes below a folder. The first publication creates it."""

    missing = "no such folder"

    def __init__(self, root: Path) -> None:
        self._root = Path(os.path.abspath(root))
        self.url = str(self._root)

    def exists(self) -> bool:
        """Whether the folder exists; RegistryError if it is a file, or can't be read."""
        try:
            is_folder = stat.S_ISDIR(os.stat(self._root).st_mode)
        except FileNotFoundError:
            return False
        except NotADirectoryError:
            is_folder = False
        except OSError as error:
            raise _unreadable(self._root, error) from None
        if not is_folder:
            raise RegistryError(
                "a registry must be a folder, and this is a file", where=self.url, remedy="name the folder"
            )
        return True

    def check_apart(self, repo: str) -> None:
        """Check that the repository is not inside a package, a result or a catalog, which a new file would break."""
        real = Path(os.path.realpath(self._root / repo))
        for folder in (real, *real.parents):
            if kind := artifact_in(folder):
                raise PublishError(
                    f"{folder} is {kind}, and publishing into it would break it",
                    where=f"{self.url}/{repo}",
                    remedy="choose a separate folder for the registry",
                )

    def list_folder(self, folder: str) -> dict[str, bool]:
        """Return the names in ``folder``, and whether each is a folder; empty if there is no such folder."""
        try:
            with os.scandir(self._root / folder) as entries:
                return {entry.name: entry.is_dir() for entry in entries}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise _unreadable(self._root / folder, error) from None

    def read(self, folder: str, name: str, limit: int) -> bytes | None:
        """Return the content of a file, or None if it does not exist; PackageError if it is larger than ``limit``."""
        path = resolve_inside(self._root / folder, name)
        return read_small(path, limit) if os.path.lexists(path) else None

    def chunks(self, folder: str, name: str) -> Iterator[bytes]:
        """Yield a file's content in pieces; PackageError if there is no such file."""
        return file_chunks(resolve_inside(self._root / folder, name))

    def created(self, folder: str) -> str | None:
        """Return when a version was published, ISO 8601 in UTC."""
        with contextlib.suppress(OSError):
            seconds = os.stat(self._root / folder / MANIFEST_NAME).st_mtime
            return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
        return None

    def local_path(self, folder: str) -> Path | None:
        """Return the path of a version."""
        return self._root / folder

    def write(self, folder: str, name: str, content: bytes) -> None:
        """Write a small file of a repository's folder, or replace it."""
        with io_errors("writing"):
            write_file(resolve_inside(self._root / folder, name), content)

    def remove(self, folder: str, name: str) -> None:
        """Remove a small file of a repository's folder, if it is there."""
        with io_errors("removing a file"):
            resolve_inside(self._root / folder, name).unlink(missing_ok=True)

    def put(
        self, package: Package, folder: str, manifest: bytes, extras: Mapping[str, bytes], progress: Progress
    ) -> None:
        """Publish a version completely or not at all."""
        out = self._root / folder
        try:
            with Workspace(out) as workspace:
                stage = workspace.work_dir / package.digest
                with io_errors("preparing the publication"):
                    # Left by killed processes that published other packages.
                    for other in workspace.work_dir.iterdir():
                        if other.is_dir() and other != stage:
                            shutil.rmtree(other)
                with exclusive_dir(stage):
                    _fill(stage, package, manifest, extras, progress)
                _rename(stage, out)
                workspace.clear()
        except DestinationError as error:
            raise PublishError(
                error.what, where=error.where, remedy="check what is there; a published version is never replaced"
            ) from None


def _rename(stage: Path, out: Path) -> None:
    """Make the finished version visible; PublishError if somebody else was faster."""
    with io_errors("publishing"):
        try:
            os.rename(stage, out)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise PublishError("somebody else published it first", where=str(out)) from None
        sync_folder(out.parent)  # the folders above it were synced before anything was written into them


def _fill(stage: Path, package: Package, manifest: bytes, extras: Mapping[str, bytes], progress: Progress) -> None:
    source = package.path
    receive(
        package.manifest.files, lambda name: file_chunks(resolve_inside(source, name)), stage, str(source), progress
    )
    for name in EXTRAS:
        write_if_changed(stage / name, extras.get(name))
    write_if_changed(stage / MANIFEST_NAME, manifest)


def _unreadable(path: Path, error: OSError) -> RegistryError:
    return RegistryError(f"can't be read: {error.strerror}", where=str(path), remedy="check the permissions")
