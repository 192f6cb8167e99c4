"""Products of low rank, against sums that Python makes one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta_hub.numerics import low_rank
from paramdelta_hub.numerics.low_rank import add_low_rank


def by_definition(values: np.ndarray, left: np.ndarray, right: np.ndarray, scale: float, first: int) -> np.ndarray:
    columns, result = right.shape[1], []
    for number, value in enumerate(values):
        i, j = divmod(first + number, columns)
        total = 0.0
        for k in range(len(right)):
            total += float(left[i, k]) * float(right[k, j])
        result.append(value + np.float32(total * scale))
    return np.array(result, np.float32)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 9), columns=st.integers(1, 9), rank=st.integers(1, 5), seed=st.integers(0, 1000),
    scale=st.sampled_from([1.0, 0.1, -3.0, 16 / 3]), data=st.data(),
)  # fmt: skip
def test_any_run_has_the_bits_of_the_definition(
    rows: int, columns: int, rank: int, seed: int, scale: float, data: st.DataObject
) -> None:
    draw = np.random.default_rng(seed)
    left = draw.standard_normal((rows, rank)).astype(np.float32)
    right = (draw.standard_normal((rank, columns)) * 10.0 ** draw.integers(-8, 8, (rank, columns))).astype(np.float32)
    start = data.draw(st.integers(0, rows * columns))
    stop = data.draw(st.integers(start, rows * columns))
    values = draw.standard_normal(stop - start).astype(np.float32)
    expected = by_definition(values, left, right, scale, start)
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setattr(low_rank, "_ROWS", 2)
        context.setattr(low_rank, "_COLUMNS", 3)
        found = add_low_rank(values.copy(), left, right, scale, start)
    assert found.tobytes() == expected.tobytes()
    assert add_low_rank(values, left.copy("F"), right.T.copy().T, scale, start).tobytes() == expected.tobytes()


def test_what_overflows_is_infinite() -> None:
    big = np.full((1, 1), 3e38, np.float32)
    assert add_low_rank(np.zeros(1, np.float32), big, big, 1.0, 0)[0] == np.inf
