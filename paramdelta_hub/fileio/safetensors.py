"""safetensors headers, read and written by strict rules.

A file is ``u64 length | JSON header | data``, all little-endian. The safetensors library (0.8) accepts duplicate
keys, unknown fields and names such as ``../../etc/passwd``. We refuse them. It accepts everything that we accept.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from paramdelta_hub.errors import CheckpointError, SourceError
from paramdelta_hub.fileio import strict_json
from paramdelta_hub.fileio.durable import open_regular
from paramdelta_hub.fileio.lfs import POINTER_START, refuse_pointer
from paramdelta_hub.fileio.names import check_tensor_name
from paramdelta_hub.limits import HEADER_BYTES, TENSOR_ELEMENTS, TENSOR_RANK, TENSORS

__all__ = ["DISCRETE", "ITEM_SIZES", "Header", "Sized", "TensorSpan", "build_header", "read_header"]

ITEM_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""The size of an element in bytes, by safetensors dtype."""

_NARROW = frozenset({"F4", "F6_E2M3", "F6_E3M2"})
"""Types of less than a byte. They only hold quantized weights, which can't be added."""

DISCRETE = frozenset({"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"})
"""Types of counts, indices and truth values. A delta stores such tensors whole."""

_LENGTH_BYTES = 8
_FIELDS = frozenset({"dtype", "shape", "data_offsets"})


class Sized:
    """The sizes that follow from a tensor's dtype and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """The number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """The size of an element in bytes."""
        return ITEM_SIZES[self.dtype]


@dataclass(frozen=True)
class TensorSpan(Sized):
    """The dtype, shape and position of a tensor. The position counts from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """A checked header: the tensors in the order of their data, the metadata, and the limits of the data."""

    tensors: tuple[TensorSpan, ...]
    metadata: Mapping[str, str]
    data_start: int
    size: int


def read_header(path: Path, error: type[SourceError] = CheckpointError, *, follow: bool = False) -> Header:
    """Read and check the header of a regular file. Links are refused unless ``follow`` is True. No weights are read.

    Raises:
        SourceError: (as ``error``) the header breaks a rule, which the message names; or the disk fails.
    """
    where = str(path)
    with os.fdopen(open_regular(path, error, follow=follow), "rb") as file:
        size = os.fstat(file.fileno()).st_size

        def read(nbytes: int) -> bytes:
            try:
                return file.read(nbytes)
            except OSError as problem:
                raise error(f"reading failed: {problem.strerror}", where=where) from problem

        prefix = read(_LENGTH_BYTES)
        if len(prefix) < _LENGTH_BYTES:
            raise error(f"truncated: {size} bytes are not a safetensors file", where=where, remedy="get the file again")
        length = int.from_bytes(prefix, "little")
        if POINTER_START.startswith(prefix):
            refuse_pointer(prefix + read(len(POINTER_START)), error, where)
        if prefix[:4] == b"GGUF":
            raise error("a GGUF file, not safetensors", where=where, remedy=GGUF_REMEDY)
        if length > HEADER_BYTES:
            raise error(f"not a safetensors file: it declares a header of {length} bytes", where=where)
        if length > size - _LENGTH_BYTES:
            raise error(
                f"truncated: the header alone takes {length} bytes, the file has {size}",
                where=where,
                remedy="get the file again",
            )
        text = read(length)
    return check_header(text, size, error, where)


GGUF_REMEDY = "GGUF is quantized; use the 16- or 32-bit safetensors release of the model"


def check_header(text: bytes, file_size: int, error: type[SourceError] = CheckpointError, where: str = "") -> Header:
    """Check a header's JSON text against the size of its file.

    - Every entry is a tensor with a known dtype, and its shape matches its number of bytes.
    - The tensors fill the data area from its start to the end of the file, without holes and overlaps.
    - The metadata is a map of strings.

    Raises:
        SourceError: (as ``error``) the header breaks a rule, which the message names.
    """

    def refuse(what: str, remedy: str | None = None) -> NoReturn:
        raise error(what, where=where, remedy=remedy)

    if text[:1] != b"{":
        refuse("the header does not begin with '{'")
    entries = strict_json.parse(text, error, where)
    if not isinstance(entries, dict):
        refuse("the header is not a JSON object")
    metadata = entries.pop("__metadata__", None)
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    ):
        refuse("the header's metadata is not a map of strings")
    if len(entries) > TENSORS:
        refuse(f"{len(entries)} tensors are too many")
    data_start = _LENGTH_BYTES + len(text)
    spans = []
    for name, entry in entries.items():
        check_tensor_name(name, error)
        span = _span(name, entry, data_start, refuse)
        if span.start + span.nbytes > file_size:
            refuse(
                f"truncated: tensor {name!r} ends at byte {span.start + span.nbytes}, the file at {file_size}",
                "get the file again",
            )
        spans.append(span)
    spans.sort(key=lambda span: (span.start, span.nbytes))
    position = data_start
    for span in spans:
        if span.start != position:
            refuse(f"there is a hole or an overlap before tensor {span.name!r}")
        position += span.nbytes
    if position != file_size:
        refuse(f"{file_size - position} bytes follow the last tensor")
    return Header(tuple(spans), metadata or {}, data_start, file_size)


def _span(name: str, entry: object, data_start: int, refuse: Callable[..., NoReturn]) -> TensorSpan:
    """Check the entry of a tensor. Messages are only built for errors: headers can have 250,000 entries."""
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        refuse(f"tensor {name!r} must have exactly the fields dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        if isinstance(dtype, str) and dtype in _NARROW:
            refuse(
                f"tensor {name!r} is {dtype}, which is quantized to less than a byte and can't be added",
                "use the 16-bit release that it was made from",
            )
        refuse(f"tensor {name!r} has the unknown dtype {dtype!r}")
    elements = _elements(shape)
    if elements is None:
        refuse(f"tensor {name!r} has an impossible shape")
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(map(_is_offset, offsets))):
        refuse(f"tensor {name!r} has impossible data_offsets")
    begin, end = offsets
    needed = elements * ITEM_SIZES[dtype]
    if end - begin != needed:
        refuse(f"tensor {name!r} spans {end - begin} bytes; its shape and dtype need {needed}")
    return TensorSpan(name, dtype, tuple(shape), data_start + begin, needed)


def _elements(shape: object) -> int | None:
    """Return the number of elements of a stranger's shape; None if it is not a valid shape."""
    if not isinstance(shape, list) or len(shape) > TENSOR_RANK:
        return None
    elements = 1
    for length in shape:
        if type(length) is not int or not 0 <= length <= TENSOR_ELEMENTS:
            return None
        elements *= length
    return elements if elements <= TENSOR_ELEMENTS else None


def _is_offset(value: object) -> bool:
    return type(value) is int and 0 <= value <= 2**62


def build_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str], least: int = 0
) -> bytes:
    """Return the length and the header of a file of these tensors (name, dtype, shape, bytes), without gaps.

    The header is padded with spaces to a multiple of 8, and to ``least`` bytes: so space is reserved before the sizes
    are known.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, dtype, shape, nbytes in tensors:
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + nbytes]}
        position += nbytes
    text = strict_json.compact(entries)
    length = max(len(text) + _LENGTH_BYTES, least)
    text = text.ljust(length + -length % 8 - _LENGTH_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text
