"""A registry that is a folder: ``ROOT/org/name/VERSION/`` is the package itself.

Why a version is never half there, and never replaced: it is put together under another name, where one process at a
time works (a lock that dies with it), and forced to disk; then one rename makes it visible. The system refuses to
rename a folder onto one that holds anything, so also somebody who ignores the lock can't be overwritten. A process
killed before the rename leaves ``VERSION.partial/``, which no reader looks at: publishing the same again keeps what is
right in it, publishing something else clears it away.
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
from paramdelta_hub.fileio.durable import io_errors, read_small, sync_folder
from paramdelta_hub.fileio.symlinks import settle
from paramdelta_hub.package.manifest import LINEAGE_NAME, MANIFEST_NAME
from paramdelta_hub.package.package import Package
from paramdelta_hub.package.provenance import PROVENANCE_NAME
from paramdelta_hub.registry.materialize import EXTRAS, alone_in, file_chunks, put_small, receive
from paramdelta_hub.registry.names import SITE_NAME
from paramdelta_hub.tasks.progress import Progress
from paramdelta_hub.tasks.workspace import Workspace

__all__ = ["FolderStore"]

_MARKS = (
    ("a delta package", (MANIFEST_NAME, LINEAGE_NAME)),
    ("a model that pd-apply made", (PROVENANCE_NAME,)),
    ("a catalog that pd-catalog made", (SITE_NAME,)),
)
"""What is whole as it is, and the files that tell it."""


class FolderStore:
    """Reads and writes below a folder, which need not exist before the first publication."""

    absent = "no such folder"

    def __init__(self, root: Path) -> None:
        self._root = Path(os.path.abspath(root))
        self.url = str(self._root)

    def exists(self) -> bool:
        """Whether the folder is there.

        Raises:
            RegistryError: something else is, or it can't be read.
        """
        try:
            is_folder = stat.S_ISDIR(os.stat(self._root).st_mode)
        except FileNotFoundError:
            return False
        except NotADirectoryError:
            is_folder = False
        except OSError as error:
            raise RegistryError(
                f"can't be read: {error.strerror}", where=self.url, remedy="check the permissions"
            ) from None
        if not is_folder:
            raise RegistryError("a file, where a registry is a folder", where=self.url, remedy="name its folder")
        return True

    def check_apart(self, repo: str) -> None:
        """Check that what is published will not come into something else that we made, which is whole as it is.

        Raises:
            PublishError: the repository is, or lies in, a package, a result or a catalog.
        """
        real = Path(os.path.realpath(self._root / repo))
        for folder in (real, *real.parents):
            for what, names in _MARKS:
                if all(os.path.lexists(folder / name) for name in names):
                    raise PublishError(
                        f"{folder} is {what}, and publishing into it would break it",
                        where=f"{self.url}/{repo}",
                        remedy="choose a folder of its own for the registry",
                    )

    def names(self, folder: str) -> list[str]:
        """Return what lies in ``folder``, files too; hidden ones not. Nothing where it can't be read."""
        with contextlib.suppress(OSError):
            return sorted(name for name in os.listdir(self._root / folder) if not name.startswith("."))
        return []

    def below(self, folder: str) -> list[str]:
        """Return the names of the folders in ``folder``; none where there is no such folder.

        Raises:
            RegistryError: it can't be read.
        """
        try:
            with os.scandir(self._root / folder) as entries:
                return [entry.name for entry in entries if entry.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise RegistryError(
                f"can't be read: {error.strerror}", where=str(self._root / folder), remedy="check the permissions"
            ) from None

    def read(self, folder: str, name: str, most: int) -> bytes | None:
        """Return the content of a small file, or None where there is none.

        Raises:
            PackageError: larger than ``most``, not a regular file, or not readable.
        """
        path = settle(self._root / folder, name)
        return read_small(path, most) if os.path.lexists(path) else None

    def chunks(self, folder: str, name: str) -> Iterator[bytes]:
        """Yield a file's content piece by piece.

        Raises:
            PackageError: missing, not a regular file, or not readable.
        """
        return file_chunks(settle(self._root / folder, name))

    def created(self, folder: str) -> str | None:
        """Return when a version was published, ISO 8601 in UTC."""
        with contextlib.suppress(OSError):
            seconds = os.stat(self._root / folder / MANIFEST_NAME).st_mtime
            return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
        return None

    def place(self, folder: str) -> Path | None:
        """Return where a version lies on this machine."""
        return self._root / folder

    def put(
        self, package: Package, folder: str, text: bytes, extras: Mapping[str, bytes], progress: Progress | None
    ) -> None:
        """Make a version visible, whole or not at all; ``text`` is its manifest, ``extras`` what goes with it.

        Raises:
            PublishError: somebody else is at it or was faster, or the place is taken by something else.
            StorageError: the disk fails.
        """
        out = self._root / folder
        try:
            with Workspace(out) as place:
                stage = place.work_dir / package.digest
                with io_errors("preparing the publication"):
                    for other in place.work_dir.iterdir():  # left by somebody who died publishing something else
                        if other.is_dir() and other != stage:
                            shutil.rmtree(other)
                with alone_in(stage):
                    _fill(stage, package, text, extras, progress)
                self._show(stage, out)
                place.clear()
        except DestinationError as error:
            raise PublishError(
                error.what, where=error.where, remedy="see what is there; what is published is never replaced"
            ) from None

    def _show(self, stage: Path, out: Path) -> None:
        with io_errors("publishing"):
            try:
                os.rename(stage, out)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                raise PublishError("somebody else was faster", where=str(out)) from None
            sync_folder(out.parent)  # those above it lasted before anything was put into it


def _fill(stage: Path, package: Package, text: bytes, extras: Mapping[str, bytes], progress: Progress | None) -> None:
    source = package.path
    receive(package.manifest.files, lambda name: file_chunks(settle(source, name)), stage, str(source), progress)
    for name in EXTRAS:
        put_small(stage / name, extras.get(name))
    put_small(stage / MANIFEST_NAME, text)
