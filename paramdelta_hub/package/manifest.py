"""``manifest.json``: what a package is, where it comes from, and the digest of everything in it.

The models are strict, frozen and closed: a field we do not know is an error, because a reader that skips what it does
not understand applies the wrong delta. ``schemas/manifest-v1.schema.json`` is generated from them.
"""

from __future__ import annotations

import hashlib
import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from paramdelta_hub.codecs import CODECS, ZERO
from paramdelta_hub.errors import PackageError, UnsupportedFormatError
from paramdelta_hub.fileio import strict_json
from paramdelta_hub.fileio.names import check_file_names, check_tensor_name
from paramdelta_hub.fileio.safetensors import DISCRETE, ITEM_SIZES
from paramdelta_hub.limits import (
    CHUNK_ELEMENTS,
    CONFIGS,
    FILES,
    MANIFEST_BYTES,
    MANIFEST_VALUES,
    RELABELINGS,
    RENAMES,
    TENSOR_ELEMENTS,
    TENSORS,
    VOCABULARY_ROWS,
)
from paramdelta_hub.numerics.casts import StoredFloat, common_dtype
from paramdelta_hub.numerics.floats import FLOATS
from paramdelta_hub.numerics.row_runs import Run, check_runs
from paramdelta_hub.package.records import (
    Architecture,
    Blake3,
    ConfigChange,
    ConfigName,
    Count,
    Counts,
    Earlier,
    FileRecord,
    Labels,
    Norm,
    Omission,
    Record,
    Rename,
    SemanticVersion,
    Shape,
    Source,
    SourceFile,
    Text,
    at_most,
    check_keys,
    problems,
)

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "LINEAGE_NAME",
    "MANIFEST_NAME",
    "Architecture",
    "ConfigChange",
    "Earlier",
    "Exactness",
    "FileRecord",
    "Labels",
    "Manifest",
    "Omission",
    "Part",
    "Rename",
    "Rows",
    "Source",
    "SourceFile",
    "TensorRecord",
    "parse_manifest",
    "shard_name",
]

FORMAT, FORMAT_VERSION = "paramdelta", 1
MANIFEST_NAME = "manifest.json"
LINEAGE_NAME = "lineage.safetensors"
DATA_SUFFIXES = (".json", ".jinja", ".txt", ".model")
"""What companions are named. No name that an interpreter would take, and no weights."""


TensorName = Annotated[str, Field(min_length=1, max_length=1024)]


class Part(Record):
    """Some chunks of a tensor, one after another, and the payload that has them."""

    chunks: Annotated[int, Field(ge=1, le=TENSOR_ELEMENTS // CHUNK_ELEMENTS)] = Field(description="how many")
    codec: Text = Field(description="how they are coded; zero: nothing changed in them")
    shard: Text | None = Field(description="the file that holds the payload; null for zero")
    nbytes: Count = Field(description="bytes of the payload; 0 for zero")
    blake3: Blake3 | None = Field(description="of the payload's chunk table, which has those of the chunks")

    @property
    def is_zero(self) -> bool:
        """Whether nothing changed in these chunks, so that there is no payload."""
        return self.codec == ZERO

    def check(self, effect: str) -> None:
        """Raise a ValueError if a tensor of this effect can't have such a part."""
        if self.is_zero:
            if (self.shard, self.nbytes, self.blake3) != (None, 0, None):
                raise ValueError("a part without change has no payload")
            return
        if self.shard is None or self.blake3 is None or not self.nbytes:
            raise ValueError("the payload is missing")
        if not any(self.codec in names for names in CODECS.values()):
            raise ValueError(f"unknown codec {self.codec!r}; a newer paramdelta-hub may know it")
        if self.codec not in CODECS[effect]:
            raise ValueError(f"the codec {self.codec!r} is none for the effect {effect!r}")


class Rows(Record):
    """Rows of a vocabulary tensor, which are post's: the rows of base they belong to, by token."""

    base: Count = Field(description="how many rows base's tensor has")
    runs: Annotated[
        tuple[tuple[Count, Count | None, Count], ...], Field(max_length=VOCABULARY_ROWS, fail_fast=True)
    ] = Field(description="(first row, base's row, number of rows); with null instead of base's row, base has none")


class TensorRecord(Record):
    """One tensor of the delta, under base's name for it, or post's where base ties it to its embedding."""

    name: TensorName
    base_name: Text | None = Field(description="base's tensor that stands for it, where base has none of this name")
    post_name: Text | None = Field(description="post's name for it, where a rule made the two alike or post ties it")
    dtype: Text = Field(description="of the delta, and of the digests: the one that holds both sides")
    base_dtype: Text
    post_dtype: Text
    shape: Shape
    rows: Rows | None = Field(description="of a vocabulary, where its rows are not just base's")
    effect: Literal["add", "replace"] = Field(description="add: a float delta; replace: integers, carried whole")
    parts: Annotated[tuple[Part, ...], Field(max_length=FILES, fail_fast=True)] = Field(
        description="its chunks, in order; each part in another shard"
    )
    base_blake3: Blake3 = Field(description="of the digests of base's chunks, in dtype, little-endian, in C order")
    post_blake3: Blake3
    base_norm: Norm = Field(description="Euclidean norm, six significant digits; 0 for replaced tensors")
    delta_norm: Norm
    changed: Count = Field(description="elements whose bits differ between base and post")
    exceptions: Count = Field(description="elements that no sum with base reaches; post's bits are stored")

    @property
    def elements(self) -> int:
        """How many elements the tensor has."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return ITEM_SIZES[self.dtype]

    @property
    def codec(self) -> str:
        """The codec of the first part that changed; ``zero`` if none did."""
        return next((part.codec for part in self.parts if not part.is_zero), ZERO)

    @property
    def is_zero(self) -> bool:
        """Whether nothing changed, so that there is no payload."""
        return all(part.is_zero for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Bytes of its payloads."""
        return sum(part.nbytes for part in self.parts)

    @property
    def runs(self) -> tuple[Run, ...] | None:
        """Which of base's rows each of its rows belongs to; None where that is its own, for all of them."""
        return tuple(Run(*run) for run in self.rows.runs) if self.rows else None

    @model_validator(mode="after")
    def _coherent(self) -> TensorRecord:
        check_tensor_name(self.name)
        for dtype in (self.dtype, self.base_dtype, self.post_dtype):
            if dtype not in ITEM_SIZES:
                raise ValueError(f"unknown dtype {dtype!r}")
        if self.dtype != common_dtype(self.base_dtype, self.post_dtype):
            raise ValueError(f"{self.dtype} is not the dtype of {self.base_dtype} and {self.post_dtype} together")
        if self.base_dtype != self.post_dtype and not {self.base_dtype, self.post_dtype} <= FLOATS.keys():
            raise ValueError(f"{self.base_dtype} and {self.post_dtype} have no common dtype")
        if (self.effect == "add" and self.dtype not in FLOATS) or (
            self.effect == "replace" and self.dtype not in DISCRETE
        ):
            raise ValueError(f"{self.dtype} can't have the effect {self.effect!r}")
        if self.elements > TENSOR_ELEMENTS:
            raise ValueError("too many elements")
        if max(self.changed, self.exceptions) > self.elements:
            raise ValueError("counts more elements than there are")
        if (self.effect == "replace" or self.is_zero) and self.exceptions:
            raise ValueError("only an added tensor that changes has exceptions")
        if self.rows is not None:
            if not self.shape:
                raise ValueError("a scalar has no rows")
            check_runs(self.runs or (), self.shape[0], self.rows.base)
        for part in self.parts:
            part.check(self.effect)
        if sum(part.chunks for part in self.parts) != -(-self.elements // CHUNK_ELEMENTS):
            raise ValueError("the parts do not have as many chunks as the tensor")
        if self.effect == "replace" and not self.is_zero and any(part.is_zero for part in self.parts):
            raise ValueError("a replaced tensor is replaced as a whole")
        shards = [part.shard for part in self.parts if part.shard]
        if len(set(shards)) < len(shards):
            raise ValueError("two parts lie in one shard")
        if self.is_zero and (self.base_blake3 != self.post_blake3 or self.changed):
            raise ValueError("a tensor without payload has equal digests and no change")
        return self


def _exactly_true(value: object) -> object:
    """Refuse 1, which Python takes for true."""
    if value is not True:
        raise ValueError("must be true")
    return value


class Exactness(Record):
    """What was checked at extraction: base ⊕ Δ == post, bit for bit, over this many elements."""

    exact: Annotated[Literal[True], BeforeValidator(_exactly_true)]
    elements: Count
    changed: Count
    exceptions: Count


class Manifest(Record):
    """The whole manifest. Its file's sha256 is the package's id."""

    format: Literal["paramdelta"]
    format_version: Literal[1]
    name: Text
    version: SemanticVersion
    license: Text | None
    created_by: Text
    relabeled_from: Annotated[tuple[Earlier, ...], Field(max_length=RELABELINGS, fail_fast=True)] = Field(
        description="the packages that it was before it was relabeled, the first one first"
    )
    base: Source
    post: Source
    architecture: Architecture
    exactness: Exactness
    configs: Annotated[dict[ConfigName, ConfigChange], at_most(CONFIGS)] = Field(
        description="by file, also of components; one that base or post lacks is left out"
    )
    cast: StoredFloat | None = Field(
        description="the dtype in which both sides were read, rounded once; null where each is as it is stored"
    )
    given_up: Counts = Field(description="tokens of base that post no longer has, with base's ids")
    taken_up: Counts = Field(description="tokens of post whose rows base has without a name, with their ids")
    renames: Annotated[tuple[Rename, ...], Field(max_length=RENAMES, fail_fast=True)]
    layouts: Annotated[tuple[Text, ...], Field(max_length=RENAMES, fail_fast=True)] = Field(
        description="rules by which post's tensors were put together to base's, before the renames"
    )
    ties: Annotated[dict[TensorName, TensorName], at_most(TENSORS)] = Field(
        description="names under which base or post has a tensor once more: name → the record's name"
    )
    omissions: Annotated[tuple[Omission, ...], Field(max_length=TENSORS, fail_fast=True)]
    shards: Annotated[tuple[FileRecord, ...], Field(max_length=FILES, fail_fast=True)]
    lineage: FileRecord = Field(description="samples of base's values")
    companions: Annotated[tuple[FileRecord, ...], Field(max_length=FILES, fail_fast=True)]
    tensors: Annotated[tuple[TensorRecord, ...], Field(max_length=TENSORS, fail_fast=True)]

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """Every file of the package but the manifest, the model card and the signature."""
        return (*self.shards, self.lineage, *self.companions)

    @property
    def nbytes(self) -> int:
        """Size of the package without its manifest."""
        return sum(file.size for file in self.files)

    @property
    def model_nbytes(self) -> int:
        """Size of the full model's tensors that the delta covers."""
        return sum(tensor.elements * tensor.itemsize for tensor in self.tensors)

    @property
    def left_out(self) -> int:
        """How many tensors the delta leaves out, or has a part of; base's own buffers and scales don't count."""
        return sum(omission.side != "base" or omission.lacks_values for omission in self.omissions)

    @property
    def but_left_out(self) -> str:
        """What is to be added wherever a result is called post."""
        return f", but for {self.left_out} tensor(s) that the delta leaves out" if self.left_out else ""

    @property
    def content_id(self) -> str:
        """Return what names the delta itself, a sha256: equal for packages that differ in labels and files alone."""
        lines = sorted(f"{tensor.name}\0{tensor.base_blake3}\0{tensor.post_blake3}" for tensor in self.tensors)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @model_validator(mode="after")
    def _coherent(self) -> Manifest:
        check_file_names([MANIFEST_NAME, "README.md", "manifest.json.sig", *(file.path for file in self.files)])
        if [file.path for file in self.shards] != [
            shard_name(i + 1, len(self.shards)) for i in range(len(self.shards))
        ]:
            raise ValueError("the shards are not named in order")
        if self.lineage.path != LINEAGE_NAME:
            raise ValueError(f"the lineage file must be named {LINEAGE_NAME}")
        for file in self.companions:
            if not file.path.startswith("companions/"):
                raise ValueError(f"the companion {file.path!r} lies outside companions/")
            if not file.path.endswith(DATA_SUFFIXES):
                raise ValueError(f"the companion {file.path!r} is none of {', '.join(DATA_SUFFIXES)}")
        names = {tensor.name for tensor in self.tensors}
        if len(names) != len(self.tensors):
            raise ValueError("two tensors have the same name")
        for name, first in self.ties.items():
            check_tensor_name(name)
            if name in names or first not in names:
                raise ValueError(f"the tie of {name!r} is not one to another tensor of the delta")
        used = {part.shard for tensor in self.tensors for part in tensor.parts}
        if used - {None} != {file.path for file in self.shards}:
            raise ValueError("a shard holds no tensor, or a tensor lies in an unlisted file")
        for count in ("elements", "changed", "exceptions"):
            if sum(getattr(tensor, count) for tensor in self.tensors) != getattr(self.exactness, count):
                raise ValueError("the exactness totals differ from the tensors'")
        return self

    def to_json(self) -> bytes:
        """Return the file's content: fields in their order, a line a tensor; equal manifests give equal bytes."""
        head = self.model_dump(mode="json")
        tensors = [b"    " + strict_json.compact(tensor) for tensor in head.pop("tensors")]
        opening = strict_json.pretty(head).removesuffix(b"\n}\n") + b',\n  "tensors": ['
        return opening + b"\n" * bool(tensors) + b",\n".join(tensors) + b"\n  " * bool(tensors) + b"]\n}\n"


def shard_name(number: int, count: int) -> str:
    """Return the name of shard ``number`` (from 1) of ``count``."""
    return f"delta-{number:05d}-of-{count:05d}.safetensors"


def parse_manifest(text: bytes, where: str | None = None) -> tuple[Manifest, str]:
    """Return the manifest and its digest, the package's id.

    Raises:
        UnsupportedFormatError: a format version we do not know.
        PackageError: anything else that is wrong, with every problem listed.
    """
    if len(text) > MANIFEST_BYTES:
        raise PackageError(f"a manifest of {len(text)} bytes is too large", where=where)
    value: Any = strict_json.parse(text, PackageError, where, MANIFEST_VALUES)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise PackageError("not a paramdelta manifest", where=where)
    version = value.get("format_version")
    if type(version) is not int or version < 1:  # 1.0 and true equal 1 to Python, and to pydantic's Literal
        raise PackageError("format_version is not a positive integer", where=where)
    if version > FORMAT_VERSION:
        raise UnsupportedFormatError(
            f"format version {version}; this version reads up to {FORMAT_VERSION}",
            where=where,
            remedy="pip install --upgrade paramdelta-hub",
        )
    # Before pydantic, which keeps a copy of an object for every field that it misses there.
    check_keys(value, Manifest, PackageError, where, "the manifest")
    del value
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        raise PackageError(f"the manifest breaks the format:{problems(error)}", where=where) from None
    except PackageError as error:
        raise PackageError(error.what, where=where) from None
    return manifest, hashlib.sha256(text).hexdigest()
