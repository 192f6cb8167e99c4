"""Reading all tensors of a model or a package on several threads, for the digests of what is read."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from paramdelta_hub.checkpoints.stored import chunk_digests
from paramdelta_hub.checkpoints.tensor_sources import TensorSource
from paramdelta_hub.errors import CheckpointError
from paramdelta_hub.fileio.digests import join_digests
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.fileio.safetensors import ITEM_SIZES
from paramdelta_hub.package.chunks import chunk_ranges
from paramdelta_hub.tasks.executors.threads import Stop, run_tasks
from paramdelta_hub.tasks.models import Advance
from paramdelta_hub.tasks.plan import Divisible, cut
from paramdelta_hub.tasks.progress import Progress

__all__ = ["SourcePart", "run_over", "tensor_digests"]

D = TypeVar("D", bound=Divisible)
R = TypeVar("R")


def run_over(
    tensors: Sequence[D], run: Callable[[Sequence[D], Advance], R], threads: int, progress: Progress, what: str
) -> list[R]:
    """Return what ``run`` returns for groups of tensors, or of their parts, in their order; several threads call it.

    ``run`` reports the bytes that it has handled to its second argument. ``what`` names the stage for the progress.
    """
    total = sum(tensor.nbytes for tensor in tensors)
    groups = cut(tensors, total)
    found: dict[int, R] = {}

    def run_group(number: int, stop: Stop) -> tuple[int, R]:
        def advance(nbytes: int) -> None:
            stop.check()
            progress.advance(nbytes)

        return number, run(groups[number], advance)

    def size(number: int) -> int:
        return sum(tensor.nbytes for tensor in groups[number])

    progress.start(what, total)
    try:
        found |= run_tasks(range(len(groups)), run_group, threads, size=size)
    finally:
        progress.finish()
    return [found[number] for number in range(len(groups))]


S = TypeVar("S", bound="SourcePart")


@dataclass(frozen=True, slots=True)
class SourcePart:
    """A tensor that is read, or some chunks of one, from the element ``first`` on."""

    name: str
    source: TensorSource
    elements: int
    first: int = 0

    @property
    def nbytes(self) -> int:
        """How many bytes are read."""
        return self.elements * ITEM_SIZES[self.source.dtype]

    def divide(self: S, parts: int) -> list[S]:
        """Return up to so many parts of whole chunks, about equally large."""
        return [replace(self, first=first, elements=elements) for first, elements in chunk_ranges(self.elements, parts)]


def tensor_digests(
    sources: Mapping[str, tuple[TensorSource, int]], threads: int, progress: Progress, what: str
) -> dict[str, str]:
    """Return the digest (hex) of the values of every source, given by name with its number of elements.

    Raises:
        CheckpointError: a file was truncated or can't be read.
    """

    def digest_all(parts: Sequence[SourcePart], advance: Advance) -> list[tuple[str, bytes]]:
        with OpenFiles(CheckpointError) as files:
            return [
                (part.name, chunk_digests(part.source, part.elements, files, first=part.first, advance=advance))
                for part in parts
            ]

    reads = [SourcePart(name, source, elements) for name, (source, elements) in sources.items()]
    return join_digests(itertools.chain.from_iterable(run_over(reads, digest_all, threads, progress, what)))
