"""What is asked of an extract or an apply, as plain values: part of the plan, so that another process can finish it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from paramdelta_hub.checkpoints.pairing import Rules
from paramdelta_hub.errors import SourceError
from paramdelta_hub.format import jsontext

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
    dtype: str | None = None
    companions: str = "post"
    prefer: str = "target"
    keep_remote_code_of_target: bool = False
    target_tokenizer: str | None = None
    stream: bool = False
    force: bool = False

    @property
    def rules(self) -> Rules:
        """The rules, checked."""
        return Rules(self.renames, self.skips)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON that holds from any current folder."""
        paths = {key: absolute(getattr(self, key)) for key in ("target", "target_tokenizer")}
        return {**asdict(self), **paths, "deltas": [(absolute(delta), weight) for delta, weight in self.deltas]}


def request_of(kind: type[T], fields: Mapping[str, Any], where: str) -> T:
    """Return the request of which these are the fields, as plain JSON.

    Raises:
        SourceError: these are not its fields.
    """
    try:
        return TypeAdapter(kind).validate_json(jsontext.compact(fields))
    except ValidationError as error:
        raise SourceError(f"not a request of this version: {error.errors()[0]['msg']}", where=where) from None


def absolute(place: str | os.PathLike[str] | None) -> Any:
    """Return the absolute path of what is there on disk; what is not, such as a name on the Hub, as it is."""
    return place if place is None or not os.path.exists(place) else os.path.abspath(place)
