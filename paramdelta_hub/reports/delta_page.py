"""The report of one delta: what changed and where, its size and sources, and how to use it."""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from paramdelta_hub.package.manifest import Manifest, TensorRecord
from paramdelta_hub.registry.cards.changes import Part, norms, parts, percent, place_of, ratio
from paramdelta_hub.registry.cards.heatmap import heat_map, heat_parts
from paramdelta_hub.registry.cards.markdown import hub_id
from paramdelta_hub.reports.charts import Bar, Pictures, Series, bars_chart, draw, lines_chart
from paramdelta_hub.reports.pages import LISTED, render, share
from paramdelta_hub.reports.spectra import Spectrum

__all__ = ["DeltaView", "delta_page", "relative_change", "view_delta"]

_CHARTED_STACKS = 3
"""The maximum number of stacks of layers (text, vision, audio) with a chart of their own."""


@dataclass(frozen=True)
class DeltaView:
    """The values that ``templates/delta_sections.html.j2`` shows of a delta."""

    manifest: Manifest
    package_id: str
    spectra: Sequence[Spectrum] | None
    quoted_reference: str
    """The name of the delta in commands, quoted for a shell."""
    base_id: str
    """The name of its base in commands."""
    relative_change: str
    modules: Sequence[Part]
    heat_map: Pictures
    stacks: int
    """The number of stacks with more than one layer."""
    norms: Mapping[str, Pictures]
    """The chart of each of the first stacks; empty if no norm can be drawn."""
    unchanged: Pictures
    directions: Pictures
    codecs: str
    bits: float
    """The number of bits per weight."""


def delta_page(manifest: Manifest, package_id: str, reference: str, spectra: Sequence[Spectrum] | None) -> bytes:
    """Return the report of a delta as one self-contained page. Equal deltas give equal pages.

    ``reference`` is the name of the delta in commands. ``spectra`` is None if no weights were read.
    """
    view = view_delta(manifest, package_id, reference, spectra)
    return render("delta.html.j2", f"{manifest.name} {manifest.version}", delta=view)


def view_delta(manifest: Manifest, package_id: str, reference: str, spectra: Sequence[Spectrum] | None) -> DeltaView:
    """Return the values that a report shows. The arguments are those of :func:`delta_page`."""
    modules = heat_parts(manifest.tensors)
    stacks = _stacks(manifest.tensors)
    codecs = Counter(tensor.codec for tensor in manifest.tensors)
    elements = manifest.exactness.elements
    return DeltaView(
        manifest=manifest,
        package_id=package_id,
        spectra=spectra,
        quoted_reference=shlex.quote(reference),
        base_id=hub_id(manifest.base.name, manifest.base.commit) or "BASE",
        relative_change=relative_change(manifest),
        modules=modules,
        heat_map=draw(lambda width: heat_map(modules, width)),
        stacks=len(stacks),
        norms={label: _norms(layers) for label, layers in list(stacks.items())[:_CHARTED_STACKS]},
        unchanged=_unchanged(parts(manifest.tensors)),
        directions=_directions(spectra or ()),
        codecs=", ".join(f"{codec}: {count}" for codec, count in sorted(codecs.items())) or "none",
        bits=8 * sum(tensor.nbytes for tensor in manifest.tensors) / elements if elements else 0.0,
    )


def relative_change(manifest: Manifest) -> str:
    """Return the norm of Δ relative to that of base, over all added weights, as text."""
    added = [tensor for tensor in manifest.tensors if tensor.effect == "add"]
    return percent(ratio(*norms(added)))


def _stacks(tensors: Sequence[TensorRecord]) -> dict[str, dict[int, list[TensorRecord]]]:
    """Return the added tensors, by layer, of every stack with more than one layer."""
    stacks: dict[str, dict[int, list[TensorRecord]]] = defaultdict(lambda: defaultdict(list))
    for tensor in tensors:
        place = place_of(tensor.name)
        if tensor.effect == "add" and place.stack:
            stacks[place.stack][place.layer].append(tensor)
    return {label: layers for label, layers in stacks.items() if len(layers) > 1}


def _norms(layers: dict[int, list[TensorRecord]]) -> Pictures:
    numbers = sorted(layers)
    delta, base = zip(*([*map(_drawable, norms(layers[number]))] for number in numbers), strict=True)
    if not any(base + delta):
        return {}
    labels = [str(number) for number in numbers]
    description = "Norms of base and of the delta by layer."
    return draw(lambda width: lines_chart(labels, Series("base", base), Series("Δ", delta), description, width))


def _drawable(norm: float) -> float | None:
    """Return None for a norm with no place on a logarithmic scale, such as zero or a forged huge number."""
    return norm if 1e-300 < norm < 1e300 else None


def _unchanged(coarse: Sequence[Part]) -> Pictures:
    bars = []
    for part in coarse[:LISTED]:
        if elements := sum(tensor.elements for tensor in part.tensors):
            unchanged = elements - sum(tensor.changed for tensor in part.tensors)
            figure = share(unchanged, elements)
            bars.append(Bar(part.label, unchanged / elements, figure, f"{part.label}: {figure} unchanged"))
    description = "Share of weights whose bits are the same in base and post, by part of the model."
    return draw(lambda width: bars_chart(bars, "unchanged", description, width)) if bars else {}


def _directions(spectra: Sequence[Spectrum]) -> Pictures:
    bars = []
    for spectrum in spectra:
        place = place_of(spectrum.name, fine=True)
        prefix = f"{place.layer} · " if place.stack else ""
        ranks = f"effective rank {spectrum.effective_rank:.0f}, noise {spectrum.noise_rank:.0f}"
        bars.append(Bar(place.module, spectrum.share, f"{spectrum.share:.0%}", f"{spectrum.name}: {ranks}", prefix))
    description = f"Effective rank of Δ in {len(bars)} sampled matrices, as a share of that of noise."
    return draw(lambda width: bars_chart(bars, "of the rank of noise", description, width)) if bars else {}
