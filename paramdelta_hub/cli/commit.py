"""``pd-commit``."""

from __future__ import annotations

import click

from paramdelta_hub.cli.apply import report_text as apply_text
from paramdelta_hub.cli.common import Console, command
from paramdelta_hub.cli.extract import report_text as extract_text

__all__ = ["commit"]

_EXAMPLES = """
pd-apply ./new-base ./delta -o out --rank 0 --world 2     # on one machine
pd-apply ./new-base ./delta -o out --rank 1 --world 2     # on another
pd-commit out
"""


@command(examples=_EXAMPLES)
@click.argument("out")
@click.option("--overwrite", is_flag=True, help="Replace an older OUT of the same kind, and nothing else.")
@click.option("--threads", type=click.IntRange(min=1), help="Files to check at a time [default: processors].")
def commit(out: str, overwrite: bool, threads: int | None, console: Console) -> None:
    """Check what the ranks of an extract or apply have made, byte by byte, and put OUT in its place.

    Where something is missing, it says which rank to run again, and nothing is changed.
    """
    from paramdelta_hub.extraction.extract import ExtractReport
    from paramdelta_hub.ranks import commit as run

    report = run(out, overwrite=overwrite, threads=threads, progress=console.progress())
    text = extract_text(report) if isinstance(report, ExtractReport) else apply_text(report)
    console.emit(report.to_json(), text)
