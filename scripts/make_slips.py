"""Write the table in ``docs/slips.md`` from what the tests say of slips; ``--check`` only says whether it fits."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests"
DOCUMENT = ROOT / "docs" / "slips.md"
BEGIN, END = "<!-- table: made by scripts/make_slips.py -->\n", "<!-- end of table -->\n"


def rows() -> Iterator[tuple[str, str, str, str, str]]:
    """Yield (area, slip, what happens, file below tests/, test) of every slip that a test makes."""
    sys.path[:0] = [str(ROOT)]
    for path in sorted(TESTS.rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if "@slip(" not in text and "SLIPS = (" not in text:
            continue
        file = path.relative_to(TESTS).as_posix()
        module = importlib.import_module("tests." + file.removesuffix(".py").replace("/", "."))
        for entry in getattr(module, "SLIPS", ()):
            yield (*entry.row, file, "test_a_slip_of_the_hand")
        for name, test in vars(module).items():
            for row in getattr(test, "slips", ()) if name.startswith("test_") else ():
                yield (*row, file, name)


def make_table() -> str:
    """Return the table: a row a slip, by area.

    Raises:
        ValueError: an area in which nothing is shown.
    """
    found = list(rows())
    from tests.slips.table import AREAS

    lines = ["| | slip | what happens | the test |", "|---|---|---|---|"]
    for area in AREAS:
        of_area = [row for row in found if row[0] == area]
        if not of_area:
            raise ValueError(f"no test shows anything of {area!r}")
        for number, (_, slip, happens, file, test) in enumerate(of_area):
            first = f"**{area}**" if number == 0 else ""
            label = test.removeprefix("test_").replace("_", " ")
            lines.append(f"| {first} | {slip} | {happens} | [{label}](../tests/{file}) |")
    return "\n".join(lines) + "\n"


def with_table(text: str) -> str:
    """Return the document with a fresh table between its marks."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return head + BEGIN + make_table() + END + tail


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if the table is out of date"
    )
    text = DOCUMENT.read_text(encoding="utf-8")
    if not arguments.parse_args().check:
        DOCUMENT.write_text(with_table(text), encoding="utf-8")
    elif with_table(text) != text:
        print(f"{DOCUMENT.name} is out of date: run scripts/make_slips.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
