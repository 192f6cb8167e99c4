"""``pd-verify``."""

from __future__ import annotations

import click

from paramdelta_hub.cli.common import Bars, command, emit, registry_option, work_options
from paramdelta_hub.operations.verify import VerifyReport
from paramdelta_hub.operations.verify import verify as run

__all__ = ["verify"]

_EXAMPLES = """
pd-verify ./delta
pd-verify org/name@1.2.0 --base org/base
pd-verify ./delta --base ./base --post ./post --json
"""


@command(examples=_EXAMPLES)
@click.argument("delta")
@click.option("--base", help="Also prove BASE ⊕ Δ == post, bit for bit.")
@click.option("--post", help="Also prove that POST is the model the delta leads to.")
@registry_option
@work_options
def verify(
    delta: str,
    base: str | None,
    post: str | None,
    registry: str | None,
    threads: int | None,
    memory: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Check every byte of the package DELTA and decode every chunk; with --base, prove that it is exact.

    DELTA is a folder, or org/name[@version] in a registry.
    """
    report = run(
        delta,
        base=base,
        post=post,
        registry=registry,
        threads=threads,
        memory=memory,
        progress=Bars(quiet or as_json),
    )
    emit(report.to_json(), _text(report), as_json=as_json, quiet=quiet)


def _text(report: VerifyReport) -> str:
    lines = [
        f"{report.package}: whole ({report.files} files, {report.tensors} tensors, {report.elements:,} elements)",
        f"  id    {report.id}",
    ]
    if report.checked_base:
        lines.append("  base  is the delta's base, and base ⊕ Δ == post, bit for bit")
    if report.checked_post:
        lines.append("  post  is the delta's post")
    return "\n".join(lines)
