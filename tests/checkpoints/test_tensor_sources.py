"""Tensor sources against NumPy: any range of rows in any order, read into any part of a buffer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from paramdelta_hub.checkpoints.checkpoint import open_checkpoint
from paramdelta_hub.checkpoints.stored import Stored, Zeros, chunk_digests, read_chunks, source_digest
from paramdelta_hub.checkpoints.tensor_sources import Arranged, Reordered, TensorSource
from paramdelta_hub.checkpoints.tokens.token_rows import runs_of
from paramdelta_hub.errors import CheckpointError
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.numerics.arrangements import Arrangement
from tests.support.chunks import set_chunk_elements
from tests.support.models import raw, write_model

ROWS, WIDTH = 12, 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    numbers = torch.arange(ROWS * WIDTH)
    tensors = {"before": torch.ones(3), "BF16": numbers.to(torch.bfloat16), "F32": numbers.float(), "I64": numbers}
    return write_model(tmp_path_factory.mktemp("views"), tensors)


SOURCE: TypeAdapter[TensorSource] = TypeAdapter(TensorSource)


def stored(model: Path, name: str) -> Stored:
    return Stored.of(*open_checkpoint(model).tensors[name])


def read(source: TensorSource, start: int, nbytes: int) -> bytes:
    """Read a source, after it has been to a plan and back."""
    out = np.full(nbytes, 0xA5, np.uint8)
    with OpenFiles(CheckpointError) as files:
        SOURCE.validate_json(SOURCE.dump_json(source)).open(files).read(start, out)
    return out.tobytes()


@pytest.mark.parametrize(("name", "itemsize"), [("BF16", 2), ("F32", 4), ("I64", 8)])
def test_values_as_they_are_stored(model: Path, name: str, itemsize: int) -> None:
    numbers = torch.arange(ROWS * WIDTH)
    expected = raw(numbers.to({"BF16": torch.bfloat16, "F32": torch.float32, "I64": torch.int64}[name]))
    source = stored(model, name)
    assert (source.dtype, source.files) == (name, (str(model / "model.safetensors"),))
    for start, stop in ((0, ROWS * WIDTH), (0, 1), (7, 23), (ROWS * WIDTH - 1, ROWS * WIDTH), (9, 9)):
        assert read(source, start, (stop - start) * itemsize) == expected[start * itemsize : stop * itemsize]


@given(st.lists(st.integers(-1, ROWS - 1), min_size=1, max_size=30), st.data())
def test_any_range_of_any_arrangement(model: Path, sources: list[int], data: st.DataObject) -> None:
    """Rows in any order, twice, or zero; -1 is a row from nowhere."""
    name, itemsize = data.draw(st.sampled_from([("BF16", 2), ("F32", 4), ("I64", 8)]))
    source = stored(model, name)
    table = np.frombuffer(read(source, 0, ROWS * WIDTH * itemsize), np.uint8).reshape(ROWS, -1)
    expected = np.concatenate([table, np.zeros_like(table[:1])])[sources].tobytes()
    shuffled = Reordered(source, runs_of(np.array(sources)), WIDTH)
    elements = len(sources) * WIDTH
    start = data.draw(st.integers(0, elements))
    stop = data.draw(st.integers(start, elements))
    assert read(shuffled, start, (stop - start) * itemsize) == expected[start * itemsize : stop * itemsize]


def test_rows_of_no_width_and_no_rows(model: Path) -> None:
    source = stored(model, "F32")
    assert read(Reordered(source, runs_of(np.array([3, 2, -1])), 0), 0, 0) == b""
    assert read(Reordered(source, (), WIDTH), 0, 0) == b""


@pytest.mark.parametrize("dtype", ["BF16", "F32", "I64"])
def test_zeros_need_no_file(dtype: str) -> None:
    assert read(Zeros(dtype), 5, 24) == bytes(24)
    assert read(Reordered(Zeros(dtype), runs_of(np.array([-1, 0, 1, 2])), 3), 1, 16) == bytes(16)


def test_a_whole_source_chunk_by_chunk(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_chunk_elements(monkeypatch, 7)
    source = Reordered(stored(model, "I64"), runs_of(np.array([4, -1, 3])), WIDTH)
    whole = read(source, 0, 3 * WIDTH * 8)
    advanced: list[int] = []
    with OpenFiles(CheckpointError) as files:
        assert b"".join(chunk.tobytes() for chunk in read_chunks(source, 3 * WIDTH, files)) == whole
        digests = chunk_digests(source, 3 * WIDTH, files, advance=advanced.append)
        assert digests == b"".join(blake3(whole[start : start + 56]).digest() for start in (0, 56, 112))
        assert source_digest(source, 3 * WIDTH, files) == blake3(digests).hexdigest()
        assert chunk_digests(source, WIDTH, files, first=7) == blake3(whole[56:][: 8 * WIDTH]).digest()
    assert advanced == [56, 56, 8]


def test_a_file_that_was_truncated(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model.safetensors"
    copy.write_bytes((model / "model.safetensors").read_bytes())
    sources = [stored(tmp_path, "I64"), Reordered(stored(tmp_path, "I64"), runs_of(np.array([-1, ROWS - 1])), WIDTH)]
    last = max(span.start + span.nbytes for _, span in open_checkpoint(tmp_path).tensors.values())
    copy.write_bytes(copy.read_bytes()[: last // 2])
    for source, start in zip(sources, ((ROWS - 1) * WIDTH, WIDTH), strict=True):
        with pytest.raises(CheckpointError) as caught:
            read(source, start, WIDTH * 8)
        assert caught.value.where == str(copy)


@given(st.integers(0, ROWS * WIDTH), st.integers(0, ROWS * WIDTH))
def test_any_range_of_tensors_put_together(model: Path, start: int, stop: int) -> None:
    """Two halves change places, transposed; what nothing covers is zero."""
    whole = Arrangement.whole("BF16", (ROWS, WIDTH))
    halves = [whole.part(0, 6, ROWS), whole.part(0, 0, 6).resized((5, WIDTH))]
    arrangement = Arrangement.concatenated(halves, 0).transposed().resized((WIDTH, ROWS))
    source = Arranged((stored(model, "BF16"),), arrangement.boxes(["BF16"]), ROWS * WIDTH, "BF16")
    numbers = torch.arange(ROWS * WIDTH).reshape(ROWS, WIDTH)
    expected = torch.cat([numbers[6:], numbers[:5], torch.zeros(1, WIDTH)]).T.contiguous().bfloat16()
    assert read(source, start, 2 * max(0, stop - start)) == raw(expected)[2 * start : 2 * max(start, stop)]
