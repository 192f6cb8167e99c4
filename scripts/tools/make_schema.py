"""Write ``schemas/*.schema.json`` from the models of manifest, provenance and reports; ``--check`` only compares.

The schemas say what the files look like. Rules that span several fields are in SPEC-v1.md and in the models alone.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import itertools
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from paramdelta_hub.cli import main as command_line
from paramdelta_hub.cli.common import Command
from paramdelta_hub.fileio.report import ErrorReport, Report
from paramdelta_hub.package.manifest import Manifest
from paramdelta_hub.package.provenance import Provenance

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"
OF: dict[str, tuple[type[BaseModel], str, str]] = {
    "manifest-v1.schema.json": (
        Manifest,
        "Paramdelta package manifest, format 1",
        "See SPEC-v1.md, which also has the rules that no schema can say.",
    ),
    "provenance-v1.schema.json": (
        Provenance,
        "Paramdelta provenance, format 1",
        "What lies in an applied model as paramdelta_provenance.json, and says what it is made of.",
    ),
}


def _load(report: str) -> type[Report]:
    module, _, name = report.rpartition(".")
    found: type[Report] = getattr(importlib.import_module(f"paramdelta_hub.{module}"), name)
    return found


REPORTS: dict[str, tuple[type[Report], ...]] = {
    **{
        name: tuple(map(_load, command.reports))
        for name, command in sorted(command_line.commands.items())
        if isinstance(command, Command)
    },
    "error": (ErrorReport,),
}
"""What each command prints with ``--json``, and what any of them prints instead where it fails."""
_REF = re.compile(r"#/\$defs/(\w+)")
HEAD = {"$schema": "https://json-schema.org/draft/2020-12/schema"}


def make_schema(model: type[BaseModel], title: str, description: str) -> bytes:
    """Return a schema's text; equal models give equal bytes."""
    head = {**HEAD, "title": title, "description": description}
    # What is written, not what is read: a default in the models is still a field in the file.
    schema = head | {k: v for k, v in model.model_json_schema().items() if k not in ("title", "description")}
    for record in schema["$defs"].values():
        # Docstrings speak of the implementation; the fields' own descriptions and the specification of the format.
        record.pop("description", None)
    return _text(schema)


def make_reports_schema() -> bytes:
    """Return the text of the schema of all reports, which has an entry for every command in ``$defs``."""
    models = dict.fromkeys(model for of_one in REPORTS.values() for model in of_one)
    refs, made = models_json_schema([(model, "serialization") for model in models])
    defs = {name: {"anyOf": [refs[model, "serialization"] for model in of_one]} for name, of_one in REPORTS.items()}
    wanted = list(defs)
    for name in wanted:  # pydantic also describes what fields hold that stay out of the JSON
        defs.setdefault(name, made["$defs"].get(name))
        wanted += set(_REF.findall(json.dumps(defs[name]))) - set(wanted)
    _describe(defs)
    return _text(
        {
            **HEAD,
            "title": "Paramdelta reports, version 1",
            "description": "What each command prints with --json: $defs has an entry by its name, and `error`.",
            "anyOf": [{"$ref": f"#/$defs/{name}"} for name in REPORTS],
            "$defs": {name: defs[name] for name in (*REPORTS, *sorted(defs.keys() - REPORTS.keys()))},
        }
    )


def _describe(defs: dict[str, dict[str, Any]]) -> None:
    """Add what is written below the fields of a class; pydantic can do so, but takes 0.3 s of every command."""
    modules = [module for name, module in sorted(sys.modules.items()) if name.startswith("paramdelta_hub.")]
    classes = {cls.__name__: cls for module in modules for cls in vars(module).values() if isinstance(cls, type)}
    for name, record in defs.items():
        for cls in classes[name].__mro__ if name in classes else ():
            for field, text in _field_docs(cls).items() if cls.__module__.startswith("paramdelta_hub.") else ():
                if field in record.get("properties", {}):
                    record["properties"][field].setdefault("description", text)


def _field_docs(cls: type) -> dict[str, str]:
    (root,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(root, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(below.value.value)
        for field, below in itertools.pairwise(root.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
    }


def _text(schema: dict[str, Any]) -> bytes:
    return (json.dumps(schema, indent=2, ensure_ascii=False) + "\n").encode()


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--check", action="store_true", help="write nothing; exit with 1 if one is out of date")
    check = arguments.parse_args().check
    texts = {name: make_schema(*what) for name, what in OF.items()}
    for name, text in {**texts, "reports-v1.schema.json": make_reports_schema()}.items():
        path = SCHEMAS / name
        if not check:
            path.write_bytes(text)
        elif not path.exists() or path.read_bytes() != text:
            print(f"{name} is out of date: run python -m scripts.tools.make_schema", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
