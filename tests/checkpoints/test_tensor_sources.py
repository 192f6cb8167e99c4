"""Views against NumPy: any range of any arrangement of rows, read into any part of a buffer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paramdelta_hub.checkpoints.checkpoint import open_checkpoint
from paramdelta_hub.checkpoints.tensor_sources import View, arranged, open_view, view_of, zeros
from paramdelta_hub.checkpoints.token_rows import runs_of
from paramdelta_hub.errors import CheckpointError
from paramdelta_hub.fileio.open_files import Descriptors
from tests.support.models import raw, write_model

ROWS, WIDTH = 12, 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    numbers = torch.arange(ROWS * WIDTH)
    tensors = {"before": torch.ones(3), "BF16": numbers.to(torch.bfloat16), "F32": numbers.float(), "I64": numbers}
    return write_model(tmp_path_factory.mktemp("views"), tensors)


def plain(model: Path, name: str) -> View:
    return view_of(*open_checkpoint(model).tensors[name])


def read(view: View, start: int, nbytes: int) -> bytes:
    out = np.full(nbytes, 0xA5, np.uint8)
    with Descriptors(CheckpointError) as files:
        open_view(json.loads(json.dumps(view)), files).read(start, out)
    return out.tobytes()


@pytest.mark.parametrize(("name", "itemsize"), [("BF16", 2), ("F32", 4), ("I64", 8)])
def test_a_plain_view(model: Path, name: str, itemsize: int) -> None:
    numbers = torch.arange(ROWS * WIDTH)
    expected = raw(numbers.to({"BF16": torch.bfloat16, "F32": torch.float32, "I64": torch.int64}[name]))
    view = plain(model, name)
    assert view.keys() == {"file", "start", "dtype"}
    for start, stop in ((0, ROWS * WIDTH), (0, 1), (7, 23), (ROWS * WIDTH - 1, ROWS * WIDTH), (9, 9)):
        assert read(view, start, (stop - start) * itemsize) == expected[start * itemsize : stop * itemsize]


@given(st.lists(st.integers(-1, ROWS - 1), min_size=1, max_size=30), st.data())
def test_any_range_of_any_arrangement(model: Path, sources: list[int], data: st.DataObject) -> None:
    """Rows in any order, twice, or zero; -1 is a row from nowhere."""
    name, itemsize = data.draw(st.sampled_from([("BF16", 2), ("F32", 4), ("I64", 8)]))
    view = plain(model, name)
    table = np.frombuffer(read(view, 0, ROWS * WIDTH * itemsize), np.uint8).reshape(ROWS, -1)
    expected = np.concatenate([table, np.zeros_like(table[:1])])[sources].tobytes()
    shuffled = arranged(view, runs_of(np.array(sources)), WIDTH)
    elements = len(sources) * WIDTH
    start = data.draw(st.integers(0, elements))
    stop = data.draw(st.integers(start, elements))
    assert read(shuffled, start, (stop - start) * itemsize) == expected[start * itemsize : stop * itemsize]


def test_rows_of_no_width_and_no_rows(model: Path) -> None:
    view = plain(model, "F32")
    assert read(arranged(view, runs_of(np.array([3, 2, -1])), 0), 0, 0) == b""
    assert read(arranged(view, (), WIDTH), 0, 0) == b""


@pytest.mark.parametrize("dtype", ["BF16", "F32", "I64"])
def test_zeros_need_no_file(dtype: str) -> None:
    assert read(zeros(dtype), 5, 24) == bytes(24)
    assert read(arranged(zeros(dtype), runs_of(np.array([-1, 0, 1, 2])), 3), 1, 16) == bytes(16)


def test_an_arrangement_is_not_arranged_again(model: Path) -> None:
    once = arranged(plain(model, "F32"), runs_of(np.array([1, 0])), WIDTH)
    with pytest.raises(AssertionError):
        arranged(once, runs_of(np.array([1, 0])), WIDTH)


def test_a_file_that_was_truncated(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model.safetensors"
    copy.write_bytes((model / "model.safetensors").read_bytes())
    views = [plain(tmp_path, "I64"), arranged(plain(tmp_path, "I64"), runs_of(np.array([-1, ROWS - 1])), WIDTH)]
    last = max(span.start + span.nbytes for _, span in open_checkpoint(tmp_path).tensors.values())
    copy.write_bytes(copy.read_bytes()[: last // 2])
    for view, start in zip(views, ((ROWS - 1) * WIDTH, WIDTH), strict=True):
        with pytest.raises(CheckpointError) as caught:
            read(view, start, WIDTH * 8)
        assert caught.value.where == str(copy)
