"""Logical tensors: the dtype and shape used for arithmetic, and the source of the values.

Stored and logical tensors are mostly the same. There are three exceptions: 8-bit floats and their scales are read as
one BF16 tensor; a tied output head is read from the embedding (:mod:`.matching`); the rows of a vocabulary may be read
in another order (:mod:`.token_rows`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from paramdelta_hub.checkpoints.checkpoint import Checkpoint
from paramdelta_hub.checkpoints.matching import Entry, Match
from paramdelta_hub.checkpoints.quantization import find_scales, unsupported_reason, unused_tensors
from paramdelta_hub.checkpoints.roles import vocabulary_tensors
from paramdelta_hub.checkpoints.tensor_sources import Cast, Dequantized, Reordered, Stored, TensorSource
from paramdelta_hub.fileio.safetensors import Sized
from paramdelta_hub.numerics.floats import FLOATS
from paramdelta_hub.numerics.row_runs import Run

__all__ = ["LogicalModel", "LogicalTensor", "entries_of", "logical_model"]


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

    def tensor(self, name: str, matched: Match, side: str) -> LogicalTensor:
        """Return the tensor that a match calls ``name``. For a tied head that is the embedding."""
        tied_side, embedding = matched.ties.get(name, ("", name))
        return self.tensors[embedding if tied_side == side else name]


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


def entries_of(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, Entry]:
    """Return tensors (dtype, shape) as pairing sees them: which of them have the vocabulary as their first axis."""
    entries = {name: Entry(dtype, shape) for name, (dtype, shape) in tensors.items()}
    for name in vocabulary_tensors(entries):
        if entries[name].dtype in FLOATS:
            entries[name] = replace(entries[name], vocabulary=True)
    return entries
