"""What is asked of an extract or an apply, as plain values: part of the plan, so that another process can finish it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from paramdelta_hub.errors import OptionError, SourceError
from paramdelta_hub.fileio import strict_json
from paramdelta_hub.fileio.durable import expand
from paramdelta_hub.fileio.strict_json import JsonObject

__all__ = ["Request", "absolute", "request_of"]

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """What all requests have in common: every field is checked, from whatever language it comes."""

    paths: ClassVar[tuple[str, ...]] = ()
    """The fields that may be paths."""
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    def __post_init__(self) -> None:
        self.check_fields()

    def check_fields(self) -> None:
        """Raise an OptionError for the first field that is not of its type; it tells what the field can be."""
        for name, adapter in _adapters(type(self)).items():
            value = getattr(self, name)
            try:
                adapter.validate_python(value, strict=True)
            except ValidationError as error:
                raise OptionError(f"{name}: {error.errors()[0]['msg']}, not {value!r}") from None

    def to_json(self) -> JsonObject:
        """Return plain JSON that holds from any current folder."""
        return {**asdict(self), **{name: absolute(getattr(self, name)) for name in self.paths}}


_ADAPTERS: dict[type[Request], dict[str, TypeAdapter[Any]]] = {}
"""What checks each field; made once, so that no request has its annotations evaluated again."""


def _adapters(kind: type[Request]) -> dict[str, TypeAdapter[Any]]:
    if kind not in _ADAPTERS:
        types = get_type_hints(kind)
        _ADAPTERS[kind] = {field.name: TypeAdapter(types[field.name]) for field in fields(kind)}
    return _ADAPTERS[kind]


def request_of(kind: type[T], fields: Mapping[str, Any], where: str) -> T:
    """Return the request of which these are the fields, as plain JSON, or raise a SourceError."""
    try:
        return TypeAdapter(kind).validate_json(strict_json.compact(fields))
    except ValidationError as error:
        raise SourceError(f"not a request of this version: {error.errors()[0]['msg']}", where=where) from None


def absolute(place: str | os.PathLike[str] | None) -> Any:
    """Return the absolute path of what is there on disk; what is not, such as a name on the Hub, as it is."""
    return place if place is None or not os.path.exists(expand(place)) else os.path.abspath(expand(place))
