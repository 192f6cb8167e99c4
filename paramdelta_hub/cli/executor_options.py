"""Options of the commands that can split their work: what runs the tasks, and which part of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from paramdelta_hub.cli.common import Console, gather, together, work_options
from paramdelta_hub.errors import OptionError
from paramdelta_hub.fileio.names import human_bytes

if TYPE_CHECKING:
    from paramdelta_hub.ranks import RankReport, Request
    from paramdelta_hub.tasks.runner import Executor, ExecutorConfig


@dataclass(frozen=True)
class Work:
    """What runs the tasks, and the rank that ``--rank`` and ``--world`` ask for, if any."""

    config: ExecutorConfig
    rank: tuple[int, int] | None

    def run_rank(
        self, request: Request, output: str, console: Console, *, registry: str | None, overwrite: bool
    ) -> bool:
        """Do the tasks of the rank and print its report. Return False if no rank was asked for."""
        from paramdelta_hub.ranks import run_rank

        if self.rank is None:
            return False
        report = run_rank(
            request,
            output,
            *self.rank,
            registry=registry,
            overwrite=overwrite,
            config=self.config,
            progress=console.progress(),
        )
        console.emit(report, _text(report))
        return True


def _work(executor: Executor, rank: int | None, world: int | None, threads: int | None, memory: int) -> Work:
    from paramdelta_hub.tasks.runner import ExecutorConfig

    if (rank is None) != (world is None):
        raise OptionError("--rank and --world go together", remedy="give both, or neither for the whole work")
    ranks = None if rank is None or world is None else (rank, world)
    return Work(ExecutorConfig(executor, threads, memory), ranks)


executor_options = together(
    click.option(
        "--executor",
        type=click.Choice(["threads", "ray"]),
        default="threads",
        show_default=True,
        help="What runs the tasks. ray: the machines of a cluster, which must all see the same files.",
    ),
    click.option(
        "--rank",
        type=click.IntRange(min=0),
        metavar="I",
        help="Do part I of N, counted from 0, as in a SLURM array. When all ranks are done, run `paramdelta commit`.",
    ),
    click.option("--world", type=click.IntRange(min=1), metavar="N", help="How many ranks there are, with --rank."),
    work_options,
    gather(work=_work),
)
"""Options that make ``work``."""


def _text(report: RankReport) -> str:
    kept = f", {report.resumed_tasks} of them by an earlier run" if report.resumed_tasks else ""
    done = f"rank {report.rank} of {report.world}: {report.tasks} tasks done{kept} ({human_bytes(report.nbytes)})"
    return f"{done}\n  when all ranks are done: paramdelta commit {report.path}"
