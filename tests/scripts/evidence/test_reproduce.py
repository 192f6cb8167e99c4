from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from scripts.evidence.reproduce.geometry import difference, relation
from scripts.evidence.reproduce.ledger import Ledger
from scripts.evidence.reproduce.outcomes import Run, mean, pairs, read_runs
from scripts.evidence.reproduce.report import make_tables
from scripts.tools.blocks import fill

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "scripts" / "evidence" / "results"


def test_a_finished_run_is_never_made_again(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "ledger.json"
    assert Ledger(file, seed=3, targets=["near"]).once("scores", "base", lambda: {"solved": 0.5}) == {"solved": 0.5}

    def never() -> dict[str, Any]:
        raise AssertionError("made again")

    again = Ledger(file, seed=3, targets=["near", "far"])  # what the run is of grows; what it found stays
    assert again.once("scores", "base", never) == {"solved": 0.5}
    again.once("scores", "post", lambda: {"solved": 1})
    found = {"base": {"solved": 0.5}, "post": {"solved": 1}}
    assert json.loads(file.read_text()) == {"seed": 3, "targets": ["near", "far"], "scores": found}


def test_a_run_that_fails_leaves_the_others(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.json")
    ledger.once("scores", "base", lambda: {"solved": 0})
    with pytest.raises(ZeroDivisionError):
        ledger.once("scores", "post", lambda: {"solved": 1 // 0})
    assert json.loads((tmp_path / "ledger.json").read_text()) == {"scores": {"base": {"solved": 0}}}


def test_mean_and_interval_are_those_of_students_t() -> None:
    found = mean([1.0, 2.0, 3.0])
    assert found is not None
    assert found.value == 2.0
    assert found.half == pytest.approx(4.303 / math.sqrt(3))
    assert found.text(1) == "2.0 ± 2.5"
    assert mean([]) is None
    one = mean([0.25])
    assert one is not None
    assert one.text(0, percent=True) == "25 %"


@given(st.lists(st.floats(-1, 1, width=16), min_size=2, max_size=50))
def test_a_delta_agrees_with_itself_and_not_with_its_opposite(values: list[float]) -> None:
    delta = torch.tensor(values, dtype=torch.float64)
    same, opposite = relation(delta, delta), relation(delta, -delta)
    if not delta.norm():
        assert same["cosine"] is same["sign_agreement"] is same["ratio"] is None
        return
    assert same["cosine"] == pytest.approx(1)
    assert opposite["cosine"] == pytest.approx(-1)
    assert (same["sign_agreement"], opposite["sign_agreement"]) == (1, 0)
    assert same["both_moved"] == sum(value != 0 for value in values) / len(values)


def test_differences_are_taken_by_name(tmp_path: Path) -> None:
    for name, scale in (("before", 1.0), ("after", 3.0)):
        (tmp_path / name).mkdir()
        tensors = {"b": torch.full((2,), scale), "a": torch.full((1,), -scale), "buffer": torch.zeros(9)}
        save_file(tensors, tmp_path / name / "model.safetensors")
    assert difference(tmp_path / "after", tmp_path / "before", "buffer").tolist() == [-2.0, 2.0, 2.0]


def _score(kind: str, solved: float, loss: float, **more: object) -> dict[str, Any]:
    return {"kind": kind, "skills": {"s": {"solved": solved, "format": 1.0}}, "loss": {"docs": loss}, **more}


def test_recovered_is_the_share_of_what_fine_tuning_the_target_gains() -> None:
    scores = {
        "t": _score("target", 0.1, 2.0),
        "post": _score("post", 0.5, 1.9, skill="s"),
        "t-s": _score("reference", 0.9, 2.4, target="t", skill="s"),
        "t + 1 s": _score("sum", 0.5, 2.1, target="t", weights={"s": 1.0}, lineage_correlation=0.9),
        "t + 1 s + 1 r": _score("sum", 0.5, 2.1, target="t", weights={"s": 1.0, "r": 1.0}, lineage_correlation=0.9),
    }
    (record,) = pairs("tiny", [Run(7, {"scores": scores})])
    assert record["seed"] == 7
    assert record["recovered"] == pytest.approx(0.5)
    assert record["recovered_of_post"] == pytest.approx(1)
    assert record["loss_change"] == pytest.approx(0.1)
    assert record["loss_change_reference"] == pytest.approx(0.4)
    scores["t-s"]["skills"]["s"]["solved"] = 0.12  # nothing to recover: no share of it
    assert pairs("tiny", [Run(7, {"scores": scores})])[0]["recovered"] is None


def test_the_page_holds_the_tables_that_the_results_give() -> None:
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    tables = make_tables(RESULTS)
    assert set(re.findall(r"<!-- ([\w-]+): made by", page)) == set(tables)
    assert fill(page, tables) == page


def test_the_records_for_a_predictor_are_those_of_the_results() -> None:
    kept = json.loads((RESULTS / "reproduce-pairs.json").read_text())
    assert kept == [record for case in ("tiny", "smol") for record in pairs(case, read_runs(RESULTS, case))]
    assert {record["case"] for record in kept} == {"tiny", "smol"}


def test_pictures_that_the_page_shows_are_there() -> None:
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    shown = re.findall(r"\]\((figures/[\w-]+\.svg)\)", page)
    assert shown
    assert [name for name in shown if not (ROOT / "docs" / name).is_file()] == []
