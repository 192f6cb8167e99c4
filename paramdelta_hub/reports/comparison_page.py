"""The report of several deltas side by side: do they point the same way, and do they undo each other?"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from paramdelta_hub.fileio.sizes import human_bytes
from paramdelta_hub.reports.agreement import Agreement, Comparison
from paramdelta_hub.reports.charts import WIDTHS, dots_chart, figure
from paramdelta_hub.reports.delta_page import footer, source_name
from paramdelta_hub.reports.markup import Markup, element, join, name, page, table

__all__ = ["comparison_page", "pair_labels"]

_LISTED = 40
_OUTSIDE = "rest"
"""What a chart calls the tensors outside the layers."""


def pair_labels(comparison: Comparison) -> list[str]:
    """Return a short name for every pair: letters, in the order in which the deltas were given."""
    return [f"{'ABCDEF'[a]} × {'ABCDEF'[b]}" for a, b in comparison.pairs]


def comparison_page(comparison: Comparison) -> bytes:
    """Return the comparison as one self-contained page; equal deltas give equal pages.

    Raises:
        OptionError: the charts' library is not installed.
    """
    title = " · ".join(f"{package.manifest.name} {package.manifest.version}" for package in comparison.packages)
    body = element("main", *_sections(comparison))
    return page(title, body, footer("the deltas’ own weights"))


def _sections(comparison: Comparison) -> Iterator[Markup]:
    labels = pair_labels(comparison)
    yield element("h1", f"{len(comparison.packages)} deltas compared")
    yield element(
        "p",
        f"Over the {comparison.tensors:,} tensors, {comparison.elements:,} weights, that all of them add to.",
        class_="lead",
    )
    deltas = [
        (
            letter,
            join(name(package.manifest.name), f" {package.manifest.version}"),
            source_name(package.manifest.base),
            human_bytes(package.manifest.nbytes),
        )
        for letter, package in zip("ABCDEF", comparison.packages, strict=False)
    ]
    yield table(("Here", "Delta", "Of base", "Size"), deltas, "The deltas.", numbers=1)
    same = comparison.same_base
    if same < comparison.tensors:
        yield element(
            "p",
            f"In {comparison.tensors - same:,} of these tensors their bases are not the same: what is compared is the"
            " change, whatever it was added to.",
        )
    rows = [
        (label, _number(a.cosine), f"{a.both:,}", _percent(a.conflict))
        for label, a in zip(labels, comparison.total, strict=True)
    ]
    heads = ("Pair", "Cosine", "Moved by both", "Opposite signs")
    yield join(element("h2", "All weights"), table(heads, rows, "Over all compared tensors.", numbers=3))

    yield element("h2", "Cosine by layer")
    yield _chart(
        comparison,
        lambda agreement: agreement.cosine,
        "Cosine between the deltas, layer by layer",
        0.0,
        None,
        "1: the same direction. 0: they do not touch each other’s work, as is usual for unrelated tasks. Below 0: a sum"
        " of the two undoes a part of each.",
    )
    yield element("h2", "Conflicts of sign")
    yield _chart(
        comparison,
        lambda agreement: agreement.conflict,
        "Share of opposite signs among weights that both deltas move, layer by layer",
        0.5,
        (0.0, 1.0),
        "Of the weights that both move, however little, how many they move to opposite sides. Unrelated deltas: one"
        " half.",
    )
    by_layer: list[tuple[str, ...]] = [
        (label, *(text for a in agreements for text in (_number(a.cosine), _percent(a.conflict))))
        for label, agreements in comparison.layers
    ]
    columns = ("Layer", *(f"{label} {what}" for label in labels for what in ("cosine", "opposite")))
    inner = table(columns, by_layer, "Cosine and share of opposite signs by layer.", numbers=2 * len(labels))
    yield element("details", element("summary", "The figures as a table"), inner)
    if comparison.left_out:
        left = [(name(tensor), reason) for tensor, reason in comparison.left_out[:_LISTED]]
        caption = f"Tensors that were not compared: {len(comparison.left_out)}."
        yield join(element("h2", "Left out"), table(("Tensor", "Why"), left, caption))


def _chart(
    comparison: Comparison,
    of: Callable[[Agreement], float | None],
    what: str,
    rule: float,
    domain: tuple[float, float] | None,
    caption: str,
) -> Markup:
    values = [
        {"pair": pair, "layer": _short(label), "value": value, "says": f"{pair}, layer {label}: {value:.4g}"}
        for label, agreements in comparison.layers
        for pair, agreement in zip(pair_labels(comparison), agreements, strict=True)
        if (value := of(agreement)) is not None
    ]
    if not values:
        return element("p", "No two of them move the same weights.")
    pictures = ((kind, dots_chart(values, what, "layer", rule, width, domain)) for kind, width in WIDTHS.items())
    return figure(pictures, caption)


def _short(label: str) -> str:
    return _OUTSIDE if label.startswith("outside") else label


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
