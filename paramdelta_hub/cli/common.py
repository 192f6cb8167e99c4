"""What all commands share: options, progress bars, reports, errors and exit codes."""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import click
from tqdm import tqdm

from paramdelta_hub.checkpoints.pairing import Rules
from paramdelta_hub.errors import MismatchError, OptionError, ParamdeltaError
from paramdelta_hub.limits import DEFAULT_MEMORY, GIB, KIB, MIB
from paramdelta_hub.work.progress import Progress

__all__ = ["Bars", "command", "emit", "human_bytes", "work_options"]

P = ParamSpec("P")
R = TypeVar("R")
_INTERRUPTED = 130


class Bars(Progress):
    """Progress bars on stderr: bytes, rate, time left; only on a terminal, and not when ``quiet``."""

    def __init__(self, quiet: bool) -> None:
        self._shown = sys.stderr.isatty() and not quiet
        self._bar: tqdm[Any] | None = None

    def start(self, what: str, total: int) -> None:
        """Draw a new bar."""
        if self._shown:
            self._bar = tqdm(total=total, desc=what, unit="B", unit_scale=True, file=sys.stderr, dynamic_ncols=True)

    def advance(self, nbytes: int) -> None:
        """Move the bar on."""
        if self._bar is not None:
            self._bar.update(nbytes)

    def finish(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _bytes(context: click.Context, parameter: click.Parameter, value: str) -> int:
    """Parse a number of bytes: ``512M``, ``2G``, ``1.5GiB``."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)(?:i?B)?", value.strip(), re.IGNORECASE)
    if not found:
        raise click.BadParameter(f"{value!r} is not a number of bytes such as 512M or 2G", context, parameter)
    unit = {"": 1, "K": KIB, "M": MIB, "G": GIB}[found[2].upper()]
    return int(float(found[1]) * unit)


def work_options(function: Callable[P, R]) -> Callable[P, R]:
    """Add ``--threads`` and ``--memory``."""
    function = click.option(
        "--memory",
        callback=_bytes,
        default=f"{DEFAULT_MEMORY // MIB}M",
        show_default=True,
        metavar="BYTES",
        help="Bytes that all buffers together may take.",
    )(function)
    threads = click.option("--threads", type=click.IntRange(min=1), help="Tasks at a time [default: processors].")
    return threads(function)


def command(*, examples: str) -> Callable[[Callable[P, None]], click.Command]:
    """Make a command of a function: ``--json`` and ``-q``, examples at the end of its help, and errors told properly.

    The function gets ``as_json`` and ``quiet`` beside its own parameters.
    """

    def decorate(function: Callable[P, None]) -> click.Command:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                function(*args, **kwargs)
            except ParamdeltaError as error:
                _tell(error, as_json=bool(kwargs["as_json"]))
                sys.exit(error.exit_code)
            except KeyboardInterrupt:
                click.echo("interrupted; nothing is broken: the same command goes on where it stopped", err=True)
                sys.exit(_INTERRUPTED)
            except BrokenPipeError:  # the reader of our output has gone
                sys.stderr.close()
                sys.exit(1)

        options = [
            click.option("--json", "as_json", is_flag=True, help="Print a machine-readable report on stdout."),
            click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors."),
        ]
        for option in reversed(options):
            run = option(run)
        epilog = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in examples.strip().splitlines())
        settings = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
        return click.command(epilog=epilog, context_settings=settings)(run)

    return decorate


def emit(report: dict[str, Any], text: str, *, as_json: bool, quiet: bool) -> None:
    """Print a report once, in the form asked for."""
    if as_json:
        click.echo(json.dumps(report, indent=2, ensure_ascii=False))
    elif not quiet:
        click.echo(text)


def _tell(error: ParamdeltaError, *, as_json: bool) -> None:
    if as_json:
        report: dict[str, Any] = {"kind": error.kind, "what": error.what, "where": error.where, "remedy": error.remedy}
        if isinstance(error, MismatchError):
            report["mismatches"] = [mismatch._asdict() for mismatch in error.mismatches]
        click.echo(json.dumps({"error": report}, indent=2, ensure_ascii=False))
    click.echo(f"error: {error}", err=True)


def parse_assignment(text: str, what: str) -> tuple[str, str]:
    """Split ``LEFT=RIGHT`` at the last ``=``.

    Raises:
        OptionError: there is none, or nothing to its left.
    """
    left, equals, right = text.rpartition("=")
    if not equals or not left:
        raise OptionError(f"{text!r} is not of the form {what}")
    return left, right


def parse_rules(renames: Sequence[str], skips: Sequence[str]) -> Rules:
    """Return the rules of ``--rename OLD=NEW`` and ``--skip REGEX``.

    Raises:
        OptionError: one is malformed.
    """
    return Rules(renames=tuple(parse_assignment(rule, "OLD=NEW") for rule in renames), skips=tuple(skips))


def parse_number(text: str, where: str) -> float:
    """Return a finite number.

    Raises:
        OptionError: it is none.
    """
    try:
        return float(text)
    except ValueError:
        raise OptionError(f"{text!r} is not a number", where=where) from None


def human_bytes(count: int) -> str:
    """Return a size with three digits: ``43.3 MB``. Powers of 1000, as model files are listed on the Hub."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
