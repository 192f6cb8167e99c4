"""``pd-search``."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from paramdelta_hub.cli.common import Console, command, human_bytes, registry_option, table

if TYPE_CHECKING:
    from paramdelta_hub.registry.search import Found

__all__ = ["search"]

_EXAMPLES = """
pd-search instruct
pd-search --base org/new-base
pd-search --base ./new-base --registry ./registry --json
"""


@command(examples=_EXAMPLES)
@click.argument("query", required=False)
@click.option("--base", metavar="MODEL", help="The model it is for: a folder or a Hub id; no weights are fetched.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Hits to show.")
@click.option("--skip", type=click.IntRange(min=0), default=0, help="Hits to pass over, for the next page.")
@registry_option
def search(query: str | None, base: str | None, limit: int, skip: int, registry: str | None, console: Console) -> None:
    """Find deltas by QUERY in their names and titles; with --base, say of each whether it fits that model.

    `same base`: it leads to its post, bit for bit. `kin`: base descends from, or shares an ancestor with, its base.
    `fits`: the architecture is the same. A few of the model's values are compared with each fitting delta's samples,
    and what to expect of it is said below the table; of a model on the Hub, these come by some 64 small requests.
    """
    from paramdelta_hub.registry.api import search as run

    hits = list(itertools.islice(run(query, base=base, registry=registry), skip, skip + limit + 1))
    shown, more = hits[:limit], len(hits) > limit
    next_page = skip + limit if more else None
    report = {"hits": [hit.to_json() for hit in shown], "next_skip": next_page}
    console.emit(report, _text(shown, base, next_page))


def _text(hits: Sequence[Found], base: str | None, next_page: int | None) -> str:
    if not hits:
        return "no delta found"
    rows = [
        (
            found.hit.repo,
            found.hit.version or "",
            found.hit.base or "",
            "" if found.hit.nbytes is None else human_bytes(found.hit.nbytes),
            found.hit.license or "",
            *((found.judgement, found.reason) if base else ()),
        )
        for found in hits
    ]
    heads = ("delta", "version", "base", "size", "license", *(("judged", "because") if base else ()))
    expected = [f"{found.hit.repo}: {found.prediction}" for found in hits if found.prediction]
    return "\n".join([table(heads, rows), *expected, *([f"… more: --skip {next_page}"] if next_page else [])])
