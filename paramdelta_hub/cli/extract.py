"""``pd-extract``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from paramdelta_hub.cli.common import (
    Bars,
    command,
    emit,
    human_bytes,
    parse_rules,
    publish_options,
    registry_option,
    rules_option,
    tokenizer_option,
    work_options,
)
from paramdelta_hub.cli.executor_options import executor_options, run_share
from paramdelta_hub.cli.publish import published_text
from paramdelta_hub.errors import OptionError, PublishError, RegistryError, SourceError

if TYPE_CHECKING:
    from paramdelta_hub.extraction.extract import ExtractReport
    from paramdelta_hub.registry.protocol import Registry
    from paramdelta_hub.registry.reference import Reference
    from paramdelta_hub.tasks.runner import Executor

__all__ = ["extract", "report_text"]

_EXAMPLES = """
pd-extract org/base org/base-instruct -o instruct-delta
pd-extract ./base ./post -o delta --name my-delta --version 1.2.0 --license apache-2.0
pd-extract org/base org/base-instruct -o instruct-delta --version 1.1.0 --publish org/instruct-delta
pd-extract ./bert ./classifier -o delta --rename '^bert\\.=' --skip '^classifier\\.'
"""


@command(examples=_EXAMPLES)
@click.argument("base")
@click.argument("post")
@click.option("-o", "--output", required=True, metavar="DELTA", help="Folder of the new package.")
@click.option("--name", help="Name of the delta [default: after POST].")
@click.option("--version", default="1.0.0", show_default=True, help="Semantic version of the delta.")
@click.option("--license", "license_name", help="License: an SPDX expression, or the Hub's name for it.")
@click.option("--rename", "renames", multiple=True, metavar="OLD=NEW", help="Rename POST's tensors, by regex.")
@click.option("--skip", "skips", multiple=True, metavar="REGEX", help="Leave tensors out; recorded in the manifest.")
@click.option("--carry", "carries", multiple=True, metavar="REGEX", help="Take tensors that only POST has whole.")
@rules_option
@tokenizer_option("base")
@tokenizer_option("post")
@click.option("--hash-files", is_flag=True, help="Record sha256 of local weight files: reads both models twice.")
@click.option("--publish", "repo", metavar="REPO", help="Then publish DELTA, as pd-publish does.")
@registry_option
@publish_options
@click.option("--overwrite", is_flag=True, help="Replace an older package at DELTA, and nothing else.")
@executor_options
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
    carries: tuple[str, ...],
    rule_files: tuple[str, ...],
    base_tokenizer: str | None,
    post_tokenizer: str | None,
    hash_files: bool,
    repo: str | None,
    registry: str | None,
    private: bool,
    create_pr: bool,
    overwrite: bool,
    executor: Executor,
    rank: int | None,
    world: int | None,
    threads: int | None,
    memory: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Extract the delta POST − BASE into a package, proving BASE ⊕ Δ == POST bit for bit.

    BASE and POST are folders in Hugging Face layout, .safetensors files, or Hub ids with @revision.
    """
    from paramdelta_hub.extraction.extract import Extraction
    from paramdelta_hub.extraction.request import ExtractRequest
    from paramdelta_hub.outputs.replacing import check_new
    from paramdelta_hub.registry.locate import find_to_publish
    from paramdelta_hub.registry.publish import publish
    from paramdelta_hub.registry.stores.registry import check_options
    from paramdelta_hub.tasks.runner import ExecutorConfig, complete

    rules = parse_rules(renames, skips, rule_files, carries)
    if repo is None and (private or create_pr):
        raise OptionError("--private and --create-pr are of no use without --publish", remedy="give --publish REPO")
    if repo is not None:  # what can't be published is told now, not after the work
        there, reference = find_to_publish(repo, registry)
        _check_publication(there, reference, version, name, license_name)
        if reference.root is not None:
            check_options(private=private, create_pr=create_pr)
    if repo is not None and rank is not None:
        raise OptionError("a rank makes no package to publish", remedy="publish it with pd-publish after the commit")
    request = ExtractRequest(
        base=base,
        post=post,
        name=name,
        version=version,
        license=license_name,
        renames=rules.renames,
        skips=rules.skips,
        carries=rules.carries,
        base_tokenizer=base_tokenizer,
        post_tokenizer=post_tokenizer,
        hash_files=hash_files,
    )
    config = ExecutorConfig(executor, threads, memory)
    check_new(output, overwrite=overwrite)
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
    report = complete(Extraction(request), output, config, Bars(quiet or as_json), overwrite=overwrite)
    text = report_text(report)
    if repo is not None:
        try:
            published = publish(
                report.path,
                repo,
                registry=registry,
                private=private,
                create_pr=create_pr,
                progress=Bars(quiet),
            )
        except RegistryError as error:
            remedy = f"the package is whole; when that is mended: pd-publish {output} {repo}"
            error.remedy = f"{error.remedy}; {remedy}" if error.remedy else remedy
            raise
        report, text = report.model_copy(update={"published": published}), f"{text}\n{published_text(published)}"
    emit(report, text, as_json=as_json, quiet=quiet)


def _check_publication(
    there: Registry, reference: Reference, version: str, name: str | None, license_name: str | None
) -> None:
    """Check that the version is the one that REPO names, and not published with labels that this one will not have.

    Raises:
        OptionError: REPO names another version.
        PublishError: the version is there, under another name or license.
    """
    from paramdelta_hub.package.labels import check_license
    from paramdelta_hub.package.package import open_package

    if reference.revision not in (None, version):
        raise OptionError(
            f"--publish names {reference.revision}, and the delta will be version {version}",
            where=str(reference),
            remedy=f"leave @{reference.revision} out, or give --version {reference.revision}",
        )
    try:
        published = open_package(there.pull(reference.repo, version, part="manifest").path).manifest
    except (RegistryError, SourceError):
        return  # not there, or nobody can tell now
    wanted = (name or published.name, check_license(license_name) if license_name else published.license)
    if wanted != (published.name, published.license):
        raise PublishError(
            f"{reference.repo} {version} is published already, as {published.name!r}, license {published.license}",
            where=str(reference),
            remedy="give a higher --version",
        )


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
        lines.append(f"  resumed  {report.resumed_tasks} tasks of an interrupted run were kept")
    return "\n".join(lines)
