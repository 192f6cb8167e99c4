"""Model cards: what a delta is and how to use it; what an applied model is made of.

Cards are read by people, and their metadata by the Hub. Manifests come from strangers, so every text of theirs is
escaped; what an author wrote by hand stays when the rest is written anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from paramdelta_hub.errors import OptionError
from paramdelta_hub.fileio.seal import seal
from paramdelta_hub.fileio.sizes import human_bytes
from paramdelta_hub.package.labels import HUB_LICENSES
from paramdelta_hub.package.manifest import Manifest, Source
from paramdelta_hub.package.package import PICTURE_NAME
from paramdelta_hub.registry.cards.changes import change_table
from paramdelta_hub.registry.cards.markdown import (
    YOURS_BEGIN,
    YOURS_END,
    front_matter,
    hub_id,
    model_link,
    own_words,
    plain,
    split,
)
from paramdelta_hub.registry.cards.tags import FACTS_KEY, FINGERPRINT_PREFIX, LIBRARY, TAG, card_facts, fingerprint_tag

__all__ = ["delta_card", "result_card"]

_SHOWN = 10
"""Lines of a list, such as of tensors left out; the manifest has all."""

_RESULT_TAG = "paramdelta-result"
"""On every applied model, which is no delta: :data:`TAG` is for those."""

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
"""``pipeline_tag`` by the end of an architecture's class. ForConditionalGeneration is not among them: it may mean text,
images or speech."""

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


def delta_card(
    manifest: Manifest,
    id: str,  # noqa: A002 - what the package calls it
    repo: str,
    existing: str | None = None,
    *,
    licenses: tuple[str | None, str | None] = (None, None),
    on_hub: bool = True,
) -> str:
    """Return a delta's card, in which the author's words and metadata from ``existing`` survive.

    Args:
        manifest: the package's.
        id: sha256 of the manifest.
        repo: where it is published, ``org/name``.
        existing: the card that was there before.
        licenses: of base and of post, where their cards say; the delta inherits post's unless it has its own.
        on_hub: whether the Hub is where it is published; elsewhere commands need ``--registry``.

    Raises:
        OptionError: the existing card's metadata can't be read.
    """
    base, post, words = manifest.base, manifest.post, own_words(existing)
    names = f"**{plain(base.name)}** to make **{plain(post.name)}**"
    sections = [
        f"# {plain(manifest.name)} {manifest.version}",
        f"A **delta**: what post-training added to {names}, and nothing else. It is no model by itself. Added to its"
        " own base it gives back post, bit for bit; added to another base of that family, such as the next release, it"
        f" carries the post-training over, without training:\n\n{_FORMULA}",
        "\n\n".join([YOURS_BEGIN, *([words] if words else []), YOURS_END]),
        f"## Use\n\n{_commands(manifest, repo, on_hub)}",
        f"## Made of\n\n{_sources(manifest)}",
        f"## Fits\n\n{_fit(manifest)}",
        f"## Size and exactness\n\n{_exactness(manifest, id)}",
        f"## What changed\n\n{_changes(manifest, on_hub)}",
        f"## License\n\n{_license_text(manifest.license, *licenses)}",
        f"## Citation\n\n{_CITATION}",
    ]
    return _metadata(manifest, id, existing, manifest.license or licenses[1]) + "\n" + "\n\n".join(sections) + "\n"


def result_card(provenance: Mapping[str, Any], manifests: Sequence[Manifest], lines: Iterable[str] = ()) -> str:
    """Return the card of an applied model: what it is made of, with weights, versions, commits and warnings.

    Nothing in it depends on time or place, and nothing of the target's own card is in it: this is another model. It
    ends in a seal, by which an edited card is told from ours.

    Args:
        provenance: what ``paramdelta_provenance.json`` says.
        manifests: of the deltas, in the provenance's order.
        lines: what there is to say of the files beside the weights.
    """
    target, deltas = provenance["target"], provenance["deltas"]
    sources = [(target["name"], target["commit"]), *((m.post.name, m.post.commit) for m in manifests)]
    data = {
        "base_model": list(dict.fromkeys(found for source in sources if (found := hub_id(*source)))) or None,
        "base_model_relation": "merge" if any(hub_id(*source) for source in sources) else None,
        "tags": ["merge", _RESULT_TAG],
    }
    label = plain(target["name"])
    parts = [f"- {model_link(target['name'], target['commit'])}"]
    parts += [_summand(delta, manifest) for delta, manifest in zip(deltas, manifests, strict=True)]
    sections = [
        f"# {label} + {' + '.join(plain(delta['name']) for delta in deltas)}",
        f"This model is **{label}** with the difference that post-training made elsewhere added to its weights, by"
        f" [Paramdelta Hub](https://pypi.org/project/paramdelta-hub/), without training:\n\n{_SUM}",
        "## Made of\n\n" + "\n".join(parts),
    ]
    if provenance["is_post"]:
        sections.append("The target is the delta's base: this is post, bit for bit.")
    options = [
        *(
            f"the weight of tensors like {rule['pattern']} times {rule['factor']:g}"
            for rule in provenance["weight_map"]
        ),
        *(f"tensors like {pattern} are the target's" for pattern in provenance["skips"]),
        *provenance["notes"],
        *lines,
    ]
    if options:
        sections.append("## Notes\n\n" + _list(options))
    sections.append(
        "`paramdelta_provenance.json` has the sha256 of every delta's manifest, and the BLAKE3 digest of every tensor."
        " The licenses of the target, and of what the deltas were taken of, apply."
    )
    sections.append(f"## Citation\n\n{_CITATION}")
    return seal((front_matter(data) + "\n" + "\n\n".join(sections) + "\n").encode()).decode()


def _summand(delta: Mapping[str, Any], manifest: Manifest) -> str:
    kinship = delta["lineage"]
    line = (
        f"- {delta['weight']:+g} × {plain(delta['name'])} {plain(delta['version'])} (id `{delta['id'][:16]}`):"
        f" {model_link(manifest.post.name, manifest.post.commit)}"
        f" − {model_link(manifest.base.name, manifest.base.commit)}"
    )
    if kinship["forced"]:
        line += ". **Warning**: the target does not descend from that base; this was forced, and may mean nothing"
    return line


def _list(lines: Sequence[str]) -> str:
    shown = [f"- {plain(line, 400)}" for line in lines[:_SHOWN]]
    return "\n".join(shown + [f"- … and {len(lines) - _SHOWN} more"] * (len(lines) > _SHOWN))


def _metadata(manifest: Manifest, id_: str, existing: str | None, license_name: str | None) -> str:
    """Return the metadata block: ours, over what the author had; of tags and the task, the author's stay."""
    # Imported here: it takes a quarter of a second, and only publishing needs it.
    from huggingface_hub import ModelCard, ModelCardData

    old: dict[str, Any] = {}
    if block := split(existing or "")[0]:
        try:
            old = dict(vars(ModelCard(block).data))
        except Exception as error:  # whatever a YAML parser and the client's checks can raise
            what = f"the card's metadata can't be read: {str(error).splitlines()[0] if str(error) else error!r}"
            raise OptionError(what, where="README.md", remedy="mend the block between the --- lines") from None
    base = hub_id(manifest.base.name, manifest.base.commit)
    known = license_name.lower() if license_name and license_name.lower() in HUB_LICENSES else None
    tags = old.get("tags")
    ours = {
        "library_name": LIBRARY,
        "base_model": [base] if base else None,
        "base_model_relation": "adapter" if base else None,
        "license": known or ("other" if license_name else None),
        "license_name": _slug(license_name) if license_name and not known else None,
        "pipeline_tag": old.get("pipeline_tag") or _task(manifest.architecture.classes),
        "tags": [
            TAG,
            fingerprint_tag(manifest.architecture.fingerprint),
            *(
                str(tag)
                for tag in (tags if isinstance(tags, list) else [])
                if not str(tag).startswith(FINGERPRINT_PREFIX)
            ),
        ],
        FACTS_KEY: card_facts(manifest, id_),
    }
    if ours["license"]:
        old.pop("license_name", None)
    data = ModelCardData(**{**old, **{key: value for key, value in ours.items() if value is not None}})
    return f"---\n{data.to_yaml()}\n---\n"


def _task(classes: Sequence[str]) -> str | None:
    return next((task for name in classes for end, task in _TASKS.items() if name.endswith(end)), None)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")[:96] or "other"


def _commands(manifest: Manifest, repo: str, on_hub: bool) -> str:
    reference = f"{repo}@{manifest.version}"
    base = hub_id(manifest.base.name, manifest.base.commit)
    lines = ["pip install paramdelta-hub", f"pd-apply NEW_BASE {reference} -o new-model"]
    lines.append(f"pd-verify {reference} --base {base or 'BASE'}    # proves that base ⊕ Δ is post")
    note = "" if on_hub else "\n\nWith `--registry`, say in which folder or bucket the registry lies."
    return "\n".join(["```sh", *lines, "```"]) + note


def _sources(manifest: Manifest) -> str:
    rows = [
        f"| {side} | {model_link(source.name, source.commit)} | {sum(source.dtypes.values()):,} in {_dtypes(source)} |"
        for side, source in (("post", manifest.post), ("base", manifest.base))
    ]
    return "\n".join(["| | model | parameters |", "|---|---|---|", *rows])


def _dtypes(source: Source) -> str:
    return ", ".join(plain(dtype, 16) for dtype in list(source.dtypes)[:_SHOWN])


def _fit(manifest: Manifest) -> str:
    architecture = manifest.architecture
    classes = ", ".join(plain(name) for name in architecture.classes[:3]) or "of unknown class"
    lines = [f"- Architecture: {plain(architecture.model_type or 'unknown type')}, {classes}."]
    lines.append(f"- Fingerprint of its tensors' names and shapes: `{architecture.fingerprint}`.")
    for side, source in (("base", manifest.base), ("post", manifest.post)):
        if source.tokenizer_sha256:
            lines.append(f"- Tokenizer of {side}: sha256 `{source.tokenizer_sha256[:16]}…`.")
    for tensor in manifest.tensors:
        if tensor.rows is not None:
            new = sum(run.number for run in tensor.runs or () if run.source is None)
            what = (
                f"{new:,} of {tensor.shape[0]:,} rows are new" if tensor.rows.base else "brought whole; base has none"
            )
            lines.append(f"- {plain(tensor.name)}: {what}.")
    if len(lines) > 2 * _SHOWN:
        lines[2 * _SHOWN :] = [f"- … and {len(lines) - 2 * _SHOWN} more tensors with new rows."]
    if manifest.omissions:
        lines.append(f"- Left out, {len(manifest.omissions)} tensor(s):")
        shown = [f"{plain(item.name)} ({item.side}): {plain(item.reason)}" for item in manifest.omissions[:_SHOWN]]
        lines += [f"  - {text}" for text in shown]
        lines += [f"  - … and {len(manifest.omissions) - _SHOWN} more"] * (len(manifest.omissions) > _SHOWN)
    return "\n".join(lines)


def _changes(manifest: Manifest, on_hub: bool) -> str:
    """Return the heat map where it was put beside the card, and in any case the table, which shows everywhere."""
    picture = f"![Heat map of relative change by module and layer]({PICTURE_NAME})\n\n" if on_hub else ""
    what = "The size of the change against the size of the weights (Euclidean norms):"
    return f"{what}\n\n{picture}{change_table(manifest.tensors)}"


def _exactness(manifest: Manifest, id_: str) -> str:
    nbytes, model = manifest.nbytes, manifest.model_nbytes
    exactness = manifest.exactness
    share = exactness.changed / exactness.elements if exactness.elements else 0.0
    against = f", {nbytes / model:.1%} of the full model's {human_bytes(model)}" if model else ""
    return (
        f"- {human_bytes(nbytes)}{against}.\n"
        f"- Lossless: base ⊕ Δ is post in all {exactness.elements:,} elements, {share:.1%} of which changed; checked"
        " when it was made.\n"
        f"- Id (sha256 of its manifest): `{id_}`. Made by {plain(manifest.created_by)}."
    )


def _license_text(own: str | None, base: str | None, post: str | None) -> str:
    lines = []
    if own:
        lines.append(f"The delta's maker states: {plain(own)}.")
    elif post:
        lines.append(f"Inherited from post: {plain(post)}.")
    else:
        lines.append("Not stated. What post's and base's licenses demand holds for what is derived of them.")
    if base and post and base != post:
        lines.append(
            f"**Warning**: base is under {plain(base)}, post under {plain(post)}. Both may bind you; read both."
        )
    if own and post and own != post:
        lines.append(f"**Warning**: post is under {plain(post)}.")
    return "\n\n".join(lines)
