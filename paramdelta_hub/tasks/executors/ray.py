"""The executor on Ray: tasks go to the machines of a cluster, which see the same files under the same paths.

A cluster that the caller has connected to is used as it is; otherwise the one that RAY_ADDRESS names, or that was
started on this machine; otherwise one is started here, for as long as the work lasts. Ray itself does a task again
whose worker died. What a worker answers is a task's outcome, or the error that ended it, as plain JSON.
"""

from __future__ import annotations

import contextlib
import logging
import os
import traceback
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from paramdelta_hub.errors import Mismatch, OptionError, ParamdeltaError
from paramdelta_hub.fileio.durable import TEMPORARY
from paramdelta_hub.tasks.executors.threads import Stop
from paramdelta_hub.tasks.models import OUTCOME, Outcome

__all__ = ["Cluster", "answer", "outcome_of"]

Perform: TypeAlias = "Callable[[str, str, int], Outcome]"
"""Does one task, given by the work folder, the plan's digest and its number; by the return, all is on disk. It must be
a function of some module, so that other processes find it by its name."""
_ATTEMPTS = 3
"""How often a task is begun before a worker's death is taken for the task's own fault: a machine may be taken away, or
its memory run short for a moment, but a task that kills its worker does so every time."""
_LOOK_AGAIN = 0.2
"""Seconds after which a thread that waits for Ray looks whether it shall stop."""


def answer(perform: Perform, work_dir: str, digest: str, number: int) -> dict[str, Any]:
    """Do a task and return its answer; whatever goes wrong is in it."""
    try:
        return {"outcome": OUTCOME.dump_json(perform(work_dir, digest, number)).decode()}
    except ParamdeltaError as error:
        names = [cls.__name__ for cls in type(error).__mro__ if issubclass(cls, ParamdeltaError)]
        return {"error": names, "told": vars(error)}
    except Exception:
        return {"error": None, "told": traceback.format_exc()}


def outcome_of(answered: dict[str, Any]) -> Outcome:
    """Return the outcome in an answer.

    Raises:
        ParamdeltaError: what the worker raised, with all that it knows. A class that this process has not loaded
            becomes the nearest above it, which a handler treats alike.
        RuntimeError: a worker's error that is none of ours, with the place in the code where it arose.
    """
    if "outcome" in answered:
        return OUTCOME.validate_json(answered["outcome"])
    told = answered["told"]
    if answered["error"] is None:
        raise RuntimeError(f"a worker failed:\n{told}")
    known = {cls.__name__: cls for cls in _classes(ParamdeltaError)}
    error = next(known[name] for name in answered["error"] if name in known)(told["what"])
    vars(error).update(told)
    if "mismatches" in told:
        vars(error)["mismatches"] = tuple(Mismatch(*mismatch) for mismatch in told["mismatches"])
    raise error


def _classes(above: type[ParamdeltaError]) -> Iterator[type[ParamdeltaError]]:
    """Yield a class of errors and all below it."""
    yield above
    for cls in above.__subclasses__():
        yield from _classes(cls)


def _run(perform: Perform, work_dir: str, digest: str, numbers: list[int], stopped: str) -> list[dict[str, Any]]:
    """Do tasks on some machine of the cluster; the first that fails is the last, and none begins once we are stopped.

    Tasks are not cancelled: Ray (2.60) aborts the process that cancels one at the moment when it ends ("Tried to
    complete task that was not pending"). Those that run end by themselves, and those that wait find a file.
    """
    answers: list[dict[str, Any]] = []
    for number in numbers:
        if os.path.exists(stopped):
            break
        answers.append(answer(perform, work_dir, digest, number))
        if "outcome" not in answers[-1]:
            break
    return answers


class Cluster:
    """A Ray cluster for the length of a ``with`` block; used from several threads at a time.

    Raises:
        OptionError: Ray is not installed.
        ParamdeltaError: no cluster can be had.
    """

    def __init__(self, perform: Perform, work_dir: str, digest: str) -> None:
        self._perform, self._work_dir, self._digest = perform, work_dir, digest
        self._stopped = Path(work_dir, TEMPORARY.replace("*", f"stopped.{uuid.uuid4().hex}"))
        self._started = False

    def __enter__(self) -> Cluster:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # what is done here is nobody's business
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the coming default, without its warning
        try:
            import ray
        except ImportError as error:
            raise OptionError(
                f"--executor ray needs Ray, which can't be imported: {error}",
                remedy="pip install 'paramdelta-hub[ray]', on every machine of the cluster",
            ) from None
        self._ray = ray
        if not ray.is_initialized():
            try:
                ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
            except Exception as error:  # Ray raises what comes to hand
                first = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise ParamdeltaError(
                    f"can't connect to a Ray cluster: {first}",
                    where=os.environ.get("RAY_ADDRESS"),
                    remedy="check `ray status`, or set RAY_ADDRESS to the address of a cluster",
                ) from None
            self._started = True
        self._remote = ray.remote(num_cpus=1, max_retries=_ATTEMPTS - 1)(_run)
        return self

    def run(self, numbers: list[int], stop: Stop) -> list[Outcome]:
        """Have some machine do these tasks, one after another, and return their outcomes.

        Raises:
            ParamdeltaError: what the worker raised, or that it died again and again.
            Interrupted: ``stop`` was set; those of the tasks that have not begun never will.
        """
        ray = self._ray
        reference = self._remote.remote(self._perform, self._work_dir, self._digest, numbers, str(self._stopped))
        try:
            while True:
                stop.check()
                ready, _ = ray.wait([reference], timeout=_LOOK_AGAIN)
                if ready:
                    return [outcome_of(answered) for answered in ray.get(reference)]
        except ray.exceptions.RayTaskError as error:
            last = str(error).strip().splitlines()[-1]
            raise ParamdeltaError(
                f"a machine of the cluster can't run tasks: {last}",
                remedy="install the same version of paramdelta-hub on all of them",
            ) from None
        except ray.exceptions.RayError as error:
            raise _died(numbers, str(error).strip().splitlines()[0]) from None
        except BaseException:
            with contextlib.suppress(OSError):
                self._stopped.touch()
            raise

    def __exit__(self, *_: object) -> None:
        if self._started:
            self._ray.shutdown()


def _died(numbers: list[int], why: str) -> ParamdeltaError:
    """Return the error of tasks whose workers died again and again."""
    tasks = f"task {numbers[0]}" if len(numbers) == 1 else f"tasks {numbers[0]}–{numbers[-1]}"
    return ParamdeltaError(
        f"{_ATTEMPTS} workers stopped at {tasks}: {why}",
        remedy="the system may be out of memory; use fewer --threads, and run the same command again to resume",
    )
