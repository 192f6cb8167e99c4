"""docs/evidence.md: its words are written by hand, its tables between markers and its figures are made here."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from paramdelta_hub.checkpoints.kinship.prediction import BANDS
from scripts.evidence.reproduce.outcomes import Mean, Run, mean, pairs, read_runs
from scripts.tools.blocks import fill

GENTLE = 5
"""So many targets, the first, are shown at all weights: at the others nothing is left to show."""
SMOL_MODELS = ("", " + 1 sums", "-tuned")
"""What there is of each of SmolLM2's targets: itself, with Δ, and fine-tuned itself."""
__all__ = ["make_tables", "write_report"]


def write_report(results: Path, docs: Path) -> None:
    """Draw the figures, write the records a predictor is calibrated on, and fill the tables of ``docs/evidence.md``.

    Raises:
        ValueError: the page has a block that nothing fills, or lacks one.
    """
    from scripts.evidence.reproduce.figures import draw_geometry, draw_minilm, draw_strengths, draw_weights

    runs, minilm = read_runs(results, "tiny"), json.loads((results / "reproduce-minilm.json").read_text())
    targets, skills = _names(runs)
    records = [*pairs("tiny", runs), *pairs("smol", read_runs(results, "smol"))]
    (results / "reproduce-pairs.json").write_text(json.dumps(records, indent=1) + "\n")
    figures = docs / "figures"
    draw_strengths(figures / "strengths.svg", runs, targets, skills)
    draw_weights(figures / "weights.svg", runs, ["base", *targets[:GENTLE]], skills)
    draw_geometry(figures / "geometry.svg", [one for one in records if one["case"] == "tiny"], targets)
    draw_minilm(figures / "minilm.svg", minilm["scores"])
    page = docs / "evidence.md"
    page.write_text(fill(page.read_text(), make_tables(results)))


def _bands() -> str:
    above = ["", *(f"{band.correlation:g}" for band in BANDS)]
    rows = [
        [
            f"{band.correlation:g} and more" if band.correlation > 0 else f"less than {limit}",
            str(band.trainings),
            f"{band.median:.0%}",
            f"{band.least:.0%} to {band.most:.0%}",
            band.words,
        ]
        for band, limit in zip(BANDS, above, strict=False)
    ]
    return _table(["lineage correlation", "trainings", "median of post's gain", "all", "expect"], rows)


def make_tables(results: Path) -> dict[str, str]:
    """Return the page's tables, in Markdown, by name."""
    runs, smol = read_runs(results, "tiny"), read_runs(results, "smol")
    targets, skills = _names(runs)
    records = pairs("tiny", runs)
    return {
        "posts": _posts(runs, skills),
        "strengths": _strengths(runs, records, targets, skills),
        "losses": _losses(runs, targets, skills),
        "weights": _weights(runs, ["base", *targets[:GENTLE]], skills),
        "sums": _sums(runs, ["base", *targets[:GENTLE]], skills),
        "geometry": _geometry(records, targets, skills),
        "bands": _bands(),
        "strangers": _strangers(runs),
        "smol": _smol(smol),
        "smol-weights": _smol_weights(smol),
        "minilm": _minilm(json.loads((results / "reproduce-minilm.json").read_text())["scores"]),
        "cost": _cost(runs, smol),
    }


def _names(runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """Return targets and skills."""
    return list(runs[0].content["targets"]), list(runs[0].content["scores"]["base"]["skills"])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |\n" for row in (head, ["---"] * len(head), *rows)]
    return "".join(lines)


def _share(found: Mean | None) -> str:
    return found.text(0, percent=True) if found else "–"


def _figure(found: Mean | None, digits: int = 2) -> str:
    return found.text(digits) if found else "–"


def _over(runs: Sequence[Run], name: str, read: Callable[[dict[str, Any]], float]) -> Mean | None:
    return mean(value for run in runs for value in run.get(name, read))


def _skill(runs: Sequence[Run], name: str, skill: str, what: str) -> Mean | None:
    return _over(runs, name, lambda record: record["skills"][skill][what])


def _loss(runs: Sequence[Run], name: str, text: str = "docs") -> Mean | None:
    return _over(runs, name, lambda record: record["loss"][text])


def _strengths(
    runs: Sequence[Run], records: Sequence[dict[str, Any]], targets: Sequence[str], skills: Sequence[str]
) -> str:
    head = (
        "target",
        "Δ",
        "knows it, plainly",
        "target",
        "⊕ Δ: in format",
        "⊕ Δ: solved",
        "each seed",
        "of post's gain",
        "fine-tuned itself",
    )
    rows = []
    for target in targets:
        for skill in skills:
            solved = _skill(runs, f"{target} + 1 {skill}", skill, "solved")
            rows.append(
                (
                    target,
                    skill,
                    _share(_skill(runs, target, skill, "plain")),
                    _share(_skill(runs, target, skill, "solved")),
                    _share(_skill(runs, f"{target} + 1 {skill}", skill, "format")),
                    _share(solved),
                    ", ".join(f"{value:.0%}" for value in solved.values) if solved else "–",
                    _share(_recovered(records, target, skill)),
                    _share(_skill(runs, f"{target}-{skill}", skill, "solved")),
                )
            )
    return _table(head, rows)


def _recovered(records: Sequence[dict[str, Any]], target: str, skill: str) -> Mean | None:
    some = [one for one in records if (one["target"], one["delta"], one["weight"]) == (target, skill, 1)]
    return mean(one["recovered_of_post"] for one in some if one["recovered_of_post"] is not None)


def _losses(runs: Sequence[Run], targets: Sequence[str], skills: Sequence[str]) -> str:
    head = ("target", "target", *(f"⊕ Δ {skill}" for skill in skills), *(f"tuned on {skill}" for skill in skills))
    rows = [
        (
            target,
            _figure(_loss(runs, target)),
            *(_figure(_loss(runs, f"{target} + 1 {skill}")) for skill in skills),
            *(_figure(_loss(runs, f"{target}-{skill}")) for skill in skills),
        )
        for target in targets
    ]
    return _table(head, rows)


def _posts(runs: Sequence[Run], skills: Sequence[str]) -> str:
    head = (
        "model",
        *(f"{skill}: {what}" for skill in skills for what in ("in format", "solved")),
        "old text",
        "new text",
    )
    rows = []
    for name in ("base", *(f"post-{skill}" for skill in skills)):
        shares = [_share(_skill(runs, name, skill, what)) for skill in skills for what in ("format", "solved")]
        rows.append((name, *shares, _figure(_loss(runs, name, "old")), _figure(_loss(runs, name))))
    return _table(head, rows)


def _weights(runs: Sequence[Run], targets: Sequence[str], skills: Sequence[str]) -> str:
    records = [one for run in runs for one in run.content["scores"].values()]
    weights = sorted({one["weights"][skills[0]] for one in records if _lone(one, skills[0])})
    head = ("target", "Δ", *(f"{weight:g}" for weight in weights))
    rows = []
    for target in targets:
        for skill in skills:
            found = [_skill(runs, f"{target} + {weight:g} {skill}", skill, "solved") for weight in weights]
            rows.append((target, skill, *map(_share, found)))
    return _table(head, rows)


def _lone(record: dict[str, Any], skill: str) -> bool:
    """Whether this is a target with this one delta."""
    return list(record.get("weights", ())) == [skill]


def _sums(runs: Sequence[Run], targets: Sequence[str], skills: Sequence[str]) -> str:
    weights = (0.5, 1.0)
    head = ("target", *(f"{skill}, both × {weight:g}" for weight in weights for skill in skills))
    rows = []
    for target in targets:
        names = [(" + ".join([target, *(f"{weight:g} {skill}" for skill in skills)]), weight) for weight in weights]
        rows.append((target, *(_share(_skill(runs, name, skill, "solved")) for name, _ in names for skill in skills)))
    return _table(head, rows) + f"\nCosine between the two deltas: {_figure(_between(runs, skills), 3)}.\n"


def _between(runs: Sequence[Run], skills: Sequence[str]) -> Mean | None:
    name = " and ".join(skills)
    return mean(run.content["delta_to_delta"][name]["cosine"] for run in runs)


def _geometry(records: Sequence[dict[str, Any]], targets: Sequence[str], skills: Sequence[str]) -> str:
    # Each figure by the name of its record, with the digits it is worth.
    shown = {
        "lineage_correlation": ("lineage correlation", 4),
        "delta_to_drift_cosine": ("cosine of Δ, drift", 3),
        "sign_agreement": ("signs agree", 3),
        "cosine_to_own_delta": ("cosine of Δ, own Δ", 3),
    }
    head = ("target", "Δ", "drift ÷ Δ", *(title for title, _ in shown.values()), "of post's gain")
    rows = []
    for target in targets:
        for skill in skills:
            some = [one for one in records if (one["target"], one["delta"], one["weight"]) == (target, skill, 1)]
            ratio = mean(one["drift_norm"] / one["delta_norm"] for one in some if one["drift_norm"])
            means = {key: mean(one[key] for one in some if one[key] is not None) for key in shown}
            cells = [_figure(found, shown[key][1]) for key, found in means.items()]
            rows.append((target, skill, _figure(ratio), *cells, _share(_recovered(records, target, skill))))
    return _table(head, rows)


def _strangers(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        for record in run.content.get("scores", {}).values():
            if not record.get("target", "").startswith("stranger"):
                continue
            (skill,) = record["weights"]
            scores = record["skills"][skill]
            loss = f"{record['loss']['old']:.2f}"
            correlation = f"{record['lineage_correlation']:.3f}"
            rows.append((f"{run.seed}", record["target"], skill, correlation, f"{scores['solved']:.0%}", loss))
    return _table(("Δ of seed", "target", "Δ", "lineage correlation", "solved", "loss on old text"), rows)


def _smol(runs: Sequence[Run]) -> str:
    head = ("model", "lineage correlation", "in format", "solved", "each seed", "loss on the new text")
    rows = []
    for name in ("base", "post", *(f"{target}{what}" for target in _strongest(runs) for what in SMOL_MODELS)):
        solved = _skill(runs, name, "sums", "solved")
        related = mean(found for run in runs for found in run.get(name, lambda one: one.get("lineage_correlation", 0)))
        rows.append(
            (
                name,
                f"{related.value:.5f}" if related and related.value else "",
                _share(_skill(runs, name, "sums", "format")),
                _share(solved),
                ", ".join(f"{value:.0%}" for value in solved.values) if solved else "–",
                _figure(_loss(runs, name, "bible")),
            )
        )
    return _table(head, rows)


def _smol_weights(runs: Sequence[Run]) -> str:
    records = [one for run in runs for one in run.content["scores"].values()]
    weights = sorted({one["weights"]["sums"] for one in records if one["kind"] == "sum"})
    head = ("target", *(f"× {weight:g}: {what}" for weight in weights for what in ("format", "solved", "loss")))
    rows = []
    for target in _strongest(runs):
        cells = []
        for weight in weights:
            name = f"{target} + {weight:g} sums"
            cells += [_share(_skill(runs, name, "sums", what)) for what in ("format", "solved")]
            cells.append(_figure(_loss(runs, name, "bible")))
        rows.append((target, *cells))
    return _table(head, rows)


def _strongest(runs: Sequence[Run]) -> list[str]:
    """Return the targets of all runs, the one nearest to base first."""
    steps = {name: steps for run in runs for name, steps in run.content["targets"].items()}
    return sorted(steps, key=steps.__getitem__)


def _minilm(scores: dict[str, Any]) -> str:
    head = (
        "model",
        *(f"{group}: {what}" for group in ("published", "unseen") for what in ("pairs", "others", "nearest")),
    )
    rows = []
    for name, record in scores.items():
        cells = []
        for group in ("published", "ours"):
            found = record[group]
            cells += [f"{found['pairs']:.2f}", f"{found['others']:.2f}", f"{found['nearest_is_pair']:.0%}"]
        rows.append((name, *cells))
    return _table(head, rows)


def _cost(runs: Sequence[Run], smol: Sequence[Run]) -> str:
    head = ("case", "seeds", "trainings", "tokens", "CPU minutes of training", "tokens a CPU second")
    rows = []
    for case, some in (("0.5 M parameters", runs), ("SmolLM2-135M", smol)):
        trained = [one for run in some for one in run.content.get("training", {}).values()]
        if not trained:
            continue
        tokens, seconds = sum(one["tokens"] for one in trained), sum(one["cpu_seconds"] for one in trained)
        rate = statistics.fmean(one["tokens"] / one["cpu_seconds"] for one in trained)
        minutes = f"{seconds / 60:.0f}"
        rows.append((case, str(len(some)), str(len(trained)), f"{tokens / 1e6:.2f} M", minutes, f"{rate:,.0f}"))
    return _table(head, rows)
