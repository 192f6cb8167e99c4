"""Checking the files of a package on several threads, which is bound by sha256: 1.8 GB/s of a core."""

from __future__ import annotations

from collections.abc import Sequence

from paramdelta_hub.package.manifest import FileRecord
from paramdelta_hub.package.package import Package
from paramdelta_hub.tasks.executors.threads import Stop, default_threads, run_tasks
from paramdelta_hub.tasks.progress import Progress

__all__ = ["check_files"]


def check_files(package: Package, files: Sequence[FileRecord], progress: Progress, threads: int | None = None) -> None:
    """Check that files of a package have their promised bytes; the default is a thread for each processor.

    Raises:
        IntegrityError: a file differs.
        PackageError: a file is missing or not a regular file.
    """

    def check(file: FileRecord, stop: Stop) -> None:
        def advance(nbytes: int) -> None:
            stop.check()
            progress.advance(nbytes)

        package.check_file(file, advance)

    progress.start("checking files", sum(file.size for file in files))
    try:
        for _ in run_tasks(files, check, threads or default_threads(), size=lambda file: file.size):
            pass
    finally:
        progress.finish()
