"""The command line: parse, call an operation, print. Each command is ``paramdelta VERB`` and ``pd-VERB``.

A module here that has a command of its own name adds that command.
"""

from __future__ import annotations

import importlib
import pkgutil

import click

from paramdelta_hub.__about__ import __version__
from paramdelta_hub.cli.common import Command

_EXIT_CODES = (
    "Exit codes: 0 done, 2 usage, 3 unreadable input, 4 mismatch, 5 not exact, 6 output exists, 7 disk, 8 registry."
)


@click.group(epilog=_EXIT_CODES)
@click.version_option(__version__, prog_name="paramdelta")
def main() -> None:
    """Extract a post-training delta once; verify it, publish it, and apply it to any compatible new base."""


for _module in pkgutil.iter_modules(__path__):
    _command = getattr(importlib.import_module(f"{__name__}.{_module.name}"), _module.name, None)
    if isinstance(_command, Command):
        main.add_command(_command)
        globals()[_module.name] = _command  # what pd-NAME calls
