"""The case that others trained: all-MiniLM-L6-v2, fine-tuned by two people who don't know of each other.

Δ is the fine-tune on the vocabulary of site reliability engineering (SRE), the target the fine-tune on résumés.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch

import paramdelta_hub as pd
from scripts.evidence.demo import cosines
from scripts.evidence.reproduce.geometry import difference, relation
from scripts.evidence.reproduce.ledger import Ledger
from scripts.weights import fetch

__all__ = ["run_minilm"]

WEIGHTS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


def run_minilm(work: Path, results: Path, pairs: dict[str, list[list[str]]]) -> None:
    """Extract, apply at all weights, and score on the pairs the author published and on those it never saw."""
    base, sre, rohan = (fetch(name) for name in ("minilm-base", "minilm-sre", "minilm-rohan"))
    ledger = Ledger(results / "reproduce-minilm.json", tool=f"paramdelta-hub {pd.__version__}")
    delta, out = work / "minilm" / "delta", work / "minilm" / "sum"
    delta.parent.mkdir(parents=True, exist_ok=True)
    if not delta.exists():
        pd.extract(base, sre, delta, threads=1)

    def scores(model: Path) -> dict[str, Any]:
        return {name: _scores(cosines(model, some)) for name, some in pairs.items()}

    for name, model in (("base", base), ("sre (post)", sre), ("rohan (target)", rohan)):
        ledger.once("scores", name, partial(scores, model))
    for weight in WEIGHTS:

        def applied(weight: float = weight) -> dict[str, Any]:
            shutil.rmtree(out, ignore_errors=True)
            report = pd.apply(rohan, pd.WeightedDelta(delta, weight), out, threads=1)
            kinship = report.deltas[0].kinship
            found = {"weight": weight, "lineage_correlation": kinship.correlation if kinship else None, **scores(out)}
            shutil.rmtree(out)
            return found

        ledger.once("scores", f"rohan + {weight:g} sre", applied)
    skip = "embeddings.position_ids"  # a buffer that only one of the files has
    ledger.once("relations", "sre, rohan", lambda: relation(difference(sre, base, skip), difference(rohan, base, skip)))


def _scores(matrix: torch.Tensor) -> dict[str, float]:
    same = torch.eye(len(matrix), dtype=torch.bool)
    nearest = matrix.argmax(1) == torch.arange(len(matrix))
    return {
        "pairs": matrix[same].mean().item(),
        "others": matrix[~same].mean().item(),
        "nearest_is_pair": nearest.float().mean().item(),
    }
