"""``pd-link``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from paramdelta_hub.cli.common import Console, command

if TYPE_CHECKING:
    from paramdelta_hub.registry.hub.links import Linked

_EXAMPLES = """
pd-link org/delta org/base-instruct --dry-run
pd-link org/delta org/base-instruct
pd-link org/delta me/new-base-instruct --as result --create-pr
pd-link org/delta org/base-instruct --remove
"""


@command("registry.hub.links.Linked", examples=_EXAMPLES)
@click.argument("delta")
@click.argument("repo", metavar="MODEL")
@click.option(
    "--as",
    "role",
    type=click.Choice(["base", "post", "result"]),
    help="Role of MODEL [default: from DELTA's manifest].",
)
@click.option("--remove", is_flag=True, help="Remove the link. The card is then as it was before.")
@click.option("--dry-run", is_flag=True, help="Print the changes, but change nothing.")
@click.option(
    "--create-pr/--direct",
    "create_pr",
    default=None,
    help="Open a pull request, or write directly [default: write directly to your own repositories].",
)
@click.option("--message", help="Message of the commit or pull request.")
def link(dry_run: bool, remove: bool, console: Console, **options: Any) -> None:
    """Link to DELTA on the card of MODEL, which is its base, its post, or a result of it. Both are on the Hub.

    The difference is printed before it is committed. Everything else on the card keeps its bytes: metadata, comments,
    line ends, and the text outside of the `paramdelta` markers. Linking again changes nothing.
    """
    from paramdelta_hub.registry.api import link as run

    linked = run(**options, dry_run=dry_run, remove=remove, progress=console.progress())
    console.emit(linked, _text(linked, dry_run=dry_run, remove=remove))


def _text(linked: Linked, *, dry_run: bool, remove: bool) -> str:
    if not linked.diff:
        state = "does not link to" if remove else "already links to"
        return f"{linked.repo} {state} {linked.delta}; nothing was changed"
    if dry_run:
        return f"{linked.diff.rstrip()}\n\nnothing was changed (--dry-run)"
    if linked.pull_request:
        return f"proposed: {linked.pull_request}"
    return f"{linked.repo} {'no longer links' if remove else 'links'} to {linked.delta}: {linked.commit}"
