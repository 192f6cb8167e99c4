"""Vocabularies that differ, end to end: every row of every result against what its token should have become."""

from __future__ import annotations

import json
import re
import shutil
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, event, given, settings
from safetensors import safe_open

import paramdelta_hub as pd
from paramdelta_hub.checkpoints.checkpoint import open_checkpoint
from paramdelta_hub.cli import main
from paramdelta_hub.errors import LineageError, MismatchError, OptionError, StorageError
from paramdelta_hub.tasks import plan
from tests.checkpoints.tokens.test_token_rows import families
from tests.support.chunks import set_chunk_elements
from tests.support.kinds import NOBODY, ROWS, kind, remedied
from tests.support.models import TORCH, WIDE, apply_in, assert_same, extract_in, read_weights, reference, write_model
from tests.support.stopping import StopsAt

EMBEDDING, HEAD, MATRIX = "model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.weight"
WORDS = tuple(f"word{number}" for number in range(40))


def noise(label: str, size: int) -> torch.Tensor:
    """Return what is always the same for one label."""
    return torch.randn(size, generator=torch.Generator().manual_seed(zlib.crc32(label.encode())), dtype=torch.float64)


@dataclass(frozen=True)
class Side:
    """A model that has a row for every token: the row says whose it is, so kin have like rows, wherever they are."""

    label: str
    tokens: Mapping[str, int]
    rows: int
    width: int = 8
    dtype: torch.dtype = torch.bfloat16
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict, compare=False)

    def name(self, row: int) -> str | None:
        return next((token for token, its in self.tokens.items() if its == row), None)

    def row(self, token: str) -> int | None:
        its = self.tokens.get(token, self.rows)
        return its if its < self.rows else None

    def made(self) -> Side:
        """Return the model with its weights."""

        def tensor(name: str, rows: int, tokens: bool) -> torch.Tensor:
            made = []
            for row in range(rows):
                owner = (self.name(row) if tokens else None) or f"#{row}"
                made.append(
                    noise(f"{name} {owner}", self.width) + 0.05 * noise(f"{self.label} {name} {row}", self.width)
                )
            return torch.stack(made).to(self.dtype)

        return replace(
            self,
            tensors={
                EMBEDDING: tensor(EMBEDDING, self.rows, True),
                MATRIX: tensor(MATRIX, 32, False),
                HEAD: tensor(HEAD, self.rows, True),
            },
        )

    def write(self, path: Path, shards: int = 1, tokenizer: bool = True) -> Path:
        config = {"model_type": "llama", "vocab_size": self.rows, "tie_word_embeddings": False}
        write_model(path, self.tensors, shards, config)
        if tokenizer:
            write_tokenizer(path, self.tokens)
        return path


def side(label: str, tokens: Iterable[str] | Mapping[str, int], rows: int | None = None, **options: Any) -> Side:
    table = dict(tokens) if isinstance(tokens, Mapping) else {token: row for row, token in enumerate(tokens)}
    return Side(label, table, max(table.values(), default=-1) + 1 if rows is None else rows, **options).made()


def write_tokenizer(path: Path, tokens: Mapping[str, int]) -> None:
    path.mkdir(exist_ok=True)
    content = {"model": {"type": "WordLevel", "vocab": dict(tokens), "unk_token": "?"}, "added_tokens": []}
    (path / "tokenizer.json").write_text(json.dumps(content))


def base_row(base: Side, post: Side, row: int) -> int | None:
    """Return which of base's rows a row of post's was, by its token."""
    token = post.name(row)
    if token is not None:
        return base.row(token)
    return row if row < base.rows and base.name(row) not in post.tokens else None


def in_posts_order(base: Side, post: Side, target: Side, name: str) -> torch.Tensor | None:
    """Return what a result with post's tokenizer has, row by row; None where there can be none."""
    b, p, t = (model.tensors[name] for model in (base, post, target))
    brought = {row for row in range(post.rows) if base_row(base, post, row) is None}
    needed = [row for row in range(post.rows) if post.name(row) is not None or row in brought]
    given_up = {token: row for token, row in base.tokens.items() if token not in post.tokens}
    out = []
    for row in range(max(target.rows, *(at + 1 for at in needed), 0)):
        token, its = post.name(row), target.name(row) if row < target.rows else None
        is_own = its is not None and its not in post.tokens
        of_base = base_row(base, post, row) if row < post.rows else None
        at: int | None = None
        if token is not None:
            if is_own and its not in given_up:
                return None
            at = target.row(token)
            if at is None and of_base is not None:
                return None
            if at is None and row >= post.rows and row < target.rows and its is None:
                at = row
        elif row < target.rows and (is_own or its is None):
            at = row
        adds = of_base is not None and at is not None and row < post.rows
        if token is None:
            adds = adds and of_base == row and (not is_own or given_up.get(str(its)) == row)
        if row in brought and not (token is None and is_own):
            out.append(p[row])
        elif adds:
            out.append(reference(b[of_base], p[row], t[at]))
        else:
            out.append(torch.zeros_like(p[0]) if at is None else t[at])
    return torch.stack(out)


def in_targets_order(base: Side, post: Side, target: Side, name: str) -> torch.Tensor:
    """Return what a result with the target's tokenizer has, row by row."""
    b, p, t = (model.tensors[name] for model in (base, post, target))
    out = []
    for row in range(target.rows):
        token = target.name(row)
        at = row if token is None else post.row(token) if token in post.tokens else base.tokens.get(token)
        if at is not None and (at >= post.rows or (token and token not in post.tokens and post.name(at) is not None)):
            at = None
        if at is not None and token is None and post.name(at) in target.tokens:
            at = None
        if at is not None and token not in post.tokens and base_row(base, post, at) != at:
            at = None
        of_base = None if at is None else base_row(base, post, at)
        if at is None:
            out.append(t[row])
        elif of_base is None:
            out.append(p[at])
        else:
            out.append(reference(b[of_base], p[at], t[row]))
    return torch.stack(out)


class Trio:
    """Base, post and target in their folders."""

    def __init__(self, root: Path, base: Side, post: Side, target: Side, shards: int = 1) -> None:
        self.root, self.base, self.post, self.target = root, base, post, target
        for name, model in (("base", base), ("post", post), ("target", target)):
            model.write(root / name, shards if name == "target" else 1)

    def extract(self, **options: Any) -> pd.ExtractReport:
        return pd.extract(self.root / "base", self.root / "post", self.root / "delta", overwrite=True, **options)

    def apply(self, target: str = "target", out: str = "out", **options: Any) -> pd.ApplyReport:
        return pd.apply(self.root / target, self.root / "delta", self.root / out, overwrite=True, **options)

    def result(self, out: str = "out") -> dict[str, torch.Tensor]:
        return read_weights(self.root / out)

    def config(self) -> Any:
        return json.loads((self.root / "out" / "config.json").read_text())

    def expected(self, companions: str) -> dict[str, torch.Tensor]:
        """Return what the vocabulary tensors should become; nothing where there can be no result."""
        oracle = in_posts_order if companions == "post" else in_targets_order
        found = {name: oracle(self.base, self.post, self.target, name) for name in (EMBEDDING, HEAD)}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def check(self) -> pd.ApplyReport:
        """Do all that can be done with the three, and compare every row of every result with the oracle's."""
        self.extract()
        assert pd.verify(self.root / "delta", base=self.root / "base", post=self.root / "post").checked_base
        for companions in ("target", "post"):
            expected = self.expected(companions)
            report = self.apply(companions=companions)
            trio = (model.tensors[MATRIX] for model in (self.base, self.post, self.target))
            found = self.result()
            assert_same(found, {**expected, MATRIX: reference(*trio)})
            assert self.config()["vocab_size"] == found[EMBEDDING].shape[0] == found[HEAD].shape[0]
            assert (self.root / "out" / "tokenizer.json").read_bytes() == (
                self.root / companions / "tokenizer.json"
            ).read_bytes()
        return report

    def check_base(self) -> None:
        """Apply to base itself: where post has as many rows or more, the result is post, bit for bit."""
        report = self.apply("base")
        expected = {**self.post.tensors}
        for name in (EMBEDDING, HEAD):
            rest = self.base.tensors[name][self.post.rows :]
            expected[name] = torch.cat([expected[name], rest])
        assert_same(self.result(), expected)
        assert report.is_post is (self.base.rows <= self.post.rows)
        assert report.deltas[0].kinship.same_values


PERMUTED = {word: (row * 7 + 3) % 40 for row, word in enumerate(WORDS)}
ADDED = (*WORDS, "<think>", "</think>", "<tool>")
RESERVED = (*WORDS, "<r0>", "<r1>")
OWN = {**dict(zip(WORDS, range(40), strict=True)), "mine": 50}


@kind(
    ROWS,
    "tokens added, padded, permuted, at other ids, renamed, or the target's own",
    works="rows are matched by token; each is what its token should be",
)
@pytest.mark.parametrize(
    ("base", "post", "target"),
    [
        (side("b", WORDS), side("p", ADDED), side("t", WORDS)),
        (side("b", WORDS), side("p", ADDED), side("t", WORDS, 64)),
        (side("b", WORDS), side("p", ADDED, 64), side("t", WORDS)),
        (side("b", WORDS, 48), side("p", ADDED, 48), side("t", WORDS, 48)),
        (side("b", WORDS, 64), side("p", ADDED, 43), side("t", WORDS, 64)),
        (side("b", WORDS), side("p", PERMUTED), side("t", WORDS)),
        (side("b", WORDS), side("p", WORDS), side("t", PERMUTED)),
        (side("b", PERMUTED), side("p", ADDED), side("t", PERMUTED)),
        (side("b", WORDS, 48), side("p", ADDED), side("t", (*WORDS, *ADDED[:39:-1]))),
        (side("b", WORDS), side("p", (*WORDS, "<a>")), side("t", OWN)),
        (side("b", RESERVED), side("p", (*WORDS, "<r0>", "<tool>")), side("t", RESERVED)),
    ],
    ids=[
        "added", "added, target padded", "added and padded", "added into padding", "padding taken away",
        "post permuted", "target permuted", "both permuted", "target has post's tokens at other ids",
        "target has its own", "a reserved token renamed",
    ],
)  # fmt: skip
def test_every_row_is_what_its_token_should_be(tmp_path: Path, base: Side, post: Side, target: Side) -> None:
    trio = Trio(tmp_path, base, post, target)
    trio.check()
    trio.check_base()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(families())
def test_any_three_vocabularies(tmp_path_factory: pytest.TempPathFactory, no_fsync: None, family: Any) -> None:
    root = tmp_path_factory.mktemp("family")
    base, post, target = (side(label, *its) for label, its in zip(("base", "post", "target"), family, strict=True))
    trio = Trio(root, base, post, target)
    trio.extract()
    pd.verify(root / "delta", base=root / "base", post=root / "post")
    for companions in ("target", "post"):
        expected = trio.expected(companions)
        try:
            trio.apply(companions=companions, force=True)
        except MismatchError:
            event(f"{companions}: refused")
            assert not expected
            continue
        event(f"{companions}: done")
        assert expected.keys() == {EMBEDDING, HEAD}
        found = trio.result()
        assert_same({name: found[name] for name in expected}, expected)


@kind(
    ROWS,
    "a target with tokens that post lacks, or without tokens that post has",
    refused="rows would be lost, or are missing",
    remedy="`--companions target`",
)
def test_what_would_be_lost_or_is_missing_is_named(tmp_path: Path) -> None:
    trio = Trio(tmp_path, side("b", WORDS), side("p", ADDED), side("t", (*WORDS, "mine", "too")))
    trio.extract()
    with pytest.raises(MismatchError, match="only the target has would be lost") as caught:
        trio.apply()
    tokens = [mismatch.message for mismatch in caught.value.mismatches if mismatch.kind == "token"]
    assert tokens == ["'mine'", "'too'"]
    with remedied(caught.value, "--companions target"):
        trio.apply(companions="target")
        expected = trio.expected("target")
        assert_same({name: trio.result()[name] for name in expected}, expected)
    trio.target = side("t", WORDS[:-2])
    trio.target.write(tmp_path / "target")
    with pytest.raises(MismatchError, match="no row in the target") as caught:
        trio.apply()
    with remedied(caught.value, "--companions target"):
        trio.apply(companions="target")
        expected = trio.expected("target")
        assert_same({name: trio.result()[name] for name in expected}, expected)
    tokens = [mismatch.message for mismatch in caught.value.mismatches if mismatch.kind == "token"]
    assert tokens == ["'word38'", "'word39'"]
    assert not (tmp_path / "out.partial").exists()


def test_rows_are_counted_by_fate(tmp_path: Path) -> None:
    base, post = side("b", WORDS, 42), side("p", ADDED, 48)
    trio = Trio(tmp_path, base, post, side("t", {**base.tokens, "mine": 45}, 50))
    report = trio.check()
    assert f"{EMBEDDING}: rows 40 summed, 3 taken from the delta, 1 kept from the target, 6 padding" in report.notes
    report = trio.apply(companions="target")
    text = "40 summed, 1 kept from the target, 9 padding, 3 of the delta left out"
    assert any(note.startswith(f"{EMBEDDING}: rows {text}") for note in report.notes)
    assert report.to_json()["notes"] == list(report.notes)
    provenance = json.loads((tmp_path / "out" / "paramdelta_provenance.json").read_text())
    assert provenance["notes"] == list(report.notes)
    assert f"{EMBEDDING}: rows matched by token: 42 in base, 48 in post, 8 new" in trio.extract().notes


@pytest.mark.parametrize("chunk", [None, 24], ids=["one chunk", "many chunks"])
def test_minus_zero_in_brought_rows(
    tmp_path: Path, dtype_name: str, chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """base ⊕ Δ is post to the bit, though 0 + −0 is +0; on another target it is +0."""
    if chunk:
        set_chunk_elements(monkeypatch, chunk)
    dtype = TORCH[dtype_name]
    base, post, target = (side(*model, dtype=dtype) for model in (("b", PERMUTED), ("p", ADDED), ("t", WORDS)))
    for name in (EMBEDDING, HEAD):
        post.tensors[name][41] = -0.0
        post.tensors[name][3, ::2] = -0.0
    trio = Trio(tmp_path, base, post, target)
    assert trio.extract().manifest.exactness.exceptions >= 16
    trio.check_base()
    trio.apply()
    found = trio.result()[EMBEDDING]
    assert not found[41].signbit().any()
    expected = in_posts_order(base, post, target, EMBEDDING)
    assert expected is not None
    assert_same({"": found}, {"": expected + 0.0})


def test_many_chunks_and_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that begin and end within rows, and runs that begin and end within chunks."""
    set_chunk_elements(monkeypatch, 52)
    monkeypatch.setattr(plan, "TASK_BYTES_MIN", 1)
    models = side("b", WORDS, 45), side("p", {**PERMUTED, "new": 44}, 50), side("t", PERMUTED, 47)
    trio = Trio(tmp_path, *models, shards=3)
    trio.check()
    trio.check_base()


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_files_whose_sizes_change(tmp_path: Path, shards: int) -> None:
    trio = Trio(tmp_path, side("b", WORDS), side("p", ADDED), side("t", WORDS), shards)
    index = tmp_path / "target" / "model.safetensors.index.json"
    if shards > 1:
        content = json.loads(index.read_text())
        content["metadata"] |= {"total_parameters": 1, "made_by": "somebody"}
        index.write_text(json.dumps(content))
    trio.check()
    model, target = open_checkpoint(tmp_path / "out"), open_checkpoint(tmp_path / "target")
    assert [file.name for file in model.files] == [file.name for file in target.files]
    assert list(model.tensors) == list(target.tensors)
    for file in model.files:
        with safe_open(file.path, "pt") as weights:
            assert weights.metadata() == {"format": "pt"}
            assert set(weights.keys()) == {span.name for span in file.header.tensors}
    if shards > 1:
        elements = sum(tensor.numel() for tensor in trio.result().values())
        found = json.loads((tmp_path / "out" / index.name).read_text())
        assert found["metadata"] == {"total_size": 2 * elements, "total_parameters": elements, "made_by": "somebody"}
        assert found["weight_map"] == content["weight_map"]


def summed(target: torch.Tensor, *addends: tuple[torch.Tensor, torch.Tensor, float]) -> torch.Tensor:
    wide = WIDE[target.dtype]
    total = target.to(wide)
    for base, post, weight in addends:
        total = total + (post.to(wide) - base.to(wide)) * torch.tensor(weight, dtype=wide)
    return total.to(target.dtype)


class Several:
    """Two deltas with vocabularies of their own, for one target."""

    def __init__(self, root: Path, posts: Sequence[Side], target: Side, bases: Sequence[Side]) -> None:
        self.root, self.target, self.posts, self.bases = root, target, posts, bases
        target.write(root / "target")
        for number, (base, post) in enumerate(zip(bases, posts, strict=True)):
            base.write(root / f"base{number}")
            post.write(root / f"post{number}")
            pd.extract(root / f"base{number}", root / f"post{number}", root / f"delta{number}")

    def apply(self, *weights: float, **options: Any) -> torch.Tensor:
        deltas = [pd.WeightedDelta(self.root / f"delta{number}", weight) for number, weight in enumerate(weights)]
        self.report = pd.apply(self.root / "target", deltas, self.root / "out", overwrite=True, **options)
        return read_weights(self.root / "out")[EMBEDDING]

    def row(self, token: str, *weights: float) -> torch.Tensor:
        """Return the sum of a token that base and all others have."""
        addends = []
        for base, post, weight in zip(self.bases, self.posts, weights, strict=True):
            if weight and base.row(token) is not None and post.row(token) is not None:
                addends.append(
                    (base.tensors[EMBEDDING][base.row(token)], post.tensors[EMBEDDING][post.row(token)], weight)
                )
        return summed(self.target.tensors[EMBEDDING][self.target.row(token)], *addends)


@pytest.fixture
def several(tmp_path: Path) -> Several:
    base = side("b", WORDS)
    posts = [side("p", (*WORDS, "<x>", "<both>")), side("q", {**PERMUTED, "<both>": 40, "<y>": 41})]
    return Several(tmp_path, posts, side("t", (*WORDS, "<y>")), [base, base])


def test_several_deltas_with_their_own_vocabularies(several: Several, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="would be lost"):  # <y> is the target's own, as far as the first knows
        several.apply(0.5, 0.5)
    several.target = side("t", {**several.target.tokens, "<y>": 45})
    several.target.write(tmp_path / "target")
    found = several.apply(0.5, 0.25)
    for word in WORDS:
        assert_same({"": found[WORDS.index(word)]}, {"": several.row(word, 0.5, 0.25)})
    first, second = (post.tensors[EMBEDDING] for post in several.posts)
    assert_same({"": found[40:42]}, {"": first[40:42]})  # whole, not halved, and the first one's <both>
    assert_same({"": found[45]}, {"": second[41]})  # <y> stays where the target has it, and is the second's
    assert found.shape[0] == 46
    assert any(
        f"{EMBEDDING}: rows of delta 1: 40 summed, 2 taken whole; of delta 2: 40 summed, 1" in n
        for n in several.report.notes
    )


def test_several_deltas_in_the_targets_order(several: Several) -> None:
    found = several.apply(0.5, 2.0, companions="target")
    for word in WORDS:
        assert_same({"": found[WORDS.index(word)]}, {"": several.row(word, 0.5, 2.0)})
    assert_same({"": found[40]}, {"": several.posts[1].tensors[EMBEDDING][41]})
    assert found.shape[0] == 41


@pytest.mark.parametrize("weights", [(0.0, 1.0), (-1.0, 1.0)])
def test_a_delta_that_is_not_wanted_brings_no_rows(several: Several, weights: tuple[float, float]) -> None:
    """The tokenizer is that of the first delta with a weight above 0; none of the others' new tokens are in it."""
    found = several.apply(*weights)
    assert_same({"": found[40:42]}, {"": several.posts[1].tensors[EMBEDDING][40:42]})
    for word in WORDS:
        assert_same({"": found[PERMUTED[word]]}, {"": several.row(word, *weights)})


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_no_rows_of_a_delta_below_one(tmp_path: Path, weight: float) -> None:
    """What post brought whole is no difference that could be taken away: the target's row stays."""
    base, post = side("b", WORDS), side("p", ADDED)
    several = Several(tmp_path, [post], side("t", ADDED), [base])
    found = several.apply(weight)
    assert_same({"": found[40:]}, {"": several.target.tensors[EMBEDDING][40:]})
    assert_same({"": found[:40]}, {"": torch.stack([several.row(word, weight) for word in WORDS])})


def test_a_row_that_one_delta_brings_and_another_changes(tmp_path: Path) -> None:
    """The second's base knew <x> already. Whole is whole: no sum of the first's row and the second's difference."""
    wider = side("b", (*WORDS, "<x>"))
    posts = [side("p", (*WORDS, "<x>")), side("q", (*WORDS, "<x>"))]
    for order in (slice(None), slice(None, None, -1)):
        root = tmp_path / str(order.step)
        root.mkdir()
        bases = [side("b", WORDS), wider]
        several = Several(root, posts[order], side("t", (*WORDS, "<x>")), bases[order])
        found = several.apply(1.0, 1.0)
        assert_same({"": found[40]}, {"": posts[0].tensors[EMBEDDING][40]})
        for word in WORDS:
            assert_same({"": found[WORDS.index(word)]}, {"": several.row(word, 1.0, 1.0)})


def test_weight_maps_on_embeddings(tmp_path: Path) -> None:
    """A factor of 0 leaves the target's rows alone, −0 and all; but they lie where the tokenizer says."""
    base, post, target = side("b", WORDS), side("p", {**PERMUTED, "<new>": 40}), side("t", WORDS)
    target.tensors[EMBEDDING][5] = -0.0
    trio = Trio(tmp_path, base, post, target)
    trio.extract()
    weight_map = pd.WeightMap((("embed_tokens", 0.0), ("lm_head", 0.5)))
    trio.apply(weight_map=weight_map)
    found = trio.result()
    for word in WORDS:
        at, row = PERMUTED[word], target.tokens[word]
        assert_same({"": found[EMBEDDING][at]}, {"": target.tensors[EMBEDDING][row]})
        expected = summed(target.tensors[HEAD][row], (base.tensors[HEAD][row], post.tensors[HEAD][at], 0.5))
        assert_same({"": found[HEAD][at]}, {"": expected})
    for name in (EMBEDDING, HEAD):
        assert_same({"": found[name][40]}, {"": post.tensors[name][40]})
    report = trio.apply(weight_map=weight_map, companions="target")
    assert_same({"": trio.result()[EMBEDDING]}, {"": target.tensors[EMBEDDING]})
    assert report.kept_tensors == 1


def test_half_a_delta_brings_whole_rows(tmp_path: Path) -> None:
    several = Several(tmp_path, [side("p", ADDED)], side("t", WORDS), [side("b", WORDS)])
    found = several.apply(0.5)
    assert_same({"": found[40:]}, {"": several.posts[0].tensors[EMBEDDING][40:]})
    assert_same({"": found[:40]}, {"": torch.stack([several.row(word, 0.5) for word in WORDS])})


@kind(
    ROWS,
    "an embedding or a head left out while post's tokenizer moves the rows",
    refused="its rows would name other words",
    remedy="`--companions target`",
)
def test_a_tensor_left_out_keeps_its_order_or_is_refused(tmp_path: Path) -> None:
    """A head in the target's order, under post's tokenizer, would name the wrong words, and tell nobody."""
    trio = Trio(tmp_path, side("b", WORDS), side("p", PERMUTED), side("t", WORDS))
    for name in ("lm_head", "embed_tokens", "embed|lm_head"):
        trio.extract(rules=pd.Rules(skips=(name,)))
        with pytest.raises(MismatchError, match="stay in the target's order") as caught:
            trio.apply()
        with remedied(caught.value, "--companions target"):
            trio.apply(companions="target")
            kept = {n: t for n, t in trio.target.tensors.items() if re.search(name, n)}
            expected = trio.expected("target") | kept
            assert_same({n: trio.result()[n] for n in expected}, expected)
    trio.extract()
    with pytest.raises(MismatchError, match="stay in the target's order"):
        trio.apply(rules=pd.Rules(skips=("lm_head",)))


def test_a_head_alone_is_a_vocabularys_too(tmp_path: Path) -> None:
    """The package has no embedding to tell by, but the target has: rows are matched by token all the same."""
    trio = Trio(tmp_path, side("b", WORDS), side("p", WORDS), side("t", PERMUTED))
    trio.extract(rules=pd.Rules(skips=("embed_tokens",)))
    trio.apply(companions="target")
    expected = {HEAD: trio.expected("target")[HEAD], EMBEDDING: trio.target.tensors[EMBEDDING]}
    assert_same({name: trio.result()[name] for name in expected}, expected)


def test_rows_that_moved_are_placed_whatever_the_tensor_is_called(tmp_path: Path) -> None:
    """Base's name tells nothing, post's did: the package says where the rows came from."""
    trio = Trio(tmp_path, side("b", WORDS), side("p", {**PERMUTED, "<new>": 40}), side("t", WORDS))
    names = {EMBEDDING: "table", HEAD: "last", MATRIX: MATRIX}
    for name, model in (("base", trio.base), ("target", trio.target)):
        write_model(tmp_path / name, {names[old]: tensor for old, tensor in model.tensors.items()})
    rules = pd.Rules(renames=((EMBEDDING, "table"), (HEAD, "last")))
    with pytest.raises(MismatchError, match=r"table: base has \[40, 8\], post has \[41, 8\]"):
        trio.extract(rules=rules)
    post = side("p", PERMUTED)
    post.write(tmp_path / "post")
    trio.extract(rules=rules)
    assert trio.apply("base").is_post
    assert_same(trio.result(), {names[old]: tensor for old, tensor in post.tensors.items()})


def test_whole_rows_are_no_evidence_against_kinship(tmp_path: Path) -> None:
    """A target that is base, but for a row of its own for one of post's new tokens."""
    base, post, target = side("b", WORDS), side("p", ADDED), side("b", (*WORDS, "<tool>"))
    trio = Trio(tmp_path, base, post, target)
    trio.extract()
    for companions in ("post", "target"):
        assert trio.apply(companions=companions).deltas[0].kinship.same_values


@kind(
    NOBODY,
    "an embedding that grew, and a head that is skipped",
    refused="the result would not load: they must be equally long",
    remedy="`--skip` for both or neither",
)
def test_an_embedding_does_not_outgrow_its_head(tmp_path: Path) -> None:
    trio = Trio(tmp_path, side("b", WORDS), side("p", WORDS, 48), side("t", WORDS))
    trio.extract()
    lengths = r"would be 40 in the result, but .* has 48|would be 48 .* has 40"
    with pytest.raises(MismatchError, match=lengths) as caught:
        trio.apply(rules=pd.Rules(skips=("lm_head",)))
    with remedied(caught.value, "use --skip for both or neither"):
        trio.apply(rules=pd.Rules(skips=("lm_head", "embed_tokens")))
        matrix = reference(*(model.tensors[MATRIX] for model in (trio.base, trio.post, trio.target)))
        assert_same(trio.result(), {**trio.target.tensors, MATRIX: matrix})
        trio.check()


def test_without_tokenizers(tmp_path: Path) -> None:
    base, post, target = side("b", WORDS), side("p", ADDED), side("t", WORDS)
    trio = Trio(tmp_path, base, post, target)
    for name in ("base", "post", "target"):
        (tmp_path / name / "tokenizer.json").unlink()
    with pytest.raises(MismatchError) as caught:
        trio.extract()
    assert "40 rows in base, 43 in post" in str(caught.value)
    assert "--base-tokenizer PATH --post-tokenizer PATH" in str(caught.value)
    side("p", WORDS).write(tmp_path / "post", tokenizer=False)
    trio.extract()
    trio.apply()
    same = side("p", WORDS)
    assert_same(
        trio.result(), {n: reference(base.tensors[n], same.tensors[n], target.tensors[n]) for n in base.tensors}
    )
    side("t", WORDS, 41).write(tmp_path / "target", tokenizer=False)
    with pytest.raises(MismatchError, match="41 rows in the target, 40 in the delta"):
        trio.apply()


def test_embeddings_that_are_not_wanted_need_no_tokenizers(tmp_path: Path) -> None:
    """Leaving them as they are by a weight of 0 is as good as leaving them out, and does not spoil the lineage."""
    base, post, target = side("b", WORDS), side("p", WORDS), side("t", WORDS, 44)
    for name, model in (("base", base), ("post", post), ("target", target)):
        model.write(tmp_path / name, tokenizer=False)
    extract_in(tmp_path)
    weight_map = pd.WeightMap((("embed_tokens|lm_head", 0.0),))
    report = apply_in(tmp_path, weight_map=weight_map)
    matrix = reference(*(model.tensors[MATRIX] for model in (base, post, target)))
    assert_same(read_weights(tmp_path / "out"), {**target.tensors, MATRIX: matrix})
    assert report.deltas[0].kinship.tensors == 1
    with pytest.raises(MismatchError, match="44 rows in the target, 40 in the delta"):
        apply_in(tmp_path, "target", "delta", "other")


@kind(
    ROWS,
    "vocabularies of different lengths, and a tokenizer that lies elsewhere",
    refused="nothing says which row is which",
    remedy="`--base-tokenizer PATH`, `--post-tokenizer PATH`, `--target-tokenizer PATH`",
)
def test_tokenizers_that_lie_elsewhere(tmp_path: Path) -> None:
    trio = Trio(tmp_path, side("b", WORDS), side("p", ADDED), side("t", PERMUTED))
    for name in ("base", "target"):
        (tmp_path / name / "tokenizer.json").rename(tmp_path / f"{name}-tokenizer.json")
        write_tokenizer(tmp_path / f"{name}-words", getattr(trio, name).tokens)
    runner, delta, out = CliRunner(), tmp_path / "delta", tmp_path / "out"
    arguments = ["extract", str(tmp_path / "base"), str(tmp_path / "post"), "-o", str(delta)]
    done = runner.invoke(main, arguments)
    assert done.exit_code == MismatchError.exit_code
    assert "--base-tokenizer PATH" in done.stderr
    assert "--post-tokenizer" not in done.stderr
    posts = ["--post-tokenizer", str(tmp_path / "post")]
    done = runner.invoke(main, [*arguments, "--base-tokenizer", str(tmp_path / "base-words"), *posts])
    assert done.exit_code == 0, done.output
    assert "40 in base, 43 in post, 3 new" in done.stdout
    arguments = ["apply", str(tmp_path / "target"), str(delta), "-o", str(out)]
    refused = runner.invoke(main, arguments)
    assert refused.exit_code == MismatchError.exit_code
    done = runner.invoke(main, [*arguments, "--target-tokenizer", str(tmp_path / "target-words")])
    assert done.exit_code == 0, done.output
    with remedied(refused.stderr, "give its tokenizer: --target-tokenizer PATH"):
        assert "rows 40 summed, 3 taken from the delta" in done.stdout
        expected = trio.expected("post")
        assert_same({name: trio.result()[name] for name in expected}, expected)
    for call in (
        lambda: trio.extract(base_tokenizer=tmp_path / "nowhere"),
        lambda: trio.extract(post_tokenizer=tmp_path / "post" / "tokenizer.json"),
        lambda: trio.apply(target_tokenizer=tmp_path / "nowhere"),
    ):
        with pytest.raises(OptionError, match="not a folder"):
            call()


def test_a_tokenizer_that_lies_elsewhere_comes_along(tmp_path: Path) -> None:
    """Post is one file, and its tokenizer in a folder: rows are matched by it, and the package carries it."""
    trio = Trio(tmp_path, side("b", WORDS), side("p", ADDED), side("t", WORDS))
    lone = (tmp_path / "elsewhere" / "model.safetensors").resolve()
    lone.parent.mkdir()
    (tmp_path / "post" / "model.safetensors").rename(lone)
    pd.extract(tmp_path / "base", lone, tmp_path / "delta", post_tokenizer=tmp_path / "post")
    pd.verify(tmp_path / "delta", base=tmp_path / "base", post=lone)
    trio.apply()
    expected = trio.expected("post")
    assert_same({name: trio.result()[name] for name in expected}, expected)
    words = [(tmp_path / folder / "tokenizer.json").read_bytes() for folder in ("post", "out")]
    assert words[0] == words[1]


def test_a_package_without_a_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    trio = Trio(tmp_path, side("b", WORDS), side("p", ADDED), side("t", WORDS))
    trio.extract()
    manifest = tmp_path / "delta" / "manifest.json"
    value = json.loads(manifest.read_text())
    value["companions"] = []
    manifest.write_text(json.dumps(value))
    shutil.rmtree(tmp_path / "delta" / "companions")
    with pytest.raises(MismatchError, match="extract again with post's tokenizer next to its weights"):
        trio.apply()


def test_kin_are_told_by_token(tmp_path: Path) -> None:
    """Row by row, a target with its tokens at other ids looks like a stranger; token by token it is kin."""
    trio = Trio(tmp_path, side("b", WORDS, width=64), side("p", ADDED, width=64), side("t", PERMUTED, width=64))
    trio.extract()
    for companions in ("post", "target"):
        correlation = trio.apply(companions=companions).deltas[0].kinship.correlation
        assert correlation is not None
        assert correlation > 0.99
    stranger = Side("t", PERMUTED, 40, 64)
    mixed = {name: tensor[torch.randperm(len(tensor))] for name, tensor in trio.target.tensors.items()}
    replace(stranger, tensors=mixed).write(tmp_path / "target")
    with pytest.raises(LineageError):
        trio.apply()


def test_resuming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "TASK_BYTES_MIN", 1)
    trio = Trio(tmp_path, side("b", WORDS), side("p", ADDED), side("t", PERMUTED), 2)

    for run in (trio.extract, trio.apply):
        with pytest.raises(StorageError, match="enough"):
            run(threads=1, progress=StopsAt(3))
        assert run(threads=1).resumed_tasks >= 1
    expected = trio.expected("post")
    assert_same({name: trio.result()[name] for name in expected}, expected)
    assert not list(tmp_path.glob("*.partial"))


@kind(ROWS, "BERT's vocabulary, with a bias of the head", works="all of them grow together")
def test_berts_vocabulary(tmp_path: Path) -> None:
    """Other names: an embedding without a head, a head's bias of one dimension, another embedding of equal length."""
    tensors = {}
    for label in ("base", "post", "target"):
        count = 43 if label == "post" else 40
        model = side(label, ADDED[:count])
        tensors[label] = {
            "bert.embeddings.word_embeddings.weight": model.tensors[EMBEDDING],
            "bert.embeddings.position_embeddings.weight": model.tensors[EMBEDDING][:40].clone(),
            "cls.predictions.bias": model.tensors[HEAD][:, 0].clone(),
        }
        write_model(tmp_path / label, tensors[label], config={"model_type": "bert", "vocab_size": count})
        write_tokenizer(tmp_path / label, model.tokens)
    extract_in(tmp_path)
    apply_in(tmp_path)
    found = read_weights(tmp_path / "out")
    for name, post in tensors["post"].items():
        count = len(tensors["base"][name])
        expected = reference(tensors["base"][name], post[:count], tensors["target"][name])
        assert_same({name: found[name]}, {name: torch.cat([expected, post[count:]])})
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 43


def test_shapes_that_are_no_vocabularys(tmp_path: Path) -> None:
    """A scalar called an embedding is a misfit, not a crash."""
    trio = Trio(tmp_path, side("b", WORDS), side("p", ADDED), side("t", WORDS))
    trio.extract()
    odd = {**trio.target.tensors, HEAD: torch.tensor(1.0, dtype=torch.bfloat16)}
    write_model(tmp_path / "odd", odd)
    with pytest.raises(MismatchError) as caught:
        apply_in(tmp_path, "odd")
    assert (HEAD, "shape") in {(mismatch.location, mismatch.kind) for mismatch in caught.value.mismatches}
    with pytest.raises(MismatchError) as caught:
        extract_in(tmp_path, "odd", "post", "other")
    assert (HEAD, "shape") in {(mismatch.location, mismatch.kind) for mismatch in caught.value.mismatches}
