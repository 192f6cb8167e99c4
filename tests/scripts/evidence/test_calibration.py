"""What predictions say is what the trainings gave."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from paramdelta_hub.checkpoints.kinship.prediction import BANDS

RECORDS = Path(__file__).resolve().parents[3] / "scripts" / "evidence" / "results" / "reproduce-pairs.json"


@pytest.mark.parametrize("number", range(len(BANDS)))
def test_bands_are_of_the_results(number: int) -> None:
    band, above = BANDS[number], BANDS[number - 1].correlation if number else 2.0
    shares = [
        max(0.0, record["recovered_of_post"])
        for record in json.loads(RECORDS.read_text())
        if record["weight"] == 1 and record["target"] != "base"  # base itself gets post's bits
        if record["recovered_of_post"] is not None  # where post itself gained nothing there was nothing to carry over
        if band.correlation <= record["lineage_correlation"] < above
    ]
    assert band.trainings == len(shares)
    measured = (min(shares), statistics.median(shares), max(shares))
    assert (band.least, band.median, band.most) == tuple(round(share, 2) for share in measured)
    assert above > band.correlation


def test_the_nearer_the_more() -> None:
    assert [band.median for band in BANDS] == sorted((band.median for band in BANDS), reverse=True)
