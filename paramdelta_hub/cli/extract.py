"""``pd-extract``."""

from __future__ import annotations

import click

from paramdelta_hub.cli.common import Bars, command, emit, human_bytes, parse_rules, work_options
from paramdelta_hub.operations.extract import ExtractReport
from paramdelta_hub.operations.extract import extract as run

__all__ = ["extract"]

_EXAMPLES = """
pd-extract org/base org/base-instruct -o instruct-delta
pd-extract ./base ./post -o delta --name my-delta --version 1.2.0 --license apache-2.0
pd-extract ./bert ./classifier -o delta --rename '^bert\\.=' --skip '^classifier\\.'
"""


@command(examples=_EXAMPLES)
@click.argument("base")
@click.argument("post")
@click.option("-o", "--output", required=True, metavar="DELTA", help="Folder of the new package.")
@click.option("--name", help="Name of the delta [default: after POST].")
@click.option("--version", default="1.0.0", show_default=True, help="Semantic version of the delta.")
@click.option("--license", "license_name", help="Licence of the delta, such as apache-2.0.")
@click.option("--rename", "renames", multiple=True, metavar="OLD=NEW", help="Rename POST's tensors, by regex.")
@click.option("--skip", "skips", multiple=True, metavar="REGEX", help="Leave tensors out; recorded in the manifest.")
@click.option("--hash-files", is_flag=True, help="Record sha256 of local weight files: reads both models twice.")
@click.option("--overwrite", is_flag=True, help="Replace a finished DELTA.")
@work_options
def extract(
    base: str,
    post: str,
    output: str,
    name: str | None,
    version: str,
    license_name: str | None,
    renames: tuple[str, ...],
    skips: tuple[str, ...],
    hash_files: bool,
    overwrite: bool,
    threads: int | None,
    memory: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Extract the delta POST − BASE into a package, proving BASE ⊕ Δ == POST bit for bit.

    BASE and POST are folders in Hugging Face layout, .safetensors files, or Hub ids with @revision.
    """
    rules = parse_rules(renames, skips)
    report = run(
        base,
        post,
        output,
        name=name,
        version=version,
        license=license_name,
        rules=rules,
        hash_files=hash_files,
        overwrite=overwrite,
        threads=threads,
        memory=memory,
        progress=Bars(quiet or as_json),
    )
    emit(report.to_json(), _text(report), as_json=as_json, quiet=quiet)


def _text(report: ExtractReport) -> str:
    exactness = report.manifest.exactness
    ratio = report.nbytes / report.model_nbytes if report.model_nbytes else 0.0
    lines = [
        f"{report.manifest.name} {report.manifest.version} → {report.package}",
        f"  size     {human_bytes(report.nbytes)}, {ratio:.1%} of the model's {human_bytes(report.model_nbytes)}",
        f"  exact    base ⊕ Δ == post in all {exactness.elements:,} elements",
    ]
    lines += [f"  left out {item.name} ({item.side}): {item.reason}" for item in report.manifest.omissions]
    if report.resumed_tasks:
        lines.append(f"  resumed  {report.resumed_tasks} tasks of an interrupted run were kept")
    return "\n".join(lines)
