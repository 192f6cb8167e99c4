"""Effective rank: known ranks are found, what is drawn is what lies there, and a report says what was drawn."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta_hub.errors import PackageError
from paramdelta_hub.fileio.open_files import OpenFiles
from paramdelta_hub.limits import SPECTRUM_SIDE
from paramdelta_hub.package.manifest import Part, TensorRecord
from paramdelta_hub.package.package import Package
from paramdelta_hub.reports.spectra import _draw, _sample, choose, effective_rank, measure_spectra
from tests.reports.conftest import COLUMNS, ROWS, damaged, dense

MATRIX = "model.layers.0.mlp.weight"


def tensor(name: str, shape: tuple[int, ...] = (16, 16), changed: int = 1, effect: str = "add") -> TensorRecord:
    return TensorRecord.model_construct(
        name=name, shape=shape, changed=changed, effect=effect, parts=(Part.model_construct(codec="tans"),)
    )


def test_the_sample_is_the_rows_and_columns_drawn(known: dict[str, Package]) -> None:
    package = known["noise"]
    places = package.payload_locations()
    with OpenFiles(PackageError) as shards:
        found = _sample(package.records[MATRIX], places, shards)
    rows, columns = _draw(f"rows {MATRIX}", ROWS), _draw(f"columns {MATRIX}", COLUMNS)
    assert np.array_equal(found, dense(package)[MATRIX].numpy()[np.ix_(rows, columns)])


def test_low_rank_and_noise_are_told_apart(known: dict[str, Package]) -> None:
    (low,) = measure_spectra(known["low"], 4)
    assert (low.shape, low.rows, low.columns) == ((ROWS, COLUMNS), 256, 256)
    assert low.most <= 4
    assert 1 < low.effective_rank < 6, "rank four, and the rounding of float32"
    noise = measure_spectra(known["noise"], 4)
    assert [spectrum.name for spectrum in noise] == [MATRIX, "model.layers.1.mlp.weight"]
    for spectrum in noise:
        assert spectrum.share == pytest.approx(1.0, abs=0.02)
        assert spectrum.most > 100


@pytest.mark.parametrize(
    ("singular", "rank"),
    [([1.0, 1, 1, 1], 4.0), ([5.0, 0, 0], 1.0), ([2.0, 1], math.exp(math.log(3) - math.log(4) / 3))],
)
def test_the_formula(singular: list[float], rank: float) -> None:
    assert effective_rank(np.array(singular)) == pytest.approx(rank)


@given(st.integers(1, 1 << 40))
def test_a_draw_ascends_and_misses_no_part(size: int) -> None:
    drawn = _draw("x", size)
    assert drawn.size == min(size, SPECTRUM_SIDE)
    assert drawn[0] >= 0
    assert drawn[-1] < size
    assert (np.diff(drawn) > 0).all()
    assert size % SPECTRUM_SIDE or np.array_equal(drawn * SPECTRUM_SIDE // size, np.arange(SPECTRUM_SIDE))


def test_every_kind_of_module_is_sampled_before_any_twice() -> None:
    kinds = [f"m.layers.{layer}.{kind}.weight" for layer in range(30) for kind in ("q", "k", "up", "down")]
    others = [tensor("m.norm.weight", (16,)), tensor("m.layers.0.same.weight", changed=0), tensor("m.tiny", (2, 99))]
    chosen = [record.name.split(".") for record in choose([*map(tensor, kinds), *others], 8)]
    assert sorted(kind for *_, kind, _ in chosen) == sorted(["q", "k", "up", "down"] * 2)
    assert {int(layer) for _, _, layer, *_ in chosen} == {0, 29}
    assert choose([*map(tensor, kinds)], 0) == []
    assert len(choose([*map(tensor, kinds)], 999)) == len(kinds)


def test_a_damaged_matrix_is_not_reported(known: dict[str, Package], tmp_path: Path) -> None:
    broken = damaged(known["low"], tmp_path / "broken")
    with pytest.raises(PackageError):
        measure_spectra(broken, 4)
