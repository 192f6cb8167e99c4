"""The command line: parse, call an operation, print. Each command is ``paramdelta VERB`` and ``pd-VERB``."""

from __future__ import annotations

import click

from paramdelta_hub.__about__ import __version__
from paramdelta_hub.cli.apply import apply
from paramdelta_hub.cli.catalog import catalog
from paramdelta_hub.cli.commit import commit
from paramdelta_hub.cli.extract import extract
from paramdelta_hub.cli.inspect import inspect
from paramdelta_hub.cli.link import link
from paramdelta_hub.cli.publish import publish
from paramdelta_hub.cli.pull import pull
from paramdelta_hub.cli.relabel import relabel
from paramdelta_hub.cli.search import search
from paramdelta_hub.cli.verify import verify
from paramdelta_hub.cli.versions import versions
from paramdelta_hub.cli.yank import yank

_EXIT_CODES = (
    "Exit codes: 0 done, 2 usage, 3 unreadable input, 4 mismatch, 5 not exact, 6 output exists, 7 disk, 8 registry."
)


@click.group(epilog=_EXIT_CODES)
@click.version_option(__version__, prog_name="paramdelta")
def main() -> None:
    """Extract a post-training delta once; verify it, publish it, and apply it to any compatible new base."""


for command in (extract, apply, verify, inspect, relabel, publish, pull, search, versions, yank, link, commit, catalog):
    main.add_command(command)
