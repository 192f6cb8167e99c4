"""``pd-inspect``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import click

from paramdelta_hub.cli.common import Console, command, registry_option, table
from paramdelta_hub.errors import OptionError
from paramdelta_hub.fileio.names import human_bytes
from paramdelta_hub.limits import COMPARED_DELTAS, SPECTRUM_MATRICES

if TYPE_CHECKING:
    from paramdelta_hub.package.manifest import Source
    from paramdelta_hub.reports.agreement import Comparison
    from paramdelta_hub.reports.inspect import InspectReport

_EXAMPLES = """
pd-inspect ./delta
pd-inspect ./delta --top 30
pd-inspect ./delta --html report.html
pd-inspect org/name@1.2.0 --json
pd-inspect ./math-delta ./code-delta --html together.html
"""


@command("reports.inspect.InspectReport", "reports.agreement.Comparison", examples=_EXAMPLES)
@click.argument("deltas", metavar="DELTA [DELTA]...", nargs=-1, required=True)
@click.option(
    "--top", type=click.IntRange(min=0), default=10, show_default=True, help="Number of most changed tensors to list."
)
@click.option("--html", metavar="FILE", help="Also write the report as one self-contained page.")
@click.option("--overwrite", is_flag=True, help="Replace FILE if it is an unedited report.")
@click.option(
    "--samples",
    type=click.IntRange(0, SPECTRUM_MATRICES),
    help="Matrices to decode for their effective rank [default: 16 with --html if the weights are local, else 0].",
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="Tensors to compare at a time [default: number of processors]."
)
@registry_option
def inspect(
    deltas: tuple[str, ...],
    top: int,
    html: str | None,
    overwrite: bool,
    samples: int | None,
    threads: int | None,
    registry: str | None,
    console: Console,
) -> None:
    """Show the sources, architecture, exactness and size of the package DELTA, and its most changed tensors.

    Given several deltas, compare them: the cosines and the share of opposite signs, layer by layer.

    DELTA is a folder, or org/name[@version] in a registry. From a registry, only the manifest is downloaded, unless
    you compare several deltas or give --samples.
    """
    from paramdelta_hub.reports.inspect import check_report, compare, write_report
    from paramdelta_hub.reports.inspect import inspect as run

    if html:
        check_report(html, overwrite=overwrite)
    report: InspectReport | Comparison
    if len(deltas) == 1:
        wanted = samples if samples is not None else None if html else 0
        report = run(deltas[0], registry=registry, samples=wanted).model_copy(update={"top": top})
        text = _text(report)
    else:
        if len(deltas) > COMPARED_DELTAS:
            remedy = f"give at most {COMPARED_DELTAS}"
            raise OptionError(f"{len(deltas)} deltas are too many to compare", remedy=remedy)
        if samples:
            raise OptionError("--samples is for one delta", remedy="inspect one delta at a time")
        report = compare(deltas, registry=registry, threads=threads, progress=console.progress(with_json=True))
        text = _compared(report, deltas)
    if html:
        reference = deltas[0] if len(deltas) == 1 else None
        written = write_report(report, html, reference=reference, overwrite=overwrite)
        report = report.model_copy(update={"html": written})
        text += f"\n\nwritten  {html}"
    console.emit(report, text)


def _compared(comparison: Comparison, deltas: tuple[str, ...]) -> str:
    from paramdelta_hub.reports.comparison_page import layer_table, pair_labels
    from paramdelta_hub.reports.pages import figure

    labels = pair_labels(comparison)
    lines = [
        f"{letter}  {package.manifest.name} {package.manifest.version}  ({delta})"
        for letter, package, delta in zip("ABCDEF", comparison.packages, deltas, strict=False)
    ]
    lines.append(f"\n{comparison.tensors:,} tensors, {comparison.elements:,} weights in common")
    if comparison.same_base_tensors < comparison.tensors:
        lines.append(f"different bases: {comparison.tensors - comparison.same_base_tensors:,} of these tensors")
    if comparison.omissions:
        names = ", ".join(omission.name for omission in comparison.omissions[:3])
        more = ", …" if len(comparison.omissions) > 3 else ""
        lines.append(f"left out: {len(comparison.omissions)} ({names}{more})")
    rows = [
        (label, figure(a.cosine, ".4f"), f"{a.moved_by_both:,}", figure(a.opposite_signs, ".1%"))
        for label, a in zip(labels, comparison.pairs, strict=True)
    ]
    lines += ["", table(("pair", "cosine", "changed by both", "opposite signs"), rows)]
    heads, by_layer = layer_table(comparison)
    return "\n".join([*lines, "", table(["layer", *heads], by_layer)])


def _text(report: InspectReport) -> str:
    exactness, architecture = report.exactness, report.architecture
    classes = ", ".join(architecture.classes) or "unknown class"
    share = exactness.changed / exactness.elements if exactness.elements else 0.0
    size = f"{human_bytes(report.nbytes)}, {report.ratio or 0.0:.1%} of the model's {human_bytes(report.model_nbytes)}"
    lines = [
        f"{report.name} {report.version}" + (f" ({report.license})" if report.license else ""),
        f"  id            {report.id}",
        *(f"  relabeled     from {e.name} {e.version} (id {e.id[:16]}…)" for e in reversed(report.relabeled_from)),
        f"  base          {_source(report.base)}",
        f"  post          {_source(report.post)}",
        f"  architecture  {architecture.model_type or 'unknown type'}: {classes}",
        f"  fingerprint   {architecture.fingerprint[:16]}…",
        f"  size          {size}",
        f"  exact         base ⊕ Δ == post in all {exactness.elements:,} elements, {share:.1%} of them changed",
        f"  tensors       {report.tensors}, {report.unchanged_tensors} unchanged",
    ]
    lines += [f"  left out      {item.name} ({item.side}): {item.reason}" for item in report.omissions]
    if changed := report.most_changed:
        width = max(len(tensor.name) for tensor in changed)
        lines += ["", f"  {'most changed':<{width}}  |Δ|/|base|  changed  shape"]
        lines += [
            f"  {tensor.name:<{width}}  {math.inf if tensor.relative_change is None else tensor.relative_change:>9.2%}"
            f"  {tensor.changed:>7.1%}  {'×'.join(map(str, tensor.shape)) or 'scalar'} {tensor.dtype}"
            for tensor in changed
        ]
    if report.spectra:
        width = max(len(spectrum.name) for spectrum in report.spectra)
        lines += ["", f"  {'sampled':<{width}}  effective rank  of noise"]
        lines += [f"  {s.name:<{width}}  {s.effective_rank:>14.1f}  {s.noise_rank:>8.1f}" for s in report.spectra]
    return "\n".join(lines)


def _source(source: Source) -> str:
    parameters = sum(source.dtypes.values())
    dtypes = "/".join(source.dtypes)
    where = f"@{source.commit[:12]}" if source.commit else " (local)"
    return f"{source.name}{where}, {parameters:,} parameters, {dtypes}"
