"""``pd-yank``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from paramdelta_hub.cli.common import Console, command, registry_option

if TYPE_CHECKING:
    from paramdelta_hub.registry.yanks import Yanked

_EXAMPLES = """
pd-yank org/name 1.2.0 --reason "wrong tokenizer"
pd-yank org/name 1.2.0 --undo
pd-yank ./registry/org/name 1.2.0 --reason "license was wrong"
"""


@command("registry.yanks.Yanked", examples=_EXAMPLES)
@click.argument("delta", metavar="REPO")
@click.argument("version")
@click.option("--reason", metavar="TEXT", help="Why, in a sentence. Those who pull the version by its name see it.")
@click.option("--undo", is_flag=True, help="Take the withdrawal back.")
@registry_option
def yank(console: Console, **options: Any) -> None:
    """Withdraw VERSION of REPO. A pull without a version no longer brings it.

    REPO is org/name, or a folder or URL that ends in it. Nothing of the version is changed. A pull by its exact version
    still works, and warns. On the Hub, the main branch then holds the newest version that is left.
    """
    from paramdelta_hub.registry.publish import yank as run

    yanked = run(**options)
    console.emit(yanked, _text(yanked))


def _text(yanked: Yanked) -> str:
    state = "is not withdrawn" if yanked.reason is None else f"is withdrawn: {yanked.reason}"
    same = "" if yanked.changed else " (nothing was changed)"
    newest = f"the newest version is {yanked.newest}" if yanked.newest else "no other version is left"
    return f"{yanked.repo} {yanked.version} {state}{same}\n  {newest}"
