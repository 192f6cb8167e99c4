"""What commands print with ``--json``, checked against the published schema."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jsonschema

SCHEMA = Path(__file__).parents[2] / "schemas" / "reports-v1.schema.json"


@functools.cache
def validator(command: str) -> jsonschema.Draft202012Validator:
    """Return the validator of a command's reports, or of ``error``."""
    schema = json.loads(SCHEMA.read_bytes())
    jsonschema.Draft202012Validator.check_schema(schema)
    assert command in schema["$defs"]
    return jsonschema.Draft202012Validator({**schema, "anyOf": [{"$ref": f"#/$defs/{command}"}]})


def check_report(command: str, text: str, *, failed: bool = False) -> Any:
    """Return a command's report, having checked that it is as the schema says."""
    report = json.loads(text)
    validator("error" if failed else command).validate(report)
    return report
