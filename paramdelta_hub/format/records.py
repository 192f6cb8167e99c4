"""The parts a manifest is made of: what a field can hold, and the records that stand for themselves.

Every record is strict, frozen and closed: a field we do not know is an error, because a reader that skips what it does
not understand applies the wrong delta. Lists are read to their first wrong item (``fail_fast``), and tables are
bounded: else pydantic makes an error of every wrong one, and a few megabytes become gigabytes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from paramdelta_hub.format.names import is_clear
from paramdelta_hub.limits import DTYPES, FILES

__all__ = [
    "CODE_KEYS",
    "Architecture",
    "ConfigChange",
    "ConfigName",
    "Count",
    "Counts",
    "FileRecord",
    "Labels",
    "Norm",
    "Omission",
    "Record",
    "Rename",
    "SemanticVersion",
    "Sha256",
    "Source",
    "SourceFile",
    "Text",
    "at_most",
]

CODE_KEYS = frozenset({"auto_map", "custom_pipelines"})
"""Keys of a config by which it names code to be run when a model is loaded."""
ConfigName = Literal["config.json", "generation_config.json"]


def _clear(text: str) -> str:
    """Texts are printed on terminals: refuse what could move a cursor, hide, or start a line of its own."""
    if not is_clear(text):
        raise ValueError("control characters, or others that do not show")
    return text


def at_most(entries: int) -> BeforeValidator:
    """Refuse a larger table before its entries are looked at: pydantic would make an error of each wrong one."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > entries:
            raise ValueError(f"{len(value)} entries, where at most {entries} make sense")
        return value

    return BeforeValidator(check)


def _counts(value: Any) -> Any:
    """Refuse a table of any size at its first wrong entry."""
    for name, count in value.items() if isinstance(value, dict) else ():
        if len(name) > _TEXT or type(count) is not int or not 0 <= count <= _COUNT:
            raise ValueError(f"{name[:40]!r} is too long, or has no count")
    return value


_TEXT, _COUNT = 1024, 2**62
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=_COUNT)]
Norm = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1, max_length=_TEXT), AfterValidator(_clear)]
Counts = Annotated[dict[Annotated[str, Field(max_length=_TEXT)], Count], BeforeValidator(_counts)]
SemanticVersion = Annotated[
    str,
    Field(
        max_length=128,
        # semver.org's grammar; [0-9] and not \d, which takes the digits of every script.
        pattern=r"^(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)"
        r"(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?(\+[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?$",
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
    tied_embeddings: bool | None = Field(description="as the tensors say; null where there are no token embeddings")
    tokenizer_sha256: Sha256 | None = Field(
        description="of its tokenizer.json, tokenizer.model, vocab.txt or vocab.json"
    )


class Architecture(Record):
    """What a target must look like."""

    model_type: Text | None
    classes: Annotated[tuple[Text, ...], Field(max_length=64, fail_fast=True)]
    fingerprint: Sha256 = Field(description="of base's tensor names and shapes; see SPEC-v1 §7")


class Omission(Record):
    """A tensor of base or post that the delta leaves out, and why. Nothing is left out without a record."""

    name: Text
    side: Literal["base", "post", "both"]
    reason: Text


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
                    raise ValueError(f"{key!r} names code, which no package carries")
        return self
