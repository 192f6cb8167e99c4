"""What training frameworks leave in a checkpoint that was saved from within them: wrappers' names, and empty tensors.

torch.compile, FSDP, activation checkpointing, DDP and DeepSpeed wrap modules, and each wrapper puts its own component
into the names of the tensors below it. DeepSpeed ZeRO-3 and FSDP keep a part of every weight on each process: saved
without being gathered, tensors are empty or flat.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from paramdelta_hub.checkpoints.matching.roles import Entry
from paramdelta_hub.errors import Mismatch, MismatchError
from paramdelta_hub.fileio.names import shown_names

__all__ = ["EMPTY", "WRAPPERS", "is_sharded_away", "refuse_ungathered"]

WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_fpw_module.", "_forward_module.")
"""Components of names that belong to a wrapper, not to a model; torch.compile's first. DDP's ``module.`` is a usual
name too, so that it counts as a prefix like others."""
EMPTY = "empty"
"""The kind of mismatch of a tensor that has no elements on one side only."""
_FLAT = re.compile(r"(^|\.)_?flat_param(_\d+)?$")
_ZERO3_REMEDY = (
    "make whole weights with zero_to_fp32.py, which lies in DeepSpeed's checkpoint folder, or save again with "
    '"stage3_gather_16bit_weights_on_model_save": true'
)
_FSDP_REMEDY = 'save again with the state dict type "FULL_STATE_DICT" (accelerate merge-weights makes one of shards)'


def is_sharded_away(left: Sequence[int], right: Sequence[int]) -> bool:
    """Whether of two shapes just one has no elements."""
    return (0 in left) != (0 in right)


def refuse_ungathered(entries: Mapping[str, Entry], mismatches: Sequence[Mismatch], side: str, where: str) -> None:
    """Refuse a model whose weights were saved without being gathered, in one sentence instead of one a tensor.

    Args:
        entries: the model's tensors.
        mismatches: what does not fit the other side.
        side: what to call the model.
        where: where it is.

    Raises:
        MismatchError: tensors are empty that the other side has, or flat.
    """
    if flat := [item.location for item in mismatches if item.location in entries and _FLAT.search(item.location)]:
        raise MismatchError(
            f"{side} was saved by FSDP with flat parameters, not with the model's tensors: {shown_names(flat, 3)}",
            [Mismatch(name, "flat", "a flat parameter of FSDP") for name in flat],
            where=where,
            remedy=_FSDP_REMEDY,
        )
    own = [item for item in mismatches if item.kind == EMPTY and item.location in entries]
    empty = [item for item in own if 0 in entries[item.location].shape]
    if empty:
        names = shown_names([item.location for item in empty], 3)
        raise MismatchError(
            f"{side} has {len(empty)} empty tensor(s), as DeepSpeed ZeRO-3 saves them when it does not gather the "
            f"weights: {names}",
            empty,
            where=where,
            remedy=_ZERO3_REMEDY,
        )
