"""The pictures of docs/evidence.md, drawn from the results alone. Cards of one tone read on light and dark pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from scripts.evidence.reproduce.outcomes import Mean, Run, mean

__all__ = ["draw_geometry", "draw_minilm", "draw_strengths", "draw_weights"]

_CARD, _INK, _GRID = "#f4f5f7", "#22262e", "#c9ced8"
_COLOURS = {"target": "#8a93a3", "sum": "#c2410c", "reference": "#1d4ed8", "post": "#15803d"}
_LINES = ("#15803d", "#0e7490", "#1d4ed8", "#7e22ce", "#c2410c", "#a16207", "#be185d", "#4d7c0f", "#57534e", "#111827")
_LABELS = {"target": "target", "sum": "target ⊕ Δ", "reference": "target, fine-tuned itself"}
_STYLE: dict[Any, Any] = {
    "font.size": 15,
    "font.family": "DejaVu Sans",
    "axes.facecolor": _CARD,
    "figure.facecolor": _CARD,
    "savefig.facecolor": _CARD,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.grid": True,
    "grid.color": _GRID,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.linewidth": 2.2,
    "svg.hashsalt": "paramdelta",  # equal data, equal file
}


@contextmanager
def _figure(file: Path, columns: int, height: float = 4.4) -> Iterator[tuple[Any, Sequence[Axes]]]:
    with mpl.rc_context(_STYLE):
        figure, axes = plt.subplots(1, columns, figsize=(5.6 * columns, height), squeeze=False, layout="constrained")
        yield figure, axes[0]
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, metadata={"Date": None})
        plt.close(figure)


def draw_strengths(file: Path, runs: Sequence[Run], targets: Sequence[str], skills: Sequence[str]) -> None:
    """Draw shares solved and the loss on the new text: without Δ, with it, fine-tuned itself; and post's own."""
    with _figure(file, len(skills) + 1, 5.8) as (figure, axes):
        for axis, skill in zip(axes, skills, strict=False):
            _compare(axis, targets, skill, partial(_solved, runs, skill=skill))
            axis.set(title=f"{skill}: solved", ylim=(0, 1.04))
            axis.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1))
        _compare(axes[-1], targets, skills[0], partial(_loss, runs))
        axes[-1].margins(y=0.12)
        axes[-1].set(title=f"loss on the new text (Δ {skills[0]})")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)


def _compare(axis: Axes, targets: Sequence[str], skill: str, read: Callable[[str], Mean | None]) -> None:
    _bars(axis, [read(target) for target in targets], -0.2, "target")
    _bars(axis, [read(f"{target} + 1 {skill}") for target in targets], 0.2, "sum")
    tuned = [(at, read(f"{target}-{skill}")) for at, target in enumerate(targets)]
    there = [(at, found.value) for at, found in tuned if found]
    if there:
        axis.plot(*zip(*there, strict=True), "D", color=_COLOURS["reference"], markersize=9, label=_LABELS["reference"])
    if post := read(f"post-{skill}"):
        axis.axhline(post.value, color=_COLOURS["post"], linestyle="--", label="post")
    axis.set_xticks(range(len(targets)), targets, rotation=35, ha="right")
    axis.grid(axis="x", visible=False)


def draw_weights(file: Path, runs: Sequence[Run], targets: Sequence[str], skills: Sequence[str]) -> None:
    """Draw shares solved and the loss on the new text over the weight of Δ, one line a target."""
    weights = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    with _figure(file, len(skills) + 1, 5.2) as (figure, axes):
        for target, colour in zip(targets, _LINES, strict=False):
            names = [(0.0, target), *((weight, f"{target} + {weight:g} {{0}}") for weight in weights)]
            for axis, skill in zip(axes, skills, strict=False):
                _line(axis, [(at, _solved(runs, name.format(skill), skill)) for at, name in names], colour, target)
            line = [(at, _loss(runs, name.format(skills[0]))) for at, name in names]
            _line(axes[-1], line, colour, target)
        for axis, skill in zip(axes, skills, strict=False):
            axis.set(title=f"{skill}: solved", ylim=(-0.02, 1.04))
            axis.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1))
        axes[-1].set(title=f"loss on the new text (Δ {skills[0]})")
        for axis in axes:
            axis.set(xlabel="weight of Δ")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)


def draw_geometry(file: Path, records: Sequence[dict[str, Any]], targets: Sequence[str]) -> None:
    """Draw what was recovered at weight 1 over what can be known before: a dot a seed and skill."""
    known = (
        ("distance", "1 − lineage correlation"),
        ("drift_ratio", "|target − base| ÷ |Δ|"),
        ("cosine_to_own_delta", "cosine of Δ to the target's own Δ"),
    )
    with _figure(file, len(known), 5.6) as (figure, axes):
        for target, colour in zip(targets, _LINES[1:], strict=False):
            some = [
                record
                | {"drift_ratio": record["drift_norm"] / record["delta_norm"]}
                | {"distance": 1 - record["lineage_correlation"]}
                for record in records
                if record["target"] == target and record["weight"] == 1
                if record["recovered_of_post"] is not None and record["drift_norm"]
            ]
            for axis, (key, _) in zip(axes, known, strict=True):
                x, y = [record[key] for record in some], [record["recovered_of_post"] for record in some]
                axis.scatter(x, y, color=colour, s=80, alpha=0.85, label=target)
        for axis, (_, label) in zip(axes, known, strict=True):
            axis.set(xlabel=label, ylim=(-0.05, 1.15))
            axis.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1))
        axes[0].set_xscale("log")
        axes[0].set_ylabel("of post's gain, at weight 1")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)


def draw_minilm(file: Path, scores: dict[str, Any]) -> None:
    """Draw cosines and retrieval over the weight of Δ, for pairs the author published and for others."""
    titles = {"published": "pairs that its author published", "ours": "pairs that it never saw"}
    series = {"pairs": "cosine, pairs", "others": "cosine, others", "nearest_is_pair": "nearest is the pair"}
    with _figure(file, len(titles), 5.0) as (figure, axes):
        for axis, (group, title) in zip(axes, titles.items(), strict=True):
            for (key, label), colour in zip(series.items(), ("#c2410c", "#8a93a3", "#1d4ed8"), strict=True):
                line = [(0.0, scores["rohan (target)"][group][key])]
                line += [(one["weight"], one[group][key]) for one in scores.values() if "weight" in one]
                axis.plot(*zip(*line, strict=True), "o-", color=colour, label=label)
                axis.axhline(scores["sre (post)"][group][key], color=colour, linestyle=":", linewidth=1.5)
            axis.set(title=title, xlabel="weight of Δ (dotted: post itself)", ylim=(0, 1.04))
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)


def _solved(runs: Sequence[Run], name: str, skill: str) -> Mean | None:
    return mean(value for run in runs for value in run.get(name, lambda record: record["skills"][skill]["solved"]))


def _loss(runs: Sequence[Run], name: str) -> Mean | None:
    return mean(value for run in runs for value in run.get(name, lambda record: record["loss"]["docs"]))


def _bars(axis: Axes, means: Sequence[Mean | None], offset: float, kind: str) -> None:
    there = [(at + offset, found) for at, found in enumerate(means) if found]
    x, heights = [at for at, _ in there], [found.value for _, found in there]
    axis.bar(x, heights, 0.38, color=_COLOURS[kind], label=_LABELS[kind])
    for at, found in there:  # every seed, not only their mean
        axis.scatter([at] * len(found.values), found.values, s=12, color=_INK, zorder=3)


def _line(axis: Axes, points: Sequence[tuple[float, Mean | None]], colour: str, label: str) -> None:
    there = [(at, found) for at, found in points if found]
    x, y = [at for at, _ in there], [found.value for _, found in there]
    axis.plot(x, y, "o-", color=colour, label=label)
    low, high = [min(found.values) for _, found in there], [max(found.values) for _, found in there]
    axis.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
