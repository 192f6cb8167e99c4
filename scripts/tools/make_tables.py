"""Write the tables of ``docs/slips.md`` and ``docs/security.md`` from what the tests say that they show.

    python -m scripts.tools.make_tables [--check]

A test says it by the decorator of ``tests/slips/table.py`` or of ``tests/attacks/threats.py``. An area or a threat that
no test shows anything of, or a figure without its test, is an error: a table can't promise what no test shows.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from scripts.tools.blocks import fill
from tests.attacks import threats
from tests.slips import table

__all__ = ["ROOT", "SECURITY", "SLIPS", "filled", "security_table", "slips_table"]

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
SLIPS, SECURITY = ROOT / "docs" / "slips.md", ROOT / "docs" / "security.md"


def slips_table() -> str:
    """Return a row for each slip that a test makes, by area.

    Raises:
        ValueError: an area in which nothing is shown.
    """
    found = list(_slips())
    lines = ["| | slip | what happens | the test |", "|---|---|---|---|"]
    for area in table.AREAS:
        of_area = [row for row in found if row[0] == area]
        if not of_area:
            raise ValueError(f"no test shows anything of {area!r}")
        for number, (_, slip, happens, file, test) in enumerate(of_area):
            first = f"**{area}**" if number == 0 else ""
            lines.append(f"| {first} | {slip} | {happens} | {_link(file, test)} |")
    return "\n".join(lines) + "\n"


def _slips() -> Iterator[tuple[str, str, str, str, str]]:
    """Yield (area, slip, what happens, file below tests/, test)."""
    for file, module in _modules_with("@slip(", "SLIPS = ("):
        for entry in getattr(module, "SLIPS", ()):
            yield (*entry.row, file, "test_a_slip_of_the_hand")
        for name, test in vars(module).items():
            for row in getattr(test, "slips", ()) if name.startswith("test_") else ():
                yield (*row, file, name)


def security_table() -> str:
    """Return a row for each figure, with the defense in the first row of its threat.

    Raises:
        ValueError: a threat without a figure, or a figure whose test is not there.
    """
    found = list(_figures())
    lines = ["| threat | defence | what a test shows | the test |", "|---|---|---|---|"]
    for threat, defense in threats.THREATS.items():
        of_threat = [row for row in found if row[0] == threat]
        if not of_threat:
            raise ValueError(f"no test shows anything of {threat!r}")
        for number, (_, figure, file, test) in enumerate(of_threat):
            first = f"**{threat}** | {defense}" if number == 0 else " | "
            lines.append(f"| {first} | {figure} | {_link(file, test)} |")
    return "\n".join(lines) + "\n"


def _figures() -> Iterator[tuple[str, str, str, str]]:
    """Yield (threat, figure, file below tests/, test)."""
    for file, module in _modules_with("@shows("):
        for name, test in vars(module).items():
            for threat, figure in getattr(test, "shows", ()) if name.startswith("test_") else ():
                yield threat, figure, file, name
    for elsewhere in threats.ELSEWHERE:
        path = TESTS / elsewhere.file
        body = ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else []
        if elsewhere.test not in {node.name for node in body if isinstance(node, ast.FunctionDef)}:
            raise ValueError(f"there is no {elsewhere.test} in tests/{elsewhere.file}")
        yield elsewhere


def _modules_with(*marks: str) -> Iterator[tuple[str, ModuleType]]:
    """Yield each test module that has one of the marks, with its file below tests/."""
    for path in sorted(TESTS.rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if any(mark in text for mark in marks):
            file = path.relative_to(TESTS).as_posix()
            yield file, importlib.import_module("tests." + file.removesuffix(".py").replace("/", "."))


def _link(file: str, test: str) -> str:
    return f"[{test.removeprefix('test_').replace('_', ' ')}](../tests/{file})"


TABLES = {SLIPS: slips_table, SECURITY: security_table}


def filled(document: Path) -> str:
    """Return the document with a fresh table."""
    return fill(document.read_text(encoding="utf-8"), {"table": TABLES[document]()})


def main() -> int:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a table is out of date")
    check = parser.parse_args().check
    for document in TABLES:
        text = filled(document)
        if not check:
            document.write_text(text, encoding="utf-8")
        elif document.read_text(encoding="utf-8") != text:
            print(f"{document.name} is out of date: run python -m scripts.tools.make_tables", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
