"""What to expect of a delta on a target, from what trainings of known outcome gave at such a distance.

Only distance orders the outcomes (``docs/evidence.md``): the correlation of the target's values with base's, which the
package's lineage samples tell. Sign agreement and the cosine of drift and Δ were measured there too, and are the same
where everything comes over and where nothing does; so neither is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from paramdelta_hub.checkpoints.lineage import Kinship
from paramdelta_hub.package.manifest import TensorRecord

__all__ = ["BANDS", "Band", "Prediction", "predict"]


class Band(NamedTuple):
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


@dataclass(frozen=True)
class Prediction:
    """What a target of that distance has got of post's gain, in trainings; as a text, a sentence of it."""

    band: Band | None
    """None: the target is base, or can't be compared."""
    is_base: bool
    distance: float | None
    """Mean of ‖target − base‖ over ‖base‖, tensor by tensor, of the samples."""
    ratio: float | None
    """‖Δ‖ over ‖target − base‖, likewise."""

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable record; shares are of post's gain, 1.0 is all of it."""
        band = self.band and {name: value for name, value in self.band._asdict().items() if name != "words"}
        return {"text": str(self), "distance": self.distance, "delta_to_distance": self.ratio, "measured": band}

    def __str__(self) -> str:
        if self.is_base:
            return "the target is base: with weight 1 the result is post"
        if self.band is None:
            return "no prediction: nothing could be compared"
        least, median, most = (round(100 * share) for share in (self.band.least, self.band.median, self.band.most))
        text = f"expected transfer: about {median} % of post's gain ("
        text += "" if least == most else f"range {least}–{most} %, "
        text += f"{self.band.trainings} small trainings)"
        if self.distance is not None:
            text += f"; distance to base: {_percent(self.distance)} of base's norm"
        if self.ratio is not None:
            text += f", and Δ is {self.ratio:.2g} × as large"
        return text


def predict(kinship: Kinship, tensors: Iterable[TensorRecord]) -> Prediction:
    """Return what is to be expected of a delta, at weight 1, on a target of this kinship.

    Args:
        kinship: of the target to the delta's base.
        tensors: the delta's.
    """
    own = {
        record.name: record.delta_norm / record.base_norm
        for record in tensors
        if record.name in kinship.distances and record.base_norm and record.delta_norm is not None
    }
    distance = fmean(kinship.distances.values()) if kinship.distances else None
    if distance is not None and not math.isfinite(distance):
        distance = None
    ratio = None
    if distance and own:
        found = fmean(own.values()) / fmean(kinship.distances[name] for name in own)
        ratio = found if math.isfinite(found) else None
    band = None
    if kinship.correlation is not None and not kinship.same_values:
        band = next((band for band in BANDS if kinship.correlation >= band.correlation), BANDS[-1])
    return Prediction(band, kinship.same_values, distance, ratio)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
