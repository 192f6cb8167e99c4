"""``paramdelta_provenance.json``: what an applied model is made of, and the digest of everything in it.

Strict, frozen and closed, like a manifest; ``schemas/provenance-v1.schema.json`` is generated from these models. It has
no time and no path: equal inputs give an equal file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from paramdelta_hub.errors import CheckpointError, PackageError
from paramdelta_hub.fileio import strict_json
from paramdelta_hub.fileio.names import check_file_names, check_tensor_name
from paramdelta_hub.limits import FILES, KIB, MANIFEST_VALUES, RENAMES, TENSORS
from paramdelta_hub.package.records import (
    Blake3,
    Count,
    Record,
    SemanticVersion,
    Sha256,
    Shape,
    Text,
    at_most,
    check_keys,
    problems,
)

__all__ = [
    "PROVENANCE_NAME",
    "Companion",
    "Companions",
    "Conflict",
    "Delta",
    "Factor",
    "ForeignTensor",
    "LeftOut",
    "Lineage",
    "Merged",
    "Model",
    "Provenance",
    "Renaming",
    "Requantized",
    "Tensor",
    "parse_provenance",
    "provenance_problems",
]

PROVENANCE_NAME = "paramdelta_provenance.json"

Words = Annotated[str, Field(max_length=64 * KIB)]
"""What a user wrote, or a sentence: to be kept, not to be printed as it is."""
Share = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class Model(Record):
    """A model that went into the result."""

    name: Text = Field(description="Hub repository (org/name), or the folder's name for a local model")
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = Field(description="of a Hub repository")


class ForeignTensor(Record):
    """A tensor that has nothing in common with base's, although the models are kin."""

    name: Text = Field(description="the delta's name for it")
    correlation: Number
    elements: Count
    hint: Words | None = Field(description="where its values are, if they were found in another place")

    @property
    def hint_words(self) -> str:
        """The hint in parentheses, if there is one."""
        return f" ({self.hint})" if self.hint else ""


class Lineage(Record):
    """How the target was found to be kin to a delta's base."""

    correlation: Number | None = Field(
        description="mean over tensors, without foreign ones unless they are too many; null: nothing could be compared"
    )
    tensors: Count = Field(description="how many were compared")
    foreign: tuple[ForeignTensor, ...] = Field(max_length=TENSORS)
    forced: bool = Field(description="applied although the target is not kin")


class Delta(Record):
    """A delta that was added."""

    name: Text
    version: SemanticVersion
    id: Sha256 = Field(description="sha256 of its manifest, which names the package")
    content: Sha256 = Field(description="of the digests of its tensors: equal for packages that differ in labels alone")
    weight: Number
    base: Model
    post: Model
    lineage: Lineage


class Factor(Record):
    """A factor for the weights of chosen tensors."""

    pattern: Words
    factor: Number


class Renaming(Record):
    """A rule by which the deltas' tensor names were made the target's."""

    pattern: Words
    replacement: Words


class LeftOut(Record):
    """A tensor that was not summed, although one side has it."""

    name: Text
    side: Text
    reason: Words


class Companion(Record):
    """A file beside the weights."""

    path: Text
    source: Words = Field(description="`target`, a delta's name and version, or both where one was laid over the other")
    size: Count
    sha256: Sha256


class Conflict(Record):
    """A key that post changed, and somebody else changed otherwise; values are JSON texts, cut where they are long."""

    key: Words
    delta: Words
    base: Words
    post: Words
    found: Words
    other: Words
    winner: Words


class Merged(Record):
    """What became of a config's keys."""

    taken: Annotated[dict[Words, Words], at_most(FILES)] = Field(
        description="keys with post's value, and the delta it comes from"
    )
    kept: Annotated[dict[Words, Words], at_most(FILES)] = Field(
        description="keys that post changed and that are the target's, and why"
    )
    overridden: tuple[Words, ...] = Field(fail_fast=True, description="keys set to what the result's tensors are")
    conflicts: tuple[Conflict, ...] = Field(fail_fast=True)


class Companions(Record):
    """What lies beside the weights."""

    mode: Literal["post", "target", "none"]
    files: Annotated[tuple[Companion, ...], Field(max_length=FILES, fail_fast=True)]
    configs: dict[Text, Merged]
    warnings: tuple[Words, ...] = Field(fail_fast=True)


class Requantized(Record):
    """What 8-bit weights lost against the sums they were made of."""

    dtype: Literal["bfloat16", "float8_e4m3fn"]
    tensors: Count
    rms_error: Share
    largest_error: Share


class Tensor(Record):
    """A tensor of the result."""

    dtype: Text
    shape: Shape
    blake3: Blake3 = Field(description="of its values, little-endian, in C order")


class Provenance(Record):
    """What a result is made of, and what it is: every tensor and every file but the card."""

    format: Literal["paramdelta-provenance"]
    format_version: Literal[1]
    created_by: Text
    target: Model
    deltas: Annotated[tuple[Delta, ...], Field(min_length=1, max_length=FILES, fail_fast=True)] = Field(
        description="in the order in which they were added"
    )
    earlier: Annotated[tuple[Delta, ...], Field(max_length=FILES, fail_fast=True)] = Field(
        description="what the target had already, by its own provenance"
    )
    weight_map: tuple[Factor, ...] = Field(
        fail_fast=True, description="the last pattern found in a tensor's name decides, else 1"
    )
    layouts: Annotated[tuple[Words, ...], Field(max_length=RENAMES, fail_fast=True)] = Field(
        description="rules by which the deltas' tensors were put together to the target's, before the renames"
    )
    renames: Annotated[tuple[Renaming, ...], Field(max_length=RENAMES, fail_fast=True)]
    skips: tuple[Words, ...] = Field(fail_fast=True)
    omissions: Annotated[tuple[LeftOut, ...], Field(max_length=4 * TENSORS, fail_fast=True)]
    notes: tuple[Words, ...] = Field(fail_fast=True)
    is_post: bool = Field(description="the result is post, bit for bit")
    tensors: Annotated[dict[str, Tensor], Field(max_length=TENSORS)]
    companions: Companions
    requantization: Requantized | None

    @model_validator(mode="after")
    def _coherent(self) -> Provenance:
        try:
            for name in self.tensors:
                check_tensor_name(name)
            check_file_names([PROVENANCE_NAME, *(file.path for file in self.companions.files)])
        except PackageError as error:
            raise ValueError(error.what) from None
        return self


def parse_provenance(text: bytes, where: str | None = None) -> Provenance:
    """Return what a provenance file says.

    Raises:
        CheckpointError: it is none, is of a later version, or breaks the format; every problem is listed.
    """
    value: Any = strict_json.parse(text, CheckpointError, where, MANIFEST_VALUES)
    if not isinstance(value, dict) or value.get("format") != "paramdelta-provenance":
        raise CheckpointError("not a provenance", where=where)
    version = value.get("format_version")
    if type(version) is not int or version != 1:  # 1.0 and true equal 1 to Python, and to pydantic's Literal
        raise CheckpointError(
            "a provenance of a version that is not known here",
            where=where,
            remedy="pip install --upgrade paramdelta-hub",
        )
    check_keys(value, Provenance, CheckpointError, where, "the provenance")
    # at_most() can't be used for these: strict models refuse lists as tuples inside what a validator function has seen.
    configs = value["companions"]["configs"] if isinstance(value["companions"], dict) else {}
    for table in (value["tensors"], configs):
        if isinstance(table, dict) and len(table) > TENSORS:
            raise CheckpointError(f"the provenance has a table of {len(table)} entries", where=where)
    del value, configs, table
    with provenance_problems(where):
        return Provenance.model_validate_json(text)


@contextmanager
def provenance_problems(where: str | None = None) -> Iterator[None]:
    """Turn what a model of a provenance refuses into an error of ours.

    Raises:
        CheckpointError: the format is broken; every problem is listed.
    """
    try:
        yield
    except ValidationError as error:
        raise CheckpointError(f"the provenance breaks its format:{problems(error)}", where=where) from None
