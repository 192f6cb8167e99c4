"""Write the tables of ``docs/slips.md``, ``docs/security.md`` and ``docs/checkpoints.md`` from what the tests show.

    python -m scripts.tools.make_tables [--check]

A test says which rows it makes by the decorator of ``tests/slips/table.py``, ``tests/attacks/threats.py`` or
``tests/support/kinds.py``. An area that no test shows anything of, or a row whose test is not there, is an error: a
table can't promise what no test shows.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from scripts.tools.blocks import fill
from tests.attacks import threats
from tests.slips import table as slips
from tests.support import kinds
from tests.support.table_rows import rows_of

__all__ = ["KINDS", "ROOT", "SECURITY", "SLIPS", "MadeRow", "Table"]

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"


class MadeRow(NamedTuple):
    """A row, and the test that makes it."""

    area: str
    cells: tuple[str, ...]
    file: str
    """Below ``tests/``."""
    test: str


@dataclass(frozen=True)
class Table:
    """One table: where it stands, and what it is made of."""

    name: str
    head: tuple[str, ...]
    decorator: str
    areas: Callable[[], Mapping[str, tuple[str, ...]]]
    """The areas in their order, each with what its first row says beside its name."""
    more: Callable[[], Iterator[MadeRow]] = lambda: iter(())
    """Rows that tests make without the decorator."""

    @property
    def document(self) -> Path:
        """The page that has the table."""
        return ROOT / "docs" / f"{self.name}.md"

    def rows(self) -> Iterator[MadeRow]:
        """Yield all rows, in the order of the tests' files."""
        for file, module in _modules_with(f"@{self.decorator}"):
            for name, test in vars(module).items():
                for area, *cells in rows_of(test, self.name) if name.startswith("test_") else ():
                    yield MadeRow(area, tuple(cells), file, name)
        yield from self.more()

    def text(self) -> str:
        """Return the table in Markdown.

        Raises:
            ValueError: an area of which no test shows anything.
        """
        found = list(self.rows())
        lines = [_line(*self.head, "the test"), "|" + "---|" * (len(self.head) + 1)]
        for area, beside in self.areas().items():
            of_area = [row for row in found if row.area == area]
            if not of_area:
                raise ValueError(f"no test shows anything of {area!r}")
            first = (f"**{area}**", *beside)
            for row in of_area:
                link = f"[{row.test.removeprefix('test_').replace('_', ' ')}](../tests/{row.file})"
                lines.append(_line(*first, *row.cells, link))
                first = ("",) * len(first)
        return "\n".join(lines) + "\n"

    def filled(self) -> str:
        """Return the page with a fresh table."""
        return fill(self.document.read_text(encoding="utf-8"), {"table": self.text()})


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _modules_with(mark: str) -> Iterator[tuple[str, ModuleType]]:
    """Yield each test module that has a mark, with its file below tests/."""
    for path in sorted(TESTS.rglob("test_*.py")):
        if mark in path.read_text(encoding="utf-8"):
            file = path.relative_to(TESTS).as_posix()
            yield file, importlib.import_module("tests." + file.removesuffix(".py").replace("/", "."))


def _elsewhere() -> Iterator[MadeRow]:
    """Yield figures that tests of other parts produce anyway.

    Raises:
        ValueError: a test is not there.
    """
    for figure in threats.ELSEWHERE:
        path = TESTS / figure.file
        body = ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else []
        if figure.test not in {node.name for node in body if isinstance(node, ast.FunctionDef)}:
            raise ValueError(f"there is no {figure.test} in tests/{figure.file}")
        yield MadeRow(figure.threat, (figure.text,), figure.file, figure.test)


SLIPS = Table("slips", ("", "slip", "what happens"), "slip", lambda: dict.fromkeys(slips.AREAS, ()))
SECURITY = Table(
    "security",
    ("threat", "defence", "what a test shows"),
    "shows",
    lambda: {threat: (defense,) for threat, defense in threats.THREATS.items()},
    _elsewhere,
)
KINDS = Table(
    "checkpoints",
    ("kind", "what people have", "what happens", "remedy"),
    "kind",
    lambda: dict.fromkeys(kinds.KINDS, ()),
)
TABLES = (SLIPS, SECURITY, KINDS)


def main() -> int:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a table is out of date")
    check = parser.parse_args().check
    for table in TABLES:
        text = table.filled()
        if not check:
            table.document.write_text(text, encoding="utf-8")
        elif table.document.read_text(encoding="utf-8") != text:
            print(f"{table.document.name} is out of date: run python -m scripts.tools.make_tables", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
