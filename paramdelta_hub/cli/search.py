"""``pd-search``."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from paramdelta_hub.cli.common import Console, command, registry_option, table
from paramdelta_hub.fileio.names import human_bytes

if TYPE_CHECKING:
    from paramdelta_hub.registry.search import Found

_EXAMPLES = """
pd-search instruct
pd-search --base org/new-base
pd-search --base ./new-base --registry ./registry --json
"""


@command("registry.search.SearchReport", examples=_EXAMPLES)
@click.argument("query", required=False)
@click.option(
    "--base", metavar="MODEL", help="Model to apply deltas to: a folder or a Hub id. No whole weights are downloaded."
)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Number of results.")
@click.option("--skip", type=click.IntRange(min=0), default=0, help="Results to skip, for the next page.")
@registry_option
def search(query: str | None, base: str | None, limit: int, skip: int, registry: str | None, console: Console) -> None:
    """Find deltas with all words of QUERY in their name, title, tags, base or post. With --base, judge if each fits.

    `same base`: the result is the delta's post, bit for bit. `kin`: the model and the delta's base have a common
    ancestor. `fits`: the architecture is the same. A few values of the model are compared with samples of each
    delta that fits. The expected transfer is printed below the table. For a model on the Hub, this takes about 64
    small requests.
    """
    from paramdelta_hub.registry.api import search as run
    from paramdelta_hub.registry.search import SearchReport

    hits = list(itertools.islice(run(query, base=base, registry=registry), skip, skip + limit + 1))
    shown, more = hits[:limit], len(hits) > limit
    next_page = skip + limit if more else None
    report = SearchReport(hits=tuple(shown), next_skip=next_page)
    console.emit(report, _text(shown, base, next_page))


def _text(hits: Sequence[Found], base: str | None, next_page: int | None) -> str:
    if not hits:
        return "no deltas found"
    rows = [
        (
            found.repo,
            found.version or "",
            found.base or "",
            "" if found.nbytes is None else human_bytes(found.nbytes),
            found.license or "",
            *((found.judgement, found.reason) if base else ()),
        )
        for found in hits
    ]
    heads = ("delta", "version", "base", "size", "license", *(("judged", "because") if base else ()))
    expected = [f"{found.repo}: {found.prediction}" for found in hits if found.prediction]
    return "\n".join([table(heads, rows), *expected, *([f"… for more: --skip {next_page}"] if next_page else [])])
