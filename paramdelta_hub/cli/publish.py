"""``pd-publish``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from paramdelta_hub.cli.common import Console, command, publish_options, registry_option
from paramdelta_hub.environment import PASSWORD_VARIABLE
from paramdelta_hub.fileio.names import human_bytes

if TYPE_CHECKING:
    from paramdelta_hub.registry.protocol import Published

_EXAMPLES = """
pd-publish ./delta org/name
pd-publish ./delta org/name --dry-run
pd-publish ./delta org/name --private --message "Better at code"
pd-publish ./delta org/name --sign key.pem
pd-publish ./delta ./registry/org/name
pd-publish ./delta org/name --registry s3://bucket/deltas
"""


@command("registry.protocol.Published", examples=_EXAMPLES)
@click.argument("delta")
@click.argument("repo")
@click.option("--version", help="Expected version of the package. If it differs, nothing is published.")
@registry_option
@publish_options
@click.option("--message", help="Message of the commit on the Hub.")
@click.option(
    "--sign", metavar="KEY", help=f"Sign with this EC private key (PEM). Its password is in ${PASSWORD_VARIABLE}."
)
@click.option(
    "--replace-edits",
    is_flag=True,
    help="Let the new card replace what was edited by hand where the two can't both stay. Without it, that is refused.",
)
@click.option("--dry-run", is_flag=True, help="Send nothing. Print what would be uploaded, and how the card changes.")
def publish(console: Console, **options: Any) -> None:
    """Publish the package in the folder DELTA as a version of REPO, with a new model card.

    REPO is org/name, or a folder or URL that ends in it. hf://org/name is always the Hub. The command prints the
    destination, and who can see it, before it sends anything. A published version is never replaced. Publishing the
    same content again does nothing.

    A part of the card is generated, between `delta` markers. Everything else on it is yours, and keeps its bytes:
    text and metadata of the published card, and what DELTA's README.md adds to them. Changes of it are printed before
    they are committed. DELTA is only read.
    """
    from paramdelta_hub.registry.publish import publish as run

    published = run(**options, progress=console.progress(with_json=True))
    console.emit(published, published_text(published))


def published_text(published: Published) -> str:
    """Return the report for people."""
    name = f"{published.repo} {published.version}"
    if published.dry_run:
        return _planned_text(published, name)
    if published.pull_request:
        lines = [f"{name} proposed: {published.pull_request}"]
        lines.append("  to make it a version, merge the pull request, then let an owner publish it again")
    elif published.uploaded:
        lines = [f"{name} published: {published.url}"]
    else:
        lines = [f"{name} is already published with the same content; nothing was changed: {published.url}"]
    lines.append(f"  id        {published.id}")
    if published.revision not in (published.id, published.version):
        lines.append(f"  revision  {published.revision}")
    lines += [f"  {note}" for note in published.notes]
    return "\n".join(lines)


def _planned_text(published: Published, name: str) -> str:
    if published.uploaded:
        size = human_bytes(sum(file.size for file in published.files))
        lines = [f"{name} would be published: {published.url}", f"  id        {published.id}", f"  upload    {size}"]
        lines += [f"    {human_bytes(file.size):>8}  {file.path}" for file in published.files]
    else:
        lines = [f"{name} is already published with the same content: {published.url}", f"  id        {published.id}"]
    lines.append(f"  newest    {'yes' if published.newest else 'no: another version stays the newest'}")
    lines += [f"  {note}" for note in published.notes]
    changes = f"\n\n{published.card_changes.rstrip()}" if published.card_changes else ""
    return "\n".join(lines) + changes + "\n\nnothing was changed (--dry-run)"
