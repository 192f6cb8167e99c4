"""``paramdelta_catalog.json``: the files of a catalog that we made, by which it is known again."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from paramdelta_hub.limits import FILES
from paramdelta_hub.package.records import Record, Sha256, Text, at_most
from paramdelta_hub.registry.artifacts import SITE_NAME

__all__ = ["SITE_NAME", "SiteFiles"]


class SiteFiles(Record):
    """What ``paramdelta_catalog.json`` says."""

    format: Literal["paramdelta-catalog"] = "paramdelta-catalog"
    format_version: Literal[1] = 1
    files: Annotated[dict[Text, Sha256], at_most(FILES)] = Field(description="every other file of the site, by name")
