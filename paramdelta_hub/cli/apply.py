"""``pd-apply``."""

from __future__ import annotations

import os

import click

from paramdelta_hub.cli.common import (
    Bars,
    command,
    emit,
    human_bytes,
    parse_assignment,
    parse_number,
    parse_rules,
    work_options,
)
from paramdelta_hub.operations.apply import ApplyReport, Summand, WeightMap
from paramdelta_hub.operations.apply import apply as run

__all__ = ["apply"]

_EXAMPLES = """
pd-apply org/new-base ./instruct-delta -o new-instruct
pd-apply ./new-base ./math-delta=0.7 ./code-delta=0.5 -o merged
pd-apply ./new-base ./delta -o out --weight-map '.*=0' --weight-map 'self_attn=1'
"""


@command(examples=_EXAMPLES)
@click.argument("target")
@click.argument("deltas", nargs=-1, required=True, metavar="DELTA[=WEIGHT]...")
@click.option("-o", "--output", required=True, metavar="OUT", help="Folder of the new model.")
@click.option(
    "--weight-map",
    "factors",
    multiple=True,
    metavar="REGEX=W",
    help="Scale the deltas of tensors whose name matches; the last match decides; 0 leaves a tensor as it is.",
)
@click.option("--rename", "renames", multiple=True, metavar="OLD=NEW", help="Rename the delta's tensors to TARGET's.")
@click.option("--skip", "skips", multiple=True, metavar="REGEX", help="Leave tensors as TARGET has them.")
@click.option("--force", is_flag=True, help="Apply to a target that is not kin to the delta's base.")
@click.option("--overwrite", is_flag=True, help="Replace a finished OUT.")
@work_options
def apply(
    target: str,
    deltas: tuple[str, ...],
    output: str,
    factors: tuple[str, ...],
    renames: tuple[str, ...],
    skips: tuple[str, ...],
    force: bool,
    overwrite: bool,
    threads: int | None,
    memory: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write OUT = TARGET + Σ WEIGHT · DELTA, keeping TARGET's shards, tensor order and metadata.

    TARGET is a folder in Hugging Face layout, a .safetensors file, or a Hub id with @revision; a DELTA is a package's
    folder, with a weight of 1 unless given.
    """
    pairs = [parse_assignment(rule, "REGEX=W") for rule in factors]
    weight_map = WeightMap(tuple((pattern, parse_number(factor, "--weight-map")) for pattern, factor in pairs))
    rules = parse_rules(renames, skips)
    report = run(
        target,
        [_summand(delta) for delta in deltas],
        output,
        weight_map=weight_map,
        rules=rules,
        force=force,
        overwrite=overwrite,
        threads=threads,
        memory=memory,
        progress=Bars(quiet or as_json),
    )
    emit(report.to_json(), _text(report), as_json=as_json, quiet=quiet)


def _summand(text: str) -> Summand:
    """Split ``DELTA=WEIGHT``; a folder whose own name holds an ``=`` is still a folder."""
    if "=" not in text or os.path.exists(text):
        return Summand(text)
    delta, weight = parse_assignment(text, "DELTA=WEIGHT")
    return Summand(delta, parse_number(weight, text))


def _text(report: ApplyReport) -> str:
    lines = [f"{report.target} + Δ → {report.out} ({human_bytes(report.nbytes)})"]
    for delta in report.deltas:
        manifest, kinship = delta.package.manifest, delta.kinship
        judged = "same values as base" if kinship.same_values else f"kin to base: {kinship}"
        if delta.forced:
            judged = f"NOT kin, forced: {kinship}"
        lines.append(f"  {delta.weight:+g} × {manifest.name} {manifest.version} ({judged})")
    lines.append(f"  {report.changed_tensors} tensors summed, {report.kept_tensors} kept as the target has them")
    if report.is_post:
        lines.append(
            f"  the target is the delta's base: the result is {report.deltas[0].package.manifest.post.name},"
            " bit for bit"
        )
    lines += [f"  left out {name} ({side}): {reason}" for name, side, reason in report.omissions]
    if report.resumed_tasks:
        lines.append(f"  resumed: {report.resumed_tasks} tasks of an interrupted run were kept")
    return "\n".join(lines)
