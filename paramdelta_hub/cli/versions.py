"""``pd-versions``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from paramdelta_hub.cli.common import Console, command, registry_option, table

if TYPE_CHECKING:
    from paramdelta_hub.registry.protocol import Version

_MAX_EARLIER = 3
_EXAMPLES = """
pd-versions org/name
pd-versions ./registry/org/name --json
"""


@command("registry.protocol.VersionsReport", examples=_EXAMPLES)
@click.argument("delta")
@registry_option
def versions(delta: str, registry: str | None, console: Console) -> None:
    """List the versions of DELTA, the newest first.

    In a folder or bucket, it also shows of which package a version is a relabeled copy. On the Hub, pd-inspect does.
    """
    from paramdelta_hub.registry.api import versions as run
    from paramdelta_hub.registry.protocol import VersionsReport

    found = run(delta, registry=registry)
    console.emit(VersionsReport(versions=tuple(found)), _text(found))


def _text(found: Sequence[Version]) -> str:
    columns = {
        "version": [v.version for v in found],
        "revision": [v.revision[:16] for v in found],
        "created": [v.created or "" for v in found],
        "withdrawn": [v.yanked or "" for v in found],
        "relabeled from": [_history(v) for v in found],
    }
    shown = {head: cells for head, cells in columns.items() if head in ("version", "revision", "created") or any(cells)}
    return table(tuple(shown), list(zip(*shown.values(), strict=True)))


def _history(version: Version) -> str:
    names = [f"{earlier.name} {earlier.version}" for earlier in reversed(version.relabeled_from)]
    return " ← ".join([*names[:_MAX_EARLIER], *(["…"] if len(names) > _MAX_EARLIER else [])])
