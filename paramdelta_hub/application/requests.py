"""What is asked of an extract or an apply, as plain values: part of the plan, so that another process can finish it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from paramdelta_hub.application.companions import Mode, Prefer
from paramdelta_hub.application.requantize import Dtype
from paramdelta_hub.application.weights import WeightMap, summands_of
from paramdelta_hub.checkpoints.rules import Rules
from paramdelta_hub.errors import OptionError, SourceError
from paramdelta_hub.fileio import strict_json
from paramdelta_hub.fileio.durable import expand

__all__ = ["ApplyRequest", "ExtractRequest", "absolute", "request_of"]

T = TypeVar("T")
_CLOSED = ConfigDict(strict=True, extra="forbid")


@dataclass(frozen=True)
class ExtractRequest:
    """What :func:`~paramdelta_hub.extract` is asked for; fields as its arguments, rules as tuples."""

    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED

    base: str
    post: str
    name: str | None = None
    version: str = "1.0.0"
    license: str | None = None
    renames: tuple[tuple[str, str], ...] = ()
    skips: tuple[str, ...] = ()
    carries: tuple[str, ...] = ()
    base_tokenizer: str | None = None
    post_tokenizer: str | None = None
    hash_files: bool = False

    def __post_init__(self) -> None:
        _check_fields(self)

    @property
    def rules(self) -> Rules:
        """The rules, checked."""
        return Rules(self.renames, self.skips, self.carries)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON that holds from any current folder."""
        paths = {key: absolute(getattr(self, key)) for key in ("base", "post", "base_tokenizer", "post_tokenizer")}
        return {**asdict(self), **paths}


@dataclass(frozen=True)
class ApplyRequest:
    """What :func:`~paramdelta_hub.apply` is asked for; fields as its arguments, deltas as (package, weight)."""

    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED

    target: str
    deltas: tuple[tuple[str, float], ...]
    weight_map: tuple[tuple[str, float], ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    skips: tuple[str, ...] = ()
    dtype: Dtype | None = None
    companions: Mode = "post"
    prefer: Prefer = "target"
    keep_remote_code_of_target: bool = False
    target_tokenizer: str | None = None
    stream: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        deltas = tuple((os.fspath(summand.delta), summand.weight) for summand in summands_of(self.deltas))
        object.__setattr__(self, "deltas", deltas)
        object.__setattr__(self, "weight_map", WeightMap.of(self.weight_map).rules)
        _check_fields(self)

    @property
    def rules(self) -> Rules:
        """The rules, checked."""
        return Rules(self.renames, self.skips)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON that holds from any current folder."""
        paths = {key: absolute(getattr(self, key)) for key in ("target", "target_tokenizer")}
        return {**asdict(self), **paths, "deltas": [(absolute(delta), weight) for delta, weight in self.deltas]}


def _check_fields(request: ExtractRequest | ApplyRequest) -> None:
    """Check that every field is of its type and, where there is a choice, one of it.

    Raises:
        OptionError: one is not; the message names it, and what it can be.
    """
    for name, adapter in _FIELDS[type(request)].items():
        value = getattr(request, name)
        try:
            adapter.validate_python(value, strict=True)
        except ValidationError as error:
            raise OptionError(f"{name}: {error.errors()[0]['msg']}, not {value!r}") from None


def _adapters(kind: type) -> dict[str, TypeAdapter[Any]]:
    types = get_type_hints(kind)
    return {field.name: TypeAdapter(types[field.name]) for field in fields(kind)}


_FIELDS = {kind: _adapters(kind) for kind in (ExtractRequest, ApplyRequest)}
"""What each field can be; made once, here, so that no request has annotations evaluated."""


def request_of(kind: type[T], fields: Mapping[str, Any], where: str) -> T:
    """Return the request of which these are the fields, as plain JSON.

    Raises:
        SourceError: these are not its fields.
    """
    try:
        return TypeAdapter(kind).validate_json(strict_json.compact(fields))
    except ValidationError as error:
        raise SourceError(f"not a request of this version: {error.errors()[0]['msg']}", where=where) from None


def absolute(place: str | os.PathLike[str] | None) -> Any:
    """Return the absolute path of what is there on disk; what is not, such as a name on the Hub, as it is."""
    return place if place is None or not os.path.exists(expand(place)) else os.path.abspath(expand(place))
