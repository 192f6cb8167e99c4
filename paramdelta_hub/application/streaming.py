"""Download a weight file before the first task that needs it, and delete it after the last."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from paramdelta_hub.checkpoints.remote import RemoteModel
from paramdelta_hub.tasks.models import Task

__all__ = ["FilePool"]


class FilePool:
    """Keeps a remote model's files on disk as long as tasks need them. Threads may share it."""

    def __init__(self, model: RemoteModel | None, tasks: Iterable[Task]) -> None:
        """Take the tasks that are still to be done: they tell when a file is needed no more.

        Without a model all files are there already, and the pool does nothing.
        """
        self._model = model
        self._names = {str(file.path): file.name for file in model.checkpoint.files} if model else {}
        self._remaining = Counter(name for task in tasks for name in self._files_of(task))
        self._lock = threading.Lock()
        self._fetching = {name: threading.Lock() for name in self._names.values()}
        self._drop(name for name in self._names.values() if name not in self._remaining)

    @contextmanager
    def hold(self, task: Task) -> Iterator[None]:
        """Have a task's files there for the length of the block."""
        if self._model is None:
            yield
            return
        names = self._files_of(task)
        for name in sorted(names):
            with self._fetching[name]:
                self._model.fetch(name)
        yield
        with self._lock:  # an interrupted task keeps its files: it will be done again
            self._remaining.subtract(names)
            done = [name for name in names if not self._remaining[name]]
        self._drop(done)

    def _drop(self, names: Iterable[str]) -> None:
        for name in names:
            if self._model:
                self._model.drop(name)

    def _files_of(self, task: Task) -> set[str]:
        """Return the names of the remote files that a task reads."""
        return {self._names[path] for path in task.reads if path in self._names}
