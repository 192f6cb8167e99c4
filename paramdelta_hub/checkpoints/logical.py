"""Logical tensors: the dtype and shape used for arithmetic, and the source of the values.

Stored and logical tensors are mostly the same. There are three exceptions: 8-bit floats and their scales are read as
one BF16 tensor; a tied output head is read from the embedding (:mod:`.ties`); the rows of a vocabulary may be read
in another order (:mod:`.token_rows`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from paramdelta_hub.checkpoints.checkpoint import Checkpoint
from paramdelta_hub.checkpoints.quantization import find_scales, unsupported_reason, unused_tensors
from paramdelta_hub.checkpoints.roles import Entry, vocabulary_tensors
from paramdelta_hub.checkpoints.tensor_sources import Cast, Dequantized, Files, Reordered, Stored, TensorSource
from paramdelta_hub.fileio.safetensors import Sized
from paramdelta_hub.limits import CHUNK_ELEMENTS
from paramdelta_hub.numerics.floats import FLOATS
from paramdelta_hub.numerics.row_runs import Run
from paramdelta_hub.numerics.scratch import scratch

__all__ = ["LogicalModel", "LogicalTensor", "entries_of", "logical_model", "same_values"]


@dataclass(frozen=True)
class LogicalTensor(Sized):
    """One tensor: what it is, and how to read it."""

    dtype: str
    shape: tuple[int, ...]
    source: TensorSource

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return self.elements * self.itemsize

    @property
    def is_quantized(self) -> bool:
        """Whether the checkpoint stores it as 8-bit floats with scales."""
        return isinstance(self.source, Dequantized)

    def cast(self, dtype: str) -> LogicalTensor:
        """Return the tensor with its values in another float dtype; itself if that is its own.

        Its rows must be in their own order.
        """
        if dtype == self.dtype:
            return self
        assert not isinstance(self.source, Cast | Reordered)
        return LogicalTensor(dtype, self.shape, Cast(self.source, dtype))

    def reorder_rows(self, runs: Sequence[Run] | None) -> LogicalTensor:
        """Return the tensor with its rows in the order of ``runs``; itself if there are none.

        Its rows must be in their own order.
        """
        if runs is None:
            return self
        assert not isinstance(self.source, Reordered)
        rows = sum(run.number for run in runs)
        reordered = Reordered(self.source, tuple(runs), math.prod(self.shape[1:]))
        return LogicalTensor(self.dtype, (rows, *self.shape[1:]), reordered)


@dataclass(frozen=True)
class LogicalModel:
    """Every logical tensor by name, in the checkpoint's order, and the stored tensors that are left out."""

    checkpoint: Checkpoint
    tensors: dict[str, LogicalTensor]
    omissions: tuple[tuple[str, str], ...]
    """(name, reason)"""
    unsupported: str | None
    """Why no delta can be added to this model, in a sentence; None if one can."""

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Every tensor as pairing sees it."""
        return entries_of({name: (tensor.dtype, tensor.shape) for name, tensor in self.tensors.items()})

    def cast(self, dtype: str | None) -> LogicalModel:
        """Return the model with all float values in one dtype; itself for None."""
        if dtype is None:
            return self
        tensors = {
            name: tensor.cast(dtype) if tensor.dtype in FLOATS else tensor for name, tensor in self.tensors.items()
        }
        return replace(self, tensors=tensors)


def logical_model(checkpoint: Checkpoint) -> LogicalModel:
    """Return the logical tensors of a model, from its headers.

    Raises:
        CheckpointError: an 8-bit weight whose scale does not fit it.
    """
    unsupported = unsupported_reason(checkpoint)
    quantized = {} if unsupported else find_scales(checkpoint)
    omitted = unused_tensors(checkpoint, quantized)
    tensors = {}
    for name, (file, span) in checkpoint.tensors.items():
        if name in omitted:
            continue
        source: TensorSource = Stored.of(file, span)
        if scaled := quantized.get(name):
            scale = Stored.of(*checkpoint.tensors[scaled.scale])
            source = Dequantized(Stored.of(file, span), scale, scaled.scale, scaled.grid)
        tensors[name] = LogicalTensor(source.dtype, span.shape, source)
    return LogicalModel(checkpoint, tensors, tuple(omitted.items()), unsupported)


def same_values(one: LogicalTensor, other: LogicalTensor, files: Files, at_most: int | None = None) -> bool:
    """Whether two tensors are equal in dtype, shape and every bit; both are read until the first difference.

    Raises:
        CheckpointError: a file was truncated or can't be read.
    """
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    values, other_values = one.source.open(files), other.source.open(files)
    elements = one.elements if at_most is None else min(at_most, one.elements)
    for start in range(0, elements, CHUNK_ELEMENTS):
        size = min(CHUNK_ELEMENTS, elements - start) * one.itemsize
        chunk, other_chunk = scratch("one side", size, np.uint8), scratch("the other side", size, np.uint8)
        values.read(start, chunk)
        other_values.read(start, other_chunk)
        if not np.array_equal(chunk, other_chunk):
            return False
    return True


def entries_of(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, Entry]:
    """Return tensors (dtype, shape) as pairing sees them: which of them have the vocabulary as their first axis."""
    entries = {name: Entry(dtype, shape) for name, (dtype, shape) in tensors.items()}
    for name in vocabulary_tensors(entries):
        if entries[name].dtype in FLOATS:
            entries[name] = replace(entries[name], vocabulary=True)
    return entries
