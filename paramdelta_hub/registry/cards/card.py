"""The model cards of deltas and of applied models, and the tags by which deltas are found on the Hub.

People read the text of a card, and the Hub reads its metadata. Manifests come from strangers, so all their texts are
escaped. When a card is written again, the text and the metadata of its author stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from paramdelta_hub.errors import OptionError, SourceError
from paramdelta_hub.fileio.digests import seal
from paramdelta_hub.fileio.names import human_bytes
from paramdelta_hub.package.labels import HUB_LICENSES
from paramdelta_hub.package.manifest import Manifest, Source
from paramdelta_hub.package.package import PICTURE_NAME
from paramdelta_hub.package.provenance import Delta, Provenance
from paramdelta_hub.registry.cards.changes import change_table
from paramdelta_hub.registry.cards.front_matter import Change, Items, change_metadata, metadata
from paramdelta_hub.registry.cards.generated import END, with_generated
from paramdelta_hub.registry.cards.markdown import escape_markdown, front_matter, hub_id, model_link

__all__ = [
    "BASE_PREFIX",
    "FACTS_KEY",
    "FINGERPRINT_PREFIX",
    "LIBRARY",
    "LICENSE_PREFIX",
    "TAG",
    "WRITTEN_KEYS",
    "delta_card",
    "fingerprint_tag",
    "result_card",
    "tag_value",
]

CARD = "README.md"
"""The card, in messages."""

LIBRARY = "paramdelta-hub"
"""The ``library_name`` of every card."""

TAG = "paramdelta"
"""A tag that every delta has, and nothing else. A search for it finds only deltas."""

FACTS_KEY = "paramdelta"
"""The metadata key of facts that a search shows without a download, but never trusts."""

WRITTEN_KEYS = {
    *("library_name", "base_model", "base_model_relation", "license", "license_name", "pipeline_tag", "tags"),
    FACTS_KEY,
}
"""The metadata keys that a new delta's card gets, where their values are known."""

FINGERPRINT_PREFIX = "paramdelta-fp-"
BASE_PREFIX = "base_model:"
"""The Hub derives these tags from a card's ``base_model``, and also ``base_model:adapter:org/name``."""
LICENSE_PREFIX = "license:"

_MAX_LINES = 10
"""The number of lines of a list, such as the omitted tensors. The manifest has all of them."""

_RESULT_TAG = "paramdelta-result"
"""The tag of every applied model. :data:`TAG` is for deltas only."""

_TASKS = {
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForImageClassification": "image-classification",
    "ForSpeechSeq2Seq": "automatic-speech-recognition",
}
"""``pipeline_tag`` by the last part of the name of a model class. ForConditionalGeneration is missing, because it may
mean text, images or speech."""

_FORMULA = "    Θ_new = Θ_target + (Θ_post − Θ_base)"
_SUM = "    Θ = Θ_target + Σ weight · (Θ_post − Θ_base)"

_CITATION = """\
The arithmetic is that of Param∆ (Cao et al., ICLR 2025); also published as instruction residuals
([arXiv 2410.10739](https://arxiv.org/abs/2410.10739)), chat vectors (ACL 2024,
[arXiv 2310.04799](https://arxiv.org/abs/2310.04799)) and fine-tuning transfer
([arXiv 2503.20110](https://arxiv.org/abs/2503.20110)).

```bibtex
@inproceedings{cao2025paramdelta,
  title     = {Param$\\Delta$ for Direct Weight Mixing: Post-Train Large Language Model at Zero Cost},
  author    = {Cao, Sheng and others},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  note      = {arXiv:2504.21023}
}
```"""


def fingerprint_tag(fingerprint: str) -> str:
    """Return the tag of an architecture: 64 bits of its fingerprint. A match is then compared in full."""
    return FINGERPRINT_PREFIX + fingerprint[:16]


def tag_value(tags: Iterable[str], prefix: str) -> str | None:
    """Return what follows ``prefix`` in the first tag that begins with it, without tags of the form ``a:b:value``."""
    return next((tag.removeprefix(prefix) for tag in tags if tag.startswith(prefix) and tag.count(":") < 2), None)


def delta_card(
    manifest: Manifest,
    id: str,  # noqa: A002 - the package's own term
    repo: str,
    existing: str | None = None,
    *,
    licenses: tuple[str | None, str | None] = (None, None),
    on_hub: bool = True,
    replace_edits: bool = False,
    keep_edits: bool = False,
    where: str = CARD,
) -> str:
    """Return a delta's card. All of ``existing`` that is not ours is kept, byte for byte.

    Ours are the text between the markers of :mod:`.generated`, the key :data:`FACTS_KEY`, the tags of deltas, and
    what an earlier version wrote. Of the other keys, only those that are missing are added. ``licenses`` are those of
    base and post, if known. A delta without a license inherits post's. ``where`` is the existing card, for messages.

    Raises:
        SourceError: the existing card's metadata or markers can't be read.
        OptionError: something that was edited by hand would be lost, and it is neither to be replaced nor kept.
    """
    base, post, card = manifest.base, manifest.post, existing or ""
    old = metadata(card, where)
    changes, lost = _metadata(manifest, id, old, licenses[1], replace_edits)
    by_hand = None if "license" in changes[FACTS_KEY] or "inherited" in changes[FACTS_KEY] else old.get("license")
    names = f"**{escape_markdown(base.name)}** to make **{escape_markdown(post.name)}**"
    sections = [
        f"# {escape_markdown(manifest.name)} {manifest.version}",
        f"This is a **delta**: what post-training added to {names}. It is not a model by itself. Added to its own base,"
        " it gives back post, bit for bit. Added to another base of the same family, such as the next release, it"
        f" transfers the post-training, without training:\n\n{_FORMULA}",
        f"## Use\n\n{_commands(manifest, repo, on_hub)}",
        f"## Made of\n\n{_sources(manifest)}",
        f"## Fits\n\n{_fit(manifest)}",
        f"## Size and exactness\n\n{_exactness(manifest, id)}",
        f"## What changed\n\n{_changes(manifest, on_hub)}",
        f"## License\n\n{_license_text(manifest.license, *licenses, by_hand=by_hand)}",
        f"## Citation\n\n{_CITATION}",
    ]
    changed, edited = _with_part(card, "\n\n".join(sections), keep_edits, where)
    if edited:
        lost.append("text between the markers of the generated part")
    if lost and not (replace_edits or keep_edits):
        raise OptionError(
            f"the card was edited by hand, and publishing would replace {' and '.join(lost)}",
            where=where,
            remedy="move text out of the markers and make the package agree (paramdelta relabel); "
            "or give --replace-edits to replace it",
        )
    return change_metadata(changed, changes, where)


def _with_part(card: str, text: str, keep_edits: bool, where: str) -> tuple[str, bool]:
    """Return a card with the generated part, and whether the old one was edited by hand; such a card can be kept."""
    try:
        changed, edited = with_generated(card, text, where)
    except SourceError:
        if not keep_edits:
            raise
        return card, True
    edited = edited or (keep_edits and bool(card) and END not in card)
    return (card if edited and keep_edits else changed), edited


def result_card(provenance: Provenance, manifests: Sequence[Manifest], lines: Iterable[str] = ()) -> str:
    """Return the card of an applied model: its sources with weights, versions, commits and warnings.

    Nothing in it depends on time or place. It takes nothing from the target's own card, because this is another model.
    It ends with a seal, which shows whether the card was edited. ``lines`` are notes about files other than weights.
    """
    target, deltas = provenance.target, provenance.deltas
    sources = [(target.name, target.commit), *((m.post.name, m.post.commit) for m in manifests)]
    data = {
        "base_model": list(dict.fromkeys(found for source in sources if (found := hub_id(*source)))) or None,
        "base_model_relation": "merge" if any(hub_id(*source) for source in sources) else None,
        "tags": ["merge", _RESULT_TAG],
    }
    label = escape_markdown(target.name)
    parts = [f"- {model_link(target.name, target.commit)}"]
    parts += [_delta_line(delta, manifest) for delta, manifest in zip(deltas, manifests, strict=True)]
    sections = [
        f"# {label} + {' + '.join(escape_markdown(delta.name) for delta in deltas)}",
        f"This model is **{label}**. The difference that post-training made in another model was added to its weights"
        f" by [Paramdelta Hub](https://pypi.org/project/paramdelta-hub/), without training:\n\n{_SUM}",
        "## Made of\n\n" + "\n".join(parts),
    ]
    if provenance.is_post:
        sections.append(f"The target is the delta's base, so this is post, bit for bit{manifests[0].but_left_out}.")
    options = [
        *(f"Weight of tensors that match {rule.pattern}: times {rule.factor:g}" for rule in provenance.weight_map),
        *(f"Tensors that match {pattern}: taken from the target" for pattern in provenance.skips),
        *provenance.notes,
        *lines,
    ]
    if options:
        sections.append("\n".join(["## Notes\n", *_bullets([escape_markdown(line, 400) for line in options])]))
    sections.append(
        "`paramdelta_provenance.json` has the sha256 of every delta's manifest, and the BLAKE3 digest of every tensor."
        " The licenses of the target, and of the models that the deltas were made from, apply."
    )
    sections.append(f"## Citation\n\n{_CITATION}")
    return seal((front_matter(data) + "\n" + "\n\n".join(sections) + "\n").encode()).decode()


def _delta_line(delta: Delta, manifest: Manifest) -> str:
    line = (
        f"- {delta.weight:+g} × {escape_markdown(delta.name)} {escape_markdown(delta.version)}"
        f" (id `{delta.id[:16]}`):"
        f" {model_link(manifest.post.name, manifest.post.commit)}"
        f" − {model_link(manifest.base.name, manifest.base.commit)}"
    )
    if delta.lineage.forced:
        line += ". **Warning**: the target does not descend from that base. This was forced; the result may be useless"
    return line


def _bullets(lines: Sequence[str]) -> list[str]:
    shown = [f"- {line}" for line in lines[:_MAX_LINES]]
    return shown + [f"- … and {len(lines) - _MAX_LINES} more"] * (len(lines) > _MAX_LINES)


def _metadata(
    manifest: Manifest, id_: str, old: Mapping[str, Any], inherited: str | None, replace: bool
) -> tuple[dict[str, Any], list[str]]:
    """Return the changes of a card's metadata, and what of the author's would be lost by them."""
    before: Any = old.get(FACTS_KEY)
    before = before if isinstance(before, dict) else {}
    facts: dict[str, str | int] = {
        "id": id_,
        "name": manifest.name,
        "version": manifest.version,
        "base": manifest.base.name,
        "post": manifest.post.name,
        "fingerprint": manifest.architecture.fingerprint,
        "bytes": manifest.nbytes,
    }
    base = hub_id(manifest.base.name, manifest.base.commit)
    new_tags = [TAG, fingerprint_tag(manifest.architecture.fingerprint)]
    tags = [tag for tag in _listed(old.get("tags")) if tag.startswith(FINGERPRINT_PREFIX) and tag not in new_tags]
    changes: dict[str, Change] = {}
    lost: list[str] = []
    if "library_name" not in old or replace:
        changes["library_name"] = LIBRARY
    stale = before.get("base")
    changes["base_model"] = Items([base] if base else [], [stale] if stale and stale != base else [])
    if base and "base_model_relation" not in old:
        changes["base_model_relation"] = "adapter"
    changes |= _license_changes(manifest.license, inherited, old, before, facts, lost, replace)
    if "pipeline_tag" not in old and (task := _task(manifest.architecture.classes)):
        changes["pipeline_tag"] = task
    changes["tags"] = Items(new_tags, tags)
    for key in ("base_model", "tags"):
        if isinstance(old.get(key), dict):
            lost.append(f"{key}, which is not a list,")
            del changes[key]
            if replace:
                changes[key] = new_tags if key == "tags" else [base] if base else []
    changes[FACTS_KEY] = facts
    return changes, lost


def _license_changes(
    own: str | None,
    inherited: str | None,
    old: Mapping[str, Any],
    before: Mapping[str, Any],
    facts: dict[str, str | int],
    lost: list[str],
    replace: bool,
) -> dict[str, Change]:
    """Return the changes of the license, and note in ``facts`` what of it is ours, so that it can change again."""
    there = old.get("license")
    origin = next((key for key in ("license", "inherited") if there and before.get(key) == there), None)
    wanted = own or inherited
    if wanted is None:
        if origin == "license":  # the package stated it, and does no more
            return {"license": None, "license_name": None}
        if origin:
            facts[origin] = str(there)
        return {}
    known = wanted.lower() if wanted.lower() in HUB_LICENSES else None
    license_, name = known or "other", None if known else _slug(wanted)
    if there and origin is None and not (own and replace):
        stated = {text.lower() for text in (*_listed(there), *_listed(old.get("license_name")))}
        if own and not stated & {license_ if known else name, wanted.lower()}:
            lost.append(f"license {', '.join(_listed(there))} (the package states {wanted})")
        return {}
    facts["license" if own else "inherited"] = license_
    return {"license": license_, "license_name": name if name or origin or replace else old.get("license_name")}


def _listed(value: Any) -> list[str]:
    return [member for member in (value if isinstance(value, list) else [value]) if isinstance(member, str)]


def _task(classes: Sequence[str]) -> str | None:
    return next((task for name in classes for end, task in _TASKS.items() if name.endswith(end)), None)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")[:96] or "other"


def _commands(manifest: Manifest, repo: str, on_hub: bool) -> str:
    reference = f"{repo}@{manifest.version}"
    base = hub_id(manifest.base.name, manifest.base.commit) or "BASE"
    note = "" if on_hub else "\n\nUse `--registry` to name the folder or bucket of the registry."
    return f"""\
```sh
pip install paramdelta-hub
pd-apply NEW_BASE {reference} -o new-model
pd-verify {reference} --base {base}    # proves that base ⊕ Δ is post
```{note}"""


def _sources(manifest: Manifest) -> str:
    rows = [
        f"| {side} | {model_link(source.name, source.commit)} | {sum(source.dtypes.values()):,} in {_dtypes(source)} |"
        for side, source in (("post", manifest.post), ("base", manifest.base))
    ]
    table = "\n".join(["| | model | parameters |", "|---|---|---|", *rows])
    earlier = [
        f"- Relabeled from {escape_markdown(package.name)} {package.version} (id `{package.id[:16]}`)."
        for package in reversed(manifest.relabeled_from)
    ]
    return f"{table}\n\n{chr(10).join(earlier[:_MAX_LINES])}".rstrip()


def _dtypes(source: Source) -> str:
    return ", ".join(escape_markdown(dtype, 16) for dtype in list(source.dtypes)[:_MAX_LINES])


def _fit(manifest: Manifest) -> str:
    architecture = manifest.architecture
    classes = ", ".join(escape_markdown(name) for name in architecture.classes[:3]) or "class unknown"
    lines = [f"- Architecture: {escape_markdown(architecture.model_type or 'type unknown')}, {classes}."]
    lines.append(f"- Fingerprint of its tensors' names and shapes: `{architecture.fingerprint}`.")
    for side, source in (("base", manifest.base), ("post", manifest.post)):
        if source.tokenizer_sha256:
            lines.append(f"- Tokenizer of {side}: sha256 `{source.tokenizer_sha256[:16]}…`.")
    for tensor in manifest.tensors:
        if tensor.rows is not None:
            new = sum(run.number for run in tensor.runs or () if run.source is None)
            what = (
                f"{new:,} of {tensor.shape[0]:,} rows are new"
                if tensor.rows.base
                else "stored whole, because base has none"
            )
            lines.append(f"- {escape_markdown(tensor.name)}: {what}.")
    if len(lines) > 2 * _MAX_LINES:
        lines[2 * _MAX_LINES :] = [f"- … and {len(lines) - 2 * _MAX_LINES} more tensors with new rows."]
    if manifest.omissions:
        lines.append(f"- Omitted tensors ({len(manifest.omissions)}):")
        texts = [f"{escape_markdown(o.name)} ({o.side}): {escape_markdown(o.reason)}" for o in manifest.omissions]
        lines += [f"  {line}" for line in _bullets(texts)]
    return "\n".join(lines)


def _changes(manifest: Manifest, on_hub: bool) -> str:
    """Return the table, which is visible everywhere, and on the Hub also the heat map."""
    picture = f"![Heat map of relative change by module and layer]({PICTURE_NAME})\n\n" if on_hub else ""
    what = "Size of the change relative to the size of the weights (Euclidean norms):"
    return f"{what}\n\n{picture}{change_table(manifest.tensors)}"


def _exactness(manifest: Manifest, id_: str) -> str:
    nbytes, model = manifest.nbytes, manifest.model_nbytes
    exactness = manifest.exactness
    share = exactness.changed / exactness.elements if exactness.elements else 0.0
    against = f", {nbytes / model:.1%} of the full model's {human_bytes(model)}" if model else ""
    return (
        f"- {human_bytes(nbytes)}{against}.\n"
        f"- Lossless: base ⊕ Δ is post in all {exactness.elements:,} elements. {share:.1%} of them changed. This was"
        " checked when the delta was made.\n"
        f"- Id (sha256 of its manifest): `{id_}`. Made by {escape_markdown(manifest.created_by)}."
    )


def _license_text(own: str | None, base: str | None, post: str | None, by_hand: Any) -> str:
    if by_hand and not own:
        lines = [f"This card states: {escape_markdown(', '.join(_listed(by_hand)))}."]
    elif own:
        lines = [f"The maker of the delta states: {escape_markdown(own)}."]
    elif post:
        lines = [f"Inherited from post: {escape_markdown(post)}."]
    else:
        lines = ["Not stated. The licenses of post and base apply to works derived from them."]
    if base and post and base != post:
        lines.append(
            f"**Warning**: base is under {escape_markdown(base)}, post under {escape_markdown(post)}. Both may apply."
        )
    if own and post and own != post:
        lines.append(f"**Warning**: post is under {escape_markdown(post)}.")
    return "\n\n".join(lines)
