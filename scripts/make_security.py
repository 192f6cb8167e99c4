"""Write the table in ``docs/security.md`` from what the tests say they show; ``--check`` only says whether it fits.

A test says it by the decorator of ``tests/attacks/threats.py``. A threat without a figure, or a figure without its
test, is an error: the table can't promise what no test shows.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests"
DOCUMENT = ROOT / "docs" / "security.md"
BEGIN, END = "<!-- table: made by scripts/make_security.py -->\n", "<!-- end of table -->\n"


def figures() -> Iterator[tuple[str, str, str, str]]:
    """Yield (threat, figure, file below tests/, test) of every test that shows something.

    Raises:
        ValueError: a test is named that is not there.
    """
    sys.path[:0] = [str(ROOT)]
    from tests.attacks.threats import ELSEWHERE

    for path in sorted(TESTS.rglob("test_*.py")):
        if "@shows(" not in path.read_text(encoding="utf-8"):
            continue
        file = path.relative_to(TESTS).as_posix()
        module = importlib.import_module("tests." + file.removesuffix(".py").replace("/", "."))
        for name, test in vars(module).items():
            for threat, figure in getattr(test, "shows", ()) if name.startswith("test_") else ():
                yield threat, figure, file, name
    for threat, figure, file, test in ELSEWHERE:
        if test not in _tests_in(TESTS / file):
            raise ValueError(f"there is no {test} in tests/{file}")
        yield threat, figure, file, test


def _tests_in(path: Path) -> set[str]:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return {node.name for node in body if isinstance(node, ast.FunctionDef)}


def make_table() -> str:
    """Return the table: a row a figure, and the defence in the first row of its threat.

    Raises:
        ValueError: a threat without a figure.
    """
    shown = list(figures())
    from tests.attacks.threats import THREATS

    lines = ["| threat | defence | what a test shows | the test |", "|---|---|---|---|"]
    for threat, defence in THREATS.items():
        found = [(figure, file, test) for of, figure, file, test in shown if of == threat]
        if not found:
            raise ValueError(f"no test shows anything of {threat!r}")
        for number, (figure, file, test) in enumerate(found):
            first = f"**{threat}** | {defence}" if number == 0 else " | "
            lines.append(f"| {first} | {figure} | [{test.removeprefix('test_').replace('_', ' ')}](../tests/{file}) |")
    return "\n".join(lines) + "\n"


def with_table(text: str) -> str:
    """Return the document with a fresh table between its marks."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return head + BEGIN + make_table() + END + tail


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if the table is out of date"
    )
    text = DOCUMENT.read_text(encoding="utf-8")
    if not arguments.parse_args().check:
        DOCUMENT.write_text(with_table(text), encoding="utf-8")
    elif with_table(text) != text:
        print(f"{DOCUMENT.name} is out of date: run scripts/make_security.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
