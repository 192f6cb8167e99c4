"""The types of fields, and the smaller records, of manifests and provenances.

Every record is strict, frozen and closed: an unknown field is an error, because a reader that skips what it does not
understand applies the wrong delta. Lists are read up to their first wrong item (``fail_fast``), and tables have a
limit. Otherwise pydantic makes an error for each wrong item, and a few megabytes become gigabytes.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from paramdelta_hub.errors import SourceError
from paramdelta_hub.fileio.names import is_clear, shown
from paramdelta_hub.limits import DTYPES, FILES, TENSOR_ELEMENTS, TENSOR_RANK

__all__ = [
    "CODE_KEYS",
    "CONFIG_NAME",
    "PARTIAL",
    "SKIPPED",
    "Architecture",
    "Blake3",
    "ConfigChange",
    "ConfigName",
    "Count",
    "Counts",
    "Earlier",
    "FileRecord",
    "Labels",
    "Norm",
    "Omission",
    "Record",
    "Rename",
    "SemanticVersion",
    "Sha256",
    "Shape",
    "Source",
    "SourceFile",
    "Text",
    "at_most",
    "check_keys",
    "problems",
]

CODE_KEYS = frozenset({"auto_map", "custom_pipelines"})
"""Keys of a config by which it names code to be run when a model is loaded."""
CONFIG_NAME = (
    r"^([A-Za-z0-9_-][A-Za-z0-9._-]*/){0,3}"
    r"((generation_|scheduler_|sentence_bert_)?config|config_sentence_transformers)\.json$"
)
ConfigName = Annotated[str, Field(pattern=CONFIG_NAME, max_length=1024)]
"""A config by its name in the model's folder; that of a component with the component's folder."""


def _clear(text: str) -> str:
    """Refuse what could move a terminal's cursor, hide, or start another line: texts are printed."""
    if not is_clear(text):
        raise ValueError("control characters, or others that do not show")
    return text


def at_most(entries: int) -> BeforeValidator:
    """Refuse a larger table before its entries are looked at: pydantic would make an error of each wrong one."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > entries:
            raise ValueError(f"{len(value)} entries; the limit is {entries}")
        return value

    return BeforeValidator(check)


def _counts(value: Any) -> Any:
    """Refuse a table of any size at its first wrong entry."""
    for name, count in value.items() if isinstance(value, dict) else ():
        if len(name) > _TEXT or type(count) is not int or not 0 <= count <= _COUNT:
            raise ValueError(f"{name[:40]!r} is too long, or has no count")
    return value


_TEXT, _COUNT, _PROBLEMS = 1024, 2**62, 1000
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Blake3 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=_COUNT)]
Shape = Annotated[
    tuple[Annotated[int, Field(ge=0, le=TENSOR_ELEMENTS)], ...], Field(max_length=TENSOR_RANK, fail_fast=True)
]
Norm = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1, max_length=_TEXT), AfterValidator(_clear)]
Counts = Annotated[dict[Annotated[str, Field(max_length=_TEXT)], Count], BeforeValidator(_counts)]
_IDENTIFIER = "(0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
"""A part of a pre-release; one of digits alone begins with no zero."""
SemanticVersion = Annotated[
    str,
    Field(
        max_length=128,
        # semver.org's grammar; [0-9] and not \d, which takes the digits of every script.
        pattern=r"^(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)"
        rf"(-{_IDENTIFIER}(\.{_IDENTIFIER})*)?(\+[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?$",
    ),
]


class Record(BaseModel):
    """What all parts of a manifest share: strict, frozen, closed."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class FileRecord(Record):
    """A file of the package."""

    path: Text
    size: Count
    sha256: Sha256


class SourceFile(Record):
    """A weight file of a source model."""

    path: Text
    size: Count
    sha256: Sha256 | None = Field(
        description="the Hub's, or taken on request; the tensors' own digests are always there"
    )


class Labels(Record):
    """What the maker of a delta calls it."""

    name: Text
    version: SemanticVersion
    license: Text | None


class Earlier(Record):
    """A package whose weights a relabeled one has."""

    id: Sha256 = Field(description="sha256 of its manifest")
    name: Text
    version: SemanticVersion


class Source(Record):
    """One of the two models a delta was taken of."""

    name: Text = Field(description="Hub repository (org/name), or the folder's name for a local model")
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = Field(description="of a Hub repository")
    files: Annotated[tuple[SourceFile, ...], Field(max_length=FILES, fail_fast=True)] = Field(
        description="its weight files"
    )
    dtypes: Annotated[dict[Text, Count], Field(max_length=DTYPES), at_most(DTYPES)] = Field(
        description="parameters by safetensors dtype"
    )
    tied_embeddings: bool | None = Field(
        description="whether config and tensors say that the output head is the embedding; null where nothing tells"
    )
    tokenizer_sha256: Sha256 | None = Field(
        description="of its tokenizer.json, tokenizer.model, vocab.txt or vocab.json"
    )


class Architecture(Record):
    """What a target must look like."""

    model_type: Text | None
    classes: Annotated[tuple[Text, ...], Field(max_length=64, fail_fast=True)]
    fingerprint: Sha256 = Field(description="of base's tensor names and shapes; see SPEC-v1 §7")


PARTIAL = "used in part: "
"""How the reason begins why a part of a tensor was left out."""
SKIPPED = "skipped by rule"
"""Why a tensor was left out that could have been summed."""


class Omission(Record):
    """A tensor of base or post that the delta leaves out, and why. Nothing is left out without a record."""

    name: Text
    side: Literal["base", "post", "both"]
    reason: Text

    @property
    def lacks_values(self) -> bool:
        """Whether the tensor has values that the delta could have had, all or some."""
        return self.reason == SKIPPED or self.reason.startswith(PARTIAL)


class Rename(Record):
    """A rule by which post's tensor names were made base's, for people; ``post_name`` says what came of it."""

    pattern: Text
    replacement: Annotated[str, Field(max_length=1024)]


class ConfigChange(Record):
    """What post changed in one of its configs, as RFC 7396 merge patches there and back."""

    patch: dict[str, JsonValue] = Field(description="base's config to post's; token ids also where they are equal")
    reverse: dict[str, JsonValue] = Field(description="post's to base's: what base had under the same keys")

    @model_validator(mode="after")
    def _coherent(self) -> ConfigChange:
        if self.patch.keys() != self.reverse.keys():
            raise ValueError("patch and reverse speak of different keys")
        levels: list[Any] = [self.patch, self.reverse]
        while levels:
            level = levels.pop()
            levels += level.values() if isinstance(level, dict) else level if isinstance(level, list) else ()
            for key in level if isinstance(level, dict) else ():
                _clear(key)  # they are printed
                if key in CODE_KEYS:
                    raise ValueError(f"{key!r} refers to code, and a package never contains code")
        return self


def check_keys(value: Any, kind: type[BaseModel], error: type[SourceError], where: str | None, place: str) -> None:
    """Refuse a JSON object whose fields are not just its record's; also the objects of records in it, and of lists.

    Call it before pydantic, which keeps a copy of the whole object for each field that is missing. ``place`` is what
    the message calls the record.
    """
    if not isinstance(value, dict):
        return  # pydantic says what is wrong with it
    fields, inner = _fields_of(kind)
    if value.keys() != fields:
        names = ", ".join(repr(name[:80]) for name in sorted(value.keys() ^ fields)[:5])
        raise error(f"{place} lacks fields or has unknown ones: {names}", where=where)
    for name, record in inner.items():
        items = value[name] if isinstance(value[name], list) else [value[name]]
        for index, item in enumerate(items):
            check_keys(item, record, error, where, f"{name}[{index}]" if items is value[name] else name)


@functools.cache
def _fields_of(kind: type[BaseModel]) -> tuple[frozenset[str], dict[str, type[BaseModel]]]:
    """Return a record's field names, and the records in it, alone, optional or listed, by field."""
    inner = {}
    for name, field in kind.model_fields.items():
        options = () if get_origin(field.annotation) is dict else get_args(field.annotation)
        for option in (field.annotation, *options):
            if isinstance(option, type) and issubclass(option, BaseModel):
                inner[name] = option
    return frozenset(kind.model_fields), inner


def problems(error: ValidationError) -> str:
    """Return what pydantic found, the first 20 problems, a line each; of very many only how many they are."""
    if error.error_count() > _PROBLEMS:  # to list them takes as much memory again
        return f" {error.error_count():,} problems"
    details = error.errors(include_input=False, include_url=False)[:20]
    return "".join(f"\n  - {shown('.'.join(map(str, p['loc']))[:200]) or 'the whole'}: {p['msg']}" for p in details)
