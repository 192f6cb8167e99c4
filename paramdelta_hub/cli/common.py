"""What all commands share: options, progress bars, reports, errors and exit codes."""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import click

from paramdelta_hub.environment import KEYS_VARIABLE, REGISTRY_VARIABLE, REQUIRE_VARIABLE
from paramdelta_hub.errors import OptionError, ParamdeltaError, SourceError
from paramdelta_hub.fileio.durable import expand, read_small, storage_error
from paramdelta_hub.fileio.names import is_clear
from paramdelta_hub.fileio.sizes import human_bytes
from paramdelta_hub.limits import DEFAULT_MEMORY, GIB, KIB, MIB, RULES_BYTES
from paramdelta_hub.tasks.progress import Progress

if TYPE_CHECKING:
    from tqdm import tqdm

    from paramdelta_hub.checkpoints.rules import Rules
    from paramdelta_hub.fileio.report import Report

__all__ = [
    "Bars",
    "command",
    "emit",
    "fail",
    "human_bytes",
    "publish_options",
    "registry_option",
    "rules_option",
    "table",
    "tokenizer_option",
    "trust_options",
    "work_options",
]

P = ParamSpec("P")
R = TypeVar("R")
_INTERRUPTED = 130


class Bars(Progress):
    """Bars on stderr: bytes, rate, time left, on a terminal alone; and notes. Nothing when ``quiet``."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._shown = sys.stderr.isatty() and not quiet
        self._bar: tqdm[Any] | None = None

    def start(self, what: str, total: int) -> None:
        """Draw a new bar."""
        if self._shown:
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=what, unit="B", unit_scale=True, file=sys.stderr, dynamic_ncols=True)

    def advance(self, nbytes: int) -> None:
        """Move the bar on."""
        if self._bar is not None:
            self._bar.update(nbytes)

    def note(self, text: str) -> None:
        """Print a line on stderr, also where that is no terminal."""
        if not self._quiet:
            click.echo(text, err=True)

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
                click.echo("Interrupted. Run the same command again to resume.", err=True)
                sys.exit(_INTERRUPTED)
            except BrokenPipeError:  # the reader of our output has gone
                sys.stderr.close()
                sys.exit(1)
            except OSError as problem:  # where nobody has a better word for it: a folder that can't be listed
                told = storage_error("reading or writing", problem)
                _tell(told, as_json=bool(kwargs["as_json"]))
                sys.exit(told.exit_code)

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


def emit(report: Report, text: str, *, as_json: bool, quiet: bool) -> None:
    """Print a report once, in the form asked for."""
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    elif not quiet:
        click.echo(text)


def fail(error: ParamdeltaError) -> NoReturn:
    """End a command whose report is printed already: tell of the error on stderr, and exit with its code."""
    _tell(error, as_json=False)
    sys.exit(error.exit_code)


def _tell(error: ParamdeltaError, *, as_json: bool) -> None:
    if as_json:
        from paramdelta_hub.fileio.report import ErrorReport, Problem

        report = ErrorReport(error=Problem.model_validate(error, from_attributes=True))
        emit(report, "", as_json=True, quiet=False)
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


def rules_option(function: Callable[P, R]) -> Callable[P, R]:
    """Add ``--rules``, which gives ``rule_files``."""
    return click.option(
        "--rules",
        "rule_files",
        multiple=True,
        metavar="FILE",
        help="Read rules from a file: a line is `rename OLD=NEW`, `skip REGEX`, `carry REGEX`, or a # comment.",
    )(function)


def parse_rules(
    renames: Sequence[str], skips: Sequence[str], files: Sequence[str] = (), carries: Sequence[str] = ()
) -> Rules:
    """Return the rules of ``--rules FILE``, in order, followed by those of the command line's other options.

    Raises:
        OptionError: one is malformed; if it is a file's, the error says which line.
        SourceError: a file can't be read.
    """
    from paramdelta_hub.checkpoints.rules import Rules

    parts = [rules for file in files for rules in _read_rules(expand(file))]
    assignments = tuple(parse_assignment(rule, "OLD=NEW") for rule in renames)
    parts.append(Rules(renames=assignments, skips=tuple(skips), carries=tuple(carries)))
    return Rules(
        renames=tuple(rename for rules in parts for rename in rules.renames),
        skips=tuple(skip for rules in parts for skip in rules.skips),
        carries=tuple(carry for rules in parts for carry in rules.carries),
    )


def _read_rules(file: Path) -> Iterator[Rules]:
    """Give the rule of every line that has one."""
    from paramdelta_hub.checkpoints.rules import Rules

    try:
        text = read_small(file, RULES_BYTES, SourceError, follow=True).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SourceError("not UTF-8", where=str(file), remedy="give a text file of rules") from None
    for number, line in enumerate(text.split("\n"), start=1):
        verb, rule = (*line.strip().split(maxsplit=1), "", "")[:2]
        try:
            if verb == "rename":
                yield Rules(renames=(parse_assignment(rule, "OLD=NEW"),))
            elif verb == "skip" and rule:
                yield Rules(skips=(rule,))
            elif verb == "carry" and rule:
                yield Rules(carries=(rule,))
            elif verb and not verb.startswith("#"):
                raise OptionError(
                    f"{line.strip()[:200]!r} is neither `rename OLD=NEW` nor `skip REGEX` nor `carry REGEX`"
                )
        except OptionError as error:
            raise OptionError(error.what, where=f"{file}:{number}", remedy=error.remedy) from None


def tokenizer_option(side: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Add ``--SIDE-tokenizer``."""
    return click.option(
        f"--{side}-tokenizer",
        metavar="FOLDER",
        help=f"Where {side.upper()}'s tokenizer lies, if not beside its weights; rows are matched by token.",
    )


def registry_option(function: Callable[P, R]) -> Callable[P, R]:
    """Add ``--registry``."""
    return click.option(
        "--registry",
        envvar=REGISTRY_VARIABLE,
        metavar="FOLDER|URL",
        help=f"Where a bare org/name lies: a folder or a bucket [default: ${REGISTRY_VARIABLE}, else the Hub].",
    )(function)


def trust_options(function: Callable[P, R]) -> Callable[P, R]:
    """Add ``--require-signature``, which gives True or None, and ``--trusted-key``, which gives ``trusted_keys``."""
    function = click.option(
        "--trusted-key",
        "trusted_keys",
        multiple=True,
        metavar="PUB",
        help="Refuse what is not signed by this EC public key in PEM, or by another one given so.",
    )(function)
    return click.option(
        "--require-signature",
        is_flag=True,
        default=None,
        help=f"Refuse what is not signed by a key of your own configuration (${KEYS_VARIABLE}, else"
        f" ~/.config/paramdelta/trusted_keys); ${REQUIRE_VARIABLE}=1 does so for all commands.",
    )(function)


def publish_options(function: Callable[P, R]) -> Callable[P, R]:
    """Add ``--private`` and ``--create-pr``."""
    function = click.option("--create-pr", is_flag=True, help="On the Hub, propose it by a pull request.")(function)
    return click.option("--private", is_flag=True, help="Make a new repository on the Hub private.")(function)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return left-aligned columns; a stranger's words stay on their line, and move no cursor."""
    lines = [heads, *([cell if is_clear(cell) else repr(cell)[1:-1] for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
