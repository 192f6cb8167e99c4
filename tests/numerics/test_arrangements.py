"""Arrangements against NumPy's own stack, concatenate and transpose: whole tensors, any range, and the way back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from paramdelta_hub.numerics import arrangements
from paramdelta_hub.numerics.arrangements import Arrangement, Box, BoxReader, invert, positions_in_result

Array = NDArray[Any]


class Composition:
    """Named arrays, and arrays made of them twice: by NumPy, and as an arrangement."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}
        self._count = 0

    def new(self, shape: tuple[int, ...]) -> tuple[Array, Arrangement]:
        name = f"t{len(self.arrays)}"
        size = int(np.prod(shape))
        array = np.arange(1 + self._count, 1 + self._count + size, dtype=np.uint32).reshape(shape)
        self._count += size
        self.arrays[name] = array
        return array, Arrangement.whole(name, shape)


@st.composite
def compositions(draw: st.DrawFn) -> tuple[Composition, Array, Arrangement]:
    """Draw a tensor that some rules, one after another, make of others; no element is used twice."""
    made = Composition()
    rank = draw(st.integers(1, 3))
    array, arrangement = made.new(tuple(draw(st.integers(1, 4)) for _ in range(rank)))
    for _ in range(draw(st.integers(0, 5))):
        verb = draw(
            st.sampled_from(["concat", "interleave", "stack", "part", "deal", "unstack", "transpose", "resize"])
        )
        axes = st.integers(0, array.ndim - 1)
        if verb == "concat":
            axis = draw(axes)
            shape = list(array.shape)
            shape[axis] = draw(st.integers(1, 3))
            other, other_arrangement = made.new(tuple(shape))
            pairs = [(array, arrangement), (other, other_arrangement)]
            if draw(st.booleans()):
                pairs.reverse()
            array = np.concatenate([pair[0] for pair in pairs], axis)
            arrangement = Arrangement.concatenated([pair[1] for pair in pairs], axis)
        elif verb == "interleave":
            axis = draw(axes)
            groups = draw(st.sampled_from([n for n in range(1, 5) if array.shape[axis] % n == 0]))
            shape = list(array.shape)
            shape[axis] = groups * draw(st.integers(1, 2))
            other, other_arrangement = made.new(tuple(shape))
            pieces = zip(np.split(array, groups, axis), np.split(other, groups, axis), strict=True)
            array = np.concatenate([piece for pair in pieces for piece in pair], axis)
            arrangement = Arrangement.interleaved([arrangement, other_arrangement], axis, groups)
        elif verb == "deal":
            axis = draw(axes)
            groups = draw(st.sampled_from([n for n in range(1, 13) if array.shape[axis] % n == 0]))
            width = array.shape[axis] // groups
            cut = draw(st.integers(0, width - 1))
            sizes = [groups * cut, groups * (width - cut)]
            pieces = np.split(array, groups, axis)
            array = np.concatenate([np.take(piece, range(cut, width), axis) for piece in pieces], axis)
            arrangement = arrangement.dealt(axis, groups, sizes)[1]
        elif verb == "stack" and array.ndim < 4:
            axis = draw(st.integers(0, array.ndim))
            others = [made.new(array.shape) for _ in range(draw(st.integers(0, 2)))]
            array = np.stack([array, *(other[0] for other in others)], axis)
            arrangement = Arrangement.stacked([arrangement, *(other[1] for other in others)], axis)
        elif verb == "part":
            axis = draw(axes)
            start = draw(st.integers(0, array.shape[axis] - 1))
            stop = draw(st.integers(start + 1, array.shape[axis]))
            array, arrangement = array.take(range(start, stop), axis), arrangement.part(axis, start, stop)
        elif verb == "unstack" and array.ndim > 1:
            axis = draw(axes)
            index = draw(st.integers(0, array.shape[axis] - 1))
            array, arrangement = array.take(index, axis), arrangement.unstacked(axis)[index]
        elif verb == "transpose" and array.ndim > 1:
            array, arrangement = array.swapaxes(-1, -2), arrangement.transposed()
        elif verb == "resize":
            shape_now = tuple(draw(st.integers(1, 5)) for _ in array.shape)
            padded = np.zeros(shape_now, np.uint32)
            common = tuple(slice(0, min(old, new)) for old, new in zip(array.shape, shape_now, strict=True))
            padded[common] = array[common]
            array, arrangement = padded, arrangement.resized(shape_now)
    return made, np.ascontiguousarray(array), arrangement


def reader(made: Composition, arrangement: Arrangement) -> BoxReader:
    flat = [made.arrays[name].reshape(-1) for name in arrangement.sources]

    def read(source: int, start: int, out: Array) -> None:
        assert out.flags.c_contiguous
        assert 0 <= start <= start + out.size <= flat[source].size
        out[:] = flat[source][start : start + out.size]

    elements = int(np.prod(arrangement.shape))
    return BoxReader(arrangement.boxes(arrangement.sources), elements, np.uint32, read)


@pytest.fixture(params=["large spans", "spans of 3", "bands of 8"])
def spans(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the sizes, at which reading changes, those of small tensors."""
    if request.param != "large spans":
        monkeypatch.setattr(arrangements, "_SPAN", 12 if request.param == "spans of 3" else 32)
        monkeypatch.setattr(arrangements, "_SPARSE", 2)
    monkeypatch.setattr(arrangements, "_BANDED", 2 if request.param == "bands of 8" else 1 << 16)


@pytest.mark.usefixtures("spans")
@given(compositions(), st.data())
@settings(deadline=None)
def test_any_range_of_any_composition(made: tuple[Composition, Array, Arrangement], data: st.DataObject) -> None:
    composition, expected, arrangement = made
    assert arrangement.shape == expected.shape
    assert arrangement.is_whole or (expected == 0).any()
    values = reader(composition, arrangement)
    flat = expected.reshape(-1)
    for _ in range(3):
        start = data.draw(st.integers(0, flat.size))
        stop = data.draw(st.integers(start, flat.size))
        out = np.full(stop - start, 0xFFFF, np.uint32)
        values.read(start, out)
        assert out.tolist() == flat[start:stop].tolist()


@given(compositions())
@settings(deadline=None)
def test_the_way_back(made: tuple[Composition, Array, Arrangement]) -> None:
    """Every source is read out of the tensor that was made of it, as far as it is there."""
    composition, expected, arrangement = made
    flat = expected.reshape(-1)
    boxes = arrangement.boxes(arrangement.sources)

    def read(source: int, start: int, out: Array) -> None:
        out[:] = flat[start : start + out.size]

    for number, name in enumerate(arrangement.sources):
        array = composition.arrays[name].reshape(-1)
        back = invert([(0, box) for box in boxes if box.source == number])
        out = np.empty(array.size, np.uint32)
        BoxReader(back, array.size, np.uint32, read).read(0, out)
        assert out.tolist() == np.where(np.isin(array, flat), array, 0).tolist()
        for box in boxes:
            if box.source == number:
                positions, numbers = positions_in_result(box, np.arange(array.size))
                assert flat[positions].tolist() == array[numbers].tolist()
                assert numbers.size == box.elements


def test_neighbours_are_one_box() -> None:
    stack = Arrangement.stacked([Arrangement.whole(name, (4, 6)) for name in "abc"], 0)
    assert stack.boxes("abc") == tuple(Box(number, (24,), 24 * number, (1,), 0, (1,)) for number in range(3))
    assert stack.unstacked(0)[1].boxes("abc") == (Box(1, (24,), 0, (1,), 0, (1,)),)


def test_a_large_transpose_is_read_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunk after chunk of it, no source element is read much more than once."""
    monkeypatch.setattr(arrangements, "_SPAN", 4 * 4096)
    monkeypatch.setattr(arrangements, "_BANDED", 64)
    rows, columns = 256, 512
    array = np.arange(rows * columns, dtype=np.uint32).reshape(rows, columns)
    calls = 0

    def read(source: int, start: int, out: Array) -> None:
        nonlocal calls
        calls += 1
        out[:] = array.reshape(-1)[start : start + out.size]

    boxes = Arrangement.whole("a", (rows, columns)).transposed().boxes("a")
    values, chunk = BoxReader(boxes, array.size, np.uint32, read), 1000
    out = np.empty(array.size, np.uint32)
    for start in range(0, array.size, chunk):
        values.read(start, out[start : start + chunk])
    assert np.array_equal(out.reshape(columns, rows), array.T)
    assert calls <= rows * columns // 16  # 16 rows a band, one read for each row of the source
