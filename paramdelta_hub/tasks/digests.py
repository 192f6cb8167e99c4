"""Reading all tensors of a model or a package on several threads, for the digests of what is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from paramdelta_hub.checkpoints.tensor_sources import TensorSource, source_digest
from paramdelta_hub.errors import CheckpointError
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.fileio.safetensors import ITEM_SIZES
from paramdelta_hub.tasks.executors.threads import Stop, run_tasks
from paramdelta_hub.tasks.models import Advance
from paramdelta_hub.tasks.plan import cut
from paramdelta_hub.tasks.progress import Progress

__all__ = ["HasBytes", "run_over", "tensor_digests"]


class HasBytes(Protocol):
    """Something of a known size."""

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""


T = TypeVar("T", bound=HasBytes)
R = TypeVar("R")


def run_over(
    tensors: Sequence[T],
    run: Callable[[Sequence[T], Advance], Mapping[str, R]],
    threads: int,
    progress: Progress,
    what: str,
) -> dict[str, R]:
    """Return what ``run`` returns for the tensors, by name; it is called for groups of them on several threads.

    Args:
        tensors: what to read.
        run: takes a group, and a callback for the bytes that it has handled.
        threads: calls at a time.
        progress: told of those bytes.
        what: the name of the stage.
    """
    total = sum(tensor.nbytes for tensor in tensors)
    groups = cut(tensors, lambda tensor: tensor.nbytes, total)
    found: dict[str, R] = {}

    def run_group(group: list[T], stop: Stop) -> Mapping[str, R]:
        def advance(nbytes: int) -> None:
            stop.check()
            progress.advance(nbytes)

        return run(group, advance)

    progress.start(what, total)
    try:
        for part in run_tasks(groups, run_group, threads, size=lambda group: sum(tensor.nbytes for tensor in group)):
            found |= part
    finally:
        progress.finish()
    return found


def tensor_digests(
    sources: Mapping[str, tuple[TensorSource, int]], threads: int, progress: Progress, what: str
) -> dict[str, str]:
    """Return the BLAKE3 digest (hex) of the values of every source.

    Args:
        sources: by name: each source, and how many elements it has.
        threads: how many to read at a time.
        progress: told of the bytes read.
        what: the name of the stage.

    Raises:
        CheckpointError: a file was truncated or can't be read.
    """

    def digest_all(group: Sequence[_Named], advance: Advance) -> dict[str, str]:
        with OpenFiles(CheckpointError) as files:
            return {named.name: source_digest(named.source, named.elements, files, advance) for named in group}

    named = [_Named(name, source, elements) for name, (source, elements) in sources.items()]
    return run_over(named, digest_all, threads, progress, what)


class _Named:
    def __init__(self, name: str, source: TensorSource, elements: int) -> None:
        self.name, self.source, self.elements = name, source, elements
        self.nbytes = elements * ITEM_SIZES[source.dtype]
