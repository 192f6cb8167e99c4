"""``pd-apply``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import click

from paramdelta_hub.cli.common import (
    Bars,
    command,
    emit,
    fail,
    human_bytes,
    parse_rules,
    registry_option,
    rules_option,
    tokenizer_option,
    work_options,
)
from paramdelta_hub.cli.executor_options import executor_options, run_share
from paramdelta_hub.errors import OptionError

if TYPE_CHECKING:
    from paramdelta_hub.application.apply import ApplyReport
    from paramdelta_hub.application.companions import Mode
    from paramdelta_hub.application.preview import Preview
    from paramdelta_hub.application.requantize import Dtype
    from paramdelta_hub.application.weighted_deltas import AppliedDelta
    from paramdelta_hub.checkpoints.matching import OmittedTensor
    from paramdelta_hub.tasks.runner import Executor

__all__ = ["apply", "preview_text", "report_text"]

_EXAMPLES = """
pd-apply org/new-base org/instruct-delta@1.2.0 -o new-instruct
pd-apply ./new-base ./math-delta=0.7 ./code-delta=0.5 -o merged
pd-apply org/new-base org/instruct-delta -o new-instruct --dry-run
pd-apply ./new-base ./delta -o out --weight-map '.*=0' --weight-map 'self_attn=1'
"""
_SHOWN_OMISSIONS = 20


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
@rules_option
@tokenizer_option("target")
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float8_e4m3fn"]),
    help="What the weights of an fp8 TARGET become: bfloat16 (the default), or fp8 again, with fresh scales.",
)
@click.option(
    "--companions",
    type=click.Choice(["post", "target", "none"]),
    default="post",
    show_default=True,
    help="Whose tokenizer, chat template and generation settings OUT gets; none: config.json alone.",
)
@click.option(
    "--prefer",
    type=click.Choice(["target", "post"]),
    default="target",
    show_default=True,
    help="Whose value a config gets where TARGET and post both changed it.",
)
@click.option(
    "--keep-remote-code-of-target",
    is_flag=True,
    help="Let TARGET's configs name code (auto_map), and copy its own .py files.",
)
@click.option(
    "--stream", is_flag=True, help="Fetch TARGET's files from the Hub one by one, and drop each when it is done with."
)
@registry_option
@click.option(
    "--force", is_flag=True, help="Apply although TARGET is not kin to the delta's base, or has the delta already."
)
@click.option("--overwrite", is_flag=True, help="Replace an older OUT that pd-apply made, and nothing else.")
@click.option("--dry-run", is_flag=True, help="Write nothing: say whether it fits, and what to expect of it.")
@executor_options
@work_options
def apply(
    target: str,
    deltas: tuple[str, ...],
    output: str,
    factors: tuple[str, ...],
    renames: tuple[str, ...],
    skips: tuple[str, ...],
    rule_files: tuple[str, ...],
    target_tokenizer: str | None,
    dtype: Dtype | None,
    companions: Mode,
    prefer: Literal["target", "post"],
    keep_remote_code_of_target: bool,
    stream: bool,
    registry: str | None,
    force: bool,
    overwrite: bool,
    dry_run: bool,
    executor: Executor,
    rank: int | None,
    world: int | None,
    threads: int | None,
    memory: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write OUT = TARGET + Σ WEIGHT · DELTA, keeping TARGET's shards, tensor order and metadata.

    TARGET is a folder in Hugging Face layout, a .safetensors file, or a Hub id with @revision; a DELTA is a package's
    folder, or org/name[@version] in a registry, with a weight of 1 unless given.
    """
    from paramdelta_hub.application.apply import run_apply
    from paramdelta_hub.application.preview import preview
    from paramdelta_hub.application.request import ApplyRequest
    from paramdelta_hub.application.weights import WeightMap, weighted_deltas
    from paramdelta_hub.tasks.runner import ExecutorConfig

    rules = parse_rules(renames, skips, rule_files)
    if rules.carries:
        raise OptionError("carry rules are for pd-extract: a delta has whole what was carried", remedy="leave them out")
    if dry_run and (rank is not None or world is not None):
        raise OptionError("a dry run is of the whole work, not of a rank", remedy="leave out --rank and --world")
    if stream and executor != "threads":
        raise OptionError("--stream is for threads of one process", remedy="leave out --stream, or --executor")
    request = ApplyRequest(
        target=target,
        deltas=tuple((str(each.delta), each.weight) for each in weighted_deltas(deltas)),
        weight_map=WeightMap.of(factors).rules,
        renames=rules.renames,
        skips=rules.skips,
        dtype=dtype,
        companions=companions,
        prefer=prefer,
        keep_remote_code_of_target=keep_remote_code_of_target,
        target_tokenizer=target_tokenizer,
        stream=stream,
        force=force,
    )
    config, bars = ExecutorConfig(executor, threads, memory), Bars(quiet or as_json)
    if dry_run:
        found = preview(request, output, registry=registry, overwrite=overwrite, progress=bars)
        emit(found, preview_text(found), as_json=as_json, quiet=quiet)
        if found.error:
            fail(found.error)
        return
    if run_share(
        request,
        output,
        rank,
        world,
        registry=registry,
        overwrite=overwrite,
        config=config,
        as_json=as_json,
        quiet=quiet,
    ):
        return
    report = run_apply(request, output, config, bars, registry=registry, overwrite=overwrite)
    emit(report, report_text(report), as_json=as_json, quiet=quiet)


def report_text(report: ApplyReport) -> str:
    """Return the report for people."""
    lines = [f"{report.target.name} + Δ → {report.path} ({human_bytes(report.nbytes)})"]
    lines += [_delta_text(delta) for delta in report.deltas]
    lines.append(f"  {report.changed_tensors} tensors summed, {report.kept_tensors} kept as the target has them")
    if report.is_post:
        lines.append(f"  the target is the delta's base: the result is {report.deltas[0].post.name}, bit for bit")
    if report.requantization:
        lines.append(f"  {report.requantization}")
    lines += [f"  {use}" for use in report.rules]
    lines += _omission_lines(report.omissions)
    lines += [f"  {note}" for note in report.notes]
    lines += [f"  {line}" for line in report.companions.lines()]
    if report.resumed_tasks:
        lines.append(f"  resumed: {report.resumed_tasks} tasks of an interrupted run were kept")
    return "\n".join(lines)


def preview_text(found: Preview) -> str:
    """Return what a dry run found, for people."""
    lines = [f"{found.target.name} + Δ → {found.path} ({human_bytes(found.nbytes)}): a dry run, nothing is written"]
    for delta in found.deltas:
        lines += [_delta_text(delta), f"    {delta.prediction}"]
    if len(found.deltas) > 1 or any(delta.weight != 1.0 for delta in found.deltas):
        lines.append(
            "  these are figures of one delta with weight 1; other weights and sums gave less (docs/evidence.md)"
        )
    lines.append(f"  {found.paired_tensors} tensors that a delta has, {found.kept_tensors} kept as the target has them")
    lines += [f"  {use}" for use in found.rules]
    lines += _omission_lines(found.omissions)
    lines += [f"  {note}" for note in found.notes]
    enough = "NOT enough: " if found.problem else ""
    lines.append(f"  {enough}{human_bytes(found.needed_nbytes)} needed, {human_bytes(found.free_nbytes)} free there")
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
