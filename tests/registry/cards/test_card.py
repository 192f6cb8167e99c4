"""Model cards: what they must say, whose words survive, and that a stranger's manifest can't write into them."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

import paramdelta_hub as pd
from paramdelta_hub.errors import OptionError, SourceError
from paramdelta_hub.fileio.digests import is_sealed
from paramdelta_hub.fileio.names import is_clear
from paramdelta_hub.package.manifest import Earlier, Manifest, Omission
from paramdelta_hub.package.package import open_package
from paramdelta_hub.package.provenance import Delta, Factor, Lineage, Model, Provenance
from paramdelta_hub.registry.cards.card import _TASKS, delta_card, result_card
from paramdelta_hub.registry.cards.front_matter import line_end, split
from paramdelta_hub.registry.cards.generated import END, own_text, without_generated
from paramdelta_hub.registry.cards.markdown import escape_markdown, front_matter
from tests.conftest import Family
from tests.registry.cards.test_front_matter import as_the_client_reads, cards, equal
from tests.support.digests import tensor_digest
from tests.support.models import read_weights, weights, write_model

BEGIN = f"<!-- delta:begin {'0' * 16}: x -->"
COMMIT = "0123456789abcdef" * 2 + "01234567"
HOSTS = ("https://huggingface.co/", "https://arxiv.org/", "https://pypi.org/")
HOSTILE = [
    "<script>alert(1)</script>", "![x](https://evil.example/p.png)", "[click](javascript:alert(1))", "`rm -rf /`",
    "```", "| a | b |", "# heading", "---", "- item", "&lt;b&gt;", "&#60;b&#62;", "**bold** _it_ ~~no~~", "a: b",
    "https://evil.example", "www.evil.example", "<https://evil.example>", "{{ template }}", "!!python/object:os.system",
    "*a", "$x$", "\\`x", "--> <!--", BEGIN, END, "@everyone", "[ref]: https://evil.example", "'\"",
    "1. one", "    code", "<!--",
]  # fmt: skip
ASCII = st.text(st.characters(codec="ascii"))
TEXTS = st.one_of(
    st.sampled_from(HOSTILE),
    st.lists(st.sampled_from(HOSTILE), min_size=2, max_size=3).map(" ".join).filter(lambda text: len(text) <= 120),
    st.text(min_size=1, max_size=60).filter(is_clear),
)


@pytest.fixture(scope="session")
def manifest(shared_family: Family) -> Manifest:
    """A manifest whose models are on the Hub."""
    found = open_package(shared_family.delta).manifest
    base = found.base.model_copy(update={"name": "org/base", "commit": COMMIT})
    post = found.post.model_copy(update={"name": "org/base_instruct", "commit": COMMIT[::-1]})
    return found.model_copy(update={"base": base, "post": post, "license": None})


def metadata(card: str) -> dict[str, Any]:
    block, _ = split(card)
    value = yaml.safe_load(block.strip().strip("-"))
    assert isinstance(value, dict)
    return value


def tokens(card: str) -> list[Token]:
    """Parse a card's body as the Hub would: tables, and HTML let through."""
    found = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(split(card)[1])
    return [inner for token in found for inner in (token, *(token.children or []))]


def shape(card: str) -> list[str]:
    """What a card is made of, words aside."""
    return [token.type for token in tokens(card) if token.type not in ("text", "softbreak")]


def test_the_picture_is_shown_where_it_lies_beside_the_card(manifest: Manifest) -> None:
    for on_hub in (True, False):
        card = delta_card(manifest, "f" * 64, "org/delta", on_hub=on_hub)
        assert [token.attrGet("src") for token in tokens(card) if token.type == "image"] == ["change.svg"] * on_hub
        assert "table_open" in shape(card), "where pictures do not show, the table does"


def test_a_deltas_card_says_what_it_is(manifest: Manifest) -> None:
    card = delta_card(manifest, "f" * 64, "org/delta", licenses=("apache-2.0", "apache-2.0"))
    assert metadata(card) == {
        "base_model": ["org/base"],
        "library_name": "paramdelta-hub",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["paramdelta", f"paramdelta-fp-{manifest.architecture.fingerprint[:16]}"],
        "base_model_relation": "adapter",
        "paramdelta": {
            "id": "f" * 64,
            "name": manifest.name,
            "version": "1.0.0",
            "base": "org/base",
            "post": "org/base_instruct",
            "fingerprint": manifest.architecture.fingerprint,
            "bytes": sum(file.size for file in manifest.files),
            "inherited": "apache-2.0",
        },
    }
    for said in (
        "Θ_target + (Θ_post − Θ_base)",
        f"[org/base](https://huggingface.co/org/base/tree/{COMMIT})",
        f"https://huggingface.co/org/base_instruct/tree/{COMMIT[::-1]}",
        "pd-apply NEW_BASE org/delta@1.0.0 -o new-model",
        "pd-verify org/delta@1.0.0 --base org/base ",
        "llama, LlamaForCausalLM",
        manifest.architecture.fingerprint,
        f"all {manifest.exactness.elements:,} elements",
        "of the full model's",
        "| mlp | ",
        "Inherited from post: apache-2.0.",
        "arXiv:2504.21023", "2410.10739", "2503.20110", "ACL 2024",
    ):  # fmt: skip
        assert said in card, said
    assert "Warning" not in card


@pytest.mark.parametrize(
    ("own", "licenses", "said", "license_", "name"),
    [
        (None, (None, None), ["Not stated"], None, None),
        (None, ("gemma", "mit"), ["Inherited from post: mit", "base is under gemma, post under mit"], "mit", None),
        ("Apache-2.0", (None, None), ["states: Apache-2.0"], "apache-2.0", None),
        ("mit", ("mit", "llama3.2"), ["base is under mit, post under llama3.2", "**Warning**: post is"], "mit", None),
        ("My Own <License>", (None, None), ["states: My Own"], "other", "my-own-license"),
    ],
)  # fmt: skip
def test_licenses(
    manifest: Manifest,
    own: str | None,
    licenses: tuple[str | None, str | None],
    said: list[str],
    license_: str | None,
    name: str | None,
) -> None:
    card = delta_card(manifest.model_copy(update={"license": own}), "f" * 64, "org/delta", licenses=licenses)
    for text in said:
        assert text in card
    assert card.count("**Warning**") == sum("base is under" in text or "**Warning**" in text for text in said)
    assert (metadata(card).get("license"), metadata(card).get("license_name")) == (license_, name)


def test_local_models_are_no_hub_ids(shared_family: Family) -> None:
    card = delta_card(open_package(shared_family.delta).manifest, "f" * 64, "org/delta", on_hub=False)
    assert not {"base_model", "base_model_relation"} & metadata(card).keys()
    assert "base (a local copy)" in card
    assert "--base BASE" in card
    assert "--registry" in card


def test_writing_a_card_again_changes_nothing(manifest: Manifest) -> None:
    card = delta_card(manifest, "f" * 64, "org/delta")
    assert delta_card(manifest, "f" * 64, "org/delta", card) == card


@given(cards(), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_all_that_is_not_ours_survives_every_version(manifest: Manifest, card: str, known: bool) -> None:
    """The first version is published onto a card of its author's, then the next one with another base and license."""
    try:
        before, text = as_the_client_reads(card)
    except yaml.YAMLError:
        return
    if not isinstance(before, dict):
        with pytest.raises(SourceError):
            delta_card(manifest, "f" * 64, "org/delta", card)
        return
    licenses = (None, "gemma" if known else None)
    first = delta_card(manifest, "f" * 64, "org/delta", card, licenses=licenses)
    assert delta_card(manifest, "f" * 64, "org/delta", first, licenses=licenses) == first
    base = manifest.base.model_copy(update={"name": "org/second-base"})
    v2 = manifest.model_copy(update={"version": "2.0.0", "base": base})
    if "&base" in card:  # something refers to the base model that would be replaced
        with pytest.raises(SourceError, match="more than"):
            delta_card(v2, "e" * 64, "org/delta", first, licenses=licenses)
        return
    second = delta_card(v2, "e" * 64, "org/delta", first, licenses=licenses)
    for made, version in ((first, "1.0.0"), (second, "2.0.0")):
        data, _ = as_the_client_reads(made)
        assert data["paramdelta"]["version"] == version
        assert data["paramdelta"]["bytes"] == manifest.nbytes
        for key, value in before.items():
            if key not in ("base_model", "tags"):
                assert equal(data[key], value), key
        wanted = before.get("base_model", [])
        wanted = wanted if isinstance(wanted, list) else [wanted]
        ours = [] if version == "1.0.0" and "org/base" in wanted else [data["paramdelta"]["base"]]
        named = data["base_model"] if isinstance(data["base_model"], list) else [data["base_model"]]
        assert named == [*ours, *(name for name in wanted if version == "1.0.0" or name != "org/base")]
        assert without_generated(made, "").startswith("\ufeff") == card.startswith("\ufeff")
        assert text.removeprefix(line_end(card)) in own_text(made, "")
        kept = set(made.removeprefix("\ufeff").splitlines(keepends=True))
        theirs = card.removeprefix("\ufeff").splitlines(keepends=True)
        gone = [line for line in theirs if line.endswith("\n") and line not in kept]
        assert all("base_model" in line or "org/base" in line for line in gone)


def test_a_card_written_by_hand_is_kept_whole(manifest: Manifest) -> None:
    head = "language: de  # only\ntags: [chemistry, paramdelta-fp-0000000000000000]\npipeline_tag: feature-extraction\n"
    mine = f"---\n{head}---\n\n# Mine\n\nText.\n"
    card = delta_card(manifest, "f" * 64, "org/delta", mine, licenses=(None, "mit"))
    assert own_text(card, "") == "\n# Mine\n\nText.\n"
    assert card.startswith("---\nlanguage: de  # only\n")
    data = metadata(card)
    assert (data["language"], data["pipeline_tag"], data["license"]) == ("de", "feature-extraction", "mit")
    assert data["tags"] == ["paramdelta", f"paramdelta-fp-{manifest.architecture.fingerprint[:16]}", "chemistry"]


BY_HAND = """---
license: llama3.1 # as Meta has it
license_link: LICENSE
extra_gated_prompt: "Read this"
base_model: [org/other]
base_model_relation: finetune
library_name: transformers
tags: chemistry
model-index: 3
---
"""


def test_what_its_author_states_is_kept_unless_the_package_contradicts(manifest: Manifest) -> None:
    card = delta_card(manifest, "f" * 64, "org/delta", BY_HAND, licenses=("mit", "mit"))
    data = metadata(card)
    for key in ("license", "license_link", "extra_gated_prompt", "base_model_relation", "library_name", "model-index"):
        assert data[key] == yaml.safe_load(BY_HAND.strip("-\n"))[key]
    assert data["base_model"] == ["org/base", "org/other"]
    assert data["tags"][2:] == ["chemistry"]
    assert "This card states: llama3.1." in card
    stated = manifest.model_copy(update={"license": "apache-2.0"})
    with pytest.raises(OptionError, match=r"(?s)license llama3\.1 \(the package states apache-2\.0\).*--replace-edits"):
        delta_card(stated, "f" * 64, "org/delta", card)
    replaced = metadata(delta_card(stated, "f" * 64, "org/delta", card, replace_edits=True))
    assert (replaced["license"], replaced["library_name"]) == ("apache-2.0", "paramdelta-hub")
    agreed = manifest.model_copy(update={"license": "Llama3.1"})
    assert metadata(delta_card(agreed, "f" * 64, "org/delta", card))["license"] == "llama3.1"


def test_a_license_that_a_version_stated_changes_with_the_next(manifest: Manifest) -> None:
    card: str | None = None
    for own, post, license_, name in [
        ("mit", None, "mit", None),
        ("My Own", None, "other", "my-own"),
        ("apache-2.0", "mit", "apache-2.0", None),
        (None, "mit", "mit", None),
        (None, None, "mit", None),  # post's card could not be read this time
        ("gemma", None, "gemma", None),
        (None, None, None, None),
    ]:
        versioned = manifest.model_copy(update={"license": own})
        card = delta_card(versioned, "f" * 64, "org/delta", card, licenses=(None, post))
        assert (metadata(card).get("license"), metadata(card).get("license_name")) == (license_, name)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_an_edit_of_the_generated_part_is_not_lost_without_a_word(manifest: Manifest, end: str) -> None:
    card = delta_card(manifest, "f" * 64, "org/delta", "# Mine\n").replace("\n", end)
    again = delta_card(manifest, "e" * 64, "org/delta", card)
    assert own_text(again, "").strip() == "# Mine"
    edited = card.replace("It is not a model by itself.", "It is the best.")
    with pytest.raises(OptionError, match=r"(?s)text between the markers.*--replace-edits"):
        delta_card(manifest, "e" * 64, "org/delta", edited)
    assert delta_card(manifest, "e" * 64, "org/delta", edited, replace_edits=True) == again
    for broken in (card + END, card.replace(END, "")):
        with pytest.raises(SourceError, match="markers"):
            delta_card(manifest, "e" * 64, "org/delta", broken)


@pytest.mark.parametrize("block", ["a: [", "- a\n- b", "!!python/object:os.system {}", "a: b: c", "tags: {a: b}"])
def test_metadata_that_is_none(manifest: Manifest, block: str) -> None:
    existing = f"---\n{block}\n---\n"
    if block.startswith("tags"):
        with pytest.raises(OptionError, match="tags, which is not a list"):
            delta_card(manifest, "f" * 64, "org/delta", existing)
        card = delta_card(manifest, "f" * 64, "org/delta", existing, replace_edits=True)
        assert metadata(card)["tags"][0] == "paramdelta"
        return
    with pytest.raises(SourceError, match="metadata can't be read"):
        delta_card(manifest, "f" * 64, "org/delta", existing)


def hostile(manifest: Manifest, words: list[str]) -> Manifest:
    """Put words wherever a manifest has text that is free."""
    texts = itertools.cycle(words)
    tensors = tuple(
        tensor.model_copy(update={"name": f"{number}{next(texts)}"}) for number, tensor in enumerate(manifest.tensors)
    )
    return manifest.model_copy(
        update={
            "name": next(texts),
            "license": next(texts),
            "created_by": next(texts),
            "relabeled_from": (Earlier(id="0" * 64, name=next(texts), version="1.0.0"),),
            "base": manifest.base.model_copy(update={"name": next(texts), "dtypes": {next(texts): 3}}),
            "post": manifest.post.model_copy(update={"name": next(texts), "commit": None}),
            "architecture": manifest.architecture.model_copy(
                update={"model_type": next(texts), "classes": (next(texts), next(texts))}
            ),
            "omissions": (
                Omission(name=next(texts), side="post", reason=next(texts)),
                Omission(name=next(texts), side="base", reason=next(texts)),
            ),
            "tensors": tensors,
        }
    )


def check_harmless(card: str, markers: int) -> None:
    """No HTML but our markers, or the seal of a result's card; no image or link but ours, no code block but ours."""
    if not markers:
        assert is_sealed(card.encode())
        card = card[: card.rindex("<!-- made by")]
    found = tokens(card)
    html = [token.content.strip() for token in found if token.type in ("html_block", "html_inline")]
    assert [text for text in html if re.fullmatch(r"<!-- delta:(begin [0-9a-f]{16}: [a-z ,;]+|end) -->", text)] == html
    assert len(html) == markers
    assert not {"hr", "s_open"} & {token.type for token in found}
    assert all(token.attrGet("src") == "change.svg" for token in found if token.type == "image")
    assert sum(token.type in ("code_block", "ordered_list_open") for token in found) == 1  # the formula
    for token in found:
        if token.type == "link_open":
            assert str(token.attrGet("href")).startswith(HOSTS)


@given(st.lists(TEXTS, min_size=1, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_strangers_manifest_writes_nothing_into_a_card(manifest: Manifest, words: list[str]) -> None:
    tame = delta_card(hostile(manifest, ["tame"]), "f" * 64, "org/delta", licenses=("mit", "gemma"))
    card = delta_card(hostile(manifest, words), "f" * 64, "org/delta", licenses=("mit", "gemma"))
    check_harmless(card, 2)
    assert [kind for kind in shape(card) if "heading" in kind] == [kind for kind in shape(tame) if "heading" in kind]
    assert [kind for kind in shape(card) if kind == "fence"] == ["fence", "fence"]
    data = metadata(card)
    # A stranger may name a class that there is; what the card says of it is one of our own words, and only then.
    named = [task for word in words for end, task in _TASKS.items() if word.endswith(end)]
    assert data.pop("pipeline_tag", None) in [None, *named]
    assert data.keys() - {"license_name"} <= {
        "library_name",
        "tags",
        "license",
        "paramdelta",
        "base_model",
        "base_model_relation",
    }
    assert all(str(tag).startswith("paramdelta") for tag in data["tags"])
    assert data.get("license_name") is None or re.fullmatch(r"[a-z0-9.-]+", data["license_name"])


@given(TEXTS)
def test_plain_text_shows_just_its_characters(text: str) -> None:
    inline = MarkdownIt("commonmark", {"html": True}).enable("table").parse(f"x {escape_markdown(text)} x")[1]
    assert [token.type for token in inline.children or []] == ["text"] * len(inline.children or [])
    shown = "".join(token.content for token in inline.children or [])
    assert shown == f"x {text} x"
    assert "|" not in escape_markdown(text)
    assert len(escape_markdown("a" * 1000)) < 150


@given(st.dictionaries(st.sampled_from("abc"), st.one_of(st.none(), ASCII, st.lists(ASCII))))
def test_front_matter_is_yaml(data: dict[str, Any]) -> None:
    block = front_matter(data)
    is_empty = all(value is None for value in data.values())  # the Hub takes two lines of dashes for rules
    assert split(block + "\n# x\n")[0].strip() == ("" if is_empty else block.strip())
    assert (yaml.safe_load(block.strip().strip("-")) or {}) == {k: v for k, v in data.items() if v is not None}


def applied(family: Family, out: Path, **options: Any) -> tuple[str, dict[str, Any]]:
    pd.apply(options.pop("target", family.target), options.pop("delta", family.delta), out, threads=1, **options)
    return (out / "README.md").read_text(), json.loads((out / "paramdelta_provenance.json").read_bytes())


def test_an_applied_models_card(family: Family, tmp_path: Path) -> None:
    (family.target / "README.md").write_text("the target's own card: 99 points on some benchmark")
    card, provenance = applied(family, tmp_path / "out", delta=pd.WeightedDelta(family.delta, 0.7))
    assert "99 points" not in card
    assert "# target + post-delta" in card
    assert f"- +0.7 × post-delta 1.0.0 (id `{provenance['deltas'][0]['id'][:16]}`): post (a local copy) − base" in card
    assert metadata(card) == {"tags": ["merge", "paramdelta-result"]}
    assert "Warning" not in card
    check_harmless(card, 0)


def test_an_applied_models_card_names_the_digests_that_are_used(family: Family, tmp_path: Path) -> None:
    card, provenance = applied(family, tmp_path / "out")
    words = (
        "`paramdelta_provenance.json` has the sha256 of every delta's manifest, and the BLAKE3 digest of every tensor."
    )
    assert words in " ".join(card.split())
    assert provenance["deltas"][0]["id"] == hashlib.sha256((family.delta / "manifest.json").read_bytes()).hexdigest()
    weights_now = read_weights(tmp_path / "out")
    assert provenance["tensors"].keys() == weights_now.keys()
    for name, tensor in weights_now.items():
        content = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        assert provenance["tensors"][name]["blake3"] == tensor_digest(content, tensor.element_size())


def test_an_applied_models_card_tells_of_post_and_of_force(family: Family, tmp_path: Path) -> None:
    card, _ = applied(family, tmp_path / "post", target=family.base)
    assert "this is post, bit for bit" in card
    stranger = tmp_path / "stranger"
    write_model(stranger, weights(77))
    card, _ = applied(family, tmp_path / "out", target=stranger, force=True)
    assert "**Warning**: the target does not descend from that base" in card


@given(st.lists(TEXTS, min_size=1, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_strangers_manifest_writes_nothing_into_a_results_card(manifest: Manifest, words: list[str]) -> None:
    evil = hostile(manifest, words)
    provenance = provenance_of(
        target=Model.model_construct(name=words[0], commit=None),
        deltas=(delta_of(evil.name, weight=1.0, forced=True),),
        weight_map=(Factor(pattern=words[0], factor=0.5),),
        skips=tuple(words),
        notes=tuple(words),
    )
    card = result_card(provenance, [evil], words)
    check_harmless(card, 0)
    assert sum(kind == "heading_open" for kind in shape(card)) == 4
    assert metadata(card).keys() <= {"base_model", "base_model_relation", "tags"}


def provenance_of(**fields: Any) -> Provenance:
    """Return a provenance that no model has checked, so that its words can be anything."""
    return Provenance.model_construct(**{"is_post": False, "weight_map": (), "skips": (), "notes": (), **fields})


def delta_of(name: str, *, weight: float, forced: bool) -> Delta:
    lineage = Lineage(correlation=None, tensors=0, forced=forced, foreign=())
    return Delta.model_construct(name=name, version="1.0.0", id="f" * 64, weight=weight, lineage=lineage)


@pytest.mark.parametrize(
    ("endpoint", "shown"),
    [
        ("https://hub.example/", "https://hub.example"),
        ("https://me:secret@hub.example:8080/mirror", "https://hub.example:8080/mirror"),
        ("https://hub.example/a)b c", "https://hub.example/a%29b%20c"),
        ("", "https://huggingface.co"),
    ],
)
def test_links_go_to_the_hub_in_use(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, endpoint: str, shown: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    provenance = provenance_of(target=Model(name="org/new", commit=COMMIT), deltas=())
    for card in (delta_card(manifest, "f" * 64, "org/delta"), result_card(provenance, [])):
        hrefs = [str(token.attrGet("href")) for token in tokens(card) if token.type == "link_open"]
        ours = [href for href in hrefs if "arxiv.org" not in href and "pypi.org" not in href]
        assert ours
        assert all(href.startswith(f"{shown}/org/") for href in ours)
        assert "secret" not in card


def test_a_results_card_names_what_is_on_the_hub(manifest: Manifest) -> None:
    provenance = provenance_of(
        target=Model(name="org/new", commit=COMMIT), deltas=(delta_of("d", weight=-1.5, forced=False),)
    )
    card = result_card(provenance, [manifest])
    assert metadata(card)["base_model"] == ["org/new", "org/base_instruct"]
    assert metadata(card)["base_model_relation"] == "merge"
    assert f"[org/new](https://huggingface.co/org/new/tree/{COMMIT}) at commit `{COMMIT[:12]}`" in card
    assert "-1.5 × d 1.0.0" in card
