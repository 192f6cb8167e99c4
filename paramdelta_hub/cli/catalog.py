"""``pd-catalog``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from paramdelta_hub.cli.common import Console, command
from paramdelta_hub.environment import REGISTRY_VARIABLE
from paramdelta_hub.fileio.names import counted, human_bytes
from paramdelta_hub.limits import CATALOG_DELTAS, SPECTRUM_MATRICES

if TYPE_CHECKING:
    from paramdelta_hub.reports.catalog import CatalogReport

_EXAMPLES = """
pd-catalog ./registry -o site
pd-catalog s3://bucket/deltas -o site --base org/new-base
pd-catalog -o site --query instruct
"""


@command("reports.catalog.CatalogReport", examples=_EXAMPLES)
@click.argument("registry", required=False, envvar=REGISTRY_VARIABLE)
@click.option("-o", "--out", required=True, metavar="FOLDER", help="Folder of the new site.")
@click.option("--query", metavar="WORDS", help="List only deltas with these words in their names or titles.")
@click.option("--base", "bases", multiple=True, metavar="MODEL", help="Also check every delta against this model.")
@click.option("--title", default="Deltas", show_default=True, help="Title of the site.")
@click.option(
    "--limit", type=click.IntRange(1, CATALOG_DELTAS), default=CATALOG_DELTAS, show_default=True, help="Deltas."
)
@click.option(
    "--samples",
    type=click.IntRange(0, SPECTRUM_MATRICES),
    default=0,
    show_default=True,
    help="Matrices to decode per delta for their effective rank. Only for weights on this machine.",
)
@click.option("--overwrite", is_flag=True, help="Replace FOLDER if pd-catalog made it and it is unchanged.")
def catalog(console: Console, **options: Any) -> None:
    """Make a static site of the deltas in REGISTRY: a list that can be searched by base, and a report for each delta.

    REGISTRY is a folder or a bucket. The default is $PARAMDELTA_REGISTRY, or else the Hub.
    """
    from paramdelta_hub.reports.catalog import catalog as run

    report = run(**options, progress=console.progress(with_json=True))
    console.emit(report, _text(report))


def _text(report: CatalogReport) -> str:
    pages = f"{counted(report.pages, 'page')}, {human_bytes(report.nbytes)}"
    lines = [f"{counted(report.listed_deltas, 'delta')} → {report.path} ({pages})"]
    lines += [f"  without a report: {repo}: {why}" for repo, why in report.without_report.items()]
    if report.more:
        lines.append("  the registry has more deltas: use --limit")
    return "\n".join(lines)
