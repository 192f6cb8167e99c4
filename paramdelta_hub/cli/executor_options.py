"""Options of commands whose work can be divided: what runs the tasks, and which share of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import click

from paramdelta_hub.cli.common import Bars, emit, human_bytes
from paramdelta_hub.errors import OptionError

if TYPE_CHECKING:
    from paramdelta_hub.ranks import RankReport, Request
    from paramdelta_hub.tasks.runner import ExecutorConfig

__all__ = ["executor_options", "run_share"]

P = ParamSpec("P")
R = TypeVar("R")


def executor_options(function: Callable[P, R]) -> Callable[P, R]:
    """Add ``--executor``, ``--rank`` and ``--world``."""
    function = click.option(
        "--world", type=click.IntRange(min=1), metavar="N", help="How many ranks there are, with --rank."
    )(function)
    function = click.option(
        "--rank",
        type=click.IntRange(min=0),
        metavar="I",
        help="Do share I (from 0) of N, as in a SLURM array; `paramdelta commit` ends it when all are done.",
    )(function)
    return click.option(
        "--executor",
        type=click.Choice(["threads", "ray"]),
        default="threads",
        show_default=True,
        help="What does the tasks; ray: the machines of a cluster, which must see the same files.",
    )(function)


def run_share(
    request: Request,
    output: str,
    rank: int | None,
    world: int | None,
    *,
    registry: str | None,
    overwrite: bool,
    config: ExecutorConfig,
    as_json: bool,
    quiet: bool,
) -> bool:
    """Do the share that ``--rank`` and ``--world`` ask for, and tell of it; False where they ask for none.

    Raises:
        OptionError: only one of the two was given.
    """
    from paramdelta_hub.ranks import run_rank

    if rank is None and world is None:
        return False
    if rank is None or world is None:
        raise OptionError("--rank and --world go together", remedy="give both, or neither for the whole work")
    bars = Bars(quiet or as_json)
    report = run_rank(
        request, output, rank, world, registry=registry, overwrite=overwrite, config=config, progress=bars
    )
    emit(report, _text(report), as_json=as_json, quiet=quiet)
    return True


def _text(report: RankReport) -> str:
    kept = f", {report.resumed_tasks} of them before" if report.resumed_tasks else ""
    return "\n".join(
        [
            f"rank {report.rank} of {report.world}: {report.tasks} tasks done{kept} ({human_bytes(report.nbytes)})",
            f"  when all ranks are done: paramdelta commit {report.path}",
        ]
    )
