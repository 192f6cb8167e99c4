"""The report of one delta: what changed and where, what it takes, where it comes from, and how to use it."""

from __future__ import annotations

import math
import shlex
from collections import defaultdict
from collections.abc import Iterator, Sequence

from paramdelta_hub.__about__ import __version__
from paramdelta_hub.fileio.sizes import human_bytes
from paramdelta_hub.package.manifest import Manifest, Source, TensorRecord
from paramdelta_hub.registry.cards.changes import Part, parts, percent, place_of
from paramdelta_hub.registry.cards.heatmap import heat_map, heat_parts
from paramdelta_hub.registry.cards.markdown import hub_id
from paramdelta_hub.reports.charts import WIDTHS, bars_chart, figure, lines_chart
from paramdelta_hub.reports.markup import Markup, element, figures, join, link, name, page, table
from paramdelta_hub.reports.spectra import Spectrum

__all__ = ["delta_page", "delta_sections", "footer", "heat_figure", "relative_change", "source_name"]

_LISTED = 40
"""Rows of a table that tells of tensors or parts; the manifest has all."""
_STACKS = 3
"""Stacks of layers that have a chart of their own: text, vision, audio."""


def delta_page(manifest: Manifest, package_id: str, reference: str, spectra: Sequence[Spectrum] | None) -> bytes:
    """Return the report of a delta as one self-contained page; equal deltas give equal pages.

    Args:
        manifest: the package's.
        package_id: sha256 of the manifest.
        reference: what commands call the delta: a folder, or ``org/name@version``.
        spectra: of sampled matrices; None where no weights were read.

    Raises:
        OptionError: the charts' library is not installed.
    """
    body = element("main", *delta_sections(manifest, package_id, reference, spectra))
    return page(f"{manifest.name} {manifest.version}", body, footer())


def delta_sections(
    manifest: Manifest, package_id: str, reference: str, spectra: Sequence[Spectrum] | None
) -> Iterator[Markup]:
    """Yield the report's sections, for a page of its own or one of a catalog."""
    coarse = parts(manifest.tensors)
    yield element("h1", name(manifest.name), " ", element("span", manifest.version, class_="version"))
    yield element(
        "p",
        "What post-training added to ",
        source_name(manifest.base),
        " to make ",
        source_name(manifest.post),
        ", as a delta.",
        (" License: ", name(manifest.license), ".") if manifest.license else None,
        class_="lead",
    )
    yield _figures(manifest)
    yield join(element("h2", "What changed"), *_changes(manifest, coarse))
    yield join(element("h2", "Norms, layer by layer"), *_norms(manifest.tensors))
    yield join(element("h2", "Unchanged weights"), *_unchanged(coarse))
    yield join(element("h2", "Directions"), *_directions(spectra))
    yield join(element("h2", "Exactness and size"), _exactness(manifest))
    yield join(element("h2", "Sources"), *_sources(manifest))
    yield join(element("h2", "Use"), *_use(manifest, reference))
    yield element("p", "Id (sha256 of its manifest): ", element("span", package_id, class_="id"), class_="soft")


def heat_figure(rows: Sequence[Part], caption: str) -> Markup:
    """Return the heat map for wide and for narrow screens."""
    return figure(((kind, Markup(heat_map(rows, width))) for kind, width in WIDTHS.items()), caption)


def footer(of: str = "the delta’s manifest, in which its maker states what it holds") -> Markup:
    """Return what stands at the end of every page: what it was made of."""
    made = f"Made by paramdelta-hub {__version__} of {of}. This page asks for nothing from the network."
    return element("footer", made)


def relative_change(manifest: Manifest) -> str:
    """Return the norm of Δ against that of base, over all added weights, as people read it."""
    added = [tensor for tensor in manifest.tensors if tensor.effect == "add"]
    delta = math.hypot(*(tensor.delta_norm for tensor in added))
    base = math.hypot(*(tensor.base_norm for tensor in added))
    return percent(delta / base if base and math.isfinite(delta) else math.inf if delta else 0.0)


def source_name(source: Source) -> Markup:
    """Return a model's name, linked to the very commit if it is on the Hub."""
    if hub_id(source.name, source.commit):
        return link(f"https://huggingface.co/{source.name}/tree/{source.commit}", name(source.name))
    return name(source.name)


def _figures(manifest: Manifest) -> Markup:
    exactness, model = manifest.exactness, manifest.model_nbytes
    size = f"{manifest.nbytes / model:.1%} of the model’s {human_bytes(model)}" if model else None
    share = _share(exactness.changed, exactness.elements)
    return figures(
        [
            ("Size", human_bytes(manifest.nbytes), size),
            ("Relative change", relative_change(manifest), "norm of Δ against norm of base"),
            ("Weights changed", share, f"of {exactness.elements:,} in {len(manifest.tensors)} tensors"),
            ("Base + Δ", "is post", "bit for bit, checked when it was made"),
        ]
    )


def _changes(manifest: Manifest, coarse: Sequence[Part]) -> Iterator[Markup]:
    rows = heat_parts(manifest.tensors)
    if not rows:
        yield element("p", "No weights are added: the delta only replaces integers.")
        return
    yield heat_figure(
        rows,
        "Relative change: the norm of Δ against the norm of base, for every kind of module in every layer; at the"
        " right, over all layers.",
    )
    listed = [
        (
            name(part.label),
            f"{len(part.tensors)}",
            f"{part.base_norm:.4g}",
            f"{part.delta_norm:.4g}",
            percent(part.change),
            _share(sum(t.elements - t.changed for t in part.tensors), sum(t.elements for t in part.tensors)),
        )
        for part in rows[:_LISTED]
    ]
    heads = ("Module", "Tensors", "‖base‖", "‖Δ‖", "Change", "Unchanged")
    more = f" The first {_LISTED} of {len(rows)}." if len(rows) > _LISTED else ""
    inner = table(heads, listed, f"Norms and unchanged weights by module, over all layers.{more}", numbers=5)
    yield element("details", element("summary", "The figures as a table"), inner)


def _norms(tensors: Sequence[TensorRecord]) -> Iterator[Markup]:
    stacks: dict[str, dict[int, list[TensorRecord]]] = defaultdict(lambda: defaultdict(list))
    for tensor in tensors:
        place = place_of(tensor.name)
        if tensor.effect == "add" and place.stack:
            stacks[place.stack][place.layer].append(tensor)
    deep = {stack: layers for stack, layers in stacks.items() if len(layers) > 1}
    if not deep:
        yield element("p", "The model’s tensors are not numbered by layer, so there is nothing to draw.")
    for stack, layers in list(deep.items())[:_STACKS]:
        values = [
            {"layer": index, "norm": norm, "kind": kind}
            for index, number in enumerate(sorted(layers))
            for kind, norm in (
                ("base", math.hypot(*(tensor.base_norm for tensor in layers[number]))),
                ("Δ", math.hypot(*(tensor.delta_norm for tensor in layers[number]))),
            )
            if 1e-300 < norm < 1e300  # what did not change has no place on a logarithmic scale, nor have lies
        ]
        what = "Norms of base and of the delta by layer."
        pictures = (
            (kind, lines_chart(values, "layer", "norm", what, ("base", "Δ"), width)) for kind, width in WIDTHS.items()
        )
        where = f" of {stack}" if len(deep) > 1 else ""
        if not values:
            continue
        yield figure(pictures, f"Euclidean norms of all weights of a layer{where}, on a logarithmic scale.")
    if len(deep) > _STACKS:
        yield element("p", f"{len(deep) - _STACKS} more stacks of layers are not drawn.", class_="soft")


def _unchanged(coarse: Sequence[Part]) -> Iterator[Markup]:
    values = [
        {
            "label": part.label,
            "share": 1 - sum(t.changed for t in part.tensors) / elements,
            "figure": (same := _share(elements - sum(t.changed for t in part.tensors), elements)),
            "says": f"{part.label}: {same} unchanged",
        }
        for part in coarse[:_LISTED]
        if (elements := sum(t.elements for t in part.tensors))
    ]
    if not values:
        yield element("p", "No weights are added.")
        return
    what = "Share of weights whose bits are the same in base and post, by part of the model."
    pictures = ((kind, bars_chart(values, what, "unchanged", width)) for kind, width in WIDTHS.items())
    yield figure(pictures, what)


def _directions(spectra: Sequence[Spectrum] | None) -> Iterator[Markup]:
    if spectra is None:
        yield element(
            "p",
            "Not measured, because no weights were read. ",
            element("code", "pd-inspect DELTA --html report.html --samples 16"),
            " decodes sixteen matrices.",
        )
        return
    if not spectra:
        yield element("p", "No changed matrix could be sampled.")
        return
    yield element(
        "p",
        "The effective rank tells over how many directions a matrix’s change is spread. A change learned through"
        " low-rank adapters stays near their rank; independent noise fills the bar; full fine-tuning lies between.",
    )
    values = [
        {
            "label": _short(spectrum.name),
            "share": min(spectrum.share, 1.0),
            "figure": f"{spectrum.share:.0%}",
            "says": f"{spectrum.name}: effective rank {spectrum.effective_rank:.0f}, noise {spectrum.noise_rank:.0f}",
        }
        for spectrum in spectra
    ]
    what = f"Effective rank of Δ in {len(spectra)} sampled matrices, as a share of that of noise."
    pictures = ((kind, bars_chart(values, what, "of the rank of noise", width)) for kind, width in WIDTHS.items())
    side = max(max(spectrum.rows, spectrum.columns) for spectrum in spectra)
    yield figure(
        pictures,
        f"{what} Of each matrix up to {side} rows and {side} columns were drawn, one from each of as many equal"
        " stretches, and the singular values of that part taken; ranks can’t exceed its smaller side. Rounding to 16"
        " bits adds a little noise, hence rank, to every delta.",
    )
    rows = [
        (
            name(spectrum.name),
            "×".join(map(str, spectrum.shape)),
            f"{spectrum.rows}×{spectrum.columns}",
            f"{spectrum.effective_rank:.1f}",
            f"{spectrum.noise_rank:.1f}",
            f"{spectrum.most}",
        )
        for spectrum in spectra
    ]
    heads = ("Matrix", "Shape", "Sampled", "Effective rank", "Of noise", "Directions with 90 %")
    inner = table(heads, rows, "Effective ranks, and directions that hold nine tenths of the squared norm.", numbers=5)
    yield element("details", element("summary", "The figures as a table"), inner)


def _exactness(manifest: Manifest) -> Markup:
    exactness = manifest.exactness
    codecs: dict[str, int] = defaultdict(int)
    for tensor in manifest.tensors:
        codecs[tensor.codec.name] += 1
    bits = 8 * sum(tensor.nbytes for tensor in manifest.tensors) / exactness.elements if exactness.elements else 0.0
    rows = [
        ("Elements proved exact", f"{exactness.elements:,}"),
        ("Changed", f"{exactness.changed:,} ({_share(exactness.changed, exactness.elements)})"),
        ("Whose difference needs more bits than a weight has", f"{exactness.remainders:,}"),
        ("That no sum reaches, kept as post’s own bits", f"{exactness.exceptions:,}"),
        ("Package", f"{human_bytes(manifest.nbytes)} in {len(manifest.files)} files"),
        ("Bits a weight", f"{bits:.2f}"),
        ("Codecs", ", ".join(f"{codec}: {count}" for codec, count in sorted(codecs.items())) or "none"),
    ]
    return table(("What", "Figure"), rows, "Lossless: base + Δ gives post for every element, bit for bit.", numbers=1)


def _sources(manifest: Manifest) -> Iterator[Markup]:
    rows = [
        (
            side,
            source_name(source),
            element("code", source.commit[:12]) if source.commit else "a local copy",
            f"{sum(source.dtypes.values()):,}",
            ", ".join(list(source.dtypes)[:6]),
            f"{len(source.files)}",
        )
        for side, source in (("base", manifest.base), ("post", manifest.post))
    ]
    heads = ("Side", "Model", "Commit", "Parameters", "Types", "Weight files")
    yield table(heads, rows, "The two models that the delta was taken of.", numbers=3)
    architecture = manifest.architecture
    yield element(
        "p",
        "Architecture: ",
        name(", ".join(architecture.classes[:3]) or architecture.model_type or "unknown"),
        ". Fingerprint of its tensors’ names and shapes: ",
        element("span", architecture.fingerprint, class_="id"),
        ". Made by ",
        name(manifest.created_by),
        ".",
        class_="soft",
    )
    if manifest.omissions:
        left = [(name(item.name), item.side, item.reason) for item in manifest.omissions[:_LISTED]]
        caption = f"Tensors left out: {len(manifest.omissions)}."
        yield table(("Tensor", "Of", "Why"), left, caption)


def _use(manifest: Manifest, reference: str) -> Iterator[Markup]:
    base = hub_id(manifest.base.name, manifest.base.commit) or "BASE"
    called = shlex.quote(reference)
    lines = [
        "pip install paramdelta-hub",
        f"pd-apply NEW_BASE {called} -o new-model",
        f"pd-verify {called} --base {base}    # proves that base + Δ is post",
    ]
    yield element(
        "p",
        "Added to its own base the delta gives back post; added to another model made from that base, such as the next"
        " release, it carries the post-training over, without training.",
    )
    yield element("pre", element("code", "\n".join(lines)), tabindex="0", role="region", aria_label="Commands")


def _short(tensor: str) -> str:
    """Return what a chart calls a matrix: the layer and what it is there."""
    place = place_of(tensor, fine=True)
    return f"{place.layer} · {place.module}" if place.stack else place.module


def _share(part: int, whole: int) -> str:
    """Return a share in percent that says 0 and 100 only where it is true."""
    if part in (0, whole):
        return "0%" if not part else "100%"
    share = part / whole
    return "< 0.1%" if share < 0.0005 else "> 99.9%" if share > 0.9995 else f"{share:.1%}"
