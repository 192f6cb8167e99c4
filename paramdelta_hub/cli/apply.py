"""``pd-apply``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from paramdelta_hub.cli.common import Console, command, registry_option, rules_options, tokenizer_option
from paramdelta_hub.cli.executor_options import Work, executor_options
from paramdelta_hub.errors import OptionError
from paramdelta_hub.fileio.names import human_bytes

if TYPE_CHECKING:
    from paramdelta_hub.application.apply import ApplyReport
    from paramdelta_hub.application.kinship import AppliedDelta
    from paramdelta_hub.application.preview import Preview
    from paramdelta_hub.checkpoints.matching.by_name import OmittedTensor
    from paramdelta_hub.checkpoints.rules.tensor_rules import Rules

_EXAMPLES = """
pd-apply org/new-base org/instruct-delta@1.2.0 -o new-instruct
pd-apply ./new-base ./math-delta=0.7 ./code-delta=0.5 -o merged
pd-apply org/new-base org/instruct-delta -o new-instruct --dry-run
pd-apply ./new-base ./delta -o out --weight-map '.*=0' --weight-map 'self_attn=1'
"""
_SHOWN_OMISSIONS = 20


@command("application.apply.ApplyReport", "application.preview.Preview", "ranks.RankReport", examples=_EXAMPLES)
@click.argument("target")
@click.argument("deltas", nargs=-1, required=True, metavar="DELTA[=WEIGHT]...")
@click.option("-o", "--output", required=True, metavar="OUT", help="Folder of the new model.")
@click.option(
    "--weight-map",
    multiple=True,
    metavar="REGEX=W",
    help="Multiply the deltas of matching tensors by W. The last match counts. 0 keeps TARGET's tensor.",
)
@rules_options(
    layout="Stack, cut, join or transpose the delta's tensors to TARGET's, as in 'transpose c_attn.weight'.",
    rename="Rename the delta's tensors to TARGET's.",
    skip="Keep tensors as TARGET has them.",
    partial="Add to the leading part of matching tensors that have another size in TARGET.",
)
@tokenizer_option("target")
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32", "float8_e4m3fn"]),
    help="Dtype of OUT's float tensors. The default is TARGET's; of an fp8 TARGET, bfloat16. fp8 gets new scales.",
)
@click.option(
    "--companions",
    type=click.Choice(["post", "target", "none"]),
    default="post",
    show_default=True,
    help="Where OUT's tokenizer, chat template and generation settings come from. none: only config.json.",
)
@click.option(
    "--prefer",
    type=click.Choice(["target", "post"]),
    default="target",
    show_default=True,
    help="Which value to use in a config if TARGET and post both changed it.",
)
@click.option(
    "--keep-remote-code-of-target",
    is_flag=True,
    help="Allow references to code (auto_map) in TARGET's configs, and copy TARGET's .py files.",
)
@click.option(
    "--stream", is_flag=True, help="Download TARGET's files from the Hub one at a time, and delete each after use."
)
@registry_option
@click.option(
    "--force", is_flag=True, help="Apply even if TARGET is not kin to the delta's base, or already has the delta."
)
@click.option("--overwrite", is_flag=True, help="Replace OUT if pd-apply made it and it is unchanged.")
@click.option("--dry-run", is_flag=True, help="Write nothing. Print whether the delta fits, and the expected transfer.")
@executor_options
def apply(
    output: str,
    rules: Rules,
    registry: str | None,
    overwrite: bool,
    dry_run: bool,
    work: Work,
    console: Console,
    **options: Any,
) -> None:
    """Write OUT = TARGET + Σ WEIGHT · DELTA, with TARGET's shards, tensor order and metadata.

    TARGET is a folder in Hugging Face layout, a .safetensors file, or a Hub id with an optional @revision. DELTA is a
    package's folder, or org/name[@version] in a registry. The default WEIGHT is 1.
    """
    from paramdelta_hub.application.apply import check_stream, run_apply
    from paramdelta_hub.application.preview import preview
    from paramdelta_hub.application.request import ApplyRequest, rule_fields

    request = ApplyRequest(**rule_fields(rules), **options)
    if dry_run and work.rank is not None:
        raise OptionError("--dry-run is for the whole work, not for a rank", remedy="remove --rank and --world")
    check_stream(request, work.config)
    if dry_run:
        found = preview(request, output, registry=registry, overwrite=overwrite, progress=console.progress())
        console.emit(found, preview_text(found))
        if found.error:
            console.fail(found.error, reported=True)
        return
    if work.run_rank(request, output, console, registry=registry, overwrite=overwrite):
        return
    report = run_apply(request, output, work.config, console.progress(), registry=registry, overwrite=overwrite)
    console.emit(report, report_text(report))


def report_text(report: ApplyReport) -> str:
    """Return the report for people."""
    lines = [f"{report.target.name} + Δ → {report.path} ({human_bytes(report.nbytes)})"]
    lines += [_delta_text(delta) for delta in report.deltas]
    lines.append(f"  {report.changed_tensors} tensors summed, {report.kept_tensors} kept from the target")
    if report.is_post:
        [delta] = report.deltas
        result = f"{delta.post.name}, bit for bit{delta.package.manifest.but_left_out}"
        lines.append(f"  the target is the delta's base, so the result is {result}")
    if report.requantization:
        lines.append(f"  {report.requantization}")
    lines += [f"  {use}" for use in report.rules]
    lines += _omission_lines(report.omissions)
    lines += [f"  {note}" for note in report.notes]
    lines += [f"  {line}" for line in report.companions.lines()]
    if report.resumed_tasks:
        lines.append(f"  resumed: {report.resumed_tasks} tasks were done by an interrupted run")
    return "\n".join(lines)


def preview_text(found: Preview) -> str:
    """Return what a dry run found, for people."""
    lines = [f"{found.target.name} + Δ → {found.path} ({human_bytes(found.nbytes)}), dry run: nothing is written"]
    for delta in found.deltas:
        lines += [_delta_text(delta), f"    {delta.prediction}"]
    if len(found.deltas) > 1 or any(delta.weight != 1.0 for delta in found.deltas):
        lines.append(
            "  measured with one delta of weight 1; other weights and sums transferred less (docs/evidence.md)"
        )
    lines.append(f"  {found.paired_tensors} tensors to sum, {found.kept_tensors} kept from the target")
    lines += [f"  {use}" for use in found.rules]
    lines += _omission_lines(found.omissions)
    lines += [f"  {note}" for note in found.notes]
    enough = "NOT enough: " if found.problem else ""
    lines.append(f"  {enough}{human_bytes(found.needed_nbytes)} needed, {human_bytes(found.free_nbytes)} free")
    return "\n".join(lines)


def _delta_text(delta: AppliedDelta) -> str:
    kinship = delta.kinship
    judged = "same values as base" if kinship.same_values else f"kin to base: {kinship}"
    if delta.lineage.forced:
        judged = f"NOT kin, forced: {kinship}"
    return f"  {delta.weight:+g} × {delta.name} {delta.version} ({judged})"


def _omission_lines(omissions: Sequence[OmittedTensor]) -> list[str]:
    lines = [f"  left out {item.name} ({item.side}): {item.reason}" for item in omissions[:_SHOWN_OMISSIONS]]
    if len(omissions) > _SHOWN_OMISSIONS:  # an fp8 model has a scale for every weight
        lines.append(f"  left out … and {len(omissions) - _SHOWN_OMISSIONS} more (all of them with --json)")
    return lines
