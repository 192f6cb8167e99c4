"""``pd-inspect``."""

from __future__ import annotations

import click

from paramdelta_hub.cli.common import command, emit, human_bytes, registry_option
from paramdelta_hub.format.manifest import Source
from paramdelta_hub.operations.inspect import InspectReport, relative_change
from paramdelta_hub.operations.inspect import inspect as run

__all__ = ["inspect"]

_EXAMPLES = """
pd-inspect ./delta
pd-inspect ./delta --top 30
pd-inspect org/name@1.2.0 --json
"""


@command(examples=_EXAMPLES)
@click.argument("delta")
@click.option("--top", type=click.IntRange(min=0), default=10, show_default=True, help="Changed tensors to list.")
@registry_option
def inspect(delta: str, top: int, registry: str | None, as_json: bool, quiet: bool) -> None:
    """Show what the package DELTA is: sources, architecture, exactness, size, and the most changed tensors.

    DELTA is a folder, or org/name[@version] in a registry; of the latter only the manifest is fetched.
    """
    report = run(delta, registry=registry)
    emit(report.to_json(most_changed=top), _text(report, top), as_json=as_json, quiet=quiet)


def _text(report: InspectReport, top: int) -> str:
    manifest, exactness = report.manifest, report.manifest.exactness
    architecture = manifest.architecture
    classes = ", ".join(architecture.classes) or "unknown class"
    unchanged = sum(not tensor.changed for tensor in manifest.tensors)
    ratio = report.nbytes / report.model_nbytes if report.model_nbytes else 0.0
    share = exactness.changed / exactness.elements if exactness.elements else 0.0
    lines = [
        f"{manifest.name} {manifest.version}" + (f" ({manifest.license})" if manifest.license else ""),
        f"  id            {report.id}",
        f"  base          {_source(manifest.base)}",
        f"  post          {_source(manifest.post)}",
        f"  architecture  {architecture.model_type or 'unknown type'}: {classes}",
        f"  fingerprint   {architecture.fingerprint[:16]}…",
        f"  size          {human_bytes(report.nbytes)}, {ratio:.1%} of the model's {human_bytes(report.model_nbytes)}",
        f"  exact         base ⊕ Δ == post in all {exactness.elements:,} elements, {share:.1%} of them changed",
        f"  tensors       {len(manifest.tensors)}, {unchanged} unchanged",
    ]
    lines += [f"  left out      {item.name} ({item.side}): {item.reason}" for item in manifest.omissions]
    if changed := report.most_changed(top):
        width = max(len(tensor.name) for tensor in changed)
        lines += ["", f"  {'most changed':<{width}}  |Δ|/|base|  changed  shape"]
        lines += [
            f"  {tensor.name:<{width}}  {relative_change(tensor):>9.2%}  {tensor.changed / tensor.elements:>7.1%}"
            f"  {'×'.join(map(str, tensor.shape)) or 'scalar'} {tensor.dtype}"
            for tensor in changed
        ]
    return "\n".join(lines)


def _source(source: Source) -> str:
    parameters = sum(source.dtypes.values())
    dtypes = "/".join(source.dtypes)
    where = f"@{source.commit[:12]}" if source.commit else " (local)"
    return f"{source.name}{where}, {parameters:,} parameters, {dtypes}"
