"""What all commands share: options, the console, errors and exit codes."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import click

from paramdelta_hub.environment import KEYS_VARIABLE, REGISTRY_VARIABLE, REQUIRE_VARIABLE
from paramdelta_hub.errors import OptionError, ParamdeltaError, SourceError
from paramdelta_hub.fileio.durable import expand, read_small, storage_error
from paramdelta_hub.fileio.names import shown
from paramdelta_hub.limits import DEFAULT_MEMORY, GIB, KIB, MIB, RULES_BYTES
from paramdelta_hub.tasks.progress import Progress

if TYPE_CHECKING:
    from tqdm import tqdm

    from paramdelta_hub.checkpoints.rules.tensor_rules import Rules
    from paramdelta_hub.fileio.report import Report

Decorator: TypeAlias = "Callable[[Callable[..., None]], Callable[..., None]]"
_INTERRUPTED = 130


class Bars(Progress):
    """Draws bars on stderr if it is a terminal, and prints notes there; nothing if ``quiet``."""

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
        """Print a line on stderr, even if it is not a terminal."""
        if not self._quiet:
            click.echo(text, err=True)

    def finish(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@dataclass(frozen=True)
class Console:
    """Where a command prints: its report on stdout, once; progress, notes and errors on stderr."""

    as_json: bool
    quiet: bool

    def progress(self, *, with_json: bool = False) -> Bars:
        """Return the progress of the work. With ``--json`` it prints nothing, unless ``with_json``."""
        return Bars(self.quiet or (self.as_json and not with_json))

    def emit(self, report: Report, text: str) -> None:
        """Print the report in the form that the user asked for."""
        if self.as_json:
            click.echo(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
        elif not self.quiet:
            click.echo(text)

    def fail(self, error: ParamdeltaError, *, reported: bool = False) -> NoReturn:
        """Print an error and exit with its code. With ``--json`` it goes to stdout too, unless a report is there."""
        if self.as_json and not reported:
            from paramdelta_hub.fileio.report import ErrorReport, Problem

            self.emit(ErrorReport(error=Problem.model_validate(error, from_attributes=True)), "")
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


def gather(**makers: Callable[..., object]) -> Decorator:
    """Replace options by objects: each maker gets the options that its parameters name, and makes one argument."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(**values: Any) -> None:
            for name, maker in makers.items():
                wanted = [parameter for parameter in signature(maker).parameters if parameter in values]
                values[name] = maker(**{parameter: values.pop(parameter) for parameter in wanted})
            function(**values)

        return run

    return decorate


def _bytes(context: click.Context, parameter: click.Parameter, value: str) -> int:
    """Parse a number of bytes: ``512M``, ``2G``, ``1.5GiB``."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)(?:i?B)?", value.strip(), re.IGNORECASE)
    if not found:
        raise click.BadParameter(f"{value!r} is not a number of bytes, such as 512M or 2G", context, parameter)
    unit = {"": 1, "K": KIB, "M": MIB, "G": GIB}[found[2].upper()]
    return int(float(found[1]) * unit)


def together(*options: Decorator) -> Decorator:
    """Add several options, which the help lists in this order."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


work_options = together(
    click.option("--threads", type=click.IntRange(min=1), help="Tasks at a time [default: number of processors]."),
    click.option(
        "--memory",
        callback=_bytes,
        default=f"{DEFAULT_MEMORY // MIB}M",
        show_default=True,
        metavar="BYTES",
        help="Memory limit of all buffers together.",
    ),
)

registry_option = click.option(
    "--registry",
    envvar=REGISTRY_VARIABLE,
    metavar="FOLDER|URL",
    help=f"Folder or bucket in which to look up org/name [default: ${REGISTRY_VARIABLE}, or else the Hub].",
)

trust_options = together(
    click.option(
        "--require-signature",
        is_flag=True,
        default=None,
        help=f"Require a signature by one of your trusted keys (in ${KEYS_VARIABLE}, or else in "
        f"~/.config/paramdelta/trusted_keys). {REQUIRE_VARIABLE}=1 requires it for all commands.",
    ),
    click.option(
        "--trusted-key",
        "trusted_keys",
        multiple=True,
        metavar="PUB",
        help="Require a signature by this EC public key (PEM). If given several times, one of the keys must match.",
    ),
)

publish_options = together(
    click.option("--private", is_flag=True, help="On the Hub, make a new repository private."),
    click.option("--create-pr", is_flag=True, help="On the Hub, open a pull request."),
)


def tokenizer_option(side: str) -> Decorator:
    """Return the option ``--SIDE-tokenizer``."""
    return click.option(
        f"--{side}-tokenizer",
        metavar="FOLDER",
        help=f"Folder of {side.upper()}'s tokenizer, if it is not in the model's folder. Rows are matched by token.",
    )


class Command(click.Command):
    """A command that knows which reports it prints with ``--json``, by module and name."""

    reports: tuple[str, ...] = ()


def command(*reports: str, examples: str) -> Callable[[Callable[..., None]], Command]:
    """Make a command of a function: ``--json`` and ``-q``, examples at the end of its help, and errors as messages.

    ``reports`` are the classes that it prints, such as ``reports.inspect.InspectReport``: schemas are made of them.
    The function gets a :class:`Console` as ``console``. An option that is only handed on has the name of the parameter
    of the function of the library, and comes in ``**options``.
    """

    def decorate(function: Callable[..., None]) -> Command:
        @functools.wraps(function)
        def run(as_json: bool, quiet: bool, **values: Any) -> None:
            console = Console(as_json, quiet)
            try:
                with _shown_waits(console.progress()):
                    function(console=console, **values)
            except ParamdeltaError as error:
                console.fail(error)
            except KeyboardInterrupt:
                click.echo("Interrupted. Run the same command again to resume.", err=True)
                sys.exit(_INTERRUPTED)
            except BrokenPipeError:  # the reader of our output has gone
                sys.stderr.close()
                sys.exit(1)
            except OSError as problem:  # nothing closer to it has made a message, such as for a folder's list
                console.fail(storage_error("reading or writing", problem))

        options = together(
            click.option("--json", "as_json", is_flag=True, help="Print a machine-readable report on stdout."),
            click.option("-q", "--quiet", is_flag=True, help="Print only errors."),
        )
        epilog = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in examples.strip().splitlines())
        settings = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
        made = click.command(cls=Command, epilog=epilog, context_settings=settings)(options(run))
        made.reports = reports
        return made

    return decorate


@contextlib.contextmanager
def _shown_waits(progress: Progress) -> Iterator[None]:
    """Show what the library logs, which is that it waits for a server, as notes."""

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            progress.note(record.getMessage())

    log, notes = logging.getLogger("paramdelta_hub"), Notes()
    log.addHandler(notes)
    try:
        yield
    finally:
        log.removeHandler(notes)


def parse_assignment(text: str, what: str) -> tuple[str, str]:
    """Split ``LEFT=RIGHT`` at the last ``=``; OptionError if there is none, or nothing to its left."""
    left, equals, right = text.rpartition("=")
    if not equals or not left:
        raise OptionError(f"{text!r} is not of the form {what}")
    return left, right


def rules_options(*, layout: str, rename: str, skip: str, partial: str, carry: str | None = None) -> Decorator:
    """Return an option for each kind of rule, with these helps, and ``--rules``. They make ``rules``."""
    carries = [click.option("--carry", "carries", multiple=True, metavar="REGEX", help=carry)] if carry else []
    return together(
        click.option("--layout", "layouts", multiple=True, metavar="RULE", help=layout),
        click.option("--rename", "renames", multiple=True, metavar="OLD=NEW", help=rename),
        click.option("--skip", "skips", multiple=True, metavar="REGEX", help=skip),
        click.option("--partial", "partials", multiple=True, metavar="REGEX", help=partial),
        *carries,
        click.option(
            "--rules",
            "files",
            multiple=True,
            metavar="FILE",
            help="Read rules from a file. A line is `rename OLD=NEW`, `skip REGEX`, `carry REGEX`, `partial REGEX`, a "
            "layout rule, or a # comment.",
        ),
        gather(rules=parse_rules),
    )


def parse_rules(
    renames: Sequence[str],
    skips: Sequence[str],
    files: Sequence[str] = (),
    carries: Sequence[str] = (),
    layouts: Sequence[str] = (),
    partials: Sequence[str] = (),
) -> Rules:
    """Return the rules of ``--rules FILE``, in order, followed by those of the command line's other options.

    Raises:
        OptionError: one is malformed; if it is a file's, the error says which line.
        SourceError: a file can't be read.
    """
    from paramdelta_hub.checkpoints.rules.tensor_rules import Rules

    parts = [rules for file in files for rules in _read_rules(expand(file))]
    assignments = tuple(parse_assignment(rule, "OLD=NEW") for rule in renames)
    parts += [_parse_layout(rule) for rule in layouts]
    parts.append(Rules(renames=assignments, skips=tuple(skips), carries=tuple(carries), partials=tuple(partials)))
    return Rules(**{kind: tuple(rule for rules in parts for rule in rules.fields[kind]) for kind in Rules().fields})


def _parse_layout(text: str) -> Rules:
    """Return the one rule that a text spells, as ``--layout`` and the lines of a rules file have it."""
    from paramdelta_hub.checkpoints.rules.tensor_rules import Rules

    verb, pattern = (*text.strip().split(maxsplit=1), "", "")[:2]
    return Rules(partials=(pattern,)) if verb.rstrip(":") == "partial" and pattern else Rules(layouts=(text,))


def _read_rules(file: Path) -> Iterator[Rules]:
    """Yield the rule of every line that has one."""
    from paramdelta_hub.checkpoints.rules.layout_rules import LAYOUT_VERBS
    from paramdelta_hub.checkpoints.rules.tensor_rules import Rules

    try:
        text = read_small(file, RULES_BYTES, SourceError, follow=True).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SourceError("not UTF-8", where=str(file), remedy="give a text file of rules in UTF-8") from None
    for number, line in enumerate(text.split("\n"), start=1):
        verb, rule = (*line.strip().split(maxsplit=1), "", "")[:2]
        try:
            if verb == "rename":
                yield Rules(renames=(parse_assignment(rule, "OLD=NEW"),))
            elif verb == "skip" and rule:
                yield Rules(skips=(rule,))
            elif verb == "carry" and rule:
                yield Rules(carries=(rule,))
            elif re.split("[@/:]", verb)[0] in (*LAYOUT_VERBS, "partial") and rule:
                yield _parse_layout(line)
            elif verb and not verb.startswith("#"):
                raise OptionError(
                    f"{line.strip()[:200]!r} is not a rule: write `rename OLD=NEW`, `skip REGEX`, `carry REGEX`, "
                    f"`partial REGEX`, or a layout rule such as `transpose c_attn.weight`"
                )
        except OptionError as error:
            raise OptionError(error.what, where=f"{file}:{number}", remedy=error.remedy) from None


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return left-aligned columns. Text from a package stays on its line, with hidden characters escaped."""
    lines = [heads, *([*map(shown, row)] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
