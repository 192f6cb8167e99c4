"""Output heads that are the embedding, or not; heads and buffers that one side lacks: every outcome explicit."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open

import paramdelta_hub as pd
from paramdelta_hub.checkpoints.checkpoint import open_checkpoint
from paramdelta_hub.checkpoints.matching.by_name import OmittedTensor
from paramdelta_hub.cli import main
from paramdelta_hub.errors import LineageError, MismatchError, OptionError, StorageError
from paramdelta_hub.tasks import plan
from tests.application.test_vocabularies import in_posts_order, side, summed, write_tokenizer
from tests.support.kinds import BUFFERS, HEADS, TIES, kind, remedied
from tests.support.models import TORCH, apply_in, assert_same, extract_in, read_weights, reference, tuned, write_model
from tests.support.stopping import StopsAt

EMBEDDING, HEAD, MATRIX = "model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.weight"
CLASSIFIER, CLASSIFIER_BIAS = "score.weight", "score.bias"
WORDS = tuple(f"word{number}" for number in range(24))
Tensors = dict[str, torch.Tensor]


def model(label: str, tied: bool, dtype: torch.dtype = torch.bfloat16, head: str = HEAD) -> Tensors:
    tensors = side(label, WORDS, dtype=dtype).tensors
    return {name if name != HEAD else head: tensor for name, tensor in tensors.items() if not (tied and name == HEAD)}


def write(path: Path, tensors: Tensors, shards: int = 1, **config: Any) -> Path:
    tied = not any("lm_head" in name for name in tensors)
    config = {"model_type": "llama", "vocab_size": 24, "tie_word_embeddings": tied, **config}
    write_model(path, tensors, shards, config)
    write_tokenizer(path, {word: row for row, word in enumerate(WORDS)})
    return path


def head_of(tensors: Tensors) -> torch.Tensor:
    return tensors.get(HEAD, tensors[EMBEDDING])


def config_of(path: Path) -> Any:
    return json.loads((path / "config.json").read_text())


@kind(
    HEADS,
    "head tied or not in base, post and target: all 8 combinations, 3 dtypes",
    works="a side that ties its head has the embedding for one; the result has a head if the delta or the target has",
)
@pytest.mark.parametrize(("base_tied", "post_tied", "target_tied"), list(itertools.product([True, False], repeat=3)))
@pytest.mark.parametrize("shards", [1, 2])
def test_every_combination(
    tmp_path: Path, base_tied: bool, post_tied: bool, target_tied: bool, shards: int, dtype_name: str
) -> None:
    """A side that ties its head has the embedding for one; the result has a head if the delta or the target has.

    A head that base has for itself and post lacks is no tie, whatever post's config says: it is gone, and a target's
    own head stays if the head is skipped.
    """
    dtype = TORCH[dtype_name]
    base, post, target = model("b", base_tied, dtype), model("p", post_tied, dtype), model("t", target_tied, dtype)
    write(tmp_path / "base", base)
    write(tmp_path / "post", post)
    write(tmp_path / "target", target, shards)
    if post_tied and not base_tied:
        with pytest.raises(MismatchError, match="--skip") as caught:
            extract_in(tmp_path)
        assert [(m.location, m.kind) for m in caught.value.mismatches] == [(HEAD, "missing")]
        extract_in(tmp_path, rules=pd.Rules(skips=(HEAD,)))
        report = apply_in(tmp_path)
        expected = {name: reference(base[name], post[name], target[name]) for name in (EMBEDDING, MATRIX)}
        assert_same(read_weights(tmp_path / "out"), expected | ({} if target_tied else {HEAD: target[HEAD]}))
        assert target_tied or OmittedTensor(HEAD, "the target", "left out when the delta was made") in report.omissions
        assert not apply_in(tmp_path, "base", "delta", "rebuilt").is_post
        return
    manifest = extract_in(tmp_path).manifest
    assert (manifest.base.tied_embeddings, manifest.post.tied_embeddings) == (base_tied, post_tied)
    assert pd.verify(tmp_path / "delta", base=tmp_path / "base", post=tmp_path / "post").checked_post
    has_head = not (base_tied and post_tied)
    records = {record.name: record for record in manifest.tensors}
    assert (HEAD in records) is has_head
    if has_head:
        assert records[HEAD].base_name == (EMBEDDING if base_tied else None)
        assert records[HEAD].post_name == (EMBEDDING if post_tied else None)

    report = apply_in(tmp_path)
    expected = {name: reference(base[name], post[name], target[name]) for name in (EMBEDDING, MATRIX)}
    if has_head or not target_tied:
        expected[HEAD] = reference(head_of(base), head_of(post), head_of(target))
    assert_same(read_weights(tmp_path / "out"), expected)
    config = config_of(tmp_path / "out")
    assert config["tie_word_embeddings"] is (HEAD not in expected)
    about_heads = [note for note in report.notes if HEAD in note and "unrelated" not in note]
    if target_tied and has_head:
        assert about_heads == [
            f"{HEAD}: the target has no such tensor; its {EMBEDDING} is used instead, and the result has both"
        ]
    elif not target_tied and not has_head:
        assert about_heads == [f"{HEAD}: the delta ties it to {EMBEDDING}, so the delta of {EMBEDDING} is added"]
    else:
        assert about_heads == []
    if shards > 1:
        files = {f.name: [s.name for s in f.header.tensors] for f in open_checkpoint(tmp_path / "out").files}
        beside = next(names for names in files.values() if EMBEDDING in names)
        assert not target_tied or HEAD not in expected or HEAD in beside

    report = apply_in(tmp_path, "base", "delta", "rebuilt")
    rebuilt = {**post, HEAD: head_of(post)} if has_head else post
    assert_same(read_weights(tmp_path / "rebuilt"), rebuilt)
    assert report.is_post
    assert report.deltas[0].kinship.same_values
    if base_tied:
        assert config_of(tmp_path / "rebuilt")["tie_word_embeddings"] is post_tied


@kind(
    HEADS, 'a config that says "tied", and a head with other values', works="the values decide: two tensors, and a note"
)
def test_what_a_config_says_of_ties_is_not_believed(tmp_path: Path) -> None:
    """Tools leave it wrong: post's config says tied, and there is a head of its own."""
    base, post, target = model("b", True), model("p", False), model("t", True)
    write(tmp_path / "base", base)
    write(tmp_path / "post", post, tie_word_embeddings=True)
    write(tmp_path / "target", target)
    notes = extract_in(tmp_path).notes
    assert notes == (
        f"{HEAD}: post's config ties it to {EMBEDDING}, but their values differ; taken as two tensors",
        f"{HEAD}: base ties it to {EMBEDDING}",
        f"1 of 3 compared tensors is unrelated to base (correlation under 0.3): {HEAD}",
    )
    for name, tensors in (("base", base), ("target", target)):
        pd.apply(tmp_path / name, tmp_path / "delta", tmp_path / f"{name}-out")
        expected = {n: reference(base[n], post[n], tensors[n]) for n in base}
        expected[HEAD] = reference(base[EMBEDDING], post[HEAD], tensors[EMBEDDING])
        found = read_weights(tmp_path / f"{name}-out")
        assert_same(found, post if name == "base" else expected)
        assert config_of(tmp_path / f"{name}-out")["tie_word_embeddings"] is False
        assert HEAD in read_weights(tmp_path / f"{name}-out")


def test_a_head_left_out_stays_tied(tmp_path: Path) -> None:
    """Post's config says untied, but its head was skipped: the result has none, and must not say otherwise."""
    write(tmp_path / "base", model("b", True))
    write(tmp_path / "post", model("p", False))
    for name, rules in (("whole", pd.Rules()), ("part", pd.Rules(skips=("lm_head",)))):
        pd.extract(tmp_path / "base", tmp_path / "post", tmp_path / name, rules=rules)
    for name, skips in (("whole", ("lm_head",)), ("part", ())):
        report = pd.apply(tmp_path / "base", tmp_path / name, tmp_path / f"{name}-out", rules=pd.Rules(skips=skips))
        assert HEAD not in read_weights(tmp_path / f"{name}-out")
        assert config_of(tmp_path / f"{name}-out")["tie_word_embeddings"] is True
        assert not report.is_post


@kind(TIES, "ties in models whose names differ by a prefix, with `--rename`", works="ties are found after renaming")
def test_ties_between_renamed_models(tmp_path: Path) -> None:
    base, post = model("b", True), model("p", False)
    write(tmp_path / "base", base)
    write(tmp_path / "post", {f"language.{name}": tensor for name, tensor in post.items()})
    rules = pd.Rules(renames=((r"^language\.", ""),))
    extract_in(tmp_path, rules=rules)
    pd.verify(tmp_path / "delta", base=tmp_path / "base", post=tmp_path / "post")
    assert apply_in(tmp_path, "base").is_post
    assert_same(read_weights(tmp_path / "out"), post)

    base = {f"language.{name}": tensor for name, tensor in {**base, HEAD: base[EMBEDDING]}.items()}
    write(tmp_path / "base", base, tie_word_embeddings=True)
    write(tmp_path / "post", model("p", True))
    rules = pd.Rules(renames=(("^", "language."),))
    manifest = extract_in(tmp_path, rules=rules, overwrite=True).manifest
    assert manifest.ties == {f"language.{HEAD}": f"language.{EMBEDDING}"}
    pd.verify(tmp_path / "delta", base=tmp_path / "base", post=tmp_path / "post")


def test_untied_heads_and_rows_by_token(tmp_path: Path) -> None:
    """Both at once: the target ties its head, post does not, has more tokens, and has them at other ids."""
    words = dict(zip(WORDS, torch.randperm(24).tolist(), strict=True)) | {"<new>": 24}
    sides = side("b", WORDS), side("p", words), side("t", WORDS)
    base, post, target = sides
    for name, its in zip(("base", "post", "target"), sides, strict=True):
        tensors = {n: tensor for n, tensor in its.tensors.items() if name == "post" or n != HEAD}
        write(tmp_path / name, tensors, vocab_size=its.rows)
        write_tokenizer(tmp_path / name, its.tokens)
        its.tensors[HEAD] = its.tensors[HEAD] if name == "post" else its.tensors[EMBEDDING]  # type: ignore[index]
    extract_in(tmp_path)
    pd.verify(tmp_path / "delta", base=tmp_path / "base", post=tmp_path / "post")
    apply_in(tmp_path)
    found = read_weights(tmp_path / "out")
    for name in (EMBEDDING, HEAD):
        expected = in_posts_order(base, post, target, name)
        assert expected is not None
        assert_same({name: found[name]}, {name: expected})
    config = config_of(tmp_path / "out")
    assert (config["vocab_size"], config["tie_word_embeddings"]) == (25, False)
    assert apply_in(tmp_path, "base", "delta", "rebuilt").is_post
    assert_same(read_weights(tmp_path / "rebuilt"), read_weights(tmp_path / "post"))


@kind(TIES, "two deltas, one of which unties the head", works="the head gets both, the embedding too")
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_head_that_one_delta_unties_takes_all_of_them(tmp_path: Path, order: tuple[int, int]) -> None:
    """The other delta ties its head: what it does to the embedding, it does to the head, too."""
    base, target, posts = model("b", True), model("t", True), [model("p", False), model("q", True)]
    write(tmp_path / "base", base)
    write(tmp_path / "target", target)
    for number, post in enumerate(posts):
        write(tmp_path / f"post{number}", post)
        pd.extract(tmp_path / "base", tmp_path / f"post{number}", tmp_path / f"delta{number}")
    weights = (0.5, 0.25)
    deltas = [pd.WeightedDelta(tmp_path / f"delta{number}", weights[number]) for number in order]
    report = pd.apply(tmp_path / "target", deltas, tmp_path / "out")
    found = read_weights(tmp_path / "out")
    for name in (EMBEDDING, HEAD):
        ours, theirs = (base[EMBEDDING], target[EMBEDDING])
        addends = [(ours, head_of(posts[n]) if name == HEAD else posts[n][EMBEDDING], weights[n]) for n in order]
        assert_same({name: found[name]}, {name: summed(theirs, *addends)})
    assert sorted(note.partition(";")[0] for note in report.notes) == [
        f"{HEAD}: the delta ties it to {EMBEDDING}, so the delta of {EMBEDDING} is added",
        f"{HEAD}: the target has no such tensor",
    ]


@kind(BUFFERS, "`inv_freq` and `position_ids` in one of the models", works="left out; the target's own stay")
def test_buffers_that_models_compute(tmp_path: Path) -> None:
    """Left out on whichever side they are, in words; the target's own stay."""
    buffers = {"model.layers.0.rotary_emb.inv_freq": torch.ones(4), "embeddings.position_ids": torch.arange(6)[None]}
    base, post, target = model("b", False), model("p", False), model("t", False)
    reason = "a buffer that models compute themselves"
    for holder in ("base", "post", "target"):
        for name, tensors in (("base", base), ("post", post), ("target", target)):
            write(tmp_path / holder / name, {**tensors, **(buffers if name == holder else {})})
        root = tmp_path / holder
        manifest = extract_in(root).manifest
        report = apply_in(root)
        omitted: list[tuple[str, str, str]] = [(item.name, item.side, item.reason) for item in manifest.omissions]
        omitted += [(item.name, item.side, item.reason) for item in report.omissions if item.side == "the target"]
        side_name = "the target" if holder == "target" else holder
        assert sorted(omitted) == sorted((name, side_name, reason) for name in buffers)
        expected = {name: reference(base[name], post[name], target[name]) for name in base}
        assert_same(read_weights(root / "out"), {**expected, **(buffers if holder == "target" else {})})


# A head that only post has: a classifier, most often.


def classifier(tensors: Tensors, seed: int) -> Tensors:
    noise = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 8, generator=noise).to(tensors[MATRIX].dtype)
    weight[1, ::3] = -0.0
    weight[2] = 0.0
    return {**tensors, CLASSIFIER: weight, CLASSIFIER_BIAS: weight[:, 0].clone()}


@pytest.fixture
def carried(tmp_path: Path) -> Path:
    """A folder with base, a post with a classifier, their delta, and a target with and without one."""
    base, post, target = model("b", False), model("p", False), model("t", False)
    write(tmp_path / "base", base)
    write(tmp_path / "post", {**classifier(post, 1), "score.steps": torch.tensor([0, 7])})
    write(tmp_path / "target", target, 2)
    write(tmp_path / "judge", classifier(target, 2))
    extract_in(tmp_path, rules=pd.Rules(carries=("^score",)))
    return tmp_path


@kind(
    HEADS,
    "a classifier that only post has",
    refused="base has no such tensor",
    remedy="`--carry '^score'` stores it whole, `--skip '^score'` leaves it out",
)
def test_what_only_post_has_is_refused_unless_told(carried: Path) -> None:
    with pytest.raises(MismatchError) as caught:
        extract_in(carried, "base", "post", "other")
    missing = {(mismatch.location, mismatch.kind) for mismatch in caught.value.mismatches}
    assert missing == {(name, "missing") for name in (CLASSIFIER, CLASSIFIER_BIAS, "score.steps")}
    assert not (carried / "other").exists()
    with remedied(caught.value, r"give --skip '^score\.'", "--carry REGEX stores what only post has"):
        extract_in(carried, "base", "post", "whole", rules=pd.Rules(carries=("^score",)))
        assert apply_in(carried, "base", "whole", "rebuilt").is_post
        assert_same(read_weights(carried / "rebuilt"), read_weights(carried / "post"))
    manifest = extract_in(carried, "base", "post", "other", rules=pd.Rules(skips=("^score",))).manifest
    assert {(item.name, item.side, item.reason) for item in manifest.omissions} == {
        (name, "post", "skipped by rule") for name in (CLASSIFIER, CLASSIFIER_BIAS, "score.steps")
    }
    assert not apply_in(carried, "base", "other").is_post


@kind(HEADS, "a classifier that only post has, with `--carry`", works="every result has it, bit for bit")
def test_a_classifier_is_carried_whole(carried: Path) -> None:
    records = {record.name: record for record in pd.inspect(carried / "delta").manifest.tensors}
    rows = records[CLASSIFIER].rows
    assert rows is not None
    assert rows.model_dump() == {"base": 0, "runs": ((0, None, 3),)}
    assert {records[name].effect for name in (CLASSIFIER, "score.steps")} == {"add", "replace"}
    pd.verify(carried / "delta", base=carried / "base", post=carried / "post")
    base, post, target = (read_weights(carried / name) for name in ("base", "post", "target"))
    report = apply_in(carried)
    expected = {name: reference(base[name], post[name], target[name]) for name in base}
    new = {name: tensor for name, tensor in post.items() if name not in base}
    assert_same(read_weights(carried / "out"), {**expected, **new})
    assert report.changed_tensors + report.kept_tensors == len(read_weights(carried / "out"))
    assert report.changed_tensors >= len(new), "what is brought whole is not kept"
    assert report.kept_tensors >= 0
    assert {note for note in report.notes if "score" in note} == {
        f"{name}: taken whole from the delta, because the target has none" for name in new
    }
    result, files = open_checkpoint(carried / "out"), open_checkpoint(carried / "target").files
    assert [file.name for file in result.files] == [file.name for file in files]
    assert {span.name for span in result.files[-1].header.tensors} >= set(new), "beside the last tensor"
    with safe_open(result.files[-1].path, "pt") as weights:
        assert torch.equal(weights.get_tensor(CLASSIFIER), post[CLASSIFIER])

    report = apply_in(carried, "base", "delta", "rebuilt")
    assert report.is_post
    assert report.deltas[0].kinship.same_values
    assert_same(read_weights(carried / "rebuilt"), post)


@pytest.mark.parametrize("weight", [1.0, 0.5, 3.0])
def test_a_targets_own_classifier_is_replaced(carried: Path, weight: float) -> None:
    post = read_weights(carried / "post")
    report = pd.apply(carried / "judge", pd.WeightedDelta(carried / "delta", weight), carried / "out")
    found = read_weights(carried / "out")
    for name in (CLASSIFIER, CLASSIFIER_BIAS, "score.steps"):
        assert_same({name: found[name]}, {name: post[name]})
    assert f"{CLASSIFIER}: taken whole from the delta, instead of the target's" in report.notes
    assert "score.steps: taken whole from the delta, because the target has none" in report.notes


def test_a_classifier_that_is_not_wanted(carried: Path) -> None:
    """Weights that are not above 0 bring nothing, and a skip rule leaves it out; all are told."""
    name = CLASSIFIER
    not_wanted = OmittedTensor(name, "the delta", "used only with a weight above 0")
    options: list[tuple[float, dict[str, Any], OmittedTensor]] = [
        (0.0, {}, not_wanted),
        (-1.0, {}, not_wanted),
        (1.0, {"weight_map": pd.WeightMap((("score", 0.0),))}, not_wanted),
        (1.0, {"rules": pd.Rules(skips=("score",))}, OmittedTensor(name, "the delta", "skipped by rule")),
    ]
    for weight, choice, omission in options:
        report = pd.apply(
            carried / "target", pd.WeightedDelta(carried / "delta", weight), carried / "out", overwrite=True, **choice
        )
        assert name not in read_weights(carried / "out")
        assert omission in report.omissions
    pd.apply(carried / "judge", pd.WeightedDelta(carried / "delta", -1.0), carried / "out", overwrite=True)
    assert_same({name: read_weights(carried / "out")[name]}, {name: read_weights(carried / "judge")[name]})


@kind(
    HEADS,
    "a target whose classifier has another number of classes",
    refused="it can't be replaced by the delta's",
    remedy="`--skip '^score\\.weight$'` keeps the target's",
)
def test_a_classifier_of_another_shape_is_refused(carried: Path) -> None:
    judge = read_weights(carried / "judge")
    write(carried / "judge", {**judge, CLASSIFIER: torch.zeros(5, 8, dtype=torch.bfloat16)})
    with pytest.raises(MismatchError) as caught:
        apply_in(carried, "judge")
    assert [(m.location, m.kind) for m in caught.value.mismatches] == [(CLASSIFIER, "shape")]
    with remedied(caught.value, "--skip"):
        skip = pd.Rules(skips=(rf"^{re.escape(CLASSIFIER)}$",))
        apply_in(carried, "judge", rules=skip)
        base, post, target = (read_weights(carried / name) for name in ("base", "post", "judge"))
        sums = {name: reference(base[name], post[name], target[name]) for name in base}
        others = {name: post[name] for name in post if name not in base}
        assert_same(read_weights(carried / "out"), {**sums, **others, CLASSIFIER: target[CLASSIFIER]})


def test_two_deltas_with_classifiers(carried: Path) -> None:
    """The same one is brought once; two different ones are a conflict; and one's difference is not added to it."""
    out = carried / "out"
    post = read_weights(carried / "post")
    pd.apply(carried / "target", [pd.WeightedDelta(carried / "delta", w) for w in (0.5, 2.0)], out, force=True)
    assert_same({"": read_weights(out)[CLASSIFIER]}, {"": post[CLASSIFIER]})
    write(carried / "other", {**classifier(model("o", False), 5), "score.steps": post["score.steps"]})
    rules = pd.Rules(carries=("score",))
    extract_in(carried, "base", "other", "second", rules=rules)
    with pytest.raises(MismatchError) as caught:
        pd.apply(carried / "target", [carried / "delta", carried / "second"], out, overwrite=True)
    assert {(m.location, m.kind) for m in caught.value.mismatches} == {
        (name, "conflict") for name in (CLASSIFIER, CLASSIFIER_BIAS)
    }
    trained = tuned({**read_weights(carried / "judge"), "score.steps": torch.tensor([0, 2])}, 3)
    write(carried / "judge", {**read_weights(carried / "judge"), "score.steps": torch.tensor([0, 2])})
    write(carried / "trained", {**trained, "score.steps": post["score.steps"]})
    extract_in(carried, "judge", "trained", "third")
    for order in (("delta", "third"), ("third", "delta")):
        pd.apply(carried / "judge", [carried / name for name in order], out, overwrite=True)
        assert_same({"": read_weights(out)[CLASSIFIER]}, {"": post[CLASSIFIER]})


def test_what_cant_be_carried(tmp_path: Path) -> None:
    base = model("b", True)
    write(tmp_path / "base", {name: tensor for name, tensor in base.items() if name != EMBEDDING})
    odd = {"gate": torch.tensor(1.0, dtype=torch.bfloat16), "wide": torch.ones(2, dtype=torch.float64)}
    write(tmp_path / "post", {**base, **odd})
    rules = pd.Rules(carries=(".",))
    with pytest.raises(MismatchError) as caught:
        extract_in(tmp_path, rules=rules)
    found = {(mismatch.location, mismatch.kind) for mismatch in caught.value.mismatches}
    assert found == {(EMBEDDING, "carry"), ("gate", "carry"), ("wide", "dtype")}
    with pytest.raises(OptionError):
        pd.Rules(carries=("(",))


def test_nothing_and_zeros_are_carried_too(tmp_path: Path) -> None:
    """Tensors that are equal to the zeros they start from have no payload, and are there all the same."""
    base = model("b", False)
    zeros = {
        "score.zeros": torch.zeros(4, 2, dtype=torch.bfloat16),
        "score.none": torch.zeros(0, 3, dtype=torch.bfloat16),
        "score.flags": torch.zeros(3, dtype=torch.int64),
    }
    write(tmp_path / "base", base)
    write(tmp_path / "post", {**base, **zeros})
    extract_in(tmp_path, rules=pd.Rules(carries=("score",)))
    pd.verify(tmp_path / "delta", base=tmp_path / "base", post=tmp_path / "post")
    for target in ("base", "judge"):
        if target == "judge":
            write(tmp_path / "judge", {**base, **{name: tensor + 1 for name, tensor in zeros.items()}})
        pd.apply(tmp_path / target, tmp_path / "delta", tmp_path / "out", overwrite=True)
        assert_same(read_weights(tmp_path / "out"), {**base, **zeros})


def test_carrying_with_renames_and_the_commands(carried: Path) -> None:
    post = {f"lm.{name}": tensor for name, tensor in read_weights(carried / "post").items()}
    write(carried / "post", post)
    (carried / "rules").write_text("rename ^lm\\.=\ncarry ^score\\.(weight|bias)\n")
    runner = CliRunner()
    arguments = ["extract", str(carried / "base"), str(carried / "post"), "-o", str(carried / "new")]
    arguments += ["--rules", str(carried / "rules")]
    done = runner.invoke(main, arguments)
    assert done.exit_code == MismatchError.exit_code
    assert "score.steps" in done.stderr
    done = runner.invoke(main, [*arguments, "--carry", "lm.score.steps"])
    assert done.exit_code == 0, done.output
    assert f"{CLASSIFIER}: only post has it; stored whole" in done.stdout
    done = runner.invoke(main, ["verify", str(carried / "new"), "--post", str(carried / "post")])
    assert done.exit_code == 0, done.output
    done = runner.invoke(main, ["apply", str(carried / "base"), str(carried / "new"), "-o", str(carried / "out")])
    assert done.exit_code == 0, done.output
    assert f"{CLASSIFIER}: taken whole from the delta" in done.stdout
    expected = {name.removeprefix("lm."): tensor for name, tensor in post.items()}
    assert_same(read_weights(carried / "out"), expected)


def test_what_is_carried_is_no_evidence_of_kinship(carried: Path) -> None:
    """Zeros are like zeros everywhere."""
    rules = pd.Rules(carries=("score",), skips=("model", "lm_head"))
    extract_in(carried, "base", "post", "heads", rules=rules)
    with pytest.raises(LineageError, match="nothing to compare"):
        apply_in(carried, "target", "heads")
    report = apply_in(carried, "target", "heads", force=True)
    assert report.deltas[0].lineage.forced
    found, target = read_weights(carried / "out"), read_weights(carried / "target")
    assert_same({name: found[name] for name in target}, target)


def test_resuming_with_what_is_carried(carried: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "TASK_BYTES_MIN", 1)

    arguments = carried / "target", carried / "delta", carried / "out"
    with pytest.raises(StorageError, match="enough"):
        pd.apply(*arguments, threads=1, progress=StopsAt(5))
    assert pd.apply(*arguments, threads=1).resumed_tasks >= 1
    pd.apply(*arguments[:2], carried / "whole")
    assert_same(read_weights(carried / "out"), read_weights(carried / "whole"))
