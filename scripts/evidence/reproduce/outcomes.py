"""From finished runs to figures: what was recovered, what it cost, and how sure that is."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Mean", "Run", "mean", "pairs", "read_runs"]

# Student's t, two-sided 95 %, by degrees of freedom.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclass(frozen=True)
class Mean:
    """A mean over seeds, and half of its 95 % confidence interval: None where one seed gives none."""

    value: float
    half: float | None
    values: tuple[float, ...]

    def text(self, digits: int = 2, percent: bool = False) -> str:
        """Return ``0.42 ± 0.05``, or ``42 ± 5 %``."""
        scale, unit = (100, " %") if percent else (1, "")
        half = "" if self.half is None else f" ± {self.half * scale:.{digits}f}"
        return f"{self.value * scale:.{digits}f}{half}{unit}"


def mean(values: Iterable[float]) -> Mean | None:
    """Return the mean and the interval of Student's t; None for nothing."""
    found = tuple(values)
    if not found:
        return None
    half = _T[len(found) - 1] * statistics.stdev(found) / math.sqrt(len(found)) if 1 < len(found) <= 10 else None
    return Mean(statistics.fmean(found), half, found)


@dataclass(frozen=True)
class Run:
    """All finished runs of one case and seed."""

    seed: int
    content: dict[str, Any]

    def get(self, name: str, read: Callable[[dict[str, Any]], float]) -> list[float]:
        """Return a figure of one scored model, as a list of one, or of none where it was not made."""
        record = self.content.get("scores", {}).get(name)
        return [] if record is None else [read(record)]


def read_runs(results: Path, case: str) -> list[Run]:
    """Return the runs of all seeds of a case."""
    files = sorted(results.glob(f"reproduce-{case}-*.json"), key=lambda file: int(file.stem.rsplit("-", 1)[1]))
    return [Run(content["seed"], content) for content in (json.loads(file.read_text()) for file in files)]


def pairs(case: str, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return one flat record for every (seed, delta, target, weight) scored: the lie of Δ, and what came out.

    ``recovered`` is (solved(target ⊕ wΔ) − solved(target)) / (solved(reference) − solved(target)), null where there is
    no reference or it gained less than 0.05; ``recovered_of_post`` is the same with post in the reference's place,
    which is always there. ``loss_change`` is target ⊕ wΔ less target, in nats, on the text that the target was last
    pre-trained on.
    """
    found = []
    for run in runs:
        scores = run.content.get("scores", {})
        for record in scores.values():
            if record["kind"] != "sum" or len(record["weights"]) != 1 or record["target"] not in scores:
                continue
            ((skill, weight),) = record["weights"].items()
            target = scores[record["target"]]
            reference = _reference(scores, record["target"], skill)
            text = "docs" if "docs" in target["loss"] else next(iter(target["loss"]))
            before, after = target["skills"][skill]["solved"], record["skills"][skill]["solved"]
            gained = reference["skills"][skill]["solved"] - before if reference else 0.0
            place = f"{record['target']} {skill}"
            drift = run.content.get("delta_to_drift", {}).get(place, {})
            own = run.content.get("delta_to_own_delta", {}).get(place, {})
            post = next(one for one in scores.values() if one["kind"] == "post" and one.get("skill", skill) == skill)
            of_post = post["skills"][skill]["solved"] - before
            found.append(
                {
                    "case": case,
                    "seed": run.seed,
                    "delta": skill,
                    "target": record["target"],
                    "weight": weight,
                    "lineage_correlation": record["lineage_correlation"],
                    "delta_norm": drift.get("norm_a"),
                    "drift_norm": drift.get("norm_b"),
                    "delta_to_drift_cosine": drift.get("cosine"),
                    "both_moved": drift.get("both_moved"),
                    "sign_agreement": drift.get("sign_agreement"),
                    "cosine_to_own_delta": own.get("cosine"),
                    "solved_target": before,
                    "solved_sum": after,
                    "solved_reference": reference["skills"][skill]["solved"] if reference else None,
                    "solved_post": post["skills"][skill]["solved"],
                    "format_sum": record["skills"][skill]["format"],
                    "recovered": (after - before) / gained if gained >= 0.05 else None,
                    "recovered_of_post": (after - before) / of_post if of_post >= 0.05 else None,
                    "loss_target": target["loss"][text],
                    "loss_change": record["loss"][text] - target["loss"][text],
                    "loss_change_reference": reference["loss"][text] - target["loss"][text] if reference else None,
                }
            )
    return found


def _reference(scores: dict[str, Any], target: str, skill: str) -> dict[str, Any] | None:
    for record in scores.values():
        own = record["kind"] == "reference" and record["target"] == target
        post = record["kind"] == "post" and target == "base"
        if (own or post) and record.get("skill", skill) == skill:
            found: dict[str, Any] = record
            return found
    return None
