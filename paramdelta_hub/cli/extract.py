"""``pd-extract``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from paramdelta_hub.cli.common import (
    Console,
    command,
    gather,
    publish_options,
    registry_option,
    rules_options,
    tokenizer_option,
)
from paramdelta_hub.cli.executor_options import Work, executor_options
from paramdelta_hub.cli.publish import published_text
from paramdelta_hub.errors import OptionError, PublishError, RegistryError, SourceError
from paramdelta_hub.fileio.names import human_bytes

if TYPE_CHECKING:
    from paramdelta_hub.checkpoints.rules.tensor_rules import Rules
    from paramdelta_hub.extraction.extract import ExtractReport
    from paramdelta_hub.extraction.request import ExtractRequest
    from paramdelta_hub.registry.locate import Reference
    from paramdelta_hub.registry.protocol import Published, Registry

_EXAMPLES = """
pd-extract org/base org/base-instruct -o instruct-delta
pd-extract ./base ./post -o delta --name my-delta --version 1.2.0 --license apache-2.0
pd-extract org/base org/base-instruct -o instruct-delta --version 1.1.0 --publish org/instruct-delta
pd-extract org/base org/base-lora -o lora-delta
pd-extract ./bert ./classifier -o delta --rename '^bert\\.=' --skip '^classifier\\.'
"""


@dataclass(frozen=True)
class Publication:
    """Where the package is published when it is made; nowhere without ``--publish``."""

    repo: str | None
    registry: str | None
    private: bool
    create_pr: bool

    def check(self, request: ExtractRequest, work: Work) -> None:
        """Check before the work whether the package can be published."""
        from paramdelta_hub.registry.locate import find_to_publish
        from paramdelta_hub.registry.stores.registry import check_options

        if self.repo is None:
            if self.private or self.create_pr:
                raise OptionError("--private and --create-pr need --publish", remedy="add --publish REPO")
            return
        there, reference = find_to_publish(self.repo, self.registry)
        _check_published(there, reference, request)
        if reference.root is not None:
            check_options(private=self.private, create_pr=self.create_pr)
        if work.rank is not None:
            raise OptionError("--publish can't be used with --rank", remedy="run pd-publish after `paramdelta commit`")

    def publish(self, report: ExtractReport, repo: str, output: str, console: Console) -> Published:
        """Publish the package. If that fails, the error says that the package is complete."""
        from paramdelta_hub.registry.publish import publish

        try:
            return publish(
                report.path,
                repo,
                registry=self.registry,
                private=self.private,
                create_pr=self.create_pr,
                progress=console.progress(with_json=True),
            )
        except (OptionError, RegistryError, SourceError) as error:
            remedy = f"the package is complete; to publish it later: pd-publish {output} {repo}"
            error.remedy = f"{error.remedy}; {remedy}" if error.remedy else remedy
            raise


def _check_published(there: Registry, reference: Reference, request: ExtractRequest) -> None:
    """Check the version that REPO names, and that a published one has the labels that this one will have."""
    from paramdelta_hub.package.labels import check_license
    from paramdelta_hub.package.package import open_package

    if reference.revision not in (None, request.version):
        raise OptionError(
            f"--publish names version {reference.revision}, but the delta is version {request.version}",
            where=str(reference),
            remedy=f"remove @{reference.revision}, or give --version {reference.revision}",
        )
    try:
        published = open_package(there.pull(reference.repo, request.version, part="manifest").path).manifest
    except (RegistryError, SourceError):
        return  # not there, or it can't be read now
    wanted = (request.name or published.name, check_license(request.license) if request.license else published.license)
    if wanted != (published.name, published.license):
        raise PublishError(
            f"{reference.repo} {request.version} is published already,"
            f" as {published.name!r}, license {published.license}",
            where=str(reference),
            remedy="give a higher --version",
        )


@command("extraction.extract.ExtractReport", "ranks.RankReport", examples=_EXAMPLES)
@click.argument("base")
@click.argument("post")
@click.option("-o", "--output", required=True, metavar="DELTA", help="Folder of the new package.")
@click.option("--name", help="Name of the delta [default: from POST].")
@click.option("--version", default="1.0.0", show_default=True, help="Semantic version of the delta.")
@click.option("--license", help="License: an SPDX expression, or the Hub's name for it.")
@rules_options(
    layout="Stack, cut, join or transpose POST's tensors to BASE's, as in 'stack experts.*.w1.weight -> experts.w1'.",
    rename="Rename POST's tensors, by regex.",
    skip="Leave out tensors. The manifest records them.",
    carry="Store matching tensors whole if only POST has them.",
    partial="Use the leading part of matching tensors that are larger in POST.",
)
@click.option(
    "--cast",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    help="Read both models in this dtype, rounded once. Without it, the delta is exact whatever their dtypes are.",
)
@tokenizer_option("base")
@tokenizer_option("post")
@click.option("--hash-files", is_flag=True, help="Record the sha256 of local weight files. Reads both models twice.")
@click.option("--publish", "repo", metavar="REPO", help="Publish DELTA afterwards, as pd-publish does.")
@registry_option
@publish_options
@click.option("--force", is_flag=True, help="Extract even if POST does not descend from BASE.")
@click.option("--overwrite", is_flag=True, help="Replace DELTA if it is an unchanged package.")
@executor_options
@gather(publication=Publication)
def extract(
    output: str,
    rules: Rules,
    publication: Publication,
    overwrite: bool,
    work: Work,
    console: Console,
    **options: Any,
) -> None:
    """Extract the delta POST − BASE into a package, and prove that BASE ⊕ Δ == POST, bit for bit.

    BASE and POST are folders in Hugging Face layout, .safetensors files, or Hub ids with an optional @revision.
    POST can also be a LoRA adapter of BASE: a PEFT folder, or a file of PEFT, diffusers or kohya.
    """
    from paramdelta_hub.extraction.extract import Extraction
    from paramdelta_hub.extraction.request import ExtractRequest
    from paramdelta_hub.outputs.replacing import check_new
    from paramdelta_hub.tasks.runner import complete

    request = ExtractRequest(**rules.fields, **options)
    publication.check(request, work)
    check_new(output, overwrite=overwrite)
    if work.run_rank(request, output, console, registry=publication.registry, overwrite=overwrite):
        return
    report = complete(Extraction(request), output, work.config, console.progress(), overwrite=overwrite)
    text = report_text(report)
    if publication.repo is not None:
        published = publication.publish(report, publication.repo, output, console)
        report = report.model_copy(update={"published": published})
        text = f"{text}\n{published_text(published)}"
    console.emit(report, text)


def report_text(report: ExtractReport) -> str:
    """Return the report for people."""
    exactness = report.exactness
    size = f"{human_bytes(report.nbytes)}, {report.ratio or 0.0:.1%} of the model's {human_bytes(report.model_nbytes)}"
    lines = [
        f"{report.name} {report.version} → {report.path}",
        f"  Δ        {report.manifest.post.name} − {report.manifest.base.name}",
        f"  size     {size}",
        f"  exact    base ⊕ Δ == post in all {exactness.elements:,} elements",
    ]
    lines += [f"  rule     {use}" for use in report.rules]
    lines += [f"  left out {item.name} ({item.side}): {item.reason}" for item in report.omissions]
    lines += [f"  {note}" for note in report.notes]
    if report.resumed_tasks:
        lines.append(f"  resumed  {report.resumed_tasks} tasks were done by an interrupted run")
    return "\n".join(lines)
