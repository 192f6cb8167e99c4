"""``pd-versions``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from paramdelta_hub.cli.common import command, emit, registry_option, table

if TYPE_CHECKING:
    from paramdelta_hub.registry.protocol import Version

__all__ = ["versions"]

_EXAMPLES = """
pd-versions org/name
pd-versions ./registry/org/name --json
"""


@command(examples=_EXAMPLES)
@click.argument("delta")
@registry_option
def versions(delta: str, registry: str | None, as_json: bool, quiet: bool) -> None:
    """List the versions of DELTA, the newest first."""
    from paramdelta_hub.registry.api import versions as run
    from paramdelta_hub.registry.protocol import VersionsReport

    found = run(delta, registry=registry)
    emit(VersionsReport(versions=tuple(found)), _text(found), as_json=as_json, quiet=quiet)


def _text(found: Sequence[Version]) -> str:
    return table(("version", "revision", "created"), [(v.version, v.revision[:16], v.created or "") for v in found])
