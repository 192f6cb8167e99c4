"""Reading all tensors of a model or a package on several threads, for the digests of what is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from paramdelta_hub.application.execute import view_digest
from paramdelta_hub.errors import CheckpointError
from paramdelta_hub.fileio.open_files import Descriptors
from paramdelta_hub.tasks.executors.threads import Stop, run_tasks
from paramdelta_hub.tasks.plan import cut
from paramdelta_hub.tasks.progress import Progress

__all__ = ["Advance", "run_over", "tensor_digests"]

Advance = Callable[[int], None]
T = TypeVar("T")


def run_over(
    tensors: Sequence[dict[str, Any]],
    run: Callable[[Sequence[dict[str, Any]], Advance], dict[str, T]],
    threads: int,
    progress: Progress,
    what: str,
) -> dict[str, T]:
    """Return what ``run`` returns for the tensors, by name; it is called for groups of them on ``threads`` threads.

    Args:
        tensors: with a name and ``nbytes``; the rest is up to ``run``.
        run: takes a group, and a callback for the bytes that it has handled.
        threads: calls at a time.
        progress: told of those bytes.
        what: the stage's name.
    """

    def size(tensor: dict[str, Any]) -> int:
        return int(tensor["nbytes"])

    total = sum(map(size, tensors))
    tasks = [{"bytes": sum(map(size, group)), "tensors": group} for group in cut(list(tensors), size, total)]
    found: dict[str, T] = {}
    progress.start(what, total)

    def run_one(_: int, task: dict[str, Any], stop: Stop) -> dict[str, T]:
        def advance(nbytes: int) -> None:
            stop.check()
            progress.advance(nbytes)

        return run(task["tensors"], advance)

    try:
        for part in run_tasks(list(enumerate(tasks)), run_one, threads):
            found |= part
    finally:
        progress.finish()
    return found


def tensor_digests(tensors: Sequence[dict[str, Any]], advance: Advance) -> dict[str, str]:
    """Return the digest (hex) of every tensor's values; each has a name, a dtype, ``nbytes`` and a view.

    Raises:
        CheckpointError: a file was truncated or can't be read.
    """
    with Descriptors(CheckpointError) as sources:
        return {tensor["name"]: view_digest(tensor, sources, advance) for tensor in tensors}
