"""``pd-relabel``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from paramdelta_hub.cli.common import Console, command, registry_option

if TYPE_CHECKING:
    from paramdelta_hub.extraction.relabel import RelabelReport

_EXAMPLES = """
pd-relabel ./delta -o licensed-delta --license apache-2.0
pd-relabel org/name@1.0.0 -o next-delta --version 1.0.1
pd-relabel ./delta -o math-delta --name math-delta
"""


@command("extraction.relabel.RelabelReport", examples=_EXAMPLES)
@click.argument("delta")
@click.option("-o", "--output", "out", required=True, metavar="NEW", help="Folder of the new package.")
@click.option("--name", help="New name [default: as in DELTA].")
@click.option("--version", help="New semantic version [default: as in DELTA].")
@click.option("--license", help="New license: an SPDX expression, or the Hub's name for it.")
@click.option("--overwrite", is_flag=True, help="Replace NEW if it is an unchanged package.")
@registry_option
def relabel(console: Console, **options: Any) -> None:
    """Copy the package DELTA with another name, version or license. The models are not needed.

    DELTA is a folder, or org/name[@version] in a registry. The weights are checked and copied byte for byte. NEW gets
    a new id and no signature. It keeps your own text from README.md.
    """
    from paramdelta_hub.extraction.relabel import relabel as run

    report = run(**options, progress=console.progress())
    console.emit(report, _text(report))


def _text(report: RelabelReport) -> str:
    lines = [f"{report.name} {report.version} → {report.path}"]
    lines += [f"  {label:9} {old or 'not stated'} → {new}" for label, (old, new) in report.changes.items()]
    lines.append(f"  id        {report.id}")
    return "\n".join(lines)
