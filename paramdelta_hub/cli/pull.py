"""``pd-pull``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from paramdelta_hub.cli.common import Console, command, registry_option, trust_options
from paramdelta_hub.fileio.names import human_bytes

if TYPE_CHECKING:
    from paramdelta_hub.registry.protocol import Part, Pulled

_EXAMPLES = """
pd-pull org/name
pd-pull org/name@1.2.0 -o ./delta
pd-pull ./registry/org/name@1.2.0 -o ./delta
pd-pull org/name -o ./delta --require-signature
pd-pull org/name --registry s3://bucket/deltas --companions-only
"""


@command("registry.protocol.Pulled", examples=_EXAMPLES)
@click.argument("delta")
@click.option("-o", "--output", "folder", metavar="DIR", help="Folder of the copy [default: the registry's cache].")
@click.option("--companions-only", is_flag=True, help="Fetch only the manifest, the tokenizer, templates and settings.")
@click.option("--manifest-only", is_flag=True, help="Fetch only the manifest.")
@click.option("--allow-downgrade", is_flag=True, help="Allow a lower version to replace a higher one in DIR.")
@trust_options
@registry_option
def pull(companions_only: bool, manifest_only: bool, console: Console, **options: Any) -> None:
    """Download DELTA, and check the size and sha256 of every file. Run it again to resume an interrupted pull.

    DELTA is org/name[@version|@commit], or a folder or URL that ends in it. The default is the newest version.
    DIR/paramdelta.lock records what was pulled.
    """
    from paramdelta_hub.registry.api import pull as run

    part: Part = "manifest" if manifest_only else "companions" if companions_only else "package"
    pulled = run(**options, part=part, progress=console.progress())
    console.emit(pulled, _text(pulled))


def _text(pulled: Pulled) -> str:
    lines = [
        f"{pulled.repo} {pulled.version} → {pulled.path}",
        f"  fetched   {human_bytes(pulled.downloaded_nbytes) if pulled.downloaded_nbytes else 'nothing new'}",
        f"  id        {pulled.id}",
    ]
    if pulled.signed_by:
        lines.append(f"  signed    by {pulled.signed_by}")
    if pulled.revision not in (pulled.id, pulled.version):
        lines.append(f"  revision  {pulled.revision}")
    return "\n".join(lines)
