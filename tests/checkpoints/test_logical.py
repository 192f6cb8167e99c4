"""Models as arithmetic sees them: which tensors there are, of what dtype and shape, and which are a vocabulary's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from paramdelta_hub.checkpoints.checkpoint import open_checkpoint
from paramdelta_hub.checkpoints.logical import LogicalTensor, entries_of, logical_model, same_values
from paramdelta_hub.checkpoints.stored import Stored, Zeros
from paramdelta_hub.errors import CheckpointError
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.numerics.row_runs import Run
from tests.support.models import raw, write_model

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def values(tensor: LogicalTensor) -> bytes:
    out = np.empty(tensor.nbytes, np.uint8)
    with OpenFiles(CheckpointError) as files:
        tensor.source.open(files).read(0, out)
    return out.tobytes()


@pytest.fixture
def tensors(tmp_path: Path) -> dict[str, torch.Tensor]:
    made = {
        EMBEDDING: torch.arange(24).reshape(6, 4).to(torch.bfloat16),
        "model.norm.weight": torch.ones(4),
        "model.scalar": torch.tensor(3.0),
        "model.steps": torch.tensor([[1, 2, 3]]),
        "model.none": torch.zeros(0, 7),
    }
    write_model(tmp_path, made, shards=2)
    return made


def test_what_is_stored_plainly_is_itself(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    model = logical_model(open_checkpoint(tmp_path))
    assert model.unsupported is None
    assert model.omissions == ()
    assert list(model.tensors) == list(open_checkpoint(tmp_path).tensors), "in the checkpoint's order"
    assert model.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        found = model.tensors[name]
        assert (found.shape, found.elements, found.itemsize) == (tensor.shape, tensor.numel(), tensor.element_size())
        assert (found.nbytes, type(found.source)) == (tensor.nbytes, Stored)
        assert values(found) == raw(tensor)


def test_rows_in_another_order(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    found = logical_model(open_checkpoint(tmp_path)).tensors[EMBEDDING]
    assert found.reorder_rows(None) is found
    moved = found.reorder_rows((Run(0, 4, 2), Run(2, None, 3), Run(5, 0, 1)))
    assert (moved.dtype, moved.shape, moved.nbytes) == ("BF16", (6, 4), 48)
    rows = tensors[EMBEDDING]
    expected = torch.cat([rows[4:6], torch.zeros(3, 4, dtype=rows.dtype), rows[:1]])
    assert values(moved) == raw(expected)
    longer = found.reorder_rows((Run(0, 0, 6), Run(6, None, 2)))
    assert (longer.shape, values(longer)) == ((8, 4), raw(rows) + bytes(16))
    none = found.reorder_rows(())
    assert (none.shape, values(none)) == ((0, 4), b"")


def test_rows_are_reordered_once(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    once = logical_model(open_checkpoint(tmp_path)).tensors[EMBEDDING].reorder_rows((Run(0, 1, 5),))
    with pytest.raises(AssertionError):
        once.reorder_rows((Run(0, 0, 5),))


def test_zeros_are_a_tensor_too() -> None:
    tensor = LogicalTensor("F32", (0, 2, 3), Zeros("F32")).reorder_rows((Run(0, None, 4),))
    assert (tensor.shape, values(tensor)) == ((4, 2, 3), bytes(96))


def test_values_are_compared_to_the_last_bit(tmp_path: Path) -> None:
    first = torch.linspace(-1, 1, 3 << 19).bfloat16()
    last = first.clone()
    last[-1] += 1
    write_model(tmp_path, {"a": first, "b": first, "c": last, "d": first.reshape(3, -1), "e": first.half()})
    tensors = logical_model(open_checkpoint(tmp_path)).tensors
    with OpenFiles(CheckpointError) as files:
        equal = [name for name in tensors if same_values(tensors["a"], tensors[name], files)]
        assert equal == ["a", "b"]
        assert same_values(tensors["a"], tensors["c"], files, at_most=1 << 20)


def test_only_floats_have_a_vocabulary() -> None:
    shapes = {EMBEDDING: (6, 4), HEAD: (6, 4), "lm_head.bias": (6,), "score.weight": (6, 4), "model.h.weight": (6, 4)}
    entries = entries_of({name: ("BF16", shape) for name, shape in shapes.items()})
    assert [name for name, entry in entries.items() if entry.vocabulary] == [EMBEDDING, HEAD, "lm_head.bias"]
    assert {name: (entry.dtype, entry.shape) for name, entry in entries.items()} == {
        name: ("BF16", shape) for name, shape in shapes.items()
    }
    entries = entries_of({name: ("I8" if name == HEAD else "BF16", shape) for name, shape in shapes.items()})
    assert not entries[HEAD].vocabulary
    assert entries[EMBEDDING].vocabulary
