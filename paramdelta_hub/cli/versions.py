"""``pd-versions``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from paramdelta_hub.cli.common import Console, command, registry_option, table

if TYPE_CHECKING:
    from paramdelta_hub.registry.protocol import Version

_EXAMPLES = """
pd-versions org/name
pd-versions ./registry/org/name --json
"""


@command("registry.protocol.VersionsReport", examples=_EXAMPLES)
@click.argument("delta")
@registry_option
def versions(delta: str, registry: str | None, console: Console) -> None:
    """List the versions of DELTA, the newest first."""
    from paramdelta_hub.registry.api import versions as run
    from paramdelta_hub.registry.protocol import VersionsReport

    found = run(delta, registry=registry)
    console.emit(VersionsReport(versions=tuple(found)), _text(found))


def _text(found: Sequence[Version]) -> str:
    heads = ("version", "revision", "created")
    if not any(v.yanked for v in found):
        return table(heads, [(v.version, v.revision[:16], v.created or "") for v in found])
    return table((*heads, "withdrawn"), [(v.version, v.revision[:16], v.created or "", v.yanked or "") for v in found])
