"""``pd-verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paramdelta_hub.cli.common import Console, command, registry_option, trust_options, work_options
from paramdelta_hub.errors import OptionError
from paramdelta_hub.fileio.durable import expand, io_errors, write_file
from paramdelta_hub.fileio.names import human_bytes, shown_names

if TYPE_CHECKING:
    from paramdelta_hub.outputs.applied_model import ResultReport
    from paramdelta_hub.verification.package import VerifyReport

_EXAMPLES = """
pd-verify ./delta
pd-verify org/name@1.2.0 --base org/base
pd-verify ./delta --base ./base --post ./post --json
pd-verify org/name@1.2.0 --trusted-key publisher.pub.pem
pd-verify ./new-model --statement new-model.intoto.json --bom new-model.cdx.json
"""


@command("verification.package.VerifyReport", "outputs.applied_model.ResultReport", examples=_EXAMPLES)
@click.argument("delta", metavar="DELTA|OUT")
@click.option("--base", help="Also prove BASE ⊕ Δ == post, bit for bit.")
@click.option("--strict", is_flag=True, help="Refuse a folder with files beside the package that nothing vouches for.")
@click.option("--post", help="Also prove that POST is the delta's post.")
@trust_options
@click.option("--statement", "statement_file", metavar="FILE", help="For OUT: write an in-toto statement (SLSA, JSON).")
@click.option("--bom", "bom_file", metavar="FILE", help="For OUT: write a CycloneDX bill of materials (JSON).")
@click.option("--overwrite", is_flag=True, help="Replace FILE if it is an older statement or bill of materials.")
@registry_option
@work_options
def verify(
    delta: str,
    statement_file: str | None,
    bom_file: str | None,
    overwrite: bool,
    registry: str | None,
    threads: int | None,
    memory: int,
    console: Console,
    **options: Any,
) -> None:
    """Check every byte of the package DELTA and decode every chunk. With --base, prove that it is exact.

    DELTA is a folder, or org/name[@version] in a registry. For OUT, a model that pd-apply made, check every tensor
    and every other file against paramdelta_provenance.json.
    """
    from paramdelta_hub.outputs.applied_model import is_allowed_extra, is_result, verify_result
    from paramdelta_hub.outputs.replacing import check_output_file
    from paramdelta_hub.verification import attestations
    from paramdelta_hub.verification.package import verify as run

    progress = console.progress()
    if is_result(expand(delta)):
        _refuse(delta, "a model that pd-apply made", *options.values())
        files = (
            (statement_file, attestations.statement, attestations.is_statement),
            (bom_file, attestations.bill_of_materials, attestations.is_bill_of_materials),
        )
        asked = [(file, make, is_ours) for file, make, is_ours in files if file]
        for file, _, is_ours in asked:
            _check_place(expand(delta), expand(file))
            check_output_file(file, is_ours, overwrite=overwrite, beside=is_allowed_extra(expand(file).name))
        result = verify_result(delta, digest_files=bool(asked), threads=threads, memory=memory, progress=progress)
        # Both are made before one is written: a library may be missing.
        made = [(file, make(result), is_ours) for file, make, is_ours in asked]
        for file, text, is_ours in made:
            place = check_output_file(file, is_ours, overwrite=overwrite, beside=is_allowed_extra(expand(file).name))
            with io_errors("writing"):
                write_file(place, text)
        console.emit(result, _result_text(result))
        return
    _refuse(delta, "not a model that pd-apply made", statement_file, bom_file, overwrite)
    report = run(delta, registry=registry, threads=threads, memory=memory, progress=progress, **options)
    console.emit(report, _text(report))


def _refuse(where: str, what: str, *options: object) -> None:
    if any(options):
        what = f"this is {what}; some of the options can't be used with it"
        raise OptionError(what, where=where, remedy="see --help")


def _check_place(folder: Path, file: Path) -> None:
    from paramdelta_hub.outputs.applied_model import is_allowed_extra

    if file.resolve().is_relative_to(folder.resolve()) and not is_allowed_extra(file.name):
        raise OptionError(
            "can't be written into the model's folder, because the provenance does not list it",
            where=str(file),
            remedy="choose another folder, or a name that ends in .intoto.json or .cdx.json",
        )


def _text(report: VerifyReport) -> str:
    lines = [
        f"{report.path}: complete ({report.files} files, {report.tensors} tensors, {report.elements:,} elements)",
        f"  id    {report.id}",
    ]
    if report.beside:
        lines.append(f"  beside the package, not vouched for: {shown_names(report.beside, 10)}")
    if report.signed_by:
        lines.append(f"  sig   by {report.signed_by}")
    if report.checked_base:
        proved = "base ⊕ Δ == post, bit for bit"
        if report.left_out:
            proved += f", but for {report.left_out} tensor(s) that the delta leaves out"
        lines.append(f"  base  is the delta's base, and {proved}")
    if report.checked_post:
        lines.append("  post  is the delta's post")
    return "\n".join(lines)


def _result_text(report: ResultReport) -> str:
    provenance = report.provenance
    beside, commit = len(provenance.companions.files), provenance.target.commit
    lines = [
        f"{report.path}: matches its provenance ({len(provenance.tensors)} tensors, "
        f"{human_bytes(report.nbytes)}, {beside} other files)",
        f"  target  {provenance.target.name}{f' at {commit[:12]}' if commit else ''}",
    ]
    for delta in provenance.deltas:
        forced = ", NOT kin, forced" if delta.lineage.forced else ""
        lines.append(f"  delta   {delta.weight:+g} × {delta.name} {delta.version} (id {delta.id[:16]}…{forced})")
    lines.append(f"  by      {provenance.created_by}")
    return "\n".join(lines)
