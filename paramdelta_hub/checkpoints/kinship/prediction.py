"""Predict how well a delta transfers to a target, from measured outcomes at similar distances.

Only the distance predicts the outcome (``docs/evidence.md``): the correlation of the target's values with base's, which
comes from the package's lineage samples of the tensors that have anything in common with base's. Sign agreement and the
cosine of drift and Δ were measured too. They do not differ between complete and failed transfers, so they are not used.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from paramdelta_hub.checkpoints.kinship.lineage import LineageMatch
from paramdelta_hub.fileio.report import Report, derived
from paramdelta_hub.package.manifest import TensorRecord

__all__ = ["BANDS", "Band", "Prediction", "predict"]


@dataclass(frozen=True)
class Band:
    """Targets of about one distance, and the share of post's gain that Δ gave them at weight 1."""

    correlation: float
    """The least of the band; above it begins the next."""
    trainings: int
    """How many (target, Δ, seed) were measured."""
    least: float
    median: float
    most: float
    words: str


BANDS = (
    Band(0.9999, 6, 0.90, 1.10, 1.54, "all or nearly all"),
    Band(0.996, 12, 0.46, 0.80, 0.98, "most"),
    Band(0.96, 24, 0.00, 0.14, 0.74, "unpredictable"),
    Band(-1.0, 18, 0.00, 0.00, 0.00, "nothing"),
)
"""The nearest first. A test holds them equal to ``scripts/evidence/results/reproduce-pairs.json``."""


class Prediction(Report):
    """What a target of that distance has got of post's gain, in trainings; as a text, a sentence of it."""

    measured: Band | None
    """Targets of that distance, measured. None: the target is base, or can't be compared."""
    is_base: bool
    distance: float | None
    """Mean of ‖target − base‖ over ‖base‖, tensor by tensor, of the samples."""
    delta_to_distance: float | None
    """‖Δ‖ over ‖target − base‖, likewise."""

    @derived
    def text(self) -> str:
        """The same in a sentence."""
        return str(self)

    def __str__(self) -> str:
        if self.is_base:
            return "the target is base: with weight 1 the result is post"
        band = self.measured
        if band is None:
            return "no prediction: nothing could be compared"
        least, median, most = (round(100 * share) for share in (band.least, band.median, band.most))
        text = f"expected transfer: about {median} % of post's gain ("
        text += "" if least == most else f"range {least}–{most} %, "
        text += f"{band.trainings} small trainings)"
        if self.distance is not None:
            text += f"; distance to base: {100 * self.distance:.2g} % of base's norm"
        if self.delta_to_distance is not None:
            text += f", and Δ is {self.delta_to_distance:.2g} × as large"
        return text


def predict(lineage: LineageMatch, tensors: Iterable[TensorRecord]) -> Prediction:
    """Return what is to be expected of a delta, at weight 1, on a target of this kinship."""
    own = {
        record.name: record.delta_norm / record.base_norm
        for record in tensors
        if record.name in lineage.distances and record.base_norm and record.delta_norm is not None
    }
    distance = fmean(lineage.distances.values()) if lineage.distances else None
    if distance is not None and not math.isfinite(distance):
        distance = None
    ratio = None
    if distance and own:
        value = fmean(own.values()) / fmean(lineage.distances[name] for name in own)
        ratio = value if math.isfinite(value) else None
    band = None
    if lineage.is_foreign:
        band = BANDS[-1]
    elif lineage.correlation is not None and not lineage.same_values:
        band = next((band for band in BANDS if lineage.correlation >= band.correlation), BANDS[-1])
    return Prediction(measured=band, is_base=lineage.same_values, distance=distance, delta_to_distance=ratio)
