"""Reading all tensors of a model or a package on several threads, for the digests of what is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from paramdelta_hub.checkpoints.stored import source_digest
from paramdelta_hub.checkpoints.tensor_sources import TensorSource
from paramdelta_hub.errors import CheckpointError
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.fileio.safetensors import ITEM_SIZES
from paramdelta_hub.tasks.executors.threads import Stop, run_tasks
from paramdelta_hub.tasks.models import Advance
from paramdelta_hub.tasks.plan import cut
from paramdelta_hub.tasks.progress import Progress

__all__ = ["run_over", "tensor_digests"]

T = TypeVar("T")
R = TypeVar("R")


def run_over(
    tensors: Sequence[T],
    size: Callable[[T], int],
    run: Callable[[Sequence[T], Advance], Mapping[str, R]],
    threads: int,
    progress: Progress,
    what: str,
) -> dict[str, R]:
    """Return what ``run`` returns for the tensors, by name; it is called for groups of them on several threads.

    ``size`` tells how many bytes a tensor has, and ``run`` reports those that it has handled to its second argument.
    ``what`` names the stage for the progress.
    """
    total = sum(map(size, tensors))
    groups = cut(tensors, size, total)
    found: dict[str, R] = {}

    def run_group(group: list[T], stop: Stop) -> Mapping[str, R]:
        def advance(nbytes: int) -> None:
            stop.check()
            progress.advance(nbytes)

        return run(group, advance)

    progress.start(what, total)
    try:
        for part in run_tasks(groups, run_group, threads, size=lambda group: sum(map(size, group))):
            found |= part
    finally:
        progress.finish()
    return found


def tensor_digests(
    sources: Mapping[str, tuple[TensorSource, int]], threads: int, progress: Progress, what: str
) -> dict[str, str]:
    """Return the BLAKE3 digest (hex) of the values of every source, given by name with its number of elements.

    Raises:
        CheckpointError: a file was truncated or can't be read.
    """

    def size(name: str) -> int:
        source, elements = sources[name]
        return elements * ITEM_SIZES[source.dtype]

    def digest_all(names: Sequence[str], advance: Advance) -> dict[str, str]:
        with OpenFiles(CheckpointError) as files:
            return {name: source_digest(*sources[name], files, advance) for name in names}

    return run_over(list(sources), size, digest_all, threads, progress, what)
