"""Write ``schemas/manifest-v1.schema.json`` from the manifest's models; ``--check`` only says whether it is up to date.

The schema says what a manifest looks like. Rules that span several fields are in SPEC-v1.md and in the models alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from paramdelta_hub.format.manifest import Manifest

SCHEMA = Path(__file__).parent.parent / "schemas" / "manifest-v1.schema.json"


def make_schema() -> bytes:
    """Return the schema's text; equal models give equal bytes."""
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Paramdelta package manifest, format 1",
        "description": "See SPEC-v1.md, which also has the rules that no schema can say.",
    }
    # What is written, not what is read: a default in the models is still a field in the file.
    schema = head | {k: v for k, v in Manifest.model_json_schema().items() if k not in ("title", "description")}
    for record in schema["$defs"].values():
        # Docstrings speak of the implementation; the fields' own descriptions and the specification of the format.
        record.pop("description", None)
    return (json.dumps(schema, indent=2, ensure_ascii=False) + "\n").encode()


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the file is out of date")
    if not arguments.parse_args().check:
        SCHEMA.write_bytes(make_schema())
    elif not SCHEMA.exists() or SCHEMA.read_bytes() != make_schema():
        print(f"{SCHEMA.name} is out of date: run scripts/make_schema.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
