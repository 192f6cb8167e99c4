"""The report of several deltas side by side: do they point the same way, and do they undo each other?"""

from __future__ import annotations

from collections.abc import Callable

from paramdelta_hub.reports.agreement import Agreement, Comparison
from paramdelta_hub.reports.charts import Pictures, Series, dots_chart, draw
from paramdelta_hub.reports.pages import figure, render

__all__ = ["comparison_page", "layer_table", "pair_labels"]

_OUTSIDE = "rest"
"""The name of the tensors outside the layers in a chart."""


def pair_labels(comparison: Comparison) -> list[str]:
    """Return a short name for every pair, with letters in the order of the deltas."""
    return [f"{'ABCDEF'[a]} × {'ABCDEF'[b]}" for a, b in (pair.deltas for pair in comparison.pairs)]


def layer_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the heads of all columns but the first, and a row for every layer: its name, and each pair's figures."""
    heads = [f"{label} {what}" for label in pair_labels(comparison) for what in ("cosine", "opposite")]
    rows = [
        [
            layer.layer,
            *(text for a in layer.pairs for text in (figure(a.cosine, ".4f"), figure(a.opposite_signs, ".1%"))),
        ]
        for layer in comparison.layers
    ]
    return heads, rows


def comparison_page(comparison: Comparison) -> bytes:
    """Return the comparison as one self-contained page. Equal deltas give equal pages."""
    title = " · ".join(f"{package.manifest.name} {package.manifest.version}" for package in comparison.packages)
    cosines = _chart(comparison, lambda agreement: agreement.cosine, 0.0, None, "Cosine between the deltas by layer")
    conflicts = _chart(
        comparison,
        lambda agreement: agreement.opposite_signs,
        0.5,
        (0.0, 1.0),
        "Share of opposite signs among weights that both deltas move, by layer",
    )
    layer_heads, layer_rows = layer_table(comparison)
    return render(
        "comparison.html.j2",
        title,
        comparison=comparison,
        labels=pair_labels(comparison),
        layer_heads=layer_heads,
        layer_rows=layer_rows,
        cosines=cosines,
        conflicts=conflicts,
    )


def _chart(
    comparison: Comparison,
    figure_of: Callable[[Agreement], float | None],
    rule: float,
    domain: tuple[float, float] | None,
    description: str,
) -> Pictures:
    """Draw one figure of every pair, layer by layer. Return nothing if no pair has it."""
    layers = [_OUTSIDE if layer.layer.startswith("outside") else layer.layer for layer in comparison.layers]
    rows = [
        Series(label, [figure_of(layer.pairs[index]) for layer in comparison.layers])
        for index, label in enumerate(pair_labels(comparison))
    ]
    rows = [row for row in rows if any(value is not None for value in row.values)]
    return draw(lambda width: dots_chart(layers, rows, rule, domain, description, width)) if rows else {}
