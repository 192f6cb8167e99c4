"""``pd-commit``."""

from __future__ import annotations

import click

from paramdelta_hub.cli.apply import report_text as apply_text
from paramdelta_hub.cli.common import Console, command
from paramdelta_hub.cli.extract import report_text as extract_text

_EXAMPLES = """
pd-apply ./new-base ./delta -o out --rank 0 --world 2     # on one machine
pd-apply ./new-base ./delta -o out --rank 1 --world 2     # on another
pd-commit out
"""


@command("extraction.extract.ExtractReport", "application.apply.ApplyReport", examples=_EXAMPLES)
@click.argument("out")
@click.option("--overwrite", is_flag=True, help="Replace OUT if the same command made it and it is unchanged.")
@click.option("--threads", type=click.IntRange(min=1), help="Files to check at a time [default: number of processors].")
def commit(out: str, overwrite: bool, threads: int | None, console: Console) -> None:
    """Check every byte that the ranks of an extract or apply have written, and create OUT.

    If something is missing, the command lists the ranks to run again, and changes nothing.
    """
    from paramdelta_hub.extraction.extract import ExtractReport
    from paramdelta_hub.ranks import commit as run

    report = run(out, overwrite=overwrite, threads=threads, progress=console.progress())
    text = extract_text(report) if isinstance(report, ExtractReport) else apply_text(report)
    console.emit(report, text)
