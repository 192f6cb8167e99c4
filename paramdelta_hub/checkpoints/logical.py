"""Logical tensors: the dtype and shape used for arithmetic, and the source of the values.

Stored and logical tensors are mostly the same. The exceptions: quantized weights and their scales are read as one BF16
tensor (:mod:`.quantization`); base and an adapter are read as post (:mod:`.adapters`); a tied output head is read from
the embedding (:mod:`.ties`); the rows of a vocabulary may be read in another order (:mod:`.token_rows`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from paramdelta_hub.checkpoints.adapters.placing import Update, describe, find_updates, refuse_half_of_tie, tied_heads
from paramdelta_hub.checkpoints.adapters.reading import is_adapter, open_adapter, refuse_adapter, refuse_adapter_beside
from paramdelta_hub.checkpoints.adapters.source import Adapted, LowRank, NewRows
from paramdelta_hub.checkpoints.checkpoint import Checkpoint
from paramdelta_hub.checkpoints.dequantized import Dequantized, Mxfp4
from paramdelta_hub.checkpoints.matching.roles import Entry, vocabulary_tensors
from paramdelta_hub.checkpoints.quantization import ScaledWeight, find_scales, unsupported_reason, unused_tensors
from paramdelta_hub.checkpoints.rules.tensor_rules import Rules
from paramdelta_hub.checkpoints.stored import Files, Stored
from paramdelta_hub.checkpoints.tensor_sources import Arranged, Cast, Reordered, TensorSource
from paramdelta_hub.errors import CheckpointError
from paramdelta_hub.fileio.safetensors import Sized
from paramdelta_hub.limits import CHUNK_ELEMENTS
from paramdelta_hub.numerics.floats import FLOATS
from paramdelta_hub.numerics.row_runs import Run
from paramdelta_hub.numerics.scratch import scratch

__all__ = ["LogicalModel", "LogicalTensor", "entries_of", "logical_model", "logical_post", "same_values"]


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
        """Whether the checkpoint stores it as codes with scales."""
        return isinstance(self.source, (Dequantized, Mxfp4))

    def cast(self, dtype: str) -> LogicalTensor:
        """Return the tensor with its values in another float dtype; itself if that is its own.

        Its rows must be in their own order.
        """
        if dtype == self.dtype:
            return self
        if isinstance(self.source, Arranged):
            parts = []
            for part in self.source.parts:
                assert not isinstance(part, Cast)
                parts.append(Cast(part, dtype))
            return LogicalTensor(dtype, self.shape, replace(self.source, parts=tuple(parts), dtype=dtype))
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
    notes: tuple[str, ...] = ()
    """What there is to say of how it is read, in words."""
    homeless: Mapping[str, str] = field(default_factory=dict)
    """Of an adapter: what it updates, although base has no such tensor → why, in words."""
    packed: Mapping[str, str] = field(default_factory=dict)
    """Tensors that the checkpoint has no tensor of that name for → the one that holds their codes."""
    adapter_names: tuple[str, ...] | None = None
    """Of base with an adapter: the adapter's own names, to which rename rules have been applied already; the tensors
    have base's. None for a model."""

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
        CheckpointError: a quantized weight whose scale does not fit it, or an adapter, which is no model.
    """
    refuse_adapter(checkpoint)
    unsupported = unsupported_reason(checkpoint)
    quantized = {} if unsupported else find_scales(checkpoint)
    omitted = unused_tensors(checkpoint, quantized)
    tensors = {}
    for name, (file, span) in checkpoint.tensors.items():
        if scaled := quantized.get(name):
            values = scaled.source(checkpoint)
            tensors[scaled.name] = LogicalTensor(values.dtype, scaled.shape, values)
        elif name not in omitted:
            tensors[name] = LogicalTensor(span.dtype, span.shape, Stored.of(file, span))
    notes: tuple[str, ...] = ()
    if quantized:
        words = f"{len(quantized):,} quantized tensors are read with their scales, as what they stand for"
        notes = (f"{checkpoint.source.name}: {words} ({_dtypes(quantized.values())})",)
    packed = {scaled.name: name for name, scaled in quantized.items() if scaled.name != name}
    return LogicalModel(checkpoint, tensors, tuple(omitted.items()), unsupported, notes, packed=packed)


def _dtypes(weights: Iterable[ScaledWeight]) -> str:
    pairs = sorted({(weight.code, weight.dtype) for weight in weights})
    return ", ".join(f"{code} → {dtype}" for code, dtype in pairs)


def logical_post(checkpoint: Checkpoint, base: LogicalModel | None, rules: Rules | None = None) -> LogicalModel:
    """Return the logical tensors of a model that was trained from ``base``: its own, or base's with an adapter.

    Args:
        checkpoint: a model, or an adapter.
        base: what it was trained from; needed for an adapter.
        rules: the user's; an adapter's names are renamed before they are looked for in base.

    Raises:
        CheckpointError: a quantized weight whose scale does not fit it, an adapter that can't be read, or a model
            and an adapter.
    """
    if not is_adapter(checkpoint):
        refuse_adapter_beside(checkpoint)
        return logical_model(checkpoint)
    if base is None:
        raise CheckpointError(
            "a LoRA adapter, which means nothing without its base",
            where=str(checkpoint.source.path),
            remedy="give the base with --base as well",
        )
    adapter = open_adapter(checkpoint)
    if base.unsupported:  # which is what will be told
        return LogicalModel(checkpoint, base.tensors, (), None, adapter_names=adapter.names)
    shapes = {name: tensor.shape for name, tensor in base.tensors.items()}
    config = base.checkpoint.config
    rules = rules or Rules()
    heads = tied_heads(adapter, shapes, config, rules)
    shapes_with_heads = shapes | {head: shapes[embedding] for head, embedding in heads.items()}
    updates = find_updates(adapter, shapes_with_heads, (config or {}).get("model_type"), rules)
    refuse_half_of_tie(adapter, updates, shapes, config, rules)
    tensors = dict(base.tensors)
    for name, update in updates.tensors.items():
        tensors[name] = _updated(base.tensors.get(heads.get(name, name)), update, checkpoint)
    notes = [*describe(adapter, updates, base.checkpoint.source.name)]
    if quantized := sum(base.tensors[name].is_quantized for name in updates.tensors if name in base.tensors):
        notes.append(f"{quantized:,} of these tensors are quantized in base: the adapter is added to their bf16 values")
    return LogicalModel(checkpoint, tensors, (), None, tuple(notes), updates.homeless, adapter_names=adapter.names)


def _updated(base: LogicalTensor | None, update: Update, adapter: Checkpoint) -> LogicalTensor:
    """Return a tensor of base as an adapter makes it; a whole one that base lacks is the adapter's own."""
    inner, shape = base.source if base else None, base.shape if base else ()
    dtype = base.dtype if base else ""
    if update.whole is not None:
        file, span = adapter.tensors[update.whole]
        inner, shape, dtype = Stored.of(file, span), span.shape, dtype or span.dtype
        rounded = dtype != span.dtype and {dtype, span.dtype} <= FLOATS.keys()
        if update.up is None and update.rows is None and not rounded:
            return LogicalTensor(span.dtype, shape, inner)
    if not isinstance(inner, (Stored, Dequantized, Mxfp4)) or {inner.dtype, dtype} - FLOATS.keys():
        raise CheckpointError(
            f"the adapter updates a tensor that is {dtype} in base, and is no F32, BF16 or F16",
            where=str(adapter.source.path),
        )
    product = None
    if update.up is not None:
        up_file, up = adapter.tensors[update.up]
        down = adapter.tensors[update.down] if update.down else None
        inputs = down[1].elements // update.rank if down else 1
        factors = (Stored.of(*down) if down else None, Stored.of(up_file, up))
        product = LowRank(*factors, update.rank, up.elements // update.rank, inputs, update.scale, update.transposed)
    rows = None
    if update.rows is not None:
        rows = NewRows(Stored.of(*adapter.tensors[update.rows]), update.indices, math.prod(shape[1:]))
    return LogicalTensor(dtype, shape, Adapted(inner, dtype, product, rows))


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
