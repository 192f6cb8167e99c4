"""Write ``schemas/*.schema.json`` from the models of a manifest and of a provenance; ``--check`` only compares.

The schemas say what the files look like. Rules that span several fields are in SPEC-v1.md and in the models alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from pydantic import BaseModel

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


def make_schema(model: type[BaseModel], title: str, description: str) -> bytes:
    """Return a schema's text; equal models give equal bytes."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, "description": description}
    # What is written, not what is read: a default in the models is still a field in the file.
    schema = head | {k: v for k, v in model.model_json_schema().items() if k not in ("title", "description")}
    for record in schema["$defs"].values():
        # Docstrings speak of the implementation; the fields' own descriptions and the specification of the format.
        record.pop("description", None)
    return (json.dumps(schema, indent=2, ensure_ascii=False) + "\n").encode()


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--check", action="store_true", help="write nothing; exit with 1 if one is out of date")
    check = arguments.parse_args().check
    for name, what in OF.items():
        path, text = SCHEMAS / name, make_schema(*what)
        if not check:
            path.write_bytes(text)
        elif not path.exists() or path.read_bytes() != text:
            print(f"{name} is out of date: run python -m scripts.tools.make_schema", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
